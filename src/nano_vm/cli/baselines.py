"""Baselines as files."""

from __future__ import annotations

from pathlib import Path

from nano_vm.cli.console import printable
from nano_vm.errors import InputError
from nano_vm.observe.baseline import FILE_BYTES_MAX, Baseline


def read_baseline(file: str, program: str) -> Baseline:
    """The baseline in a file, which has to be of this program (a hash).

    Raises:
        InputError: BASELINE_FILE, BAD_BASELINE.
    """
    try:
        with Path(file).open("rb") as handle:
            baseline = Baseline.from_bytes(handle.read(FILE_BYTES_MAX + 1))
    except OSError as error:
        raise _file_error(file, "read", error) from None
    if baseline.program != program:
        raise InputError(
            "BAD_BASELINE",
            "the baseline is of another program, or of another version of it",
            help="learn one from the runs of this version",
        )
    return baseline


def write_baseline(file: str, baseline: Baseline) -> None:
    """Raises:
    InputError: BASELINE_FILE."""
    try:
        Path(file).write_bytes(baseline.to_bytes())
    except OSError as error:
        raise _file_error(file, "written", error) from None


def _file_error(file: str, what: str, error: OSError) -> InputError:
    return InputError("BASELINE_FILE", f"the baseline `{printable(file)}` cannot be {what}: {error.strerror}")
