"""What comes back from tools and adapters, as JSON data."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from nano_vm import canonical
from nano_vm.errors import InputError
from nano_vm.kernel.limits import PAYLOAD_BYTES_MAX


def to_data(value: Any) -> tuple[Any, bytes]:
    """A tool's result as data that shares nothing with it, and its canonical bytes.

    Dataclasses, msgspec structs and pydantic models (anything with `model_dump(mode="json")`) are converted.

    Raises:
        InputError: VALUE_NOT_JSON and its kin for anything else; VALUE_TOO_LARGE beyond `PAYLOAD_BYTES_MAX`.
    """
    try:
        data, encoded = canonical.normalize(value)
    except InputError as error:
        if error.code != "VALUE_NOT_JSON":
            raise
        data, encoded = canonical.normalize(_convert(value, 0))
    if len(encoded) > PAYLOAD_BYTES_MAX:
        canonical.check_size(encoded, PAYLOAD_BYTES_MAX, "the result")
    return data, encoded


def _convert(value: Any, depth: int) -> Any:
    if depth > canonical.DEPTH_MAX:
        return value
    if type(value) is dict:
        return {key: _convert(item, depth + 1) for key, item in value.items()}
    if type(value) in (list, tuple):
        return [_convert(item, depth + 1) for item in value]
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _convert(getattr(value, field.name), depth + 1) for field in dataclasses.fields(value)
        }
    dump = getattr(type(value), "model_dump", None)
    if dump is not None:
        return dump(value, mode="json")
    return value
