"""Drift: whether the runs of a program still go as they went when they went well."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import streamlit as st

from nano_vm.errors import NanoVMError
from nano_vm.journal.port import RunRecord
from nano_vm.journal.trace import Trace
from nano_vm.observe.baseline import learn
from nano_vm.observe.drift import RUNS_MIN, DriftMonitor, Report, calibrate
from nano_vm.observe.trajectory import Trajectory, of_trace
from nano_vm.studio import charts
from nano_vm.studio.frame import command, empty, follow, guarded, library, run_link
from nano_vm.studio.markup import Markup, chip, code, facts, join, soft, table, tag, tiles
from nano_vm.studio.view import show

LIMITS = (200, 1_000, 2_000, 5_000, 10_000)


class Watched(NamedTuple):
    """A report, with the numbers it was made of: one for each run that was watched."""

    report: Report
    baseline_runs: int
    scores: list[float]
    sums: list[float]
    lengths: list[float]
    skipped: int


@guarded
def page() -> None:
    st.markdown("# Drift")
    by_program: dict[str, list[RunRecord]] = {}
    for record in library().shelf().records:
        if record.status not in ("RUNNING", "SUSPENDED"):
            by_program.setdefault(record.program_hash, []).append(record)
    if not by_program:
        empty(
            "No run has ended yet",
            f"A baseline needs at least {RUNS_MIN} ended runs of a program, and some to compare.",
        )
        return
    hashes = sorted(by_program, key=lambda each: -len(by_program[each]))
    with st.form("drift"):
        which, how_many, share, alarm = st.columns([4, 2, 3, 2])
        program = which.selectbox(
            "Program",
            hashes,
            format_func=lambda each: (
                f"{by_program[each][0].program_name}  {each[7:15]}  {len(by_program[each]):,} ended"
            ),
            key="drift_program",
        )
        limit = how_many.selectbox("Newest runs", LIMITS, index=1, key="drift_limit")
        part = share.slider("Baseline: the older share, in percent", 10, 90, 50, 5, key="drift_share")
        rate = alarm.number_input("False alarms", 0.001, 0.5, 0.05, 0.01, format="%.3f", key="drift_rate")
        asked = st.form_submit_button("Compare", type="primary")
    if asked:
        records = by_program[program][:limit][::-1]
        with st.spinner(f"Reading {len(records):,} runs"):
            st.session_state["drift_found"] = (program, watch(records, part / 100, float(rate)))
    held = st.session_state.get("drift_found")
    if held is None or held[0] != program:
        line = code(command("drift", by_program[program][0].program_name))
        show(
            soft("The older runs are the baseline, the newer ones are held against it. ", line), "drift_note"
        )
        return
    _report(held[1])


def watch(records: list[RunRecord], share: float, false_alarm: float) -> Watched:
    """Hold the newer runs against the older ones.

    Args:
        records: ended runs of one program, oldest first.

    Raises:
        InputError: SMALL_BASELINE.
    """
    shelf = library()
    runs: list[Trajectory] = []
    for record in records:
        with contextlib.suppress(NanoVMError):
            program = shelf.engine.load_program(record.program_hash)
            entries = shelf.store.read(record.run_id)
            runs.append(of_trace(Trace(program, record.run_id, lambda entries=entries: entries)))  # type: ignore[misc]
    count = max(int(len(runs) * share), min(RUNS_MIN, len(runs)))
    baseline = learn(runs[:count])
    monitor = DriftMonitor(baseline, calibrate(baseline, false_alarm=false_alarm))
    scores, sums, lengths = [], [], []
    for run in runs[count:]:
        monitor.observe(run)
        scores.append(baseline.surprisal(run))
        sums.append(monitor.levels[0])
        lengths.append(monitor.levels[1])
    return Watched(monitor.report(), count, scores, sums, lengths, len(records) - len(runs))


def _report(watched: Watched) -> None:
    report, calibration = watched.report, watched.report.calibration
    cells = (
        (chip(report.health.value), "the newer runs are"),
        (f"{watched.baseline_runs:,}", "runs in the baseline"),
        (f"{report.runs:,}", "runs held against it"),
        (f"{report.shift:+.1f} sd", "shift"),
        (f"{report.changed:.0%}", "probability of a change"),
        (f"{report.success[0]:.0%} / {report.success[1]:.0%}", "success, now and then"),
    )
    show(tiles(cells), "drift_tiles")
    if watched.sums:
        label = f"alarm at {report.threshold:.1f}"
        chart = charts.line(
            watched.sums, "CUSUM of surprisal, run by run", threshold=report.threshold, label=label
        )
        show(_card("CUSUM of surprisal, in standard deviations", chart), "drift_cusum")
        if report.length_threshold:
            label = f"alarm at {report.length_threshold:.1f}"
            of_length = charts.line(
                watched.lengths, "CUSUM of length, run by run", threshold=report.length_threshold, label=label
            )
            show(_card("CUSUM of length, in standard deviations", of_length), "drift_length")
        over = charts.line(
            watched.scores,
            "mean surprisal, run by run",
            threshold=calibration.mean,
            label="the baseline's mean",
        )
        show(_card("Surprisal, in bits per move", over), "drift_scores")
    rows = [
        (
            "false alarms",
            f"at most {calibration.false_alarm:g} in {calibration.horizon:,} runs that go as the baseline's did",
        ),
        ("began about", run_link(report.since) if report.since is not None else soft("nothing has begun")),
    ]
    if watched.skipped:
        rows.append(("left out", f"{watched.skipped} runs whose journals cannot be read any more"))
    follow(show(tag("div", facts(rows), class_="card"), "drift_facts"))
    if report.evidence:
        moves = (
            (
                join((code(row["from"]), " to ", code(row["to"]))),
                f"{row['seen']:.0%}",
                f"{row['expected']:.1%}",
                f"{row['bits']:.3f}",
            )
            for row in report.evidence
        )
        show(
            table(("What surprises", "Seen", "Expected", "Bits"), moves, numeric=(1, 2, 3)), "drift_evidence"
        )


def _card(name: str, chart: Markup) -> Markup:
    return tag("div", tag("div", name, class_="lead"), chart, class_="card wide")
