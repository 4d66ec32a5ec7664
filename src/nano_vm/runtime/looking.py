"""What an engine shows of runs without touching them, and to whom."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nano_vm.errors import InputError, NanoVMError
from nano_vm.journal.entry import Entry
from nano_vm.journal.port import DEFAULT_TENANT, JournalStore, Pause, RunQuery, RunRecord, qualified
from nano_vm.journal.replay import Verified
from nano_vm.journal.trace import Trace
from nano_vm.kernel.state import STATUSES
from nano_vm.runtime import approvals, verifying
from nano_vm.runtime.approvals import PendingApproval
from nano_vm.runtime.arguments import check_choice, check_count, check_text, check_trace_id
from nano_vm.runtime.labelling import needs_of
from nano_vm.runtime.library import Library
from nano_vm.runtime.ports import Clock, SubjectKeys, ToolInvoker
from nano_vm.runtime.rights import ACCESS, READ, VERIFY, check_right, tenant_of
from nano_vm.runtime.sealing import STOPPING, open_entries

if TYPE_CHECKING:
    from nano_vm.runtime.driver import Run


class Looking(Library):
    """Runs, as they stand in the store and, of those that are driven here, in memory.

    Args:
        keys: what opens private and secret values.
        access: "required" or "open"; see `Engine`.

    Raises:
        InputError: USAGE.
    """

    def __init__(
        self, tools: ToolInvoker, store: JournalStore, clock: Clock, keys: SubjectKeys | None, access: str
    ) -> None:
        super().__init__(tools, store, clock)
        if access not in ACCESS:
            raise InputError("USAGE", f"unknown access `{access}`", help=f"one of: {', '.join(ACCESS)}")
        self.keys = keys
        self.access = access
        self.tenant: str | None = getattr(store, "tenant", None)  # of a store that holds one tenant's runs
        self.volatile = bool(getattr(store, "volatile", False))
        self.live: dict[str, Run] = {}  # in all event loops that use this engine

    def whose(self, principal: str | Mapping[str, Any] | None, given: str | None) -> str | None:
        """The tenant that a call is about; None when it is about all of them, which only the embedding program is."""
        tenant = tenant_of(principal, self.tenant if given is None else given)
        if self.tenant is not None and tenant != self.tenant:
            tenant_of({"tenant": tenant}, self.tenant)  # refuses
        if tenant is None and self.access == "required":
            return DEFAULT_TENANT
        return tenant

    def find(
        self, trace_id: str, principal: str | Mapping[str, Any] | None, right: str, tenant: str | None = None
    ) -> RunRecord:
        """The record of a run, for somebody who may do with it what `right` says.

        Raises:
            CapabilityDeniedError: CAPABILITY_DENIED. NotFoundError: RUN_NOT_FOUND, also for other tenants' runs.
            InputError: TRACE_ID for what is no text.
        """
        check_trace_id(trace_id)
        check_right(self.access, principal, right)
        tenant = self.whose(principal, tenant)
        return self.store.record(trace_id if tenant is None else qualified(trace_id, tenant), tenant)

    def live_here(self, run_id: str) -> Run | None:
        """The run, if it is being driven in the running event loop."""
        run = self.live.get(run_id)
        return run if run is not None and run.loop is asyncio.get_running_loop() else None

    def trace(self, trace_id: str, *, principal: str | Mapping[str, Any] | None = None) -> Trace:
        """The trace of a stored run. Raises NotFoundError RUN_NOT_FOUND."""
        check_trace_id(trace_id)
        if self.volatile:
            for live in [run for run_id, run in self.live.items() if run_id.endswith(trace_id)]:
                with live.hold:
                    live.commit()
        record = self.find(trace_id, principal, READ)
        program = self.load_program(record.program_hash)
        return Trace(program, record.run_id, lambda: self.read(record.run_id))

    def trace_of(self, run: Run) -> Trace:
        run_id = run.record.run_id
        return Trace(run.program, run_id, lambda: self.read(run_id), run.state)

    def read(self, run_id: str, start: int = 0, limit: int | None = None) -> list[Entry]:
        """Entries of a run from `start`, opened as far as the keys are there. Raises InputError TRACE_ID, USAGE."""
        check_trace_id(run_id)
        check_count("start", start)
        if limit is not None:
            check_count("limit", limit)
        entries = self.store.read(run_id, start, limit)
        if self.keys is None:
            return entries
        return open_entries(self.keys, run_id, entries, erasing=STOPPING.get())

    def is_sealed(self, program_hash: str) -> bool:
        """Whether runs of a program may have values that are stored encrypted only."""
        compiled = self.load_program(program_hash)
        try:
            pinned = self.pin_calls(compiled, self.tenant or DEFAULT_TENANT) if compiled.calls else {}
            return needs_of(self, compiled, pinned.values()).sealed
        except NanoVMError:
            return True  # nobody knows what it calls

    def runs(
        self,
        *,
        status: str | None = None,
        program: str | None = None,
        tenant: str | None = None,
        limit: int = 100,
        principal: str | Mapping[str, Any] | None = None,
    ) -> list[RunRecord]:
        """Records of top-level runs, newest first. Raises InputError USAGE for filters that are none."""
        check_choice("status", status, STATUSES)
        check_text("program", program)
        check_count("limit", limit)
        check_right(self.access, principal, READ)
        tenant = self.whose(principal, tenant)
        return self.store.records(
            RunQuery(tenant=tenant, status=status, program_name=program, parent="", limit=limit)
        )

    def verify(self, trace_id: str, *, principal: str | Mapping[str, Any] | None = None) -> Verified:
        """Check a run's journal: chain, commitments, every transition, and the record against them. No effects.

        Raises:
            VerificationError: naming the first bad entry.
        """
        return verifying.verify(self, self.find(trace_id, principal, VERIFY))

    def replay(self, trace_id: str, *, principal: str | Mapping[str, Any] | None = None) -> Trace:
        """Fold the journal again, comparing every transition with what was recorded, and return the trace."""
        self.verify(trace_id, principal=principal)
        return self.trace(trace_id, principal=principal)

    def approvals(
        self,
        *,
        tenant: str | None = None,
        limit: int = 1_000,
        principal: str | Mapping[str, Any] | None = None,
    ) -> list[PendingApproval]:
        """Everything that waits for somebody's approval, of the newest `limit` suspended runs. Raises InputError USAGE
        for a limit that is none."""
        check_count("limit", limit)
        check_right(self.access, principal, READ)
        return approvals.all_pending(self, self.whose(principal, tenant), limit)

    def paused(
        self, *, tenant: str | None = None, principal: str | Mapping[str, Any] | None = None
    ) -> list[Pause]:
        """The programs that are paused, with who paused them and why."""
        check_right(self.access, principal, READ)
        return self.store.pauses(self.whose(principal, tenant))
