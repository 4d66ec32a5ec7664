"""Baselines, and traces of other systems, as files."""

from __future__ import annotations

from pathlib import Path

from nano_vm.cli.console import printable
from nano_vm.errors import InputError
from nano_vm.observe import imports
from nano_vm.observe.baseline import FILE_BYTES_MAX, Baseline
from nano_vm.observe.trajectory import Trajectory


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


def read_traces(form: str, file: str) -> list[Trajectory]:
    """The traces in a file of one of the forms in `imports.READERS`.

    Raises:
        InputError: EVENT_LOG_FILE, BAD_EVENT_LOG.
    """
    try:
        with Path(file).open("rb") as handle:
            data = handle.read(imports.FILE_BYTES_MAX + 1)
    except OSError as error:
        raise InputError("EVENT_LOG_FILE", f"`{printable(file)}` cannot be read: {error.strerror}") from None
    return imports.read(form, data)
