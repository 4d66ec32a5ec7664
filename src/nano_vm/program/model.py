"""`Program`: a structurally valid program and its identity."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from nano_vm.canonical import digest, encode
from nano_vm.errors import ProgramError
from nano_vm.expr.errors import ExprError
from nano_vm.expr.nodes import to_ast
from nano_vm.expr.parser import parse
from nano_vm.program import document as documents
from nano_vm.program.diagnostic import ERROR, Diagnostic, sort, to_error
from nano_vm.program.document import Document
from nano_vm.program.fields import PROGRAM_FIELDS
from nano_vm.program.validate import validate


class Program:
    """A program as its author wrote it, immutable.

    Every field is known, of the right type and in its place; whether references, branches and types hold
    together is what the compiler finds out. Make one with `from_dict`, `from_yaml`, `from_json` or
    `from_file`; each raises ProgramError with `diagnostics`, the list of all findings, and the code of the
    only one or INVALID_PROGRAM.
    """

    __slots__ = ("_canonical", "_data", "_hash", "document")

    document: Document
    _data: dict[str, Any]
    _canonical: bytes | None
    _hash: str | None

    def __init__(self, document: Document) -> None:
        findings = sort(validate(document).diagnostics)
        if any(finding.severity == ERROR for finding in findings):
            raise to_error(findings)
        set_once = object.__setattr__
        set_once(self, "document", document)
        defaults = {name: PROGRAM_FIELDS[name].default for name in ("name", "version")}
        set_once(self, "_data", {**defaults, **document.data})
        set_once(self, "_canonical", None)
        set_once(self, "_hash", None)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a Program is immutable")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Program:
        """Makes a program from a dict, which is copied. Places of findings are JSON Pointers."""
        return cls(documents.from_data(data))

    @classmethod
    def from_yaml(cls, text: str | bytes, file: str | None = None) -> Program:
        """Makes a program from YAML 1.2 text; `file` names it in findings."""
        return cls(documents.from_yaml(text, file))

    @classmethod
    def from_json(cls, text: str | bytes, file: str | None = None) -> Program:
        """Makes a program from JSON text; `file` names it in findings."""
        return cls(documents.from_json(text, file))

    @classmethod
    def from_file(cls, path: str | Path) -> Program:
        """Makes a program from a `.json` file or, with any other name, a YAML file.

        Raises:
            ProgramError: PROGRAM_UNREADABLE when the file cannot be opened or read, or as for all
            constructors.
        """
        return cls(documents.from_file(path))

    def to_dict(self) -> dict[str, Any]:
        """Returns a copy of the author's fields, with `name` and `version` filled in."""
        data: dict[str, Any] = copy.deepcopy(self._data)
        return data

    @property
    def name(self) -> str:
        return str(self._data["name"])

    @property
    def version(self) -> str:
        return str(self._data["version"])

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The author's steps. Not to be changed; `to_dict` gives a copy."""
        steps: list[dict[str, Any]] = self._data["steps"]
        return steps

    @property
    def canonical(self) -> bytes:
        """RFC 8785 bytes of `{"ast": …, "program": …}`: the author's fields and the trees of all expressions
        (`spec/compile.md`, "Identity").

        Raises:
            ProgramError: an EXPR_ code when an expression cannot be parsed.
        """
        if self._canonical is None:
            body = {"ast": _asts(self), "program": self._data}
            object.__setattr__(self, "_canonical", encode(body))
        assert self._canonical is not None
        return self._canonical

    @property
    def hash(self) -> str:
        """`sha256:…` of `canonical`: what runs are pinned to."""
        if self._hash is None:
            object.__setattr__(self, "_hash", digest(self.canonical))
        assert self._hash is not None
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self._data == other._data

    def __hash__(self) -> int:
        return hash((self.name, self.version, len(self._data["steps"])))

    def __repr__(self) -> str:
        return f"Program({self.name!r}, version={self.version!r}, {len(self._data['steps'])} steps)"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Program.from_dict, (self.to_dict(),))


def _asts(program: Program) -> dict[str, dict[str, Any]]:
    # Lanes of parallel and map may hold waits, whose `accept` is an expression too.
    trees: dict[str, dict[str, Any]] = {}
    for index, step in enumerate(program._data["steps"]):
        pointer = f"/steps/{index}"
        _add_asts(program, step, pointer, trees)
        for lane_index, lane in enumerate(step.get("parallel_steps", ())):
            _add_asts(program, lane, f"{pointer}/parallel_steps/{lane_index}", trees)
        if "step" in step:
            _add_asts(program, step["step"], pointer + "/step", trees)
    return trees


def _add_asts(program: Program, step: dict[str, Any], pointer: str, trees: dict[str, dict[str, Any]]) -> None:
    for field in ("condition", "accept"):
        source = step.get(field)
        if source is None:
            continue
        try:
            tree = to_ast(parse(source))
        except ExprError as error:
            raise expression_error(
                program.document, f"{pointer}/{field}", error, step["id"], field
            ) from error
        trees.setdefault(step["id"], {})[field] = tree


def expression_finding(
    document: Document, pointer: str, error: ExprError, step: str | None, field: str | None
) -> Diagnostic:
    """Returns the finding for an error within the string at `pointer`."""
    place, length = document.place(
        pointer, offset=error.offset, length=error.length or 1, step=step, field=field
    )
    return Diagnostic(error.code, ERROR, error.message, error.help, place, length)


def expression_error(
    document: Document, pointer: str, error: ExprError, step: str | None, field: str | None
) -> ProgramError:
    """Returns the exception for an error within the string at `pointer`."""
    return to_error([expression_finding(document, pointer, error, step, field)])
