"""What a command works with: the database, the tools and the model, put together from its options."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from nano_vm import canonical
from nano_vm.cli.arguments import (
    STORE_DEFAULT,
    STORE_VARIABLE,
    is_address,
    principal,
    shown_store,
    store_path,
)
from nano_vm.errors import InputError, NanoVMError
from nano_vm.program.compiled import CompiledProgram
from nano_vm.program.model import Program

if TYPE_CHECKING:
    from nano_vm.cli.models import Model
    from nano_vm.journal.port import JournalStore
    from nano_vm.observe.telemetry import Otlp
    from nano_vm.policy.model import Policy
    from nano_vm.runtime.engine import Engine
    from nano_vm.runtime.ports import ModelClient
    from nano_vm.stores.postgres import PostgresJournalStore
    from nano_vm.stores.sqlite import SqliteJournalStore
    from nano_vm.stores.tenants import TenantStore

    OpenStore: TypeAlias = SqliteJournalStore | PostgresJournalStore
    from nano_vm.tools.registry import ToolSet


def open_store(args: argparse.Namespace, *, create: bool = False) -> OpenStore | TenantStore:
    """The database. Only commands that begin something make a new one.

    Raises:
        InputError: STORE_NOT_FOUND. StoreError: see `SqliteJournalStore` and `PostgresJournalStore`.
    """
    path = store_path(args)
    store: OpenStore
    if is_address(path):
        from nano_vm.stores.postgres import PostgresJournalStore

        store = PostgresJournalStore(path, durability=args.durability, create=create)
    else:
        _check_file(path, create=create)
        from nano_vm.stores.sqlite import SqliteJournalStore

        store = SqliteJournalStore(path, durability=args.durability)
    if args.tenant is None:
        return store
    from nano_vm.stores.tenants import TenantStore

    try:
        return TenantStore(store, args.tenant, closes=True)
    except InputError:
        store.close()
        raise


def _check_file(path: str, *, create: bool) -> None:
    file = Path(path)
    try:
        file.exists()
    except OSError as error:  # a name that the operating system cannot even look for
        raise InputError(
            "USAGE",
            f"the database cannot be looked for: {error.strerror}",
            help="name a file with --store PATH",
        ) from error
    is_empty = file.is_file() and file.stat().st_size == 0 and not Path(f"{path}-wal").exists()
    if not create and (is_empty or not file.exists()):
        # An empty file has nothing to show; to call it verified would hide that somebody emptied it.
        raise InputError(
            "STORE_NOT_FOUND",
            f"there is no database `{path}`" + (": the file is empty" if is_empty else ""),
            help=f"name it with --store PATH or ${STORE_VARIABLE}; `nano-vm run` makes one",
            facts={"path": path},
        )


class Session:
    """An engine with what the options say. Use it as a context manager, or let `driving.supervise` close it."""

    def __init__(self, args: argparse.Namespace, *, create: bool = False, drives: bool = False) -> None:
        """Args:
        create: make the database if there is none.
        drives: the command takes `--tools` and `--model`.
        """
        from nano_vm.runtime.engine import Engine
        from nano_vm.tools.registry import ToolSet

        self.args = args
        self.principal = principal(args)
        self.tools: ToolSet = ToolSet()
        self.model: ModelClient | None = None
        self._model: Model | None = None
        policy: Policy | None = None
        if getattr(args, "policy", None):
            from nano_vm.policy.load import load_policy

            policy = load_policy(args.policy)
        if drives:
            from nano_vm.cli.models import Model

            if args.tools:
                from nano_vm.cli.toolfiles import load_tools

                self.tools = load_tools(args.tools)
            self._model = Model(args)
            self.model = self._model.client
        from nano_vm.cli.vaults import open_vault

        try:
            self.store = open_store(args, create=create)
            try:
                self.vault = open_vault(args, getattr(self.store, "identity", None))
            except BaseException:
                self.store.close()
                raise
        except BaseException:
            self._close_model()
            raise
        self.engine: Engine = Engine(
            llm=self.model,
            tools=self.tools,
            store=self.store,
            secrets=self.vault,
            keys=self.vault,
            policy=policy,
        )
        self._otlp: Otlp | None = None
        if drives:
            try:
                self._otlp = _telemetry(self.engine)
            except BaseException:
                self.__exit__()
                raise

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        if self._otlp is not None:
            self._otlp.close()
        self.engine.threads.close()
        self.store.close()
        self._close_model()

    def _close_model(self) -> None:
        if self._model is not None:
            self._model.close()

    def require(self, compiled: CompiledProgram, *, only_compensations: bool = False) -> None:
        """Refuse to touch a run whose program names tools, or needs a model, that were not given.

        Raises:
            InputError: TOOLS_MISSING (facts: tools), MODEL_MISSING.
        """
        from nano_vm.runtime.needs import Needs

        needs = Needs(self.engine)
        needs.add(compiled)
        named = needs.undo if only_compensations else needs.tools
        missing = sorted(name for name in named if name not in self.tools)
        if missing:
            raise InputError(
                "TOOLS_MISSING",
                f"the program `{compiled.name}` names tools that were not given: "
                + ", ".join(f"`{name}`" for name in missing),
                help="add --tools FILE with the file that defines them; nothing was done",
                facts={"tools": missing, "program": compiled.name},
            )
        if needs.model and self.model is None and not only_compensations:
            raise InputError(
                "MODEL_MISSING",
                f"the program `{compiled.name}` has a model step and no model was given",
                help="add --model, for example --model mock:yes; nothing was done",
                facts={"program": compiled.name},
            )

    def require_run(self, run_id: str, *, only_compensations: bool = False) -> None:
        """`require` for a stored run that has not ended."""
        record = self.store.record(run_id)
        if record.status in ("RUNNING", "SUSPENDED"):
            compiled = self.engine.load_program(record.program_hash)
            self.require(compiled, only_compensations=only_compensations)


OTLP_ENDPOINT = "NANO_VM_OTLP_ENDPOINT"


def _telemetry(engine: Engine) -> Otlp | None:
    """What the environment asks for.

    Raises:
        InputError: USAGE. RuntimeFault: EXTRA_MISSING.
    """
    endpoint = os.environ.get(OTLP_ENDPOINT, "")
    if not endpoint:
        return None
    if not endpoint.startswith(("http://", "https://")):
        raise InputError("USAGE", f"{OTLP_ENDPOINT} is no address", help="http://127.0.0.1:4318")
    from nano_vm.observe.telemetry import Otlp

    return Otlp(engine, endpoint)


class StoredPrograms(Mapping[str, Program]):
    """The stored programs by name or hash, read when they are asked for."""

    def __init__(self, store: JournalStore) -> None:
        self._store = store

    def __getitem__(self, name: str) -> Program:
        found = name if name.startswith("sha256:") else self._store.program_named(name)
        if found is None:
            raise KeyError(name)
        try:
            return Program.from_dict(canonical.decode(self._store.program(found))["program"])
        except NanoVMError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for name, _, _ in self._store.programs()))

    def __len__(self) -> int:
        return len(list(iter(self)))


# --- commands that can be copied ------------------------------------------------------------------------------


def invocation() -> str:
    """How this program was called, so that commands we show can be pasted."""
    import shutil

    script = sys.argv[0]
    if os.path.basename(script) in ("nano-vm", "nano-vm.exe"):
        found = shutil.which("nano-vm")
        if found is not None and os.path.realpath(found) == os.path.realpath(script):
            return "nano-vm"
        return shlex.quote(script)
    if os.path.basename(script) == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m nano_vm.cli"
    return "nano-vm"


def command(args: argparse.Namespace, *words: str, drives: bool = False, acts: bool = False) -> str:
    """A command on the same database; with `drives` also with the same tools and model. Holds no secret: keys come
    from the environment."""
    parts = [shlex.quote(word) for word in words]
    path = shown_store(args)
    if args.store is not None and path != STORE_DEFAULT:
        parts += ["--store", shlex.quote(path)]
    if args.durability != "full":
        parts += ["--durability", args.durability]
    if args.tenant is not None:
        parts += ["--tenant", shlex.quote(args.tenant)]
    if drives:
        for name in getattr(args, "tools", ()):
            parts += ["--tools", shlex.quote(name)]
        if getattr(args, "model", None):
            parts += ["--model", shlex.quote(args.model)]
        if getattr(args, "base_url", None):
            parts += ["--base-url", shlex.quote(args.base_url)]
        for option in ("prices", "record", "replay"):
            if getattr(args, option, None):
                parts += [f"--{option}", shlex.quote(getattr(args, option))]
        if getattr(args, "cache", False):
            parts.append("--cache")
        if getattr(args, "policy", None):
            parts += ["--policy", shlex.quote(args.policy)]
    if acts and args.principal:
        parts += ["--principal", shlex.quote(args.principal)]
        for role in args.role:
            parts += ["--role", shlex.quote(role)]
    return f"{invocation()} {' '.join(parts)}"


def document_of(value: Any) -> Any:
    """A value as plain JSON data."""
    return canonical.decode(canonical.encode(value))
