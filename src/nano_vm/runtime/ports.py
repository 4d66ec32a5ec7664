"""What the runtime needs from outside: time, chance, models, tools, secrets and keys. Each is a Protocol owned here and
implemented by a room further out, so that a simulator can stand in for all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec

from nano_vm.kernel.events import Switch
from nano_vm.program.compiled import CompiledProgram
from nano_vm.program.tool_schema import ToolSchema

Message: TypeAlias = dict[str, Any]
"""{"role": "system" | "user", "content": str}; {"role": "assistant", "content": str} with the calls it proposed as
"tool_calls": [{"id", "type": "function", "function": {"name", "arguments": str}}]; and their results,
{"role": "tool", "tool_call_id": str, "content": str}."""


class Clock(Protocol):
    """Wall-clock time in epoch milliseconds, and a way to wait for it."""

    def now_ms(self) -> int: ...

    async def sleep_until(self, at_ms: int) -> None: ...


class Entropy(Protocol):
    """Unpredictable bytes: salts, run ids, jitter."""

    def salt(self) -> bytes:
        """16 fresh bytes."""

    def draw(self) -> int:
        """A number in [0, 1_000_000)."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a model call consumed. `cost_usd` None means the adapter does not know."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class ToolCall(msgspec.Struct, frozen=True):
    """A tool call that a model proposes. `arguments` is what the model wrote: nobody has parsed it yet."""

    id: str
    name: str
    arguments: str

    def to_message(self) -> dict[str, Any]:
        """The call as it stands in an assistant message's `tool_calls`."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A model's answer: text, or proposed calls of the tools that were offered, or both. `finish_reason` "length" or
    None from a truncated stream is for the adapter to refuse. `provider` and `switches` are for those who choose among
    several: who answered, and whom the call left before; both are journaled."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage = Usage()
    model: str | None = None
    cached: bool = False
    provider: str | None = None
    switches: tuple[Switch, ...] = ()
    raw: Any = None


class ModelCall(msgspec.Struct, frozen=True, kw_only=True):
    """What the runtime knows of a call and a model must not see (P8). `fresh`: the last answer was not accepted, so
    ask the model itself. `private`: prompt and answer must not be kept. `reserved`: what one answer may take has been
    reserved, so one that was paid for and is of no use is not asked for again within the call."""

    fresh: bool = False
    private: bool = False
    reserved: bool = False


class ModelClient(Protocol):
    """Anything with `async complete(messages, **params)`; parameters it does not take are not passed.

    It returns the text, a `Completion`, or the pair (text, usage dict) of the original. An optional method
    `price(model) -> (input, output)` in nano-dollars per token lets cost budgets be reserved before the call. It
    is None where nobody knows what a call may cost: a policy's limit of cost denies it then. One that stands before
    several, of which some have a price, may say the highest of these in `price_known(model)`, for the run's own budget.
    `params` may hold `tools`: a list of {"type": "function", "function": {"name", "description", "parameters"}}.
    Then, and only then, the answer may have `tool_calls`.

    An exception may carry a `code` (what is journaled as the error type), `retryable`, and, as a `Completion` does,
    `usage`, `provider` and `switches`. A client that stands before others may take a parameter `model_call`, a
    `ModelCall`; only one that names it is given it. Its optional method `forget(messages, **params)` is told when the
    answer to these was not accepted.
    """

    async def complete(self, messages: list[Message], **params: Any) -> str | Completion: ...


class ToolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A tool as the runtime sees it.

    `problems(args)` lists what is wrong with arguments (empty: nothing); None when anything goes. `context_parameter`
    and `transaction_parameter` name the parameters that receive a `ToolContext` / the store's open transaction.
    `digest` identifies the definition: it goes into idempotency keys. `only`, if there is one, says what `problems`
    says of arguments that are one member of this name: that all is well exactly when it is of one of these types.
    """

    name: str
    function: Callable[..., Any]
    effect: str  # pure | idempotent | keyed | transactional | reconcilable | irreversible
    is_async: bool
    digest: str
    schema: ToolSchema
    problems: Callable[[dict[str, Any]], list[str]] | None = None
    only: tuple[str, tuple[type, ...]] | None = None
    context_parameter: str | None = None
    reconcile: Callable[..., Any] | None = None
    blocking: bool = True  # a plain function that may block: it gets a thread
    may_suspend: bool = True  # whether the string "PENDING" suspends the run
    secrets: frozenset[str] = frozenset()  # parameters whose references are opened for the call
    wrapped: frozenset[str] = frozenset()  # those of them that receive a `Secret`, the others its text


