"""What can be said about each step by itself, and about the names steps give to one another."""

from __future__ import annotations

import re
from typing import Any

from nano_vm.compiler.json_schema import check_inputs, check_schema, violations
from nano_vm.compiler.view import CONTINUE, Step, View
from nano_vm.program.diagnostic import did_you_mean, quote
from nano_vm.program.fields import RESERVED_NAMES
from nano_vm.program.tool_schema import offered_name

_RFC3339 = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})[Tt ](\d{2}):(\d{2}):(\d{2})(?:\.\d+)?(?:[Zz]|[+-]([01]\d|2[0-3]):([0-5]\d))"
)
_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def check_structure(view: View) -> None:
    """Notes findings about ids, targets, fields that contradict one another, and schemas."""
    _ids(view)
    _program(view)
    for step in view.steps:
        _targets(view, step)
        _endings(view, step)
        _failures(view, step)
        _fixed_names(view, step)
        match step.type:
            case "condition":
                if "then" not in step.data and "otherwise" not in step.data and _complete(view, step):
                    help = "add `then:` and `otherwise:`; `continue` means the next step in the list"
                    view.add(
                        "MISSING_BRANCH", step, step.at("condition"), "the condition has no branch", help
                    )
            case "wait":
                _wait(view, step)
            case "llm":
                _asking(view, step)
            case "agent":
                _asking(view, step)
                _agent(view, step)


def _complete(view: View, step: Step) -> bool:
    """Nothing of the step was refused, so what is missing was never written."""
    return len(step.data) == len(view.written(step))


def _ids(view: View) -> None:
    for step in view.steps:
        first = view.by_id.get(step.id)
        if step.id and first is not None and first is not step:
            message = f"two steps have the id `{step.id}`"
            view.add("DUPLICATE_ID", step, step.at("id"), message, "rename one of them", field="id")
        if step.id in RESERVED_NAMES or step.id == CONTINUE:
            message = f"`{step.id}` is a reserved name"
            view.add("RESERVED_NAME", step, step.at("id"), message, f"write `{step.id}_step`", field="id")


def _program(view: View) -> None:
    inputs = view.data.get("inputs")
    if isinstance(inputs, dict):
        for finding in check_inputs(inputs):
            view.inputs_sound = False
            pointer = "/inputs" + finding.pointer
            view.add(
                finding.code,
                None,
                pointer,
                finding.message,
                finding.help,
                field="inputs",
                key=finding.key,
            )


def _targets(view: View, step: Step) -> None:
    targets = list(view.targets(step))
    for index, name in enumerate(step.data.get("depends_on", ())):
        targets.append(("depends_on", f"{step.at('depends_on')}/{index}", name))
        if name == step.id:
            view.add(
                "DEPENDS_ON_CYCLE",
                step,
                targets[-1][1],
                f"`{name}` waits for itself",
                "remove it",
                field="depends_on",
            )
    for field, pointer, name in targets:
        found = view.by_id.get(name)
        if found is not None and found.parent is None:
            continue
        if found is not None and found.parent is not None:
            help = f"go to `{found.parent.id}`, which runs it"
            view.add("MISSING_TARGET", step, pointer, f"`{name}` is a sub-step", help, field=field)
            continue
        if name == CONTINUE:
            message = "`continue` is for the branches of a condition"
            view.add(
                "MISSING_TARGET", step, pointer, message, "name a step, or remove the field", field=field
            )
            continue
        help = (
            did_you_mean(name, [other.id for other in view.top if other is not step])
            or "name a step of this program"
        )
        if name.lower() in ("end", "stop", "done", "exit", "finish"):
            help = "to end the run put `is_terminal: true` on the last step of the branch"
        view.add("MISSING_TARGET", step, pointer, f"there is no step {quote(name)}", help, field=field)


def _endings(view: View, step: Step) -> None:
    data = step.data
    ends = data.get("is_terminal", False)
    follows = "next_step" in data
    for field in ("final_status", "outcome"):
        if field in data and (not ends or follows):
            help = "remove `next_step`" if follows and ends else "add `is_terminal: true`"
            message = f"`{field}` is only for steps that end the run"
            view.add("FIELD_CONFLICT", step, step.at(field), message, help, key=True, field=field)
    if ends and follows:
        message = "`is_terminal` does nothing here: `next_step` comes first"
        view.warn(
            "FIELD_WITHOUT_EFFECT", step, step.at("is_terminal"), message, "remove one of them", key=True
        )


