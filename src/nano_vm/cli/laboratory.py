"""`nano-vm demo kyc`: shows what the KYC laboratory found. Nothing is decided here, nothing is scripted."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano_vm.cli import exits
from nano_vm.cli.console import Console, printable

if TYPE_CHECKING:
    from nano_vm.demos.kyc.outcome import LabResult, Side

ALL = "all"


def play(args: argparse.Namespace, console: Console, directory: Path) -> int:
    """The laboratory in a directory.

    Raises:
        InputError: USAGE for an unknown injector. RuntimeFault: EXTRA_MISSING without the extra `vault`.
    """
    from nano_vm.demos.kyc import lab

    kept = str(directory) if args.keep is not None else None
    if args.inject is None:
        return _healthy(console, directory, kept)
    names = [one.name for one in lab.INJECTORS] if args.inject == ALL else [lab.injector(args.inject).name]
    results = []
    for name in names:
        place = directory / name
        place.mkdir()
        result = lab.run(name, directory=place)
        results.append(result)
        _show(console, result, kept)
    held = all(result.governed.held for result in results)
    code = exits.DONE if held else exits.FAILED
    if len(results) > 1:
        _summary(console, results)
    console.document(
        {
            "ok": held,
            "directory": kept,
            "results": [lab.to_dict(result) for result in results],
            "exit_code": code,
        }
    )
    return code


def _healthy(console: Console, directory: Path, kept: str | None) -> int:
    """One honest application, and the list of attacks."""
    import msgspec

    from nano_vm.demos.kyc import lab

    naive, governed = lab.healthy(directory)
    ok = governed.held and governed.status == "SUCCESS"
    console.line(
        "One honest applicant, reviewed twice: collect, sanctions, adverse media, agent review, human approval, seal"
    )
    for side in (naive, governed):
        console.line()
        console.line(f"{side.name}: {side.status}", "bold")
        for step in side.steps:
            mark = {"SUCCESS": "good", "FAILED": "bad"}.get(step.status, "dot")
            console.line(
                f"  {console.symbol(mark)} {printable(step.step):<30} {step.status:<8} {printable(step.text)}".rstrip()
            )
        _ledger(console, side)
        for line in side.evidence:
            console.line(f"  {printable(line)}", "dim")
    console.line()
    console.line("Now attack both: nano-vm demo kyc --inject NAME", "bold")
    for one in lab.INJECTORS:
        console.line(f"  {one.name:<16} {one.title}")
    console.line(f"  {ALL:<16} every one of them")
    code = exits.DONE if ok else exits.FAILED
    console.document(
        {
            "ok": ok,
            "directory": kept,
            "healthy": {side.name: msgspec.to_builtins(side) for side in (naive, governed)},
            "injectors": [msgspec.to_builtins(one) for one in lab.INJECTORS],
            "exit_code": code,
        }
    )
    return code


def _show(console: Console, result: LabResult, kept: str | None) -> None:
    """One attack: each attempt on both, what the bank did, and what there is to show for it."""
    about = result.injector
    console.line()
    console.line(f"{about.name}: {about.title}", "bold")
    console.line(f"  {about.attack}")
    console.line(f"  against {about.promise}")
    for number, (plain, governed) in enumerate(
        zip(result.naive.attempts, result.governed.attempts, strict=True), 1
    ):
        console.line(f"  {number}. {plain.what}")
        for name, attempt in (("naive", plain), ("governed", governed)):
            style = "bad" if attempt.through else "good"
            sign = console.style(console.symbol(style), style)
            came = "got through" if attempt.through else "held"
            console.line(f"       {name:<8}  {sign} {came}: {printable(attempt.answer)}")
    for side in (result.naive, result.governed):
        _ledger(console, side, side.name)
    for line in result.governed.evidence:
        console.line(f"  {printable(line)}", "dim")
    if kept is not None and result.governed.store is not None:
        console.line(f"  database  {result.governed.store}", "dim")


def _ledger(console: Console, side: Side, name: str = "") -> None:
    counts: Counter[tuple[str, str]] = Counter((effect.what, effect.detail) for effect in side.effects)
    text = ", ".join(
        f"{what} {detail}" + (f" ({n} times)" if n > 1 else "") for (what, detail), n in counts.items()
    )
    console.line(f"  ledger of the bank{', ' * bool(name)}{name}: {printable(text) or 'empty'}")


def _summary(console: Console, results: list[LabResult]) -> None:
    console.line()
    console.line(f"{'attack':<16}  {'naive':<22}  governed", "bold")
    for result in results:
        console.line(f"{result.injector.name:<16}  {_count(result.naive):<22}  {_count(result.governed)}")


def _count(side: Any) -> str:
    through = sum(attempt.through for attempt in side.attempts)
    return (
        f"{through} of {len(side.attempts)} got through"
        if not side.held
        else f"held, {len(side.attempts)} of {len(side.attempts)}"
    )
