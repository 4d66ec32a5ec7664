"""Tools: plain functions, described by their type hints.

    @tool(effect="keyed")
    async def charge(card: str, amount: int, ctx: ToolContext) -> dict: ...

The hints become the JSON Schema that arguments are checked against - before the run, as far as they are known, and at
every call.
"""

from __future__ import annotations

import inspect
import types
import typing
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar, overload

import msgspec

from nano_vm import canonical
from nano_vm.compiler.json_schema import check_schema
from nano_vm.errors import InputError, Place, ProgramError
from nano_vm.program.labels import DECLARED
from nano_vm.program.schema_faults import faults
from nano_vm.program.tool_schema import ToolSchema
from nano_vm.runtime.arguments import check_all, check_callable, check_mapping, check_switch, check_text
from nano_vm.runtime.ports import ToolSpec
from nano_vm.runtime.tooling import EFFECTS, Secret, ToolContext

_F = TypeVar("_F", bound=Callable[..., Any])
_MARK = "__nano_vm_tool__"
_DESCRIPTION_CHARS_MAX = 1_000


class _Mark(msgspec.Struct, frozen=True):
    name: str | None
    effect: str
    schema: dict[str, Any] | None
    output_schema: dict[str, Any] | None
    reconcile: Callable[..., Any] | None
    blocking: bool
    may_suspend: bool
    version: str
    protected: tuple[str, ...] = ()
    output_label: str | None = None
    secrets: tuple[str, ...] = ()


_PLAIN_MARK = _Mark(None, "irreversible", None, None, None, True, True, "1")


@overload
def tool(function: _F) -> _F: ...
@overload
def tool(
    *,
    name: str | None = None,
    effect: str = "irreversible",
    schema: dict[str, Any] | None = None,
    output_schema: dict[str, Any] | None = None,
    reconcile: Callable[..., Any] | None = None,
    blocking: bool = True,
    may_suspend: bool = True,
    version: str = "1",
    protected: Sequence[str] = (),
    output_label: str | None = None,
    secrets: Sequence[str] = (),
) -> Callable[[_F], _F]: ...
def tool(
    function: Any = None,
    *,
    name: str | None = None,
    effect: str = "irreversible",
    schema: dict[str, Any] | None = None,
    output_schema: dict[str, Any] | None = None,
    reconcile: Callable[..., Any] | None = None,
    blocking: bool = True,
    may_suspend: bool = True,
    version: str = "1",
    protected: Sequence[str] = (),
    output_label: str | None = None,
    secrets: Sequence[str] = (),
) -> Any:
    """Declare a function as a tool.

    Args:
        name: what programs call it; the function's name by default.
        effect: what may be done when nobody knows whether a call happened (SPEC §7): `pure`, `idempotent`, `keyed`,
            `transactional`, `reconcilable` or `irreversible`.
        schema: JSON Schema of the arguments, instead of the one made from the type hints.
        output_schema: JSON Schema of the result, instead of the one made from the return hint.
        reconcile: for `reconcilable`: called with the arguments (and `ctx`, if it takes it), returns a `Reconciled`.
        blocking: False promises that a plain function returns at once; it is then called without a thread.
        may_suspend: False promises that the tool never answers PENDING; the string is then ordinary output.
        version: part of the tool's identity; change it when the same arguments come to mean another action.
        protected: parameters that take trusted values only: nothing that a model, a user or a remote system made up
            gets there, but through a gate.
        output_label: what the output counts as: `trusted` (the tool vouches for it), `untrusted` or `secret` (no model
            may see it). Without one it counts as what the arguments count as.
        secrets: parameters that take a secret: programs give them its reference, `vault://secret/<id>`, and the call
            its value. A parameter whose type hint is `Secret` is one too.

    Raises:
        ProgramError: TOOL_EFFECT for an unknown effect class, or `reconcilable` without `reconcile`; TOOL_LABEL for an
        unknown label; TOOL_SIGNATURE for what takes no mark (bound methods, built-in functions).
        InputError: USAGE for an argument of another kind.
    """
    check_text("name", name)
    check_text("effect", effect, needed=True)
    check_text("output_label", output_label)
    check_text("version", version, needed=True)
    check_mapping("schema", schema, _SCHEMA)
    check_mapping("output_schema", output_schema, _SCHEMA)
    check_callable("reconcile", reconcile)
    check_switch("blocking", blocking)
    check_switch("may_suspend", may_suspend)
    protected = _names("protected", protected)
    secrets = _names("secrets", secrets)

    if name == "":
        raise _nameless()

    def mark(target: Any) -> Any:
        called = name or str(getattr(target, "__name__", "tool"))
        _check_effect(called, effect, reconcile)
        _check_label(called, output_label)
        held = _Mark(
            name=name,
            effect=effect,
            schema=schema,
            output_schema=output_schema,
            reconcile=reconcile,
            blocking=blocking,
            may_suspend=may_suspend,
            version=version,
            protected=tuple(protected),
            output_label=output_label,
            secrets=tuple(secrets),
        )
        try:
            setattr(target, _MARK, held)
        except AttributeError:
            what = getattr(target, "__qualname__", type(target).__name__)
            raise ProgramError(
                "TOOL_SIGNATURE",
                f"`{what}` cannot be marked as a tool: it takes no attributes",
                help="mark the method where its class defines it, and register the bound one; or mark a function that "
                "calls it",
            ) from None
        return target

    return mark(function) if function is not None else mark