def _failures(view: View, step: Step) -> None:
    data = step.data
    on_error = data.get("on_error", "fail")
    for field in ("max_retries", "retry"):
        if field in data and on_error != "retry":
            message = f"`{field}` does nothing without `on_error: retry`"
            view.warn(
                "FIELD_WITHOUT_EFFECT", step, step.at(field), message, "add `on_error: retry`", key=True
            )
    if "on_failure" in data and on_error == "skip":
        message = "`on_failure` is never reached: `on_error: skip` turns failures into null"
        view.warn(
            "FIELD_WITHOUT_EFFECT", step, step.at("on_failure"), message, "remove one of them", key=True
        )
    if "on_timeout" in data and "timeout_seconds" not in data and _complete(view, step):
        message = "`on_timeout` does nothing without `timeout_seconds`"
        view.warn(
            "FIELD_WITHOUT_EFFECT", step, step.at("on_timeout"), message, "add `timeout_seconds:`", key=True
        )
    falls_back = data.get("on_timeout") == "fallback"
    if "fallback" in data and not falls_back:
        message = "`fallback` does nothing without `on_timeout: fallback`"
        view.warn(
            "FIELD_WITHOUT_EFFECT", step, step.at("fallback"), message, "add `on_timeout: fallback`", key=True
        )
    if falls_back and "fallback" not in data:
        if step.type in ("llm", "agent"):
            values = data.get("allowed_outputs")
            shown = f'"{values[0]}"' if values else '""'
            message = f"without `fallback` a time-out yields {shown}"
            help = f"write `fallback: {shown}` if that is meant"
            view.warn("FALLBACK_IMPLICIT", step, step.at("on_timeout"), message, help, field="on_timeout")
        else:
            message = "`on_timeout: fallback` has no value to fall back to"
            view.add(
                "MISSING_FIELD", step, step.at("on_timeout"), message, "add `fallback:`", field="fallback"
            )
    if falls_back:
        _fallback_on_effect(view, step)


def _fallback_on_effect(view: View, step: Step) -> None:
    tool = (view.tools or {}).get(step.data.get("tool", "")) if step.type == "tool" else None
    if tool is not None and tool.effect not in ("pure", "idempotent"):
        message = f"when `{tool.name}` ({tool.effect}) times out nobody knows whether it happened"
        help = "handle it with `on_failure`, or declare the tool pure or idempotent if it is"
        view.add("FALLBACK_ON_EFFECT", step, step.at("on_timeout"), message, help, field="on_timeout")


def _fixed_names(view: View, step: Step) -> None:
    names: list[tuple[str, str, Any]] = [("tool", step.at("tool"), step.data.get("tool"))]
    if step.type == "call":
        names.append(("program", step.at("program"), step.data.get("program")))
    compensate = step.data.get("compensate")
    if isinstance(compensate, dict):
        names.append(("compensate", step.at("compensate") + "/tool", compensate.get("tool")))
    for field, pointer, name in names:
        if not isinstance(name, str):
            continue
        if "$" in name:
            help = "write the name; decide between several with a condition step"
            view.add(
                "BAD_TEMPLATE",
                step,
                pointer,
                f"the {field} of a step is fixed, not computed",
                help,
                field=field,
            )
        elif field != "program" and view.tools is not None and name not in view.tools:
            help = did_you_mean(name, view.tools) or "register it, or check the spelling"
            view.add("UNKNOWN_TOOL", step, pointer, f"there is no tool {quote(name)}", help, field=field)


def _wait(view: View, step: Step) -> None:
    data = step.data
    given = [field for field in ("event", "seconds", "until", "approvers") if field in data]
    if not given and _complete(view, step):
        help = "add `event:`, `seconds:`, `until:` or `approvers:`"
        view.add("MISSING_FIELD", step, step.pointer, "the wait does not say what it waits for", help)
    if len(given) > 1 and given != ["event", "approvers"]:
        message = "a wait is for one thing: " + ", ".join(f"`{field}`" for field in given)
        help = "make two steps of it; `timeout_seconds` limits how long an event is waited for"
        view.add("FIELD_CONFLICT", step, step.at(given[1]), message, help, key=True, field=given[1])
    if "accept" in data and given and not set(given) & {"event", "approvers"}:
        message = "`accept` looks at an event, and this wait has none"
        view.add("FIELD_CONFLICT", step, step.at("accept"), message, "add `event:`", key=True, field="accept")
    if "approves" in data:
        _approves(view, step)
    until = data.get("until")
    if isinstance(until, str) and "$" not in until and not _is_time(until):
        message = f"{quote(until)} is not an RFC 3339 time"
        help = "write it like 2026-01-31T09:00:00Z, with an offset"
        view.add("BAD_VALUE", step, step.at("until"), message, help, field="until")
    seconds = data.get("seconds")
    if isinstance(seconds, str) and "$" not in seconds:
        view.add(
            "WRONG_TYPE",
            step,
            step.at("seconds"),
            "`seconds` is a number or a reference",
            "write digits without quotes",
            field="seconds",
        )


