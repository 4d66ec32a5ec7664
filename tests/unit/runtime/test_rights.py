"""Who may do what: roles of the house, and tenants, which see nothing of one another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from runtime_stage import Opener, play, program, refused, tool_step, wait_step

from begun_erasures import begin_erasure
from nano_vm import CapabilityDeniedError, ExecutionVM, InputError, MemoryStore, RunStatus
from nano_vm.kernel.events import EventRefused
from nano_vm.runtime import approvals
from nano_vm.runtime.rights import RIGHTS
from nano_vm.stores.tenants import TenantStore
from nano_vm.vault.local import Vault

FLOW = program(wait_step("w"), tool_step("a"))
ASKING = program({"id": "ok", "type": "wait", "approvers": ["boss"]})
TOOLS: dict[str, Callable[..., Any]] = {"act": lambda: 1}


def who(*roles: str, **fields: Any) -> dict[str, Any]:
    return {"id": "ana", "roles": list(roles), **fields}


ACTS: dict[str, Callable[[ExecutionVM, str, Any], Any]] = {
    "read": lambda vm, run, who: vm.trace(run, principal=who),
    "list": lambda vm, run, who: vm.runs(principal=who),
    "verify": lambda vm, run, who: vm.verify(run, principal=who),
    "replay": lambda vm, run, who: vm.replay(run, principal=who),
    "start": lambda vm, run, who: vm.run(FLOW, principal=who),
    "resume": lambda vm, run, who: vm.resume(run, {}, principal=who),
    "cancel": lambda vm, run, who: vm.cancel(run, principal=who),
    "resolve": lambda vm, run, who: vm.resolve(run, "a", "repeat", principal=who),
    "step": lambda vm, run, who: vm.step(run, principal=who),
    "fork": lambda vm, run, who: vm.fork(run, "w", principal=who),
    "approve": lambda vm, run, who: vm.approve(run, principal=who),
}
ALLOWED = {
    "viewer": {"read", "list"},
    "auditor": {"read", "list", "verify", "replay"},
    "approver": {"read", "list", "approve"},
    "operator": set(ACTS),
    "admin": set(ACTS),
}


async def said(call: Any) -> str:
    """What comes of a call: its error's code, or `done`."""
    try:
        found = call()
        if isinstance(found, Awaitable):
            await found
    except CapabilityDeniedError as error:
        return error.code
    except Exception:
        return "done"  # allowed, and refused for what it is about
    return "done"


@pytest.mark.parametrize("role", [*RIGHTS, None])
@pytest.mark.parametrize("access", ["open", "required"])
def test_a_role_opens_what_it_opens_and_nothing_else(role: str | None, access: str) -> None:
    async def main() -> None:
        store = MemoryStore()
        run_id = (await ExecutionVM(tools=TOOLS, store=store).run(FLOW)).trace_id
        vm = ExecutionVM(tools=TOOLS, store=store, access=access)
        everything = set(ACTS) if access == "open" else set()
        allowed = everything if role is None else ALLOWED[role]
        principal = who() if role is None else who(role, "boss")
        for name, act in ACTS.items():
            expected = "done" if name in allowed else "CAPABILITY_DENIED"
            assert await said(lambda act=act: act(vm, run_id, principal)) == expected, name

    play(main())


def test_where_somebody_is_required_nobody_in_particular_may_do_nothing() -> None:
    async def main() -> None:
        store = MemoryStore()
        run_id = (await ExecutionVM(tools=TOOLS, store=store).run(FLOW)).trace_id
        vm = ExecutionVM(tools=TOOLS, store=store, access="required")
        for name, act in ACTS.items():
            assert await said(lambda act=act: act(vm, run_id, None)) == "CAPABILITY_DENIED", name
        with pytest.raises(InputError):
            ExecutionVM(access="sometimes")

    play(main())


