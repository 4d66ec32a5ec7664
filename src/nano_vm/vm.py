"""`ExecutionVM`: the engine put together with the defaults a user expects."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nano_vm.journal.port import JournalStore
from nano_vm.policy.load import PolicySource
from nano_vm.runtime.engine import Engine
from nano_vm.runtime.ports import Clock, Entropy, ModelClient, SecretSource
from nano_vm.stores.memory import MemoryJournalStore
from nano_vm.tools.registry import Tools, ToolSet, tool_set

if TYPE_CHECKING:
    from nano_vm.vault.local import Vault


class ExecutionVM(Engine):
    """Runs programs.

    Args:
        llm: anything with `async complete(messages, **params)`.
        tools: name -> function, a list of functions (each under its own name), or a `ToolSet`.
        store: where journals live; in memory by default. `SqliteStore("runs.db")` makes runs durable.
        clock, entropy: time and chance, for tests and simulations.
        max_concurrent_runs: how many runs may be in progress at once; 0 for no limit. Called programs, and what a tool
            runs in this engine, are part of the run that calls.
        vault: where secrets, and the keys of private values, are kept.
        secrets: another source of secrets than the vault.
        access: "required" lets nobody act who is not named with a role that allows it.
        policy: what runs may do: a file, a dict or a `Policy`; without one, tools are called as programs say.

    Example:
        vm = ExecutionVM(llm=MockLLMAdapter("yes"), tools={"pay": pay}, store=SqliteStore("runs.db"))
        trace = await vm.run(program, context={"amount": 5})
    """

    tools: ToolSet

    def __init__(
        self,
        llm: ModelClient | None = None,
        tools: Tools | None = None,
        store: JournalStore | None = None,
        *,
        clock: Clock | None = None,
        entropy: Entropy | None = None,
        max_concurrent_runs: int = 0,
        vault: Vault | None = None,
        secrets: SecretSource | None = None,
        policy: PolicySource | None = None,
        access: str = "open",
    ) -> None:
        super().__init__(
            llm=llm,
            tools=tool_set(tools),
            store=store if store is not None else MemoryJournalStore(),
            clock=clock,
            entropy=entropy,
            max_concurrent_runs=max_concurrent_runs,
            secrets=secrets if secrets is not None else vault,
            keys=vault,
            make_keys=_vault_in_memory if getattr(store, "volatile", store is None) else None,
            policy=policy,
            access=access,
        )
        self.vault = vault

    def register_tool(self, name: str, function: Callable[..., Any]) -> None:
        """Add or replace a tool. Programs are checked against the tools again."""
        self.tools.add(function, name)
        self.forget_compiled()


def _vault_in_memory() -> Vault:
    """For a store that is gone with the process: its private values are encrypted all the same."""
    from nano_vm.vault.local import Vault

    return Vault.in_memory()
