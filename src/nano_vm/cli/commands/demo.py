"""See a governed refund run, be killed, recover, wait for an approval, and prove itself.

  nano-vm demo refund                 in a temporary directory
  nano-vm demo refund --keep DIR      keep the program, the tools, the database and the ledger
  nano-vm demo kyc                    a review of an applicant, written by hand and as a program, side by side
  nano-vm demo kyc --inject NAME      an attack on both (`all`: every attack); needs the extra `vault`

refund: every command shown is run as shown, each in a process of its own.
kyc: exit code 0 when the governed review held, 1 when something got through.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from nano_vm.cli import exits
from nano_vm.cli.console import Console
from nano_vm.cli.session import invocation
from nano_vm.errors import InputError, RuntimeFault

PROGRAM = "refund.yaml"
TOOLS = "refund_tools.py"
RUN_ID = "demo-refund"
STORE = "demo.db"
DRIVE = ("--store", STORE, "--tools", TOOLS, "--model", "mock:low")
INPUTS = ("--input", "order_id=A-1002", "--input", "message=The parcel never arrived.")
PAUSE = "NANO_VM_LEDGER_PAUSE"  # names the effect after which the payment provider's answer never comes
AMOUNT = b'"amount":240'
KILL_WITHIN_SECONDS = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", choices=("refund", "kyc"), nargs="?", default="refund", help="which demonstration"
    )
    parser.add_argument("--inject", metavar="NAME", help="kyc: an attack, or `all`")
    parser.add_argument("--keep", metavar="DIR", help="work in DIR (new or empty) and leave everything there")


def execute(args: argparse.Namespace, console: Console) -> int:
    if args.name == "kyc":
        from nano_vm.cli import laboratory

        play = laboratory.play
    elif args.inject is not None:
        raise InputError("USAGE", "--inject is for `demo kyc`", help="nano-vm demo kyc --inject all")
    else:
        play = _refund
    if args.keep is None:
        with tempfile.TemporaryDirectory(prefix="nano-vm-demo-") as temporary:
            return play(args, console, Path(temporary))
    directory = Path(args.keep)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError("USAGE", f"`{directory}` is not empty", help="--keep takes a new or empty directory")
    directory.mkdir(parents=True, exist_ok=True)
    return play(args, console, directory.resolve())


def _refund(args: argparse.Namespace, console: Console, directory: Path) -> int:
    return Demo(console, directory, kept=args.keep is not None).play()


class Demo:
    """The demonstration, act by act. Everything it says is read from what the processes left behind."""

    def __init__(self, console: Console, directory: Path, *, kept: bool) -> None:
        self.console = console
        self.directory = directory
        self.kept = kept
        self.commands: list[dict[str, Any]] = []
        ours = ("NANO_VM_STORE", "NANO_VM_LEDGER", PAUSE)
        self.environment = {name: value for name, value in os.environ.items() if name not in ours}
        script = Path(sys.argv[0])
        if script.name == "nano-vm" and script.is_file() and os.access(script, os.X_OK):
            self.program = [str(script.absolute())]
        else:
            self.program = [sys.executable, "-m", "nano_vm.cli"]
            root = str(Path(__file__).parents[3])
            known = self.environment.get("PYTHONPATH")
            self.environment["PYTHONPATH"] = root if not known else os.pathsep.join((root, known))
        shown = invocation()
        self.shown = shown if shown == "nano-vm" or " " in shown else str(script.absolute())

    def play(self) -> int:
        """All acts, in order.

        Raises:
            RuntimeFault: DEMO, when something did not go as it should.
        """
        say = self.console.line
        source = resources.files("nano_vm.cli") / "demo_data"
        for name in (PROGRAM, TOOLS):
            (self.directory / name).write_bytes((source / name).read_bytes())
        say(f"A refund for order A-1002, in {self.directory}")
        say(f"  $ cd {self.directory}", "bold")
        self._check()
        killed = self._kill_in_the_middle()
        self._recover()
        self._approve()
        self._verify()
        tampered = self._tamper()
        self._farewell()
        self.console.document(
            {
                "ok": True,
                "directory": str(self.directory) if self.kept else None,
                "trace_id": RUN_ID,
                "killed_pid": killed,
                "commands": self.commands,
                "ledger": self.ledger(),
                "tampered": tampered,
                "exit_code": exits.DONE,
            }
        )
        return exits.DONE

    # --- acts -------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        self._title(1, "The program is checked before anything runs")
        self._call(exits.DONE, "check", PROGRAM, "--tools", TOOLS)

    def _kill_in_the_middle(self) -> int:
        self._title(2, "It runs, and is killed in the middle of a tool")
        self._say(f"{PAUSE}=reserve: the payment provider does its work, but its answer never comes.")
        words = ("run", PROGRAM, "--trace-id", RUN_ID, *DRIVE, *INPUTS)
        self._prompt(*words, prefix=f"{PAUSE}=reserve ")
        output = self.directory / "killed.out"
        with output.open("wb") as file:
            child = subprocess.Popen(
                [*self.program, *words],
                cwd=self.directory,
                env={**self.environment, PAUSE: "reserve"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            try:
                self._await_line(child, "reserve")
            finally:
                if child.poll() is None:
                    child.kill()
                child.wait()
        self._show(output.read_text(encoding="utf-8"))
        output.unlink()
        if child.returncode != -signal.SIGKILL:
            raise self._broken(f"the run ended by itself with {child.returncode}")
        self._prompt(f"kill -9 {child.pid}", plain=True)
        self.commands.append({"command": words, "exit_code": child.returncode})
        self._say(f"Process {child.pid} is dead. The ledger is outside of it and says what really happened:")
        self._show_ledger()
        self._expect({"reserve": 1})
        return child.pid

    def _recover(self) -> None:
        self._title(3, "Another process takes the run up")
        self._call(exits.DONE, "recover", *DRIVE)
        events = [event for entry in self._trace()["entries"] for event in entry["events"]]
        asked = sum(_is(event, "StepStarted", "assess_risk") for event in events)
        settled = [event["facts"]["by"] for event in events if _is(event, "OutcomeResolved", "reserve")]
        if asked != 1 or settled != ["reconcile"]:
            raise self._broken("a finished step was repeated, or the unknown outcome was not reconciled")
        counts = self._expect({"reserve": 1})
        self._say(f"The model was asked {asked} time: what was finished is not repeated.")
        self._say(
            f"What became of `reserve` was unknown; its {settled[0]} function asked the provider. "
            f"Reserved: {counts['reserve']} time."
        )

    def _approve(self) -> None:
        self._title(4, "It waits for an approval, and not for anybody's")
        self._call(exits.SUSPENDED, "resume", RUN_ID, "--deny", "--principal", "tom", *DRIVE, refused=True)
        self._expect({"reserve": 1})
        self._title(5, "A supervisor approves, from another process")
        words = ("resume", RUN_ID, "--approve", "--principal", "maria", "--role", "supervisor", *DRIVE)
        self._call(exits.DONE, *words)
        self._title(6, "The refund was executed exactly once")
        self._show_ledger()
        once = {"reserve": 1, "refund": 1, "notify": 1}
        self._expect(once)
        self._say("The same approval again gets the same answer and does nothing:")
        self._call(exits.DONE, *words, "--quiet")
        counts = self._expect(once)
        self._say("Ledger: " + ", ".join(f"{what} {count} time" for what, count in counts.items()))

    def _verify(self) -> None:
        self._title(7, "The journal proves what happened")
        self._call(exits.DONE, "verify", "--store", STORE)

    def _tamper(self) -> dict[str, Any]:
        self._title(8, "One changed byte in a copy of the database does not go unnoticed")
        copy = self.directory / "tampered.db"
        # Every process above has closed the database, so that its write-ahead log is in the file.
        if (self.directory / f"{STORE}-wal").exists():
            raise self._broken("the database is still in use")
        data = (self.directory / STORE).read_bytes()
        copy.write_bytes(data)
        place = data.find(AMOUNT) + len(AMOUNT) - 3
        if place < len(AMOUNT):
            raise self._broken("the amount is not in the copy")
        with copy.open("r+b") as file:
            file.seek(place)
            file.write(b"9")
        self._prompt(
            f"cp {STORE} tampered.db && printf 9 | dd of=tampered.db bs=1 seek={place} conv=notrunc",
            plain=True,
        )
        changed = sum(a != b for a, b in zip(data, copy.read_bytes(), strict=True))
        self._say(f"{changed} byte of {len(data)} changed: an amount of 240 has become one of 940")
        self._call(exits.VERIFICATION, "verify", "--store", "tampered.db")
        return {"bytes": changed, "offset": place, "exit_code": exits.VERIFICATION}

    def _farewell(self) -> None:
        say = self.console.line
        say()
        say("Now your own: a program in YAML, its tools in Python.", "bold")
        say(f"  {self.shown} run my.yaml --tools my_tools.py --model mock:yes --input name=value")
        if self.kept:
            say(f"The files of this demonstration are in {self.directory}")
        else:
            say(
                f"The files of this demonstration are gone; `{self.shown} demo refund --keep DIR` keeps them."
            )

    # --- means ------------------------------------------------------------------------------------------------

    def _title(self, number: int, text: str) -> None:
        self.console.line()
        self.console.line(f"{number}. {text}", "bold")

    def _say(self, text: str) -> None:
        self.console.line(f"  {text}")

    def _prompt(self, *words: str, plain: bool = False, prefix: str = "") -> None:
        import shlex

        text = words[0] if plain else f"{prefix}{self.shown} {shlex.join(words)}"
        self.console.line(f"  $ {text}", "bold")

    def _show(self, text: str) -> None:
        for line in text.splitlines():
            self.console.line(f"    {line}".rstrip())

    def _call(self, expected: int, *words: str, refused: bool = False) -> None:
        """Run a command of this very command line and show what it says. `refused`: the run stays as it is, the
        command ends with a refusal."""
        self._prompt(*words)
        code, text = self._run(words)
        self._show(text)
        self._say(f"exit code {code}")
        self.commands.append({"command": list(words), "exit_code": code})
        if refused:
            if code != 4 or self._status() != "SUSPENDED":
                raise self._broken("the refusal was not one")
        elif code != expected:
            raise self._broken(f"exit code {code} instead of {expected}")

    def _run(self, words: Sequence[str]) -> tuple[int, str]:
        done = subprocess.run(
            [*self.program, *words],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        return done.returncode, done.stdout.decode("utf-8", "replace")

    def _await_line(self, child: subprocess.Popen[bytes], what: str) -> None:
        """Wait until the ledger says that something was done."""
        deadline = time.monotonic() + KILL_WITHIN_SECONDS
        while not any(line["effect"] == what for line in self.ledger()):
            if child.poll() is not None or time.monotonic() > deadline:
                raise self._broken("the run did not come to the tool")
            time.sleep(0.01)

    def ledger(self) -> list[dict[str, Any]]:
        path = self.directory / "ledger.jsonl"
        if not path.exists():
            return []
        # A line that is still being written has no end yet.
        whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def _show_ledger(self) -> None:
        self._prompt("cat ledger.jsonl", plain=True)
        for line in self.ledger():
            self._show(json.dumps(line))

    def _expect(self, wanted: dict[str, int]) -> dict[str, int]:
        counts: dict[str, int] = {}
        for line in self.ledger():
            counts[line["effect"]] = counts.get(line["effect"], 0) + 1
        if counts != wanted:
            raise self._broken(f"the ledger counts {counts}, not {wanted}")
        return counts

    def _trace(self) -> dict[str, Any]:
        code, text = self._run(("trace", RUN_ID, "--events", "--json", "--store", STORE))
        if code != exits.DONE:
            raise self._broken("the trace cannot be read")
        trace: dict[str, Any] = json.loads(text)
        return trace

    def _status(self) -> str:
        code, text = self._run(("trace", RUN_ID, "--json", "--store", STORE))
        return str(json.loads(text)["status"]) if code == exits.DONE else "?"

    def _broken(self, what: str) -> RuntimeFault:
        return RuntimeFault(
            "DEMO",
            f"the demonstration failed: {what}",
            help="report it with the output above",
            facts={"what": what},
        )


def _is(event: dict[str, Any], type: str, step: str) -> bool:
    return bool(event["type"] == type and event["facts"].get("step") == step)
