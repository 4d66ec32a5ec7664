"""Templates: text and nested data with references in them, compiled to functions of the slots.

`scan` reads a template once, `build` turns it into a closure. Rendering never looks at substituted values for
further references (P2), and a template that is exactly one reference keeps the value's type. The shapes that
programs are made of - constants, a single reference, a flat mapping - have closures of their own, since every
step renders one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

from nano_vm.canonical import encode
from nano_vm.expr.errors import ExprError
from nano_vm.expr.reference import UNSET, Ref, scan_text, walk
from nano_vm.program.compiled import Refs, Render, Slots, Template
from nano_vm.program.document import join

Address: TypeAlias = tuple[int, tuple[str, ...]]
Resolve: TypeAlias = Callable[[Ref], Address]
OnError: TypeAlias = Callable[[str, ExprError], None]


class Constant(NamedTuple):
    value: Any


class Single(NamedTuple):
    """Exactly one reference: the value keeps its type."""

    ref: Ref
    pointer: str


class Text(NamedTuple):
    """Literal strings and references, in order."""

    parts: tuple[str | Ref, ...]
    pointer: str


class Items(NamedTuple):
    items: tuple[Scanned, ...]


class Fields(NamedTuple):
    fields: tuple[tuple[str, Scanned], ...]


Scanned: TypeAlias = Constant | Single | Text | Items | Fields


def scan(value: Any, pointer: str, on_error: OnError) -> Scanned:
    """Reads a template.

    Args:
        value: JSON; references are looked for in strings, not in keys.
        pointer: JSON Pointer of the value, handed on to `on_error` and `references`.
        on_error: called with pointer and error for each string with a malformed reference; it then stands as
            it is.
    """
    if isinstance(value, str):
        return _scan_text(value, pointer, on_error) if "$" in value else Constant(value)
    if isinstance(value, dict):
        # By name: what is looked at first, and so what a failure names, must follow from the program's hash.
        fields = tuple((name, scan(value[name], join(pointer, name), on_error)) for name in sorted(value))
        if all(type(item) is Constant for _, item in fields):
            return Constant({name: item.value for name, item in fields if isinstance(item, Constant)})
        return Fields(fields)
    if isinstance(value, list):
        items = tuple(scan(item, f"{pointer}/{index}", on_error) for index, item in enumerate(value))
        if all(type(item) is Constant for item in items):
            return Constant([item.value for item in items if isinstance(item, Constant)])
        return Items(items)
    return Constant(value)


def _scan_text(text: str, pointer: str, on_error: OnError) -> Scanned:
    try:
        parts = scan_text(text)
    except ExprError as error:
        on_error(pointer, error)
        return Constant(text)
    if len(parts) == 1 and isinstance(parts[0], Ref):
        return Single(parts[0], pointer)
    if any(isinstance(part, Ref) for part in parts):
        return Text(parts, pointer)
    return Constant("".join(part for part in parts if isinstance(part, str)))


def references(scanned: Scanned) -> Iterator[tuple[str, Ref]]:
    """Yields pointer and reference for every reference, in source order."""
    match scanned:
        case Single(ref, pointer):
            yield pointer, ref
        case Text(parts, pointer):
            for part in parts:
                if isinstance(part, Ref):
                    yield pointer, part
        case Items(items):
            for item in items:
                yield from references(item)
        case Fields(fields):
            for _, item in fields:
                yield from references(item)
        case Constant():
            return


def build(scanned: Scanned, resolve: Resolve) -> Template:
    """Returns the compiled form of a scanned template.

    Args:
        resolve: gives slot and remaining path for a reference.
    """
    if isinstance(scanned, Constant):
        return constant(scanned.value)
    addresses = tuple(resolve(ref) for _, ref in references(scanned))
    parts: tuple[tuple[str, Refs], ...] = ()
    names = None
    if isinstance(scanned, Fields):
        names = tuple(name for name, _ in scanned.fields)
        parts = tuple(
            (name, tuple(resolve(ref) for _, ref in references(part)))
            for name, part in scanned.fields
            if not isinstance(part, Constant)
        )
    return Template(_render(scanned, resolve), False, addresses, parts, names)


def constant(value: Any) -> Template:
    """Returns the template that always renders to `value`."""
    return Template(lambda slots: value, True)


def compile_template(value: Any, resolve: Resolve) -> Template:
    """Compiles a template in one go.

    Raises:
        ExprError: EXPR_REFERENCE for a malformed reference.
    """
    return build(scan(value, "", _raise), resolve)


def _raise(pointer: str, error: ExprError) -> None:
    raise error


def _render(scanned: Scanned, resolve: Resolve) -> Render:
    match scanned:
        case Constant(value):
            return lambda slots: value
        case Single(ref, _):
            return _render_single(ref, *resolve(ref))
        case Text(parts, _):
            return _render_text(parts, resolve)
        case Items(items):
            return _render_items(tuple(_render(item, resolve) for item in items))
        case Fields(fields):
            return _render_fields(fields, resolve)


def _unassigned(ref: Ref) -> ExprError:
    return ExprError(
        "UNASSIGNED_REFERENCE",
        f"`{ref}` is not assigned yet",
        offset=ref.offset,
        length=ref.length,
        help="refer to it only after the step that assigns it",
        facts={"reference": str(ref)},
    )


def _render_single(ref: Ref, slot: int, path: tuple[str, ...]) -> Render:
    if not path:

        def whole(slots: Slots) -> Any:
            value = slots[slot]
            if value is UNSET:
                raise _unassigned(ref)
            return value

        return whole

    if len(path) == 1 and not path[0].isdecimal():
        name = path[0]

        def member(slots: Slots) -> Any:
            value = slots[slot]
            if type(value) is dict and name in value:
                return value[name]
            if value is UNSET:
                raise _unassigned(ref)
            return walk(value, path)

        return member

    def part(slots: Slots) -> Any:
        value = slots[slot]
        if value is UNSET:
            raise _unassigned(ref)
        return walk(value, path)

    return part


def _render_text(parts: tuple[str | Ref, ...], resolve: Resolve) -> Render:
    # Literals are filled in beforehand, so that rendering is one pass over the references and one join.
    frame: list[str] = [part if isinstance(part, str) else "" for part in parts]
    values = tuple(
        (index, _render_single(part, *resolve(part)))
        for index, part in enumerate(parts)
        if isinstance(part, Ref)
    )

    def text(slots: Slots) -> str:
        pieces = frame.copy()
        for index, render in values:
            value = render(slots)
            pieces[index] = value if type(value) is str else encode(value).decode()
        return "".join(pieces)

    return text


def _render_items(renders: tuple[Render, ...]) -> Render:
    return lambda slots: [render(slots) for render in renders]


def _render_fields(fields: tuple[tuple[str, Scanned], ...], resolve: Resolve) -> Render:
    # The frame holds the constants and the order of the keys.
    frame: dict[str, Any] = {
        name: item.value if isinstance(item, Constant) else None for name, item in fields
    }
    moving = tuple((name, item) for name, item in fields if not isinstance(item, Constant))
    whole: list[tuple[str, int, Ref]] = []
    for name, item in moving:
        if isinstance(item, Single):
            slot, path = resolve(item.ref)
            if not path:
                whole.append((name, slot, item.ref))
    if len(whole) == len(fields) == 1:
        ((only, at, source),) = whole

        def one(slots: Slots) -> dict[str, Any]:
            value = slots[at]
            if value is UNSET:
                raise _unassigned(source)
            return {only: value}

        return one
    if len(whole) == len(moving):
        pairs = tuple(whole)

        def flat(slots: Slots) -> dict[str, Any]:
            result = frame.copy()
            for name, slot, ref in pairs:
                value = slots[slot]
                if value is UNSET:
                    raise _unassigned(ref)
                result[name] = value
            return result

        return flat
    renders = tuple((name, _render(item, resolve)) for name, item in moving)

    def nested(slots: Slots) -> dict[str, Any]:
        result = frame.copy()
        for name, render in renders:
            result[name] = render(slots)
        return result

    return nested
