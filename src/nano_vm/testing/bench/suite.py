"""Which scenarios there are, and how they are carried out: each in a process of its own, so that its memory and its
processor time are its own.

    python -m nano_vm.testing.bench.suite NAME '{"store":"sqlite"}'     # one scenario; prints its figures as JSON
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from nano_vm.errors import NanoVMError
from nano_vm.testing.bench import crash, records, trouble, work
from nano_vm.testing.bench.setting import Figures, Options, Setting
from nano_vm.testing.chaos.outside import BOOKED
from nano_vm.testing.databases import Database, Files, Grounds

Scenario = Callable[[Setting], Awaitable[None]]
SCENARIOS: Final[dict[str, Scenario]] = {
    scenario.__name__: scenario
    for scenario in (
        work.refund_pipeline,
        work.double_execution_guard,
        work.budget,
        work.parallel,
        records.store_round_trip,
        records.envelopes,
        crash.crash_consistency,
        records.replay,
        trouble.adversarial_retries,
        trouble.long_horizon,
    )
}
_PATIENCE_S = 600.0  # for one scenario


def about(name: str) -> str:
    """What happens in a scenario, in a sentence or two."""
    return " ".join((SCENARIOS[name].__doc__ or "").split())


def carry_out(name: str, place: Path, options: Options) -> Figures:
    """One scenario in this process, in `place`. What goes wrong is among the figures' violations."""
    setting = Setting(name, place, options)
    try:
        asyncio.run(_at_work(SCENARIOS[name], setting))
    except Exception as error:
        code = getattr(error, "code", None) or error
        setting.expect("P11", False, f"the scenario ended in {type(error).__name__}: {str(code)[:200]}")
    finally:
        setting.close()
    return setting.finish()


async def _at_work(scenario: Scenario, setting: Setting) -> None:
    await scenario(setting)


def run_bench(
    names: Sequence[str] = (),
    options: Options | None = None,
    directory: str | os.PathLike[str] | None = None,
    grounds: Grounds | None = None,
) -> Iterator[Figures]:
    """Carry scenarios out, one after another, and yield the figures of each.

    Args:
        names: of scenarios; all by default.
        options: the defaults of `Options` by default.
        directory: where files are made, and removed again; the temporary directory by default.
        grounds: where databases are made for `options.store` "postgresql".

    Raises:
        StoreError: when `grounds` can make none.
    """
    options = options or Options()
    grounds = grounds or Files()
    for name in SCENARIOS:
        if not names or name in names:
            with tempfile.TemporaryDirectory(prefix="nano-vm-bench-", dir=directory) as place:
                with grounds.fresh(Path(place), (BOOKED,)) as database:
                    figures = _apart(name, Path(place), options, database)
                yield figures


def _apart(name: str, place: Path, options: Options, database: Database) -> Figures:
    command = [
        sys.executable,
        "-m",
        "nano_vm.testing.bench.suite",
        name,
        msgspec.json.encode(options).decode(),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment |= database.environment
    try:
        done = subprocess.run(
            command,
            cwd=place,
            env=environment,
            capture_output=True,
            timeout=_PATIENCE_S,
            stdin=subprocess.DEVNULL,
        )
        return msgspec.json.decode(done.stdout, type=Figures)
    except subprocess.TimeoutExpired:
        what = f"not finished within {_PATIENCE_S:.0f} s"
    except msgspec.DecodeError:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        what = f"its process ended with {done.returncode}: {' '.join(last)[:300]}"
    return Figures(name=name, store=options.store, violated=1, checks=1, violations=[f"P11: {what}"])


def main(argv: Sequence[str]) -> int:
    name, options = argv
    try:
        given = msgspec.json.decode(options, type=Options)
    except (msgspec.DecodeError, NanoVMError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    figures = carry_out(name, Path.cwd(), given)
    sys.stdout.buffer.write(msgspec.json.encode(figures) + b"\n")
    return 0 if figures.holds else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
