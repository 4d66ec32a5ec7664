"""How runs begin: who may start them, with which inputs, once for each idempotency key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nano_vm import canonical
from nano_vm.errors import ConflictError, InputError
from nano_vm.expr.reference import UNSET as UNASSIGNED
from nano_vm.journal.port import DEFAULT_TENANT, TENANT_SEPARATOR, RunRecord, qualified
from nano_vm.journal.trace import Trace
from nano_vm.kernel import events as ev
from nano_vm.kernel.labels import FEATURE
from nano_vm.kernel.limits import PAYLOAD_BYTES_MAX
from nano_vm.kernel.state import RunStatus
from nano_vm.program.compiled import SLOT_PRINCIPAL, CompiledProgram
from nano_vm.program.model import Program
from nano_vm.program.schema_faults import faults, wanted_by
from nano_vm.runtime import recovery
from nano_vm.runtime.driver import Run
from nano_vm.runtime.governing import Gate
from nano_vm.runtime.labelling import Needs, needs_of, prove_calls, require_keys
from nano_vm.runtime.patience import patiently
from nano_vm.runtime.rights import START, check_right, principal_of
from nano_vm.runtime.sealing import inputs_digest

if TYPE_CHECKING:
    from nano_vm.runtime.engine import Engine, Progress

_UNSET = ev.UNSET
TRACE_ID_CHARS_MAX = 200
KEY_CHARS_MAX = 500
# How often a run that another process drives is looked at: at first, and at least. In between it takes a tenth longer
# each time, so that its result is late by a tenth of what it took.
POLL_S, POLL_GROWTH, POLL_MAX_S = 0.02, 1.1, 0.5


async def begin(
    engine: Engine,
    program: Program | Mapping[str, Any],
    context: Mapping[str, Any] | None,
    key: str | None,
    trace_id: str | None,
    principal: str | Mapping[str, Any] | None,
    tenant: str | None,
    listener: Callable[[Progress], None] | None = None,
    replanned: Mapping[str, Any] | None = None,
    at_once: bool = False,
) -> Run | Trace:
    engine.refuse_closed()
    program, compiled = engine.compile(program)
    inputs, payload = take_inputs(compiled, context)
    if principal is not None or tenant is not None or engine.tenant is not None or engine.access != "open":
        check_right(engine.access, principal, START)
        tenant = engine.whose(principal, tenant)
    tenant = tenant or DEFAULT_TENANT
    who = None if principal is None else principal_of(principal, tenant)
    if trace_id is not None or key is not None:
        check_names(trace_id, key, tenant)
    digest = ""
    pinned = engine.pin_calls(compiled, tenant) if compiled.calls else {}
    needs = (not pinned and engine.needs.get(compiled.hash)) or needs_of(engine, compiled, pinned.values())
    if needs.sealed:
        require_keys(engine, needs)
    if key is not None:
        digest = inputs_digest(engine, _subject_key(engine, compiled, inputs, tenant, who, needs), payload)
        existing = engine.store.find_key(tenant, compiled.name, key)
        if existing is not None:
            return await _first_result(engine, existing, digest)
    if (compiled.hash, tenant) not in engine._stored:
        await patiently(lambda: engine.save_program(program, tenant=tenant))
    if pinned and engine.proves and (needs.labels or engine.policy is not None):
        prove_calls(engine, program, compiled, pinned, labels=needs.labels)
    now = engine.clock.now_ms()
    engine.pausing.check(compiled.name, compiled.hash, tenant, now)
    run_id = trace_id or engine.new_run_id(now)
    if tenant != DEFAULT_TENANT:
        run_id = qualified(run_id, tenant)
    record = RunRecord(
        run_id=run_id,
        tenant=tenant,
        program_hash=compiled.hash,
        program_name=compiled.name,
        key=key,
        inputs_digest=digest,
        created_at_ms=now,
        updated_at_ms=now,
        owner=engine.store.owner,
        fence=1,
    )
    run = engine.new_run(record, compiled, who)
    run.listener = listener
    policy = engine.policy
    if policy is not None or compiled.approves:
        if policy is None or engine.is_kept(policy):
            run.gate = Gate(run, policy)
        else:
            await engine.govern(run, policy)
    if who is None and key is None and policy is None and replanned is None and not pinned:
        features = [FEATURE] if needs.labels else _UNSET
        start = ev.RunStarted(at_ms=now, features=features, payload=inputs, program=compiled.hash)
    else:
        start = ev.RunStarted(
            at_ms=now,
            features=[FEATURE] if needs.labels else _UNSET,
            key=_UNSET if key is None else canonical.digest_value(key),
            payload=inputs,
            policy=_UNSET if policy is None else policy.hash,
            principal=_UNSET if who is None else who,
            program=compiled.hash,
            programs=pinned or _UNSET,
            replanned=dict(replanned) if replanned else _UNSET,
        )
    run.opening = start, payload
    if key is None and trace_id is None:
        if not at_once:
            run.open()
        return run  # a fresh id: its creation may ride with the first intent
    return await _created(engine, run)


async def _created(engine: Engine, run: Run) -> Run | Trace:
    """The run, which is there under the id or the key that its caller chose; what another came to that was quicker with
    the same key."""
    run.open()
    try:
        await run.create()
    except ConflictError as error:
        record = run.record
        if record.key is None or error.code != "RUN_EXISTS":
            raise
        existing = engine.store.find_key(record.tenant, record.program_name, record.key)
        if existing is None:
            raise
        return await _first_result(engine, existing, record.inputs_digest)
    return run


def _subject_key(
    engine: Engine,
    compiled: CompiledProgram,
    inputs: dict[str, Any],
    tenant: str,
    who: dict[str, Any] | None,
    needs: Needs,
) -> str | None:
    """The key that digests of a run's inputs are made with: its subject's; None when nothing in it is private. A
    run without a subject has no key yet: then the tenant's stands in."""
    if not needs.sealed or engine.keys is None:
        return None
    if compiled.subject is None:
        return engine.keys.subject_key(tenant, ("inputs", compiled.name))
    slots: list[Any] = [UNASSIGNED] * len(compiled.slots)
    for name, slot in compiled.input_slots.items():
        slots[slot] = inputs.get(name, compiled.optional_inputs.get(name, UNASSIGNED))
    slots[SLOT_PRINCIPAL] = UNASSIGNED if who is None else who
    return engine.keys.subject_key(tenant, compiled.subject.render(slots))


