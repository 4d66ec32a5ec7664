"""Print a completion script.

bash:  source <(nano-vm completion bash)
zsh:   source <(nano-vm completion zsh)
fish:  nano-vm completion fish | source
"""

from __future__ import annotations

import argparse

from nano_vm.cli import exits
from nano_vm.cli.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def execute(args: argparse.Namespace, console: Console) -> int:
    script = {"bash": bash, "zsh": zsh, "fish": fish}[args.shell]()
    console.document({"shell": args.shell, "script": script})
    console.line(script.rstrip())
    return exits.DONE


def options() -> dict[str, dict[str, str]]:
    """Every command's options, with what each is for."""
    from nano_vm.cli.main import COMMANDS, command_module, command_parser

    found: dict[str, dict[str, str]] = {}
    for name in COMMANDS:
        parser = command_parser(name, command_module(name))
        found[name] = {
            option: (action.help or "").replace("'", "")
            for action in parser._actions
            for option in action.option_strings
            if option.startswith("--")
        }
    return found


def _choices() -> dict[str, str]:
    return {"completion": "bash zsh fish", "demo": "refund", "schema": "program"}


def bash() -> str:
    cases = "\n".join(
        f"    {name}) words='{' '.join([*found, *_choices().get(name, '').split()])}' ;;"
        for name, found in options().items()
    )
    names = " ".join(options())
    return f"""_nano_vm() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} command='' words='' each
  for each in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case " {names} " in *" $each "*) command=$each; break ;; esac
  done
  case $command in
    '') words='{names}' ;;
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  if [[ -n $command && $word != -* ]]; then COMPREPLY+=($(compgen -f -- "$word")); fi
}}
complete -o filenames -F _nano_vm nano-vm
"""


def zsh() -> str:
    return "autoload -U +X bashcompinit && bashcompinit\n" + bash()


def fish() -> str:
    from nano_vm.cli.main import COMMANDS

    lines = [
        f"complete -c nano-vm -n __fish_use_subcommand -f -a {name} -d '{summary.replace(chr(39), '')}'"
        for name, summary in COMMANDS.items()
    ]
    for name, found in options().items():
        seen = f"'__fish_seen_subcommand_from {name}'"
        lines += [
            f"complete -c nano-vm -n {seen} -l {option[2:]} -d '{text}'" for option, text in found.items()
        ]
        if name in _choices():
            lines.append(f"complete -c nano-vm -n {seen} -f -a '{_choices()[name]}'")
    return "\n".join(lines) + "\n"
