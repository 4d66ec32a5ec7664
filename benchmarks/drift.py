"""How often does the drift detector cry wolf, how soon does it see a change, and what does it cost?

    python benchmarks/drift.py [--quick]

Runs of a small program with a choice and a step that is sometimes tried again are generated, healthy (5 % of the
attempts fail) and with more failures; for each size of the baseline and each strength it prints in how many of the
seeded lives of 1,000 runs there was an alarm, and after how many runs.
"""

from __future__ import annotations

import argparse
import json
import time
from random import Random

from nano_vm.observe.baseline import learn
from nano_vm.observe.drift import DriftMonitor, Health
from nano_vm.observe.trajectory import Move, Trajectory

HEALTHY = 0.05
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


def alarm_after(baseline_runs: int, failing: float, seed: int, life: int) -> int | None:
    """The run at which the first alarm came; None without one."""
    monitor = DriftMonitor(learn(runs(baseline_runs, seed, HEALTHY)))
    for place, run in enumerate(runs(life, 10_000 + seed, failing), 1):
        if monitor.observe(run) is not Health.STABLE:
            return place
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description="false alarms and delays of the drift detector")
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    seeds, life = (2, 200) if quick else (40, 1_000)
    rows = []
    for size in (150,) if quick else (50, 150, 400):
        for failing in STRENGTHS:
            delays = [alarm_after(size, failing, seed, life) for seed in range(seeds)]
            alarms = sorted(delay for delay in delays if delay is not None)
            median = alarms[len(alarms) // 2] if alarms else None
            rows.append(
                {
                    "baseline": size,
                    "failing": failing,
                    "alarms": len(alarms),
                    "of": seeds,
                    "median_delay": median,
                }
            )
            print(
                f"baseline {size:>4}, {failing:.0%} failing: {len(alarms):>2} of {seeds} alarm, median after {median}"
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
