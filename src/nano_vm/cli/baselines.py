"""Baselines, and traces of other systems, as files."""

from __future__ import annotations

from pathlib import Path

from nano_vm.cli.console import printable
from nano_vm.cli.outputs import write_whole
from nano_vm.errors import InputError
from nano_vm.observe import imports
from nano_vm.observe.archetypes import Archetypes
from nano_vm.observe.baseline import FILE_BYTES_MAX, Baseline
from nano_vm.observe.trajectory import Trajectory


def read_baseline(file: str, program: str) -> Baseline:
    """The baseline in a file, which has to be of this program (a hash).

    Raises:
        InputError: BASELINE_FILE, BAD_BASELINE.
    """
    baseline = Baseline.from_bytes(_read(file))
    _check_program(baseline.program, program)
    return baseline


def write_baseline(file: str, baseline: Baseline) -> None:
    """Raises:
    InputError: BASELINE_FILE."""
    _write(file, baseline.to_bytes())


def read_archetypes(file: str, program: str) -> Archetypes:
    """The archetypes in a file, as `read_baseline`."""
    archetypes = Archetypes.from_bytes(_read(file))
    _check_program(archetypes.program, program)
    return archetypes


def write_archetypes(file: str, archetypes: Archetypes) -> None:
    """Raises:
    InputError: BASELINE_FILE."""
    _write(file, archetypes.to_bytes())


def _check_program(found: str, wanted: str) -> None:
    if found != wanted:
        raise InputError(
            "BAD_BASELINE",
            "the baseline is of another program, or of another version of it",
            help="learn one from the runs of this version",
        )


def _read(file: str) -> bytes:
    try:
        with Path(file).open("rb") as handle:
            return handle.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise _file_error(file, "read", error) from None


def _write(file: str, data: bytes) -> None:
    try:
        write_whole(file, [data])
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
