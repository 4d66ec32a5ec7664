"""References (`$key.field`, `${key.field}`), as templates and conditions share them.

Normative text: `spec/expressions.md`, "References". A reference is recognised in program text only: what it
resolves to is data and is never scanned again.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any, Final, NamedTuple

from nano_vm.expr.errors import ExprError

__all__ = ["ERASED", "UNSET", "Ref", "Unset", "ref_at", "scan_text", "walk"]


class Unset(Enum):
    """The type of `UNSET`; an enum member so that it stays one object through copying and type narrowing."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset.UNSET
"""Stands in a slot for "nothing has been assigned yet". It is not a JSON value and never leaves the slots."""


ERASED: Final = "".join(("[REDACTED_", "TOMBSTONE]"))
"""Stands in the slots for a value that is not readable: it has been erased, or nobody here has its key. It is told by
identity - the same words from elsewhere are text like any other - and every part of it is it. Views show it as it
is."""


class Ref(NamedTuple):
    """One reference: the name that owns it, the path into its value, and where it stands in the source."""

    name: str
    path: tuple[str, ...]
    offset: int = 0
    length: int = 0

    def __str__(self) -> str:
        dotted = ".".join((self.name, *self.path))
        return f"${{{dotted}}}" if "-" in dotted else f"${dotted}"


_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_BARE = re.compile(rf"\$({_NAME})((?:\.[A-Za-z0-9_]+)*)").match
# A hyphen is part of a path only between braces: outside, `$a.b-c` reads as a subtraction or as text.
_BRACED = re.compile(rf"\$\{{({_NAME})((?:\.[A-Za-z0-9_-]+)*)\}}").match
_BRACED_START = re.compile(rf"\$\{{({_NAME}(?:\.[A-Za-z0-9_-]+)*)?").match
_INDEX = re.compile(r"(?:0|[1-9][0-9]{0,9})\Z").match

IS_NAME = re.compile(rf"{_NAME}\Z").match
IS_SEGMENT = re.compile(r"[A-Za-z0-9_-]+\Z").match


def ref_at(text: str, offset: int) -> tuple[Ref | str, int]:
    """Reads what the dollar at `offset` begins.

    Returns:
        The reference, or the literal text it stands for (`$$` and a dollar that begins nothing give `"$"`),
        and the offset of the first character after it.

    Raises:
        ExprError: `EXPR_REFERENCE` for a malformed `${`.
    """
    following = text[offset + 1 : offset + 2]
    if following == "{":
        match = _BRACED(text, offset)
        if match is None:
            raise _malformed(text, offset)
    else:
        match = _BARE(text, offset)
        if match is None:
            return "$", offset + (2 if following == "$" else 1)
    name, dotted = match.groups()
    end = match.end()
    return Ref(name, tuple(dotted[1:].split(".")) if dotted else (), offset, end - offset), end


def scan_text(text: str) -> tuple[str | Ref, ...]:
    """Splits template text into literal strings and references, in order.

    `$$` is a literal dollar; a dollar that begins no name (`$5`, a final `$`) and the dot after a reference
    that no field follows are text. Adjacent literals are one string, empty ones are left out. Offsets count
    characters.

    Raises:
        ExprError: `EXPR_REFERENCE` for a malformed `${`.
    """
    offset = text.find("$")
    if offset < 0:
        return (text,) if text else ()
    parts: list[str | Ref] = []
    literal = text[:offset]
    while offset >= 0:
        found, end = ref_at(text, offset)
        if type(found) is str:
            literal += found
        else:
            if literal:
                parts.append(literal)
                literal = ""
            parts.append(found)
        offset = text.find("$", end)
        literal += text[end:] if offset < 0 else text[end:offset]
    if literal:
        parts.append(literal)
    return tuple(parts)


def walk(value: Any, path: tuple[str, ...]) -> Any:
    """Follows a path into a JSON value: a key of an object, or an index (`0`, `12`; no leading zeros) of a
    list.

    Raises:
        ExprError: `UNRESOLVED_REFERENCE` where a segment leads nowhere; `facts["segment"]` is its position.
    """
    for position, segment in enumerate(path):
        kind = type(value)
        if kind is dict:
            try:
                value = value[segment]
                continue
            except KeyError:
                raise unresolved(path, position, "there is no such key") from None
        if kind is list:
            if _INDEX(segment) is None:
                raise unresolved(path, position, "a list wants an index (`0`, `1`, …)")
            try:
                value = value[int(segment)]
                continue
            except IndexError:
                raise unresolved(path, position, f"the list has {len(value)} elements") from None
        if value is ERASED:
            return ERASED
        raise unresolved(path, position, "only objects and lists have parts")
    return value


def unresolved(path: tuple[str, ...], position: int, why: str) -> ExprError:
    where = f"`.{'.'.join(path[: position + 1])}`"
    return ExprError(
        "UNRESOLVED_REFERENCE",
        f"a reference resolves to nothing at {where}: {why}",
        help="refer to what is there, or make the step that produces the value always produce this part",
        facts={"segment": position, "path": list(path)},
    )


def _malformed(text: str, offset: int) -> ExprError:
    match = _BRACED_START(text, offset)
    end = match.end() if match else offset + 2
    if match is not None and not match[1]:
        what = "`${` is not followed by a name"
    elif end >= len(text):
        what = "`${` is not closed"
    else:
        what = "`${…}` holds something that is not a name or a path"
    return ExprError(
        "EXPR_REFERENCE",
        what,
        offset=offset,
        length=min(end + 1, len(text)) - offset,
        help="write `${name}` or `${name.field}`; for a literal dollar write `$$`",
    )
