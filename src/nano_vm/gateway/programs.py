"""Programs of tenants: what a name means for whom. Programs themselves are in the store, by hash, for everybody's runs;
a name is a tenant's own, so that nobody can put another program under a name that somebody else's `call` step uses."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

from nano_vm import canonical
from nano_vm.compiler import Report
from nano_vm.errors import InputError, NotFoundError
from nano_vm.gateway.config import GatewayConfig
from nano_vm.gateway.principals import Principal
from nano_vm.gateway.state import GatewayState
from nano_vm.policy.check import check
from nano_vm.program import document as documents
from nano_vm.program.compiled import CompiledProgram
from nano_vm.program.diagnostic import to_error
from nano_vm.program.document import Document
from nano_vm.program.model import Program
from nano_vm.program.source import BYTES_MAX
from nano_vm.runtime.engine import Engine
from nano_vm.stores.sqlite import SqliteJournalStore

DEFAULT_TENANT = "default"
PUBLISHED = "program_"  # what the tools of saved programs begin with
TOOL_NAME_CHARS_MAX = 64
COMPILED_MAX = 1_000  # programs kept compiled by the engine
TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("nano_vm_tenant", default=DEFAULT_TENANT)
_NAMING: contextvars.ContextVar[bool] = contextvars.ContextVar("nano_vm_naming", default=False)


class GatewayStore(SqliteJournalStore):
    """The SQLite store, whose names of programs are those of the tenant that is being served."""

    tenants: GatewayState | None = None

    def put_program(
        self, program_hash: str, name: str, canonical_bytes: bytes, now_ms: int, tenant: str = DEFAULT_TENANT
    ) -> None:
        """Only `save_program` gives a program a name: a run of an unsaved one must not change what the name means."""
        if _NAMING.get():
            super().put_program(program_hash, name, canonical_bytes, now_ms, tenant)
        else:
            self.keep_program(program_hash, name, canonical_bytes, now_ms)

    def named_here(self, tenant: str) -> dict[str, tuple[str, int]]:
        """Name -> (hash, stored_at_ms) as everybody who uses the file without a gateway sees it."""
        return {name: (program_hash, at_ms) for name, program_hash, at_ms in self.programs(tenant)}

    def program_named(self, name: str, tenant: str = DEFAULT_TENANT) -> str | None:
        if self.tenants is None:
            return super().program_named(name, tenant)
        if tenant == DEFAULT_TENANT:
            tenant = TENANT.get()  # of whoever is being served
        own = self.tenants.name(tenant, name)
        if own is not None:
            return None if own[1] else own[0]
        return super().program_named(name, tenant)


class Programs:
    """Reading, checking, saving, finding and publishing programs for a principal."""

    def __init__(
        self, engine: Engine, store: GatewayStore, state: GatewayState, config: GatewayConfig
    ) -> None:
        self._engine = engine
        self._store = store
        self._state = state
        self._config = config

    async def document(self, args: dict[str, Any]) -> Document:
        """The program that `program` (an object) or `source` (text) gives.

        Raises:
            InputError: GATEWAY_ARGUMENT. ProgramError: text that is not YAML or JSON.
        """
        program, source = args.get("program"), args.get("source")
        if (program is None) == (source is None):
            raise InputError(
                "GATEWAY_ARGUMENT",
                "a program is given by `program` or by `source`",
                help="pass one of them",
                facts={"argument": "program"},
            )
        if isinstance(source, str):
            if len(source) > BYTES_MAX:
                raise InputError(
                    "GATEWAY_LIMIT",
                    f"a program has at most {BYTES_MAX} bytes",
                    help="call smaller programs with `call` steps",
                )
            text = source
            read = documents.from_json if text.lstrip()[:1] == "{" else documents.from_yaml
            return await asyncio.to_thread(lambda: read(text, "<source>"))
        assert isinstance(program, dict)
        return await asyncio.to_thread(documents.from_data, program)

    async def report(self, document: Document) -> Report:
        """All findings, those of the policy in force among them. In a thread: a huge program holds nobody up."""
        schemas = self._engine.tools.schemas()
        return await asyncio.to_thread(check, document, schemas, policy=self._engine.policy)

    async def admit(self, who: Principal, document: Document) -> tuple[Program, CompiledProgram, Report]:
        """A program without errors. Raises ProgramError with all findings; what `within_limits` raises."""
        report = await self.report(document)
        if not report.ok or report.compiled is None:
            raise to_error(list(report.diagnostics))
        program = Program(document)
        return program, self.within_limits(who, report.compiled), report

    def within_limits(self, who: Principal, compiled: CompiledProgram) -> CompiledProgram:
        """The program, if somebody of that tenant may have it run here: of what it calls by hash, too, nothing is
        another tenant's.

        Raises:
            InputError: GATEWAY_LIMIT. NotFoundError: PROGRAM_NOT_FOUND.
        """
        for called in compiled.calls:
            if called.startswith("sha256:"):
                self.hash_of(who, called)
        most = self._config.limits.max_steps
        if compiled.budgets.steps_max > most:
            raise InputError(
                "GATEWAY_LIMIT",
                f"`max_steps` is {compiled.budgets.steps_max} and this gateway allows {most}",
                help="declare a smaller `max_steps`",
                facts={"limit": "max_steps", "most": most},
            )
        return compiled

    async def to_run(self, who: Principal, args: dict[str, Any]) -> tuple[Program, CompiledProgram]:
        """The program that a call of `run_program` means."""
        named = args.get("program")
        if isinstance(named, str) and args.get("source") is None:
            return await self.find(who, named)
        if not self._config.inline_programs:
            raise InputError(
                "GATEWAY_LIMIT",
                "this gateway runs saved programs only",
                help="save it with save_program, or name one that list_programs shows",
                facts={"limit": "inline_programs"},
            )
        program, _, _ = await self.admit(who, await self.document(args))
        self._state.add_program(who.tenant, program.hash)
        return await self._compiled(who, program)

    async def find(self, who: Principal, reference: str) -> tuple[Program, CompiledProgram]:
        """A saved program of the tenant by name or hash, compiled against today's tools.

        Raises:
            NotFoundError: PROGRAM_NOT_FOUND, also for what another tenant has saved.
        """
        return await self._compiled(who, self.read(who, reference))

    def read(self, who: Principal, reference: str) -> Program:
        program_hash = self.hash_of(who, reference)
        return Program.from_dict(canonical.decode(self._engine.store.program(program_hash))["program"])

    def hash_of(self, who: Principal, reference: str) -> str:
        if reference.startswith("sha256:"):
            known = self._state.has_program(who.tenant, reference) or any(
                each[0] == reference for each in self._store.named_here(who.tenant).values()
            )
            found = reference if known else None
        else:
            token = TENANT.set(who.tenant)
            try:
                found = self._engine.store.program_named(reference)
            finally:
                TENANT.reset(token)
        if found is None:
            raise NotFoundError(
                "PROGRAM_NOT_FOUND",
                "no saved program has that name or hash",
                help="list_programs shows what there is; save_program saves one",
            )
        return found

    async def _compiled(self, who: Principal, program: Program) -> tuple[Program, CompiledProgram]:
        self._engine.trim_programs(COMPILED_MAX)
        _, compiled = await asyncio.to_thread(self._engine.compile, program)
        return program, self.within_limits(who, compiled)

    async def save(self, who: Principal, args: dict[str, Any]) -> tuple[Program, Report]:
        program, _, report = await self.admit(who, await self.document(args))
        if program.name.startswith("sha256:"):
            raise InputError(
                "GATEWAY_ARGUMENT", "a name does not begin with `sha256:`", help="choose another"
            )
        naming = _NAMING.set(True)
        try:
            now_ms = self._engine.clock.now_ms()
            self._store.put_program(program.hash, program.name, program.canonical, now_ms, who.tenant)
        finally:
            _NAMING.reset(naming)
        self._state.save_name(who.tenant, program.name, program.hash, who.id)
        return program, report

    def hide(self, who: Principal, name: str) -> str:
        found = self.hash_of(who, name)
        if name.startswith("sha256:"):
            raise InputError("GATEWAY_ARGUMENT", "a name is removed, not a program", help="give its name")
        self._state.hide_name(who.tenant, name, found, who.id)
        return found

    def listing(self, who: Principal) -> list[tuple[str, str, int]]:
        """(name, hash, saved_at_ms) of what the tenant can name, by name."""
        found = self._store.named_here(who.tenant)
        for name, program_hash, at_ms, _, hidden in self._state.names(who.tenant):
            if hidden:
                found.pop(name, None)
            else:
                found[name] = (program_hash, at_ms)
        return [(name, *found[name]) for name in sorted(found)]

    # --- as tools ---------------------------------------------------------------------------------------------

    def published_as(self, name: str) -> str | None:
        """The name of the tool that a program of that name is published as; None when it is not."""
        chosen = self._config.publish
        if chosen == "none" or (not isinstance(chosen, str) and name not in chosen):
            return None
        tool = PUBLISHED + "".join(char if char.isascii() and char.isalnum() else "_" for char in name)
        return tool if len(tool) <= TOOL_NAME_CHARS_MAX else None

    def tools(self, who: Principal) -> dict[str, tuple[str, str]]:
        """The saved programs that are published: tool -> (name, hash). Of several whose names make the same tool it is
        the one that is named like it, else the first."""
        found: dict[str, tuple[str, str]] = {}
        for name, program_hash, _ in self.listing(who):
            tool = self.published_as(name)
            if tool is not None and (tool not in found or tool == PUBLISHED + name):
                found[tool] = (name, program_hash)
        return found

    def published(self, who: Principal, tool: str) -> str | None:
        """The hash of the program that a tool runs."""
        name = tool.removeprefix(PUBLISHED)
        if self.published_as(name) == tool:  # nearly always the name itself
            try:
                return self.hash_of(who, name)
            except NotFoundError:
                pass
        found = self.tools(who).get(tool)
        return None if found is None else found[1]

    def tool_of(self, name: str, tools: dict[str, tuple[str, str]]) -> str | None:
        """The tool that runs the program of that name, if one does."""
        tool = self.published_as(name)
        return tool if tool is not None and tools.get(tool, ("",))[0] == name else None


def inputs_schema(compiled: CompiledProgram) -> dict[str, Any]:
    """The inputs of a program as the input schema of a tool."""
    declared = compiled.inputs_schema
    if declared is not None:
        return {"type": "object", **declared}
    required = [name for name in compiled.input_slots if name not in compiled.optional_inputs]
    return {"type": "object", "properties": {name: {} for name in compiled.input_slots}, "required": required}
