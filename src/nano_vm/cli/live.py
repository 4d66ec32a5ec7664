"""Runs as they go: journal events as lines, or as a tree that redraws itself on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nano_vm.cli.console import Console, printable
from nano_vm.observe.describe import Line, describe

if TYPE_CHECKING:
    from nano_vm.cli.driving import Listen
    from nano_vm.runtime.engine import Progress

__all__ = ["Line", "describe", "showing", "text_of"]

_COLOURS = {"good": "green", "bad": "red", "busy": "cyan", "wait": "yellow", "unknown": "yellow"}


def text_of(console: Console, line: Line) -> str:
    place = f"{printable(line.step)}  " if line.step else ""
    style = line.symbol if line.symbol in ("good", "bad", "busy") else None
    return f"  {console.style(console.symbol(line.symbol), style)} {place}{line.text}"


@contextmanager
def showing(console: Console, *, result: bool = False) -> Iterator[Listen | None]:
    """A listener that shows events as they are journaled; None when nobody looks. With `result` they are what the
    command was asked for, and go to standard output; else they are notes."""
    if console.json_only or console.quiet:
        yield None
    elif console.is_terminal and console.colour:
        with _tree(console) as listen:
            yield listen
    else:
        write = console.line if result else console.note
        yield lambda progress: write(text_of(console, describe(progress.event)))


@contextmanager
def _tree(console: Console) -> Iterator[Listen]:
    from rich.console import Console as RichConsole
    from rich.live import Live
    from rich.text import Text
    from rich.tree import Tree

    root = Tree(Text("running", "bold"))
    rows: dict[tuple[str, int], Tree] = {}

    def listen(progress: Progress) -> None:
        line = describe(progress.event)
        key = (line.step, getattr(progress.event, "occurrence", 1))
        label = Text.assemble(
            (console.symbol(line.symbol), _COLOURS.get(line.symbol, "dim")), f" {line.step}  {line.text}"
        )
        if not line.step:
            root.label = Text(line.text, "bold")
        elif key in rows:
            rows[key].label = label
        else:
            rows[key] = root.add(label)

    # The tree goes when the run stops: what is shown then is computed from the journal.
    with Live(root, console=RichConsole(file=console.out), transient=True, refresh_per_second=8):
        yield listen