_SCHEMA = '{"type": "object", "properties": {"amount": {"type": "integer"}}}'


def _names(name: str, given: Any) -> tuple[str, ...]:
    """Names of parameters, or one alone."""
    if isinstance(given, str):
        return (given,)
    check_all(name, given, str, f'{name}=["card"]')
    return tuple(given)


def _check_effect(name: str, effect: str, reconcile: Callable[..., Any] | None) -> None:
    if effect not in EFFECTS:
        raise ProgramError(
            "TOOL_EFFECT",
            f"tool `{name}` declares the unknown effect `{effect}`",
            help=f"one of: {', '.join(EFFECTS)}",
        )
    if (effect == "reconcilable") != (reconcile is not None):
        raise ProgramError(
            "TOOL_EFFECT",
            f"tool `{name}`: `reconcilable` and a `reconcile` function go together",
            help='@tool(effect="reconcilable", reconcile=find_out)',
        )


def _check_label(name: str, label: str | None) -> None:
    if label is not None and label not in DECLARED:
        raise ProgramError(
            "TOOL_LABEL",
            f"tool `{name}`: there is no label `{label}`",
            help=f"one of: {', '.join(DECLARED)}",
        )


def _check_protected(name: str, protected: tuple[str, ...], parameters: dict[str, Any]) -> None:
    """A parameter that is not there protects nothing."""
    known = parameters.get("properties", {})
    if parameters.get("additionalProperties", True) is not False:
        return
    for parameter in protected:
        if parameter not in known:
            raise ProgramError(
                "TOOL_LABEL",
                f"tool `{name}`: the protected parameter `{parameter}` does not exist",
                help=f"it has: {', '.join(known) or 'none'}",
            )