def _approves(view: View, step: Step) -> None:
    """An approval is of one action: that of a tool step which the run comes to once at a time."""
    name, pointer = step.data["approves"], step.at("approves")
    if "approvers" not in step.data and _complete(view, step):
        help = "add `approvers:` with the roles that may approve"
        view.add("MISSING_FIELD", step, step.pointer, "the wait does not say who approves", help)
    found = view.by_id.get(name)
    if found is None:
        help = did_you_mean(name, view.by_id) or "name a tool step of this program"
        view.add("MISSING_TARGET", step, pointer, f"there is no step {quote(name)}", help, field="approves")
    elif found.type and found.type != "tool":
        message = f"{quote(name)} is a {found.type} step, and only the action of a tool step can be approved"
        view.add("FIELD_CONFLICT", step, pointer, message, "name the tool step that acts", field="approves")
    elif found.parent is not None and found.parent.type == "map":
        message = f"{quote(name)} runs once per element, and one approval is for one action"
        help = "let the policy ask for approvals of it"
        view.add("SUBSTEP_NOT_ALLOWED", step, pointer, message, help, field="approves")


def _is_time(text: str) -> bool:
    match = _RFC3339.fullmatch(text)
    if match is None:
        return False
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    if not (1 <= month <= 12 and 1 <= day <= _DAYS[month - 1] and hour < 24 and minute < 60 and second < 60):
        return False
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return not (month == 2 and day == 29 and not leap) and year > 0


def _asking(view: View, step: Step) -> None:
    data = step.data
    allowed = data.get("allowed_outputs")
    folded = data.get("normalize") == "casefold"
    if "normalize" in data and allowed is None and _complete(view, step):
        message = "`normalize` does nothing without `allowed_outputs`"
        view.warn(
            "FIELD_WITHOUT_EFFECT", step, step.at("normalize"), message, "add `allowed_outputs:`", key=True
        )
    if isinstance(allowed, list):
        seen: set[str] = set()
        for index, value in enumerate(allowed):
            pointer = f"{step.at('allowed_outputs')}/{index}"
            if value != value.strip() or not value.strip():
                message = "answers are stripped of white space, so this one can never match"
                view.add(
                    "BAD_VALUE", step, pointer, message, f"write `{value.strip()}`", field="allowed_outputs"
                )
            canonical = value.strip().casefold() if folded else value
            if folded and canonical in seen:
                message = f"{quote(value)} differs from another one in case alone"
                view.add(
                    "BAD_VALUE", step, pointer, message, "remove one, or `normalize`", field="allowed_outputs"
                )
            seen.add(canonical)
        if "output_schema" in data:
            message = "`allowed_outputs` and `output_schema` exclude each other"
            help = "put the values into the schema as an `enum`"
            view.add(
                "FIELD_CONFLICT",
                step,
                step.at("output_schema"),
                message,
                help,
                key=True,
                field="output_schema",
            )
    sound = _output_schema(view, step)
    if "fallback" in data and data.get("on_timeout") == "fallback":
        _fallback_value(view, step, allowed, sound)
    params = data.get("params")
    tokens = params.get("max_tokens") if isinstance(params, dict) else None
    if tokens is not None and not isinstance(tokens, str) and (type(tokens) is not int or tokens < 1):
        message, help = "`max_tokens` must be an integer of at least 1", "write a whole number, or remove it"
        view.add("BAD_VALUE", step, step.at("params") + "/max_tokens", message, help, field="params")


def _agent(view: View, step: Step) -> None:
    tools = step.data.get("tools", ())
    offered: dict[str, str] = {}
    for index, name in enumerate(tools):
        pointer = f"{step.at('tools')}/{index}"
        other = offered.setdefault(offered_name(name), name)
        if other != name:
            message = f"`{name}` and `{other}` are the same name to a model"
            help = "register one of them under another name; models know letters, digits, `_` and `-`"
            view.add("NAME_COLLISION", step, pointer, message, help, field="tools")
        tool = (view.tools or {}).get(name)
        if view.tools is None:
            continue
        if tool is None:
            help = did_you_mean(name, view.tools) or "register it, or check the spelling"
            view.add("UNKNOWN_TOOL", step, pointer, f"there is no tool {quote(name)}", help, field="tools")
        elif tool.parameters.get("type", "object") != "object":
            message = f"the arguments of `{name}` are no object, so no model can name them"
            help = 'give the tool a schema with `"type": "object"`'
            view.add("BAD_SCHEMA", step, pointer, message, help, field="tools")


def _output_schema(view: View, step: Step) -> bool:
    if "output_schema" not in step.data:
        return False
    findings = check_schema(step.data["output_schema"])
    for finding in findings:
        pointer = step.at("output_schema") + finding.pointer
        view.add(finding.code, step, pointer, finding.message, finding.help, field="output_schema")
    return not findings


def _fallback_value(view: View, step: Step, allowed: Any, schema_sound: bool) -> None:
    value = step.data["fallback"]
    if isinstance(allowed, list) and value not in allowed:
        help = "use one of " + ", ".join(quote(str(item)) for item in allowed[:10])
        message = "the fallback is not one of `allowed_outputs`"
        view.add("BAD_VALUE", step, step.at("fallback"), message, help, field="fallback")
    elif schema_sound:
        for pointer, message in violations(step.data["output_schema"], value)[:3]:
            where = step.at("fallback") + pointer
            view.add(
                "BAD_VALUE",
                step,
                where,
                f"the fallback violates `output_schema`: {message}",
                "write a value that the schema allows",
                field="fallback",
            )