async def _first_result(engine: Engine, record: RunRecord, digest: str) -> Trace:
    """The run that an idempotency key started: its result, once there is one."""
    if record.inputs_digest != digest:
        raise ConflictError(
            "KEY_CONFLICT",
            "the idempotency key was used before with another context",
            help="use a new key for a new context, or the same context for the same key",
            facts={"run_id": record.run_id},
        )
    pause = POLL_S
    while True:
        live = engine.live_here(record.run_id)
        if live is not None:
            await live.wait_until_settled()
        record = engine.store.record(record.run_id)
        if record.status != RunStatus.RUNNING or engine.draining:
            return engine.trace(record.run_id)
        run = await recovery.take_over(engine, record.run_id)
        if run is None:
            await asyncio.sleep(pause)
            pause = min(pause * POLL_GROWTH, POLL_MAX_S)
        elif run.state.status.is_terminal:
            await run.flush(run.update(release=True))
        else:
            await engine.drive(run)


def check_names(trace_id: str | None, key: str | None, tenant: str = DEFAULT_TENANT) -> None:
    """Ids below another one with `/` belong to the children of that run, those with `::` to a tenant: nobody else may
    take them."""
    if trace_id is not None:
        text = trace_id if type(trace_id) is str else ""
        if TENANT_SEPARATOR in text.removeprefix(
            f"{tenant}{TENANT_SEPARATOR}" if tenant != DEFAULT_TENANT else ""
        ):
            raise InputError(
                "TRACE_ID", f"a trace id holds no `{TENANT_SEPARATOR}`", help="use another separator"
            )
        if not 0 < len(text) <= TRACE_ID_CHARS_MAX or "/" in text or not text.isprintable() or text.isspace():
            raise InputError(
                "TRACE_ID",
                f"a trace id has 1 to {TRACE_ID_CHARS_MAX} printable characters and no `/`",
                help="leave it out: an unused one is made",
            )
    if key is not None and (type(key) is not str or not 0 < len(key) <= KEY_CHARS_MAX):
        raise InputError("RUN_KEY", f"a run's idempotency key is a text of 1 to {KEY_CHARS_MAX} characters")


def take_inputs(program: CompiledProgram, context: Mapping[str, Any] | None) -> tuple[dict[str, Any], bytes]:
    """The context as the program's inputs, checked against what it declares.

    Raises:
        InputError: INPUT_MISSING, INPUT_UNKNOWN, INPUT_INVALID, VALUE_NOT_JSON and its kin, VALUE_TOO_LARGE.
    """
    if context is not None and type(context) is not dict and not isinstance(context, Mapping):
        raise InputError(
            "INPUT_INVALID",
            f"the context is a {type(context).__name__} and should be an object of inputs by name",
            help='{"order_id": "A-1001"}',
            facts={"path": "", "keyword": "type"},
        )
    inputs, payload = canonical.normalize(context if type(context) is dict else dict(context or {}))
    if len(payload) > PAYLOAD_BYTES_MAX:
        canonical.check_size(payload, PAYLOAD_BYTES_MAX, "the context")
    for name in program.input_slots:
        if name not in inputs and name not in program.optional_inputs:
            raise InputError(
                "INPUT_MISSING",
                f"the program `{program.name}` needs the input `{name}`",
                help=f"pass it in the context: {{{name!r}: …}}, or `--input {name}=…`",
                facts={"input": name},
            )
    schema = program.inputs_schema
    if schema is None:
        return inputs, payload
    for name in inputs:
        if name not in program.input_slots:
            raise InputError(
                "INPUT_UNKNOWN",
                f"the program `{program.name}` declares no input `{name}`",
                help=f"it declares: {', '.join(program.input_slots) or 'none'}",
                facts={"input": name},
            )
    for fault in faults(canonical.encode(schema), inputs):
        pointer = "/" + "/".join(str(part) for part in fault.instance_path)
        raise InputError(
            "INPUT_INVALID",
            f"the input at `{pointer}` does not fit its schema: {wanted_by(schema, fault)}",
            help="see the program's `inputs`",
            facts={"path": pointer, "keyword": fault.kind.name},
        )
    return inputs, payload