def test_an_approver_answers_approvals_and_sends_no_other_events(opener: Opener) -> None:
    async def main() -> None:
        vm = opener(tools=TOOLS)
        asking = (await vm.run(ASKING)).trace_id
        waiting = (await vm.run(FLOW)).trace_id
        with refused("CAPABILITY_DENIED"):
            await vm.resume(waiting, {"approved": True}, principal=who("approver", "boss"))
        with refused("NOT_APPROVER"):  # the right alone is not the role that is asked for
            await vm.resume(asking, {"approved": True}, principal=who("approver"))
        trace = await vm.resume(asking, {"approved": True}, principal=who("approver", "boss"))
        assert trace.status is RunStatus.SUCCESS

    play(main())


def test_an_approver_cannot_answer_as_an_approval_what_is_none(opener: Opener) -> None:
    approver = {"id": "eve", "roles": ["approver", "boss"]}

    async def main() -> None:
        vm = opener(access="required")
        waiting = program(wait_step("w"))
        run_id = (await vm.run(waiting, principal={"id": "op", "roles": ["operator"]})).trace_id
        for step in (None, "w"):
            with refused("NOT_WAITING"):
                await vm.approve(run_id, step=step, principal=approver)
        trace = vm.trace(run_id, principal=approver)
        refusals = [event for event in trace.events if type(event) is EventRefused]
        assert [(event.code, event.principal["id"]) for event in refusals] == [("NOT_WAITING", "eve")] * 2
        assert trace.status is RunStatus.SUSPENDED

    play(main())


