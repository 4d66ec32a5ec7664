"""Who owns which name. Inputs, output keys and step ids share one namespace (SPEC §2, "Names have one
owner")."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeAlias

from nano_vm.compiler.graph import OUTPUT, Definition
from nano_vm.compiler.view import Step, View
from nano_vm.expr.reference import IS_NAME, Ref
from nano_vm.program.diagnostic import quote
from nano_vm.program.document import join
from nano_vm.program.fields import RESERVED_NAMES

INPUT, KEY, OUTPUT_OF, ERROR_OF, RESERVED = "input", "key", "output", "error", "reserved"


class Symbol(NamedTuple):
    """Something that will have a slot: an input or shared key by name, a step's output or error by index, a
    reserved name."""

    kind: str
    name: str = ""
    step: int = -1


class Flow(Protocol):
    """What list order and `depends_on` have in common."""

    def reachable(self) -> set[int]: ...

    def exclusive(self, first: int, second: int) -> bool: ...

    def missing_path(
        self, definitions: list[Definition], position: int, *, done: bool
    ) -> list[str] | None: ...


Target: TypeAlias = tuple[Symbol, tuple[str, ...]]


class Names:
    """The namespace of a program.

    Attributes:
        inputs: declared inputs and their schemas; None where `inputs` is not declared.
        open: `inputs` is there but was refused, so nothing is known about it.
        keys: output keys and the steps that bind them.
        assumed: references that nothing owns, taken to be inputs, in order of appearance.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        schema = view.data.get("inputs")
        self.open = not view.inputs_sound
        self.inputs: dict[str, Any] | None = None
        if isinstance(schema, dict) and not self.open:
            self.inputs = dict(schema.get("properties", {}))
        self.keys: dict[str, list[Step]] = {}
        for step in view.steps:
            key = step.data.get("output_key")
            if isinstance(key, str) and step.type != "condition":
                self.keys.setdefault(key, []).append(step)
        self.assumed: dict[str, None] = {}

    def find(self, ref: Ref) -> Target | None:
        """Returns what a reference stands for, and the path that is left; None when it stands for nothing."""
        name, path = ref.name, ref.path
        if name in RESERVED_NAMES:
            return Symbol(RESERVED, name), path
        step = self._view.by_id.get(name)
        if step is not None:
            if path and path[0] in (OUTPUT_OF, ERROR_OF):
                return Symbol(path[0], step=step.index), path[1:]
            return None
        owners = self.keys.get(name)
        if owners is not None:
            if len(owners) == 1:
                return Symbol(OUTPUT_OF, step=owners[0].index), path
            return Symbol(KEY, name), path
        if name in self.assumed or (self.inputs is not None and name in self.inputs):
            return Symbol(INPUT, name), path
        return None

    def definitions(self, symbol: Symbol) -> list[Definition]:
        """Returns where a value comes into being; nothing for inputs and reserved names, which are always
        there."""
        if symbol.kind == KEY:
            return [Definition(owner.position, OUTPUT) for owner in self.keys[symbol.name]]
        if symbol.kind in (OUTPUT_OF, ERROR_OF):
            return [Definition(self._view.steps[symbol.step].position, symbol.kind)]
        return []


def check_names(view: View, names: Names, flow: Flow | None) -> None:
    """Notes findings about names with two owners, and names that the language keeps for itself."""
    inputs = names.inputs or {}
    for name in inputs:
        pointer = join("/inputs/properties", name)
        if not IS_NAME(name):
            message = f"the input {quote(name)} cannot be referred to"
            help = "use letters, digits and underscores"
            view.add("BAD_IDENTIFIER", None, pointer, message, help, key=True, field="inputs")
        elif name in RESERVED_NAMES:
            message = f"`{name}` is a reserved name"
            view.add("RESERVED_NAME", None, pointer, message, "rename the input", key=True, field="inputs")
    for step in view.steps:
        if step.id in inputs:
            _collision(view, step, "id", step.id, "an input", "rename the step")
    for key, owners in names.keys.items():
        for owner in owners:
            if key in RESERVED_NAMES:
                message = f"`{key}` is a reserved name"
                view.add(
                    "RESERVED_NAME",
                    owner,
                    owner.at("output_key"),
                    message,
                    f"write `{key}_value`",
                    field="output_key",
                )
            elif key in inputs:
                _collision(
                    view, owner, "output_key", key, "an input", "rename the key: nothing may replace an input"
                )
            elif key in view.by_id:
                own = view.by_id[key] is owner
                what = "the step's own id" if own else "the id of another step"
                help = (
                    "remove `output_key` and refer to the output as "
                    if own
                    else "rename the key; the step's output is "
                )
                _collision(view, owner, "output_key", key, what, f"{help}`${key}.output`")
        if len(owners) > 1 and flow is not None:
            _shared(view, key, owners, flow)


def _collision(view: View, step: Step, field: str, name: str, other: str, help: str) -> None:
    view.add("NAME_COLLISION", step, step.at(field), f"`{name}` is also {other}", help, field=field)


def _shared(view: View, key: str, owners: list[Step], flow: Flow) -> None:
    reached = flow.reachable()
    for place, owner in enumerate(owners):
        for earlier in owners[:place]:
            if owner.position not in reached or earlier.position not in reached:
                continue
            if not flow.exclusive(earlier.position, owner.position):
                message = f"`{key}` is also bound by `{earlier.id}`, and both can run"
                help = "rename one of them; only steps that exclude each other may share an `output_key`"
                view.add("NAME_COLLISION", owner, owner.at("output_key"), message, help, field="output_key")
                break