class ToolSet:
    """The tools of an engine, by name; what `ExecutionVM(tools=…)` becomes.

    Args:
        tools: name -> function, or functions, each under its own name.

    Raises:
        ProgramError: TOOL_SIGNATURE for what is no function, and what `add` raises. InputError: TOOLS_CONFLICT for two
        functions of one name.
    """

    def __init__(
        self, tools: Mapping[str, Callable[..., Any]] | Iterable[Callable[..., Any]] | None = None
    ) -> None:
        self._specs: dict[str, ToolSpec] = {}
        if isinstance(tools, Mapping):
            for name, function in tools.items():
                check_text("a tool's name", name, needed=True)
                self.add(function, name)
        elif tools is not None:
            if isinstance(tools, str) or not isinstance(tools, Iterable):
                raise ProgramError(
                    "TOOL_SIGNATURE",
                    f"tools are functions, and no {type(tools).__name__}",
                    help='give a list of them, or a dict: tools={"pay": pay}',
                )
            for function in tools:
                self._add_another(function)

    def _add_another(self, function: Callable[..., Any]) -> None:
        """Of two tools of one name a program could mean either. The same function again is no other one."""
        spec = describe(function)
        known = self._specs.get(spec.name)
        if known is not None and known.function != spec.function:
            raise InputError(
                "TOOLS_CONFLICT",
                f"two functions are named `{spec.name}`",
                help='name them: tools={"pay": pay, "refund": refund}, or @tool(name="…")',
            )
        self._specs[spec.name] = spec

    def add(self, function: Callable[..., Any], name: str | None = None) -> ToolSpec:
        """Register a function; under its own name when none is given.

        Raises:
            ProgramError: TOOL_SIGNATURE for what is no function, and for functions whose parameters cannot be named
            (positional-only, `*args`); BAD_SCHEMA for a schema that is none. InputError: USAGE for a name that is none.
        """
        check_text("name", name)
        spec = describe(function, name)
        self._specs[spec.name] = spec
        return spec

    def put(self, spec: ToolSpec) -> None:
        """Register a tool that was described elsewhere, or replace it."""
        self._specs[spec.name] = spec

    def spec(self, name: str) -> ToolSpec | None:
        return self._specs.get(name)

    def schemas(self) -> dict[str, ToolSchema]:
        return {name: spec.schema for name, spec in self._specs.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def __contains__(self, name: object) -> bool:
        return name in self._specs


Tools: TypeAlias = Mapping[str, Callable[..., Any]] | Iterable[Callable[..., Any]] | ToolSet


def tool_set(tools: Tools | None) -> ToolSet:
    """Tools as callers give them: name -> function, functions (each under its own name), or a `ToolSet`.

    Raises:
        ProgramError, InputError: as `ToolSet`.
    """
    if isinstance(tools, ToolSet):
        return tools
    return ToolSet(tools)


def _nameless() -> ProgramError:
    return ProgramError("TOOL_SIGNATURE", "a tool's name is empty", help='tools={"pay": pay}')


class _Description(msgspec.Struct, frozen=True):
    """What is known of a function, apart from the function itself: nothing here keeps it alive."""

    mark: _Mark | None
    schema: ToolSchema
    digest: str
    is_async: bool
    problems: Callable[[dict[str, Any]], list[str]] | None
    only: tuple[str, tuple[type, ...]] | None
    context_parameter: str | None
    secrets: frozenset[str]
    wrapped: frozenset[str]


# By function (of a bound method: the method's), then by name and whether it is bound: an engine that is made for one
# run need not read its tools' hints again.
_described: weakref.WeakKeyDictionary[Any, dict[tuple[str, bool], _Description]] = weakref.WeakKeyDictionary()


def describe(function: Callable[..., Any], name: str | None = None) -> ToolSpec:
    """What the runtime has to know of a function to call it as a tool."""
    if not callable(function):
        raise ProgramError(
            "TOOL_SIGNATURE",
            f"a tool is a function, and no {type(function).__name__}",
            help='give the function itself; its name is the key: tools={"pay": pay}',
        )
    if name == "":
        raise _nameless()
    mark: _Mark | None = getattr(function, _MARK, None)
    name = name or (mark.name if mark else None) or str(getattr(function, "__name__", "tool"))
    bound = type(function) is types.MethodType
    held = function.__func__ if bound else function  # type: ignore[attr-defined]
    if type(held) is types.FunctionType:
        known = _described.get(held)
        if known is None:
            known = _described[held] = {}
        description = known.get((name, bound))
        if description is None or description.mark is not mark:
            description = known[name, bound] = _describe(function, name, mark)
    else:
        description = _describe(function, name, mark)
    mark = mark or _PLAIN_MARK
    return ToolSpec(
        name=name,
        function=function,
        effect=mark.effect,
        is_async=description.is_async,
        digest=description.digest,
        schema=description.schema,
        problems=description.problems,
        only=description.only,
        context_parameter=description.context_parameter,
        reconcile=mark.reconcile,
        blocking=mark.blocking,
        may_suspend=mark.may_suspend,
        secrets=description.secrets,
        wrapped=description.wrapped,
    )


def _describe(function: Callable[..., Any], name: str, given: _Mark | None) -> _Description:
    mark = given or _PLAIN_MARK
    _check_schema(name, mark.schema)
    _check_schema(name, mark.output_schema)
    call = function if inspect.isroutine(function) else type(function).__call__
    hints = _hints(call)
    taken = _parameters(function, name, hints)
    parameters = mark.schema or taken.schema
    secrets = frozenset(mark.secrets) | taken.wrapped
    _check_secrets(name, mark, secrets, parameters)
    _check_protected(name, mark.protected, parameters)
    schema = ToolSchema(
        name=name,
        parameters=parameters,
        effect=mark.effect,
        output=mark.output_schema if mark.output_schema is not None else _output_schema(hints),
        # Whoever may name a secret may have it opened: only what the author vouches for names one.
        protected=tuple(dict.fromkeys([*mark.protected, *sorted(secrets)])),
        output_label=mark.output_label,
        description=_summary(function, call),
        may_suspend=mark.may_suspend,
    )
    return _Description(
        mark=given,
        schema=schema,
        digest=_digest(name, mark, parameters, secrets),
        is_async=_is_async(function),
        problems=argument_checker(parameters),
        only=only_argument(parameters),
        context_parameter=taken.context_parameter,
        secrets=secrets,
        wrapped=taken.wrapped,
    )


class _Parameters(NamedTuple):
    """What a function's signature says: the JSON Schema of its arguments, the parameter that takes the call's context,
    and those that take a `Secret`."""

    schema: dict[str, Any]
    context_parameter: str | None
    wrapped: frozenset[str]


def _parameters(function: Callable[..., Any], name: str, hints: dict[str, Any]) -> _Parameters:
    """Raises ProgramError TOOL_SIGNATURE."""
    context_parameter = None
    properties: dict[str, Any] = {}
    required: list[str] = []
    components: dict[str, Any] = {}
    open_ended = False
    wrapped: set[str] = set()
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise ProgramError(
            "TOOL_SIGNATURE",
            f"tool `{name}`: its parameters are not known",
            help="write a function that calls it",
        ) from None
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            raise ProgramError(
                "TOOL_SIGNATURE",
                f"tool `{name}`: the parameter `{parameter.name}` cannot be passed by name",
                help="give it ordinary or keyword-only parameters",
            )
        if parameter.kind is parameter.VAR_KEYWORD:
            open_ended = True
            continue
        hint = hints.get(parameter.name, Any)
        if hint is ToolContext or (hint is Any and parameter.name == "ctx"):
            context_parameter = parameter.name
            continue
        if hint is Secret or Secret in typing.get_args(hint):
            wrapped.add(parameter.name)
            hint = str if hint is Secret else str | None
        properties[parameter.name] = _schema_of(hint, components)
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    schema: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": open_ended,
    }
    if components:
        schema["$defs"] = components
    return _Parameters(schema, context_parameter, frozenset(wrapped))