def test_an_approver_who_comes_too_late_answers_nothing_else(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking at what the run waits for and its admission somebody else may have answered."""
    approver = {"id": "eve", "roles": ["approver", "boss"]}

    async def main() -> None:
        vm = opener(access="required")
        run_id = (
            await vm.run(program(wait_step("w")), principal={"id": "op", "roles": ["operator"]})
        ).trace_id
        monkeypatch.setattr(approvals, "only_approvals", lambda record, step, name: True)  # as it was before
        with refused("NOT_WAITING"):
            await vm.resume(run_id, {"approved": True}, principal=approver)
        ended = await vm.resume(run_id, "told", principal={"id": "op", "roles": ["operator"]})
        assert ended.final_output == "told"

    play(main())


def test_everything_that_is_done_to_a_run_says_who_did_it(opener: Opener) -> None:
    async def main() -> None:
        vm = opener(tools=TOOLS)
        ana = {"id": "ana", "roles": ["operator"], "tenant": "default"}
        run_id = (await vm.run(FLOW, principal=ana)).trace_id
        trace = await vm.cancel(run_id, principal=ana)
        fork = await vm.fork(run_id, "w", principal=ana)
        trace2 = await vm.resume(fork.trace_id, {}, principal=ana)
        named = [getattr(event, "principal", None) for event in (*trace.events, *trace2.events)]
        assert named.count(ana) == 4

    play(main())


# --- tenants ------------------------------------------------------------------------------------------------


def test_a_tenant_can_do_nothing_with_the_runs_of_another(opener: Opener) -> None:
    acme, bolt = who("admin", tenant="acme"), who("admin", tenant="bolt")

    async def main() -> None:
        vm = opener(tools=TOOLS)
        run_id = (await vm.run(FLOW, principal=acme, trace_id="order-1")).trace_id
        assert run_id == "acme::order-1"
        before = vm.store.read(run_id)
        for name in (run_id, "order-1"):
            for act in ("read", "verify", "replay", "resume", "cancel", "resolve", "step", "fork", "approve"):
                with refused("RUN_NOT_FOUND"):
                    found = ACTS[act](vm, name, bolt)
                    if isinstance(found, Awaitable):
                        await found
        assert vm.runs(principal=bolt) == []
        assert vm.approvals(principal=bolt) == []
        assert vm.store.read(run_id) == before
        assert [record.run_id for record in vm.runs(principal=acme)] == [run_id]
        assert vm.trace("order-1", principal=acme).trace_id == run_id

    play(main())


def test_tenants_do_not_collide(opener: Opener) -> None:
    """The same trace id, the same idempotency key, the same name of a program: each tenant has its own."""
    acme, bolt = who(tenant="acme"), who(tenant="bolt")
    call = program({"id": "k", "type": "call", "program": "child"})

    async def main() -> None:
        vm = opener(tools={"act": lambda: "acme's", "other": lambda: "bolt's"})
        ids = {(await vm.run(FLOW, principal=p, trace_id="order-1")).trace_id for p in (acme, bolt, who())}
        assert ids == {"acme::order-1", "bolt::order-1", "order-1"}
        keyed = [await vm.run(FLOW, principal=p, idempotency_key="k") for p in (acme, bolt, acme)]
        assert keyed[0].trace_id == keyed[2].trace_id != keyed[1].trace_id
        vm.save_program(program(tool_step("a"), name="child"), tenant="acme")
        vm.save_program(program(tool_step("a", "other"), name="child"), tenant="bolt")
        assert (await vm.run(call, principal=acme)).final_output == "acme's"
        assert (await vm.run(call, principal=bolt)).final_output == "bolt's"
        with refused("PROGRAM_NOT_FOUND"):
            await vm.run(call)
        for name in ("acme::order-2", "bolt::x"):
            with refused("TRACE_ID"):
                await vm.run(FLOW, trace_id=name)

    play(main())


def test_a_principal_has_no_part_in_another_tenant(opener: Opener) -> None:
    async def main() -> None:
        vm = opener(tools=TOOLS)
        with refused("CAPABILITY_DENIED"):
            await vm.run(FLOW, principal=who(tenant="acme"), tenant="bolt")
        for name in ("", "a/b", "a::b", "x" * 101):
            with refused("TENANT"):
                await vm.run(FLOW, tenant=name)

    play(main())


def test_a_store_of_one_tenant_holds_nothing_else(opener: Opener) -> None:
    async def main() -> None:
        everybody = opener(tools=TOOLS)
        theirs = (await everybody.run(FLOW, principal=who(tenant="bolt"))).trace_id
        await everybody.run(FLOW)
        vm = ExecutionVM(tools=TOOLS, store=TenantStore(everybody.store, "acme"), clock=everybody.clock)
        assert vm.runs() == []
        for act in ("read", "verify", "resume", "cancel", "step", "fork"):
            with refused("RUN_NOT_FOUND"):
                found = ACTS[act](vm, theirs, None)
                if isinstance(found, Awaitable):
                    await found
        with refused("CAPABILITY_DENIED"):
            await vm.run(FLOW, principal=who(tenant="bolt"))
        trace = await vm.run(FLOW, trace_id="mine")
        assert trace.trace_id == "acme::mine"
        trace = await vm.resume("mine", {})
        assert trace.status is RunStatus.SUCCESS
        vm.verify("mine")
        assert await vm.recover() == []
        assert vm.store.tail(0)[1][0][0] == "acme::mine"
        assert everybody.store.record("acme::mine").tenant == "acme"

    play(main())


def test_children_belong_to_the_tenant_of_their_parent(opener: Opener) -> None:
    acme = who(tenant="acme")
    flow = program({"id": "k", "type": "call", "program": "child"})

    async def main() -> None:
        vm = opener(tools=TOOLS)
        vm.save_program(program(wait_step("w"), name="child"), tenant="acme")
        trace = await vm.run(flow, principal=acme, trace_id="p")
        assert vm.store.record("acme::p/k.1.1", "acme").tenant == "acme"
        trace = await vm.resume("p", {}, principal=acme)
        assert trace.status is RunStatus.SUCCESS
        await asyncio.sleep(0)

    play(main())


# --- erasing ----------------------------------------------------------------------------------------------------


PERSONAL = program(
    wait_step("w"),
    inputs={"type": "object", "properties": {"who": {"type": "string", "private": True}}},
    subject="$who",
)
NOBODYS = {**{name: value for name, value in PERSONAL.items() if name != "subject"}, "name": "nobodys"}


def of(tenant: str, who: str = "ana") -> dict[str, Any]:
    return {"id": who, "roles": ["admin"], "tenant": tenant}


@pytest.mark.parametrize("access", ["open", "required"])
def test_a_principal_erases_nothing_of_another_tenant(opener: Opener, access: str) -> None:
    async def main() -> None:
        vm = opener(vault=Vault.in_memory(), access=access)
        for tenant in ("default", "bolt"):
            await vm.run(PERSONAL, {"who": "s"}, trace_id="one", principal=of(tenant))
            await vm.run(NOBODYS, {"who": "s"}, trace_id="two", principal=of(tenant))
        for code, what in (
            ("SUBJECT_NOT_FOUND", {"subject": "s"}),
            ("RUN_NOT_FOUND", {"run": "two"}),
            ("RUN_NOT_FOUND", {"run": "bolt::two"}),
            ("CAPABILITY_DENIED", {"subject": "s", "tenant": "bolt"}),
            ("CAPABILITY_DENIED", {"subject": "s", "tenant": "default"}),
            ("CAPABILITY_DENIED", {"run": "bolt::two", "tenant": "bolt"}),
        ):
            with refused(code):
                await vm.erase(**what, reason="x", by=of("acme"))
        assert {record.status for record in vm.runs(principal=of("bolt"))} == {"SUSPENDED"}
        receipt = await vm.erase(subject="s", reason="x", by=of("bolt"))
        assert (receipt["tenant"], receipt["runs"]) == ("bolt", ["bolt::one"])
        assert (await vm.erase(run="two", reason="x", by=of("bolt")))["runs"] == ["bolt::two"]
        assert {record.status for record in vm.runs(principal=of("default"))} == {"SUSPENDED"}
        for record in vm.runs(principal=of("bolt")):
            vm.verify(record.run_id, principal=of("bolt"))

    play(main())


def test_a_machine_of_one_tenant_erases_what_is_that_tenants() -> None:
    vault, store = Vault.in_memory(), MemoryStore()

    def machine(tenant: str) -> ExecutionVM:
        return ExecutionVM(store=TenantStore(store, tenant), vault=vault)

    async def main() -> None:
        await ExecutionVM(store=store, vault=vault).run(PERSONAL, {"who": "s"}, trace_id="one")
        vm = machine("acme")
        await vm.run(PERSONAL, {"who": "s"}, trace_id="one")
        await vm.run(NOBODYS, {"who": "s"}, trace_id="two")
        assert (await vm.erase(subject="s", reason="x", by="ana"))["runs"] == ["acme::one"]
        assert (await vm.erase(run="two", reason="x", by="ana"))["runs"] == ["acme::two"]
        assert {entry.tenant for entry in vault.all_erasures()} == {"acme"}

    play(main())


def test_an_erasure_that_was_cut_is_completed_by_a_machine_that_sees_its_runs() -> None:
    vault, store = Vault.in_memory(), MemoryStore()

    def machine(tenant: str) -> ExecutionVM:
        return ExecutionVM(store=TenantStore(store, tenant), vault=vault)

    async def main() -> None:
        trace = await machine("bolt").run(PERSONAL, {"who": "s"}, trace_id="one")
        begin_erasure(vault, subject="s", tenant="bolt", reason="x", by=of("bolt"), at_ms=1)
        other = machine("acme")
        assert await other.replay_erasures() == []
        await other.recover()
        assert [(erasure.stage, erasure.runs) for erasure in vault.all_erasures()] == [("begun", [])]
        vm = machine("bolt")
        await vm.recover()
        assert [(erasure.stage, erasure.runs) for erasure in vault.all_erasures()] == [
            ("done", [trace.trace_id])
        ]
        assert vm.store.record("one").status == "CANCELLED"
        vm.verify("one")

    play(main())
