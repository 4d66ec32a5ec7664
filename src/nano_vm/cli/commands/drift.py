"""Say whether the runs of a program still go as they went when they went well.

nano-vm drift PROGRAM                      hold the newer half of its runs against the older
nano-vm drift PROGRAM --baseline-runs 200 --save FILE
nano-vm drift PROGRAM --baseline FILE      hold all runs against a baseline that was kept
nano-vm drift PROGRAM --archetypes         hold every run against those of its own kind
nano-vm drift PROGRAM --windows 50         the measures of every 50 runs, against limits from the baseline
nano-vm drift PROGRAM --check              exit with 1 unless the runs are STABLE
nano-vm drift PROGRAM --pause              when they are DEGRADED, begin no more runs of it
nano-vm drift PROGRAM --resume             let runs of it begin again
nano-vm drift PROGRAM --alert URL          unless they are STABLE, post the report there as JSON
nano-vm drift --paused                     what is paused, by whom and why
nano-vm drift FILE --from xes              traces of other systems, oldest first: what `nano-vm measure` reads

PROGRAM is a name or a hash. Runs that have not ended do not count.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from typing import Any

import msgspec

from nano_vm.cli import exits
from nano_vm.cli.arguments import number, principal, whole
from nano_vm.cli.baselines import (
    read_archetypes,
    read_baseline,
    read_traces,
    write_archetypes,
    write_baseline,
)
from nano_vm.cli.console import Console, printable
from nano_vm.cli.session import Session
from nano_vm.errors import InputError, NanoVMError, NotFoundError
from nano_vm.journal.port import RunRecord
from nano_vm.observe import imports
from nano_vm.observe.alerts import check_address, post
from nano_vm.observe.archetypes import FAMILIES_MAX, ArchetypeMonitor, learn_archetypes
from nano_vm.observe.baseline import Baseline, learn
from nano_vm.observe.drift import RUNS_MIN, DriftMonitor, Health, Report, calibrate
from nano_vm.observe.escalation import AnyReport, pause_drifting
from nano_vm.observe.trajectory import Trajectory, of_trace
from nano_vm.observe.windows import SIZE, limits, to_dict, windows
from nano_vm.runtime.engine import Engine

RUNS_MAX = 10_000
WINDOWS_SHOWN = 20
MIX_UNLIKE = 0.001
_MARKS = {Health.STABLE: ("good", "good"), Health.DRIFTING: ("wait", "warn"), Health.DEGRADED: ("bad", "bad")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "program", metavar="PROGRAM|FILE", nargs="?", help="name or hash of the program; with --from a file"
    )
    parser.add_argument(
        "--from", dest="form", choices=sorted(imports.READERS), help="PROGRAM is a file of this form"
    )
    parser.add_argument("--baseline", metavar="FILE", help="a baseline that --save has written")
    parser.add_argument(
        "--baseline-runs",
        metavar="N",
        type=whole,
        help="learn from the N oldest runs (default: the older half)",
    )
    parser.add_argument("--save", metavar="FILE", help="write the baseline that was learned")
    parser.add_argument(
        "--false-alarm",
        metavar="P",
        type=number,
        default=0.05,
        help="probability of an alarm within the horizon when nothing has changed (default: 0.05)",
    )
    parser.add_argument("--horizon", metavar="N", type=whole, default=1_000, help="runs (default: 1000)")
    parser.add_argument(
        "--limit", metavar="N", type=whole, default=RUNS_MAX, help="look at the N newest runs"
    )
    parser.add_argument(
        "--archetypes",
        metavar="N",
        type=whole,
        nargs="?",
        const=FAMILIES_MAX,
        help=f"hold runs against those of their own family; at most N families (default: {FAMILIES_MAX})",
    )
    parser.add_argument(
        "--windows",
        metavar="N",
        type=whole,
        nargs="?",
        const=SIZE,
        help=f"also show the measures of every N runs (default: {SIZE})",
    )
    parser.add_argument("--alert", metavar="URL", help="post the report there unless the runs are STABLE")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--pause", action="store_true", help="begin no more runs of it when they are DEGRADED")
    what.add_argument("--resume", action="store_true", help="lift the pause; nothing is measured")
    what.add_argument("--paused", action="store_true", help="list what is paused")
    parser.add_argument("--reason", metavar="TEXT", default="", help="with --resume: why; kept with it")
    parser.add_argument("--check", action="store_true", help="exit with 1 unless the runs are STABLE")


def execute(args: argparse.Namespace, console: Console) -> int:
    _check(args)
    if args.paused:
        return _list_paused(args, console)
    if args.resume:
        return _resume(args, console)
    if args.form is not None:
        runs, skipped = _foreign(args), 0
    else:
        with Session(args) as session:
            runs, skipped = _trajectories(session, _records(session, args))
    if skipped:
        console.note(f"{skipped} runs are left out: their journals cannot be read any more")
    if not runs:
        raise NotFoundError("RUN_NOT_FOUND", "none of the runs can be read", help="`nano-vm verify` says why")
    watch = _whole if args.archetypes is None else _by_archetype
    document, report = watch(args, console, runs)
    health = report.health
    if args.pause:
        document["paused"] = health is Health.DEGRADED
        if health is Health.DEGRADED:
            _pause(args, console, runs[0].program, report)
    if args.alert is not None and health is not Health.STABLE:
        post(args.alert, document)
        console.line("  alerted       the report was sent")
    console.document(document)
    return exits.FAILED if args.check and health is not Health.STABLE else exits.DONE


def _check(args: argparse.Namespace) -> None:
    if not 0 < args.limit <= RUNS_MAX:
        raise InputError("USAGE", f"--limit is a number from 1 to {RUNS_MAX}", help="--limit 1000")
    if (args.program is None) is not args.paused:
        raise InputError("USAGE", "name a program, or say --paused", help="nano-vm drift PROGRAM")
    if args.alert is not None:
        check_address(args.alert)
    if args.windows is not None and args.archetypes is not None:
        raise InputError(
            "USAGE", "windows are of all runs of a program", help="either --windows or --archetypes"
        )
    if args.form is not None and (args.pause or args.resume):
        raise InputError("USAGE", "runs of other systems are not ours to pause", help="leave --from out")
    if args.baseline and (args.save or args.baseline_runs is not None):
        raise InputError("USAGE", "a baseline is read or learned, not both", help="leave --baseline out")


def _whole(
    args: argparse.Namespace, console: Console, runs: list[Trajectory]
) -> tuple[dict[str, Any], AnyReport]:
    """All runs of the program against one baseline."""
    if args.baseline:
        baseline, watched = read_baseline(args.baseline, runs[0].program), runs
    else:
        count = _baseline_runs(args, runs)
        baseline, watched = learn(runs[:count]), runs[count:]
    calibration = calibrate(baseline, false_alarm=args.false_alarm, horizon=args.horizon)
    if args.save:
        write_baseline(args.save, baseline)
    monitor = DriftMonitor(baseline, calibration)
    for run in watched:
        monitor.observe(run)
    report = monitor.report()
    program = {"name": baseline.name, "hash": baseline.program}
    _headline(console, report.health, baseline.name)
    _show(console, baseline, report)
    document = {"program": program, "baseline_runs": baseline.runs, **report.to_dict()}
    if args.windows is not None:
        document |= _windows(args, console, baseline, watched)
    return document, report


def _windows(
    args: argparse.Namespace, console: Console, baseline: Baseline, watched: list[Trajectory]
) -> dict[str, Any]:
    """The measures of the watched runs, window by window."""
    held_to = limits(baseline, size=args.windows)
    found = list(windows(baseline, watched, held_to))
    console.line(f"  windows of {held_to.size} runs; over the limit of the baseline in:")
    for one in found[-WINDOWS_SHOWN:]:
        shown = [f"{name} {one.values[name]:.3g} (limit {held_to.values[name]:.3g})" for name in one.over]
        what = ", ".join(shown) or ("nothing" if one.runs == held_to.size else "not complete yet")
        console.line(f"    {printable(one.first)} … {printable(one.last)}: {what}")
    return to_dict(found, held_to)


def _by_archetype(
    args: argparse.Namespace, console: Console, runs: list[Trajectory]
) -> tuple[dict[str, Any], AnyReport]:
    """Every run against the baseline of its own family."""
    if args.baseline:
        archetypes, watched = read_archetypes(args.baseline, runs[0].program), runs
    else:
        count = _baseline_runs(args, runs)
        archetypes, watched = learn_archetypes(runs[:count], most=args.archetypes), runs[count:]
    monitor = ArchetypeMonitor(archetypes, false_alarm=args.false_alarm, horizon=args.horizon)
    if args.save:
        write_archetypes(args.save, archetypes)
    for run in watched:
        monitor.observe(run)
    report = monitor.report()
    _headline(console, report.health, archetypes.name)
    if len(report.families) > 1:
        unlike = report.mix < MIX_UNLIKE
        shares = "not in the shares of the baseline" if unlike else "as in the baseline"
        console.line(f"  kinds of work {shares} (p {report.mix:.2g})", "warn" if unlike else None)
    for family, one in zip(archetypes.families, report.families, strict=True):
        symbol, style = _MARKS[one.report.health]
        console.line(
            f"{console.style(console.symbol(symbol), style)} {one.report.health.value}  {printable(one.name)}: "
            f"{one.share:.0%} of the runs, {one.expected_share:.0%} in the baseline"
        )
        _show(console, family.baseline, one.report)
    program = {"name": archetypes.name, "hash": archetypes.program}
    return {"program": program, "baseline_runs": archetypes.runs, **report.to_dict()}, report


# --- pauses -----------------------------------------------------------------------------------------------------


def _pause(args: argparse.Namespace, console: Console, program: str, report: AnyReport) -> None:
    with Session(args) as session:
        pause = pause_drifting(session.engine, program, report.health, report, tenant=args.tenant)
    console.line(
        f"  paused        no more runs of {program[:19]}… are begun: {printable(pause.reason)}", "bad"
    )


def _resume(args: argparse.Namespace, console: Console) -> int:
    """Lift whatever pause there is of this program: under its name, and of any version of it."""
    with Session(args) as session:
        engine = session.engine
        lifted = [
            one for one in engine.paused() if args.program in (one.program, _name_of(engine, one.program))
        ]
        for pause in lifted:
            asyncio.run(
                engine.lift_pause(pause.program, args.reason, by=principal(args), tenant=pause.tenant)
            )
    console.document({"lifted": [msgspec.to_builtins(pause) for pause in lifted]})
    for pause in lifted:
        console.line(f"{printable(pause.program)}: runs begin again")
    if not lifted:
        console.line(f"{printable(args.program)}: it was not paused")
    return exits.DONE


def _name_of(engine: Engine, program: str) -> str | None:
    """The name of a program that is paused by its hash."""
    if not program.startswith("sha256:"):
        return program
    try:
        return engine.load_program(program).name
    except NanoVMError:
        return None  # nobody has stored it


def _list_paused(args: argparse.Namespace, console: Console) -> int:
    with Session(args) as session:
        held = session.engine.paused()
    console.document({"paused": [msgspec.to_builtins(pause) for pause in held]})
    for pause in held:
        console.line(
            f"{printable(pause.program)}  by {printable(pause.by) or 'nobody named'}: {printable(pause.reason)}"
        )
    if not held:
        console.line("nothing is paused")
    return exits.DONE


def _trajectories(session: Session, records: list[RunRecord]) -> tuple[list[Trajectory], int]:
    """The runs as trajectories, and how many of them cannot be read: parts of them are erased, or damaged."""
    runs = []
    for record in records:
        with contextlib.suppress(NanoVMError):
            runs.append(of_trace(session.engine.trace(record.run_id)))
    return runs, len(records) - len(runs)


def _foreign(args: argparse.Namespace) -> list[Trajectory]:
    """The traces in a file, oldest first; those without a time in the order of the file."""
    found = read_traces(args.form, args.program)
    found.sort(key=lambda run: run.started_at_ms)
    return found[-args.limit :]


def _records(session: Session, args: argparse.Namespace) -> list[RunRecord]:
    """The ended runs of one version of the program, oldest first."""
    by_hash = args.program.startswith("sha256:")
    found = session.engine.runs(program=None if by_hash else args.program, limit=args.limit)
    ended = [record for record in found if record.status not in ("RUNNING", "SUSPENDED")]
    if by_hash:
        ended = [record for record in ended if record.program_hash == args.program]
    if not ended:
        raise NotFoundError(
            "RUN_NOT_FOUND",
            f"there is no ended run of `{printable(args.program)}`",
            help="`nano-vm runs` lists them",
        )
    newest = ended[0].program_hash  # another version is another program: it goes other ways by design
    return [record for record in reversed(ended) if record.program_hash == newest]


def _baseline_runs(args: argparse.Namespace, runs: list[Trajectory]) -> int:
    """How many of the oldest runs the baseline is made of."""
    count = len(runs) // 2 if args.baseline_runs is None else args.baseline_runs
    if count < RUNS_MIN or count > len(runs):
        raise InputError(
            "SMALL_BASELINE",
            f"{len(runs)} runs have ended, and a baseline of {count} cannot be made of them",
            help=f"a baseline needs at least {RUNS_MIN} runs: wait for more, or use --baseline-runs",
        )
    return int(count)


def _headline(console: Console, health: Health, name: str) -> None:
    symbol, style = _MARKS[health]
    console.line(
        f"{console.style(console.symbol(symbol), style)} {console.style(health.value, style)}  {printable(name)}"
    )


def _show(console: Console, baseline: Baseline, report: Report) -> None:
    calibration = report.calibration
    console.line(f"  baseline      {baseline.runs} runs, surprisal {calibration.mean:.3f} bits per move")
    console.line(
        f"  since then    {report.runs} runs, surprisal {report.surprisal:.3f}, shift {report.shift:+.1f} sd"
    )
    console.line(
        f"  CUSUM         {report.cusum:.1f} of {report.threshold:.1f} (false alarms: at most "
        f"{calibration.false_alarm:g} in {calibration.horizon} runs)"
    )
    if report.length_threshold:
        console.line(
            f"  length        {report.moves:.1f} moves, expected {report.expected_moves:.1f}; CUSUM "
            f"{report.length_cusum:.1f} of {report.length_threshold:.1f}"
        )
    console.line(f"  change        probability {report.changed:.2f}")
    if report.since is not None:
        console.line(f"  began about   {report.since}")
    if report.health is not Health.STABLE:
        console.line(f"  success       {report.success[0]:.0%}, in the baseline {report.success[1]:.0%}")
    for row in report.evidence:
        console.line(
            f"  surprises     {printable(row['from'])} -> {printable(row['to'])}: {row['seen']:.0%} of the time, "
            f"expected {row['expected']:.1%}"
        )
