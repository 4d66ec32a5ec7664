"""The review as a program of nano-vm: `review.yaml` under `review.policy.yaml`, on a SQLite store, with a vault."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from nano_vm import Completion, ExecutionVM, Program, SqliteStore, ToolCall, ToolContext, Trace, Vault, tool
from nano_vm.demos.kyc import world
from nano_vm.demos.kyc.world import CLERK, LIMIT, Bank, Customer, ObedientModel, Person

_T = TypeVar("_T")
ISSUER = "kyc"
COMMAND_SECONDS_MAX = 60


def own_file(name: str) -> str:
    """The text of a file that comes with the laboratory."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


class Model:
    """The obedient model, as nano-vm asks it."""

    async def complete(self, messages: list[dict[str, Any]], **params: Any) -> Completion:
        text, call = ObedientModel().turn(messages)
        if call is None:
            return Completion(text=text)
        return Completion(tool_calls=(ToolCall(f"call-{len(messages)}", *call),))


def tools_of(bank: Bank) -> list[Callable[..., Any]]:
    """The tools of the review. What the sanctions list and the documents say, we vouch for; the press nobody does."""

    @tool(effect="pure", output_label="trusted")
    def collect_documents(customer_id: str) -> dict[str, Any]:
        """What the applicant handed in."""
        return world.documents(customer_id)

    @tool(effect="pure", output_label="trusted")
    def screen_sanctions(name: str, born: str) -> dict[str, Any]:
        """How often somebody stands on the sanctions list."""
        return world.sanctions(name, born)

    @tool(effect="pure", output_label="untrusted")
    def search_media(name: str) -> list[str]:
        """What the press says about somebody."""
        return world.press(name)

    @tool(effect="pure", output_label="untrusted")
    def search_register(name: str) -> dict[str, Any]:
        """The companies of somebody."""
        return world.register(name)

    @tool(effect="keyed", protected=["customer_id", "limit"])
    def open_account(customer_id: str, limit: int, ctx: ToolContext) -> dict[str, Any]:
        """Open the account and close the review. The bank honours the key."""
        return bank.book("open_account", customer_id, ctx.idempotency_key, limit=limit)

    @tool(effect="keyed")
    def close_file(customer_id: str, ctx: ToolContext) -> dict[str, Any]:
        """The applicant gets nothing."""
        return bank.book("close_file", customer_id, ctx.idempotency_key)

    return [collect_documents, screen_sanctions, search_media, search_register, open_account, close_file]


class Command(NamedTuple):
    """What a command of the command line came to."""

    exit_code: int
    document: dict[str, Any]


class Governed:
    """Reviews in a directory: `reviews.db` with its keys, `bank.jsonl`, and bundles."""

    def __init__(self, directory: Path, *, policy: str | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.database = directory / "reviews.db"
        self.bank = Bank(directory / "bank.jsonl")
        self.tools = tools_of(self.bank)
        self.program_text = own_file("review.yaml")
        self.policy = Path(directory / "review.policy.yaml")
        self._policy_text = own_file("review.policy.yaml") if policy is None else policy
        self.restore_policy()
        key = directory / "reviews.db.key"
        if not key.exists():
            with open(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(base64.b64encode(os.urandom(32)))
        self._vm: ExecutionVM | None = None

    def restore_policy(self) -> None:
        self.policy.write_text(self._policy_text, encoding="utf-8")

    # --- the engine ------------------------------------------------------------------------------------------

    @property
    def vm(self) -> ExecutionVM:
        """The engine of this process."""
        if self._vm is None:
            self._vm = self.engine()
        return self._vm

    def engine(self) -> ExecutionVM:
        """Another engine on the same files, as another process would have one."""
        return ExecutionVM(
            Model(),
            self.tools,
            SqliteStore(self.database),
            vault=Vault.beside(self.database, key_file=f"{self.database}.key"),
            policy=self.policy,
        )

    def close(self) -> None:
        """Let go of the files: what is in the write-ahead log goes into the database."""
        if self._vm is not None:
            asyncio.run(self._vm.close())
            self._vm = None

    def wait(self, make: Callable[[ExecutionVM], Awaitable[_T]]) -> _T:
        """Do something with the engine that has to be awaited."""

        async def main() -> _T:
            return await make(self.vm)

        return asyncio.run(main())

    # --- reviews ---------------------------------------------------------------------------------------------

    @property
    def program(self) -> Program:
        return Program.from_yaml(self.program_text, "review.yaml")

    @staticmethod
    def application(customer: Customer, limit: int = LIMIT) -> dict[str, Any]:
        return {"customer_id": customer.id, "full_name": customer.name, "limit": limit}

    def submit(
        self, customer: Customer, limit: int = LIMIT, *, by: Person = CLERK, name: str | None = None
    ) -> Trace:
        """Start a review and drive it to where it waits, or to its end."""
        return self.vm.run_sync(
            self.program, self.application(customer, limit), trace_id=name, principal=by.principal
        )

    def approve(self, trace_id: str, by: Person, **options: Any) -> Trace:
        return self.wait(lambda vm: vm.approve(trace_id, principal=by.principal, **options))

    def status(self, trace_id: str) -> str:
        return str(self.vm.trace(trace_id).status.value)

    def step(self, trace_id: str, step: str) -> Any:
        """The last occurrence of a step of a run.

        Raises:
            LookupError: the run did not come to it.
        """
        found = self.vm.trace(trace_id).step(step)
        if found is None:
            raise LookupError(step)
        return found

    # --- the command line, in processes of its own -------------------------------------------------------------

    def command(self, *words: str) -> Command:
        """Run `nano-vm WORDS --json` in the directory."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NANO_VM_")}
        environment |= {"NANO_VM_STORE": str(self.database), "NANO_VM_KEYS": str(self.directory / "signing")}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        done = subprocess.run(
            [sys.executable, "-m", "nano_vm.cli", *words, "--json"],
            cwd=self.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )
        try:
            document = json.loads(done.stdout)
        except ValueError:
            document = {}
        return Command(done.returncode, document if isinstance(document, dict) else {})