def _output_schema(hints: dict[str, Any]) -> dict[str, Any] | None:
    """JSON Schema of the result, where the return hint says something of it."""
    if "return" not in hints:
        return None
    components: dict[str, Any] = {}
    schema = _schema_of(hints["return"], components)
    if not schema:
        return None
    return {**schema, "$defs": components} if components else schema


def _digest(name: str, mark: _Mark, parameters: dict[str, Any], secrets: frozenset[str]) -> str:
    """The tool's identity: another one makes another action of the same arguments."""
    identity: dict[str, Any] = {"name": name, "parameters": parameters, "version": mark.version}
    if mark.protected:
        identity["protected"] = sorted(mark.protected)
    if secrets:
        identity["secrets"] = sorted(secrets)
    if mark.output_label is not None:
        identity["output_label"] = mark.output_label
    return canonical.digest_value(identity)


def _check_schema(name: str, schema: dict[str, Any] | None) -> None:
    for finding in check_schema(schema) if schema is not None else ():
        raise ProgramError(
            "BAD_SCHEMA",
            f"tool `{name}`: {finding.message}",
            help=finding.help,
            place=Place(path=finding.pointer),
        )


def _summary(function: Any, call: Any) -> str:
    """The first paragraph of the docstring: what a model is told the tool does."""
    text = inspect.getdoc(function if inspect.isroutine(function) else call) or ""
    return " ".join(text.split("\n\n", 1)[0].split())[:_DESCRIPTION_CHARS_MAX]


