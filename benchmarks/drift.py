"""How often does the drift detector cry wolf, how soon does it see a change, and what does it cost?

    python benchmarks/drift.py [--quick]
    python benchmarks/drift.py --log bpic2012.xes.gz --log helpdesk.xes.gz --seeds 20

Runs of a small program with a choice and a step that is sometimes tried again are generated, healthy (5 % of the
attempts fail) and with more failures; for each size of the baseline and each strength it prints in how many of the
seeded lives of 1,000 runs there was an alarm, and after how many runs.

`--log` takes event logs instead, in any form that `nano-vm measure` reads (XES by default): cases that nobody here has
made. Each seed puts the cases in another order, learns from the first of them, lives through up to 1,000 more, and from
the middle of these on a share of the cases is disturbed: an activity is done again one to three times (churn), left out
(skip), or changes places with the next one (swap); or every activity of every case may be repeated (retry). Alarms
before the disturbance are false. Then the log is taken in the order in which it was recorded: whatever alarms there has
really changed, or is a false alarm; nobody knows.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from random import Random

import msgspec

from nano_vm.observe import imports
from nano_vm.observe.archetypes import ArchetypeMonitor, learn_archetypes
from nano_vm.observe.baseline import learn
from nano_vm.observe.drift import DriftMonitor, Health
from nano_vm.observe.trajectory import Move, Trajectory

HEALTHY = 0.05
SURE = 0.9  # of a change
STRENGTHS = (0.05, 0.1, 0.2, 0.4)


def runs(count: int, seed: int, failing: float) -> list[Trajectory]:
    """Generated runs; `failing` is the share of attempts of one step that fail."""
    chance = Random(seed)
    found = []
    for number in range(count):
        path = ["look", "decide"]
        if chance.random() < 0.5:
            path.append("pay")
            while chance.random() < failing:
                path.append("pay")
        else:
            path.append("refuse")
        path.append("notify")
        moves = tuple(Move(activity=name) for name in path)
        found.append(Trajectory(id=f"{seed}-{number}", source="generated", moves=moves, status="SUCCESS"))
    return found


def alarm_after(baseline_runs: int, failing: float, seed: int, life: int) -> tuple[int | None, int | None]:
    """The run at which the first alarm came, and the one at which the probability of a change first exceeded 0.9; None
    without one."""
    monitor = DriftMonitor(learn(runs(baseline_runs, seed, HEALTHY)))
    alarm = sure = None
    for place, run in enumerate(runs(life, 10_000 + seed, failing), 1):
        if monitor.observe(run) is not Health.STABLE and alarm is None:
            alarm = place
        if sure is None and place % 5 == 0 and monitor.changed() > SURE:
            sure = place
        if alarm is not None and sure is not None:
            break
    return alarm, sure


def _median(found: list[int | None]) -> tuple[int, int | None]:
    """How many there are, and the middle one."""
    there = sorted(one for one in found if one is not None)
    return len(there), there[len(there) // 2] if there else None


# --- event logs -------------------------------------------------------------------------------------------------------


def churn(moves: list[Move], place: int, chance: Random) -> None:
    moves[place:place] = [moves[place]] * chance.randint(1, 3)


def skip(moves: list[Move], place: int, chance: Random) -> None:
    del moves[place]


def swap(moves: list[Move], place: int, chance: Random) -> None:
    place = min(place, len(moves) - 2)
    if place >= 0:
        moves[place], moves[place + 1] = moves[place + 1], moves[place]


MOVES_LEFT = 1_000  # of a case
DISTURBANCES = {"churn": churn, "skip": skip, "swap": swap}
KINDS = (*DISTURBANCES, "retry")


def disturbed(case: Trajectory, kind: str, share: float, chance: Random) -> Trajectory:
    """A case, disturbed with this probability; by `retry` each of its moves is repeated with this probability, and
    again, as by a client that tries until it works."""
    if kind == "retry":
        moves = []
        for move in case.moves:
            moves.append(move)
            while len(moves) < MOVES_LEFT and chance.random() < share:
                moves.append(move)
        return msgspec.structs.replace(case, moves=tuple(moves))
    if chance.random() >= share or not case.moves:
        return case
    moves = list(case.moves)
    DISTURBANCES[kind](moves, chance.randrange(len(moves)), chance)
    return msgspec.structs.replace(case, moves=tuple(moves))


def life_of(
    cases: list[Trajectory], baseline_runs: int, life: int, kind: str, share: float, seed: int, kinds: bool
) -> tuple[bool, int | None]:
    """(was there a false alarm, after how many cases from the disturbance on there was one)."""
    chance = Random(seed)
    order = list(cases)
    chance.shuffle(order)
    monitor = _monitor(order[:baseline_runs], kinds)
    lived = order[baseline_runs : baseline_runs + life]
    onset = len(lived) // 2
    for number, case in enumerate(lived):
        seen = disturbed(case, kind, share, chance) if number >= onset else case
        if monitor.observe(seen) is not Health.STABLE:
            return (True, None) if number < onset or not share else (False, number - onset + 1)
    return False, None


def _monitor(healthy: list[Trajectory], kinds: bool) -> DriftMonitor | ArchetypeMonitor:
    return ArchetypeMonitor(learn_archetypes(healthy)) if kinds else DriftMonitor(learn(healthy))


def as_recorded(cases: list[Trajectory], baseline_runs: int, kinds: bool) -> dict[str, object]:
    """A log in the order in which it was recorded: when the first alarm came, if one did."""
    monitor = _monitor(cases[:baseline_runs], kinds)
    for number, case in enumerate(cases[baseline_runs:], 1):
        if monitor.observe(case) is not Health.STABLE:
            report = monitor.report() if isinstance(monitor, DriftMonitor) else monitor.report().worst.report
            first = report.evidence[0] if report.evidence else {}
            return {"first_alarm": number, "evidence": [first.get("from"), first.get("to")]}
    return {"first_alarm": None, "evidence": None}


def over_log(file: str, form: str, seeds: int, quick: bool, kinds: bool) -> list[dict[str, object]]:
    cases = imports.read(form, Path(file).read_bytes())
    cases.sort(key=lambda case: case.started_at_ms)
    print(f"{Path(file).name}: {len(cases)} cases, {len({tuple(case.path) for case in cases})} ways")
    rows: list[dict[str, object]] = []
    for size in (60,) if quick else (150, 400):
        life = min(200 if quick else 1_000, len(cases) - size)
        plan = [("none", 0.0)] + [(kind, share) for kind in KINDS for share in (0.1, 0.2, 0.5)]
        for kind, share in plan[:: 3 if quick else 1]:
            lives = [
                life_of(cases, size, life, "churn" if kind == "none" else kind, share, seed, kinds)
                for seed in range(seeds)
            ]
            false = sum(early for early, _ in lives)
            delays = sorted(delay for _, delay in lives if delay is not None)
            median = delays[len(delays) // 2] if delays else None
            row: dict[str, object] = {
                "log": Path(file).name,
                "baseline": size,
                "disturbance": kind,
                "share": share,
                "lives": seeds,
                "life": life,
                "false": false,
                "found": len(delays),
                "median_delay": median,
                "worst_delay": delays[-1] if delays else None,
            }
            rows.append(row)
            print(
                f"  baseline {size:>4}, {kind:<5} {share:>4.0%}: false {false:>2}, found {len(delays):>2} of {seeds}, "
                f"median after {median}, worst {row['worst_delay']}"
            )
        recorded = {
            "log": Path(file).name,
            "baseline": size,
            "disturbance": "as recorded",
            **as_recorded(cases, size, kinds),
        }
        rows.append(recorded)
        print(
            f"  baseline {size:>4}, as recorded: first alarm after {recorded['first_alarm']}, {recorded['evidence']}"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="false alarms and delays of the drift detector")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--log", metavar="FILE", action="append", default=[], help="an event log")
    parser.add_argument("--from", dest="form", default="xes", choices=sorted(imports.READERS))
    parser.add_argument("--archetypes", action="store_true", help="hold every case against its own kind")
    parser.add_argument("--seeds", metavar="N", type=int, default=20, help="lives for each row of a log")
    args = parser.parse_args()
    quick = args.quick
    if args.log:
        found = [
            row
            for file in args.log
            for row in over_log(file, args.form, 2 if quick else args.seeds, quick, args.archetypes)
        ]
        print(json.dumps({"rows": found}))
        return
    seeds, life = (2, 200) if quick else (40, 1_000)
    rows = []
    for size in (150,) if quick else (50, 150, 400):
        for failing in STRENGTHS:
            lives = [alarm_after(size, failing, seed, life) for seed in range(seeds)]
            alarms, median = _median([alarm for alarm, _ in lives])
            changes, after = _median([sure for _, sure in lives])
            rows.append(
                {
                    "baseline": size,
                    "failing": failing,
                    "alarms": alarms,
                    "of": seeds,
                    "median_delay": median,
                    "changes": changes,
                    "median_change": after,
                }
            )
            print(
                f"baseline {size:>4}, {failing:.0%} failing: {alarms:>2} of {seeds} alarm, median after {median}; "
                f"change more than {SURE:.0%} sure in {changes:>2}, median after {after}"
            )
    many = runs(500 if quick else 10_000, 7, HEALTHY)
    began = time.process_time()
    baseline = learn(many[: len(many) // 2])
    learned = time.process_time()
    monitor = DriftMonitor(baseline)
    calibrated = time.process_time()
    for run in many:
        monitor.observe(run)
    watched = time.process_time()
    scale = 10_000 / len(many)
    costs = {
        "learn_s": (learned - began) * scale * 2,
        "calibrate_s": calibrated - learned,
        "watch_s": (watched - calibrated) * scale,
    }
    print("per 10,000 runs: " + ", ".join(f"{name} {cost:.2f}" for name, cost in costs.items()))
    print(json.dumps({"rows": rows, "costs": costs}))


if __name__ == "__main__":
    main()
