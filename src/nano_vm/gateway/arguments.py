"""The arguments of a tool call, held against the tool's schema."""

from __future__ import annotations

from typing import Any

from nano_vm import canonical
from nano_vm.errors import InputError
from nano_vm.program.schema_faults import faults


def check_arguments(schema: dict[str, Any], args: dict[str, Any]) -> None:
    """Raises InputError GATEWAY_ARGUMENT, naming the first argument that does not fit; VALUE_STRING."""
    try:
        fault = next(iter(faults(canonical.encode(schema), args)), None)
    except UnicodeEncodeError:  # the validator cannot even say what is wrong with it
        canonical.encode(args)
        raise
    if fault is not None:
        path = "/" + "/".join(str(part) for part in fault.instance_path)
        kind = fault.kind.name
        facts: dict[str, Any] = {"path": path, "keyword": kind}
        if kind == "required":
            message = f"an argument is missing: {fault.message}"
        elif kind == "additionalProperties":
            known = ", ".join(schema.get("properties", {}))
            message = f"an argument that the tool does not have; it has: {known or 'none'}"
        else:
            message = f"the argument at `{path}` does not fit the tool's schema: {kind}"
        raise InputError("GATEWAY_ARGUMENT", message, help="see the tool's inputSchema", facts=facts)


def whole_numbers(schema: dict[str, Any], args: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with 2 for 2.0: to a JSON Schema both are integers."""
    kinds = {name: known.get("type") for name, known in schema["properties"].items()}
    return {
        name: int(value) if kinds[name] == "integer" and type(value) is float else value
        for name, value in args.items()
    }