class ToolInvoker(Protocol):
    """The tools of a runtime, by name."""

    def spec(self, name: str) -> ToolSpec | None: ...

    def schemas(self) -> Mapping[str, ToolSchema]: ...


class SecretSource(Protocol):
    """Opens secrets, for the call of one tool of one tenant.

    Raises: NotFoundError SECRET_NOT_FOUND, CapabilityDeniedError SECRET_DENIED, VaultError. No error shows a value.
    """

    def open_secret(self, secret_id: str, *, tenant: str, tool: str) -> str: ...


class SubjectKeys(Protocol):
    """Data keys, one per data subject, kept apart from the store. `bound` ties a value to its place: elsewhere it does
    not open.

    Raises: VaultError; InputError SUBJECT for a value that names nobody.
    """

    def subject_key(self, tenant: str, subject: Any) -> str:
        """Id of the key for a subject's new values; made when there is none. ("run", id) stands for a run that names no
        subject."""

    def seal(self, key_id: str, plain: bytes, *bound: Any, erasing: bool = False) -> bytes | None:
        """None when the key is gone, or - unless `erasing` - is to be destroyed: then nothing is stored."""

    def unseal(self, key_id: str, sealed: bytes, *bound: Any, erasing: bool = False) -> bytes | None:
        """None when the key is gone, or - unless `erasing` - is to be destroyed."""

    def keyed_digest(self, key_id: str, data: bytes) -> str | None: ...

    def is_erased(self, key_id: str) -> bool:
        """Whether the key is gone for good, as opposed to not being here."""


class ErasableKeys(SubjectKeys, Protocol):
    """Keys that can be destroyed. An erasure goes through the stages stopping, begun, destroyed, done; it is any object
    with the fields of `nano_vm.vault.erasures.Erasure`."""

    def check_erasable(
        self, *, subject: Any = None, secret: str | None = None, tenant: str = "default"
    ) -> list[str]:
        """The ids of the keys that an erasure would destroy. Raises as `announce_erasure`."""

    def announce_erasure(
        self,
        *,
        subject: Any = None,
        secret: str | None = None,
        tenant: str = "default",
        reason: str,
        by: dict[str, Any],
        at_ms: int | None = None,
    ) -> Any:
        """Decide against legal holds, atomically, that it is erased; its keys open until `begin_announced`."""

    def begin_announced(self, erasure: Any) -> Any:
        """From now on nothing opens with its keys. One that has come further is given back as it is."""

    def destroy_keys(
        self, erasure: Any, runs: Sequence[str] = (), recall: dict[str, Any] | None = None
    ) -> Any: ...

    def note_erasure(self, erasure: Any, recall: dict[str, Any]) -> Any:
        """Keep notes of runs with an erasure, whatever stage it has come to, beside those that are there."""

    def end_erasure(self, erasure: Any, runs: Sequence[str] = ()) -> Any: ...

    def all_erasures(self) -> list[Any]: ...

    def adopt_erasure(self, **fields: Any) -> None:
        """Take over an erasure that a journal tells of and the list of erasures does not."""

    def mark(self, name: str) -> bytes | None:
        """How far a store has been looked through for erasures; None when nobody knows."""

    def set_mark(self, name: str, mark: bytes) -> None: ...


class Compiler(Protocol):
    """Turns a stored canonical program into its compiled form; raises ProgramError."""

    def __call__(self, canonical: bytes) -> CompiledProgram: ...


Listener: TypeAlias = Callable[[str, Any], None]  # (run id, journaled event)
Sleeper: TypeAlias = Callable[[], Awaitable[None]]
