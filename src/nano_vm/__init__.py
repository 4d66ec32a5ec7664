"""nano-vm: deterministic, durable, governed execution of LLM workflows.

    from nano_vm import ExecutionVM, Program, SqliteStore, tool

Importing this package does nothing: names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nano_vm.compiler import Report as Report
    from nano_vm.errors import CapabilityDeniedError as CapabilityDeniedError
    from nano_vm.errors import ConflictError as ConflictError
    from nano_vm.errors import InputError as InputError
    from nano_vm.errors import NanoVMError as NanoVMError
    from nano_vm.errors import NotFoundError as NotFoundError
    from nano_vm.errors import ProgramError as ProgramError
    from nano_vm.errors import RejectedError as RejectedError
    from nano_vm.errors import RuntimeFault as RuntimeFault
    from nano_vm.errors import StoreError as StoreError
    from nano_vm.errors import VaultError as VaultError
    from nano_vm.errors import VerificationError as VerificationError
    from nano_vm.journal.diff import diff as diff
    from nano_vm.journal.trace import Trace as Trace
    from nano_vm.kernel.state import RunStatus as RunStatus
    from nano_vm.kernel.state import StepStatus as StepStatus
    from nano_vm.observe.analyzer import TraceAnalyzer as TraceAnalyzer
    from nano_vm.observe.archetypes import ArchetypeMonitor as ArchetypeMonitor
    from nano_vm.observe.archetypes import learn_archetypes as learn_archetypes
    from nano_vm.observe.baseline import Baseline as Baseline
    from nano_vm.observe.baseline import learn_baseline as learn_baseline
    from nano_vm.observe.drift import DriftMonitor as DriftMonitor
    from nano_vm.planner.plan import Planner as Planner
    from nano_vm.planner.plan import PlanRejected as PlanRejected
    from nano_vm.planner.replan import replan_on_interrupt as replan_on_interrupt
    from nano_vm.program.model import Program as Program
    from nano_vm.providers.cache import ModelCache as ModelCache
    from nano_vm.providers.cassette import CassettePlayer as CassettePlayer
    from nano_vm.providers.cassette import CassetteRecorder as CassetteRecorder
    from nano_vm.providers.faults import ModelError as ModelError
    from nano_vm.providers.health import Breaker as Breaker
    from nano_vm.providers.litellm import LiteLLMAdapter as LiteLLMAdapter
    from nano_vm.providers.mock import MockLLMAdapter as MockLLMAdapter
    from nano_vm.providers.model_store import ModelStore as ModelStore
    from nano_vm.providers.openai_compatible import OpenAICompatibleAdapter as OpenAICompatibleAdapter
    from nano_vm.providers.pool import Provider as Provider
    from nano_vm.providers.pool import ProviderPool as ProviderPool
    from nano_vm.providers.routing import Weights as Weights
    from nano_vm.runtime.engine import Progress as Progress
    from nano_vm.runtime.ports import Completion as Completion
    from nano_vm.runtime.ports import ToolCall as ToolCall
    from nano_vm.runtime.ports import Usage as Usage
    from nano_vm.runtime.tooling import PENDING as PENDING
    from nano_vm.runtime.tooling import Reconciled as Reconciled
    from nano_vm.runtime.tooling import Secret as Secret
    from nano_vm.runtime.tooling import ToolContext as ToolContext
    from nano_vm.runtime.tooling import ToolError as ToolError
    from nano_vm.stores.memory import MemoryStore as MemoryStore
    from nano_vm.stores.postgres import PostgresStore as PostgresStore
    from nano_vm.stores.sqlite import SqliteStore as SqliteStore
    from nano_vm.tools.registry import ToolSet as ToolSet
    from nano_vm.tools.registry import tool as tool
    from nano_vm.tools.validator import ProgramValidator as ProgramValidator
    from nano_vm.vault.local import Vault as Vault
    from nano_vm.vm import ExecutionVM as ExecutionVM

# Public name -> (module, name there). A subprocess test keeps this table and the imports above equal.
_PUBLIC: dict[str, tuple[str, str]] = {
    "ArchetypeMonitor": ("nano_vm.observe.archetypes", "ArchetypeMonitor"),
    "Baseline": ("nano_vm.observe.baseline", "Baseline"),
    "Breaker": ("nano_vm.providers.health", "Breaker"),
    "CapabilityDeniedError": ("nano_vm.errors", "CapabilityDeniedError"),
    "CassettePlayer": ("nano_vm.providers.cassette", "CassettePlayer"),
    "CassetteRecorder": ("nano_vm.providers.cassette", "CassetteRecorder"),
    "Completion": ("nano_vm.runtime.ports", "Completion"),
    "ConflictError": ("nano_vm.errors", "ConflictError"),
    "DriftMonitor": ("nano_vm.observe.drift", "DriftMonitor"),
    "ExecutionVM": ("nano_vm.vm", "ExecutionVM"),
    "InputError": ("nano_vm.errors", "InputError"),
    "LiteLLMAdapter": ("nano_vm.providers.litellm", "LiteLLMAdapter"),
    "MemoryStore": ("nano_vm.stores.memory", "MemoryStore"),
    "MockLLMAdapter": ("nano_vm.providers.mock", "MockLLMAdapter"),
    "ModelCache": ("nano_vm.providers.cache", "ModelCache"),
    "ModelError": ("nano_vm.providers.faults", "ModelError"),
    "ModelStore": ("nano_vm.providers.model_store", "ModelStore"),
    "NanoVMError": ("nano_vm.errors", "NanoVMError"),
    "NotFoundError": ("nano_vm.errors", "NotFoundError"),
    "OpenAICompatibleAdapter": ("nano_vm.providers.openai_compatible", "OpenAICompatibleAdapter"),
    "PENDING": ("nano_vm.runtime.tooling", "PENDING"),
    "PlanRejected": ("nano_vm.planner.plan", "PlanRejected"),
    "Planner": ("nano_vm.planner.plan", "Planner"),
    "PostgresStore": ("nano_vm.stores.postgres", "PostgresStore"),
    "Program": ("nano_vm.program.model", "Program"),
    "ProgramError": ("nano_vm.errors", "ProgramError"),
    "ProgramValidator": ("nano_vm.tools.validator", "ProgramValidator"),
    "Progress": ("nano_vm.runtime.engine", "Progress"),
    "Provider": ("nano_vm.providers.pool", "Provider"),
    "ProviderPool": ("nano_vm.providers.pool", "ProviderPool"),
    "Reconciled": ("nano_vm.runtime.tooling", "Reconciled"),
    "RejectedError": ("nano_vm.errors", "RejectedError"),
    "Report": ("nano_vm.compiler", "Report"),
    "RunStatus": ("nano_vm.kernel.state", "RunStatus"),
    "RuntimeFault": ("nano_vm.errors", "RuntimeFault"),
    "Secret": ("nano_vm.runtime.tooling", "Secret"),
    "SqliteStore": ("nano_vm.stores.sqlite", "SqliteStore"),
    "StepStatus": ("nano_vm.kernel.state", "StepStatus"),
    "StoreError": ("nano_vm.errors", "StoreError"),
    "ToolCall": ("nano_vm.runtime.ports", "ToolCall"),
    "ToolContext": ("nano_vm.runtime.tooling", "ToolContext"),
    "ToolError": ("nano_vm.runtime.tooling", "ToolError"),
    "ToolSet": ("nano_vm.tools.registry", "ToolSet"),
    "Trace": ("nano_vm.journal.trace", "Trace"),
    "TraceAnalyzer": ("nano_vm.observe.analyzer", "TraceAnalyzer"),
    "Usage": ("nano_vm.runtime.ports", "Usage"),
    "Vault": ("nano_vm.vault.local", "Vault"),
    "VaultError": ("nano_vm.errors", "VaultError"),
    "VerificationError": ("nano_vm.errors", "VerificationError"),
    "Weights": ("nano_vm.providers.routing", "Weights"),
    "diff": ("nano_vm.journal.diff", "diff"),
    "learn_archetypes": ("nano_vm.observe.archetypes", "learn_archetypes"),
    "learn_baseline": ("nano_vm.observe.baseline", "learn_baseline"),
    "replan_on_interrupt": ("nano_vm.planner.replan", "replan_on_interrupt"),
    "tool": ("nano_vm.tools.registry", "tool"),
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    place = _PUBLIC.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(place[0]), place[1])
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