def _check_secrets(name: str, mark: _Mark, secrets: frozenset[str], parameters: dict[str, Any]) -> None:
    """A secret is opened after an intent that names it, for a parameter that is there."""
    if not secrets:
        return
    unknown = sorted(secrets - set(parameters.get("properties", {})))
    if unknown:
        raise ProgramError(
            "TOOL_SECRET",
            f"tool `{name}` has no parameter `{unknown[0]}`, which it declares as a secret",
            help='@tool(secrets=["card_token"]) names parameters of the function',
        )
    if mark.effect == "pure":
        raise ProgramError(
            "TOOL_SECRET",
            f"tool `{name}` is pure and takes a secret: its calls leave no intent that could name it",
            help='declare what it does with the secret: effect="idempotent", for example',
        )


def _is_async(function: Callable[..., Any]) -> bool:
    # An object may have `async def __call__`.
    called = getattr(function, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:
        # A hint that cannot be resolved (a forward reference to a local class) describes nothing.
        return {}


def _schema_of(hint: Any, components: dict[str, Any]) -> dict[str, Any]:
    if hint is Any or hint is inspect.Parameter.empty:
        return {}
    try:
        (schema,), found = msgspec.json.schema_components([hint], ref_template="#/$defs/{name}")
    except TypeError:
        return {}  # a type that JSON Schema cannot express is not checked
    components.update(found)
    return schema


_PLAIN: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "object": (dict,),
    "array": (list,),
}


def _is_flat(parameters: dict[str, Any]) -> bool:
    return set(parameters) <= {"type", "properties", "required", "additionalProperties"} and all(
        set(schema) <= {"type"} and type(schema.get("type", "string")) is str and schema.get("type") != "null"
        for schema in parameters.get("properties", {}).values()
    )


def only_argument(parameters: dict[str, Any]) -> tuple[str, tuple[type, ...]] | None:
    """Name and types of the only argument, if the schema has one and asks for no more than its plain type."""
    properties = parameters.get("properties", {})
    if len(properties) != 1 or not _is_flat(parameters):
        return None
    ((name, schema),) = properties.items()
    return (name, _PLAIN[schema["type"]]) if schema.get("type") in _PLAIN else None


def argument_checker(parameters: dict[str, Any]) -> Callable[[dict[str, Any]], list[str]] | None:
    """A check of arguments against their schema. Flat schemas of plain types - nearly all - are checked without the
    validator; it explains what is wrong when something is."""
    properties = parameters.get("properties", {})
    encoded = canonical.encode(parameters)

    def explain(args: dict[str, Any]) -> list[str]:
        return [
            f"`{'.'.join(str(part) for part in fault.instance_path) or 'args'}`: {fault.message}"
            for fault in faults(encoded, args)
        ]

    if not _is_flat(parameters):
        return explain
    names = properties.keys()
    typed = tuple(
        (name, _PLAIN[schema["type"]]) for name, schema in properties.items() if schema.get("type") in _PLAIN
    )
    nothing: list[str] = []
    one = only_argument(parameters)
    if one is not None:
        only, kinds = one

        def check_one(args: dict[str, Any]) -> list[str]:
            if len(args) == 1 and only in args and type(args[only]) in kinds:
                return nothing
            return explain(args)

        return check_one

    def check(args: dict[str, Any]) -> list[str]:
        if args.keys() != names:
            # An optional argument is left out, or something is amiss.
            return explain(args)
        for name, wanted in typed:
            if type(args[name]) not in wanted:
                return explain(args)
        return nothing

    return check
