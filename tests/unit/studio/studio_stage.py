"""A store with a bit of everything in it, and pages of the studio without a browser."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from streamlit.testing.v1 import AppTest

from nano_vm import ExecutionVM, InputError, MockLLMAdapter, SqliteStore, ToolError, Vault, tool
from nano_vm.studio import settings
from nano_vm.studio.desk import Desk, Job
from nano_vm.studio.settings import Settings
from nano_vm.vault.kek import make_key_file

EXAMPLES = Path(__file__).parents[3] / "examples"
SECRET = "Ada Lovelace of St James"
HOSTILE = "<script>alert(1)</script>![x](http://evil.example/x.png)"
USAGE = {"prompt_tokens": 100, "completion_tokens": 3, "cost_usd": 0.002}
PRIVATE = {
    "name": "private_case",
    "subject": "$who",
    "inputs": {
        "type": "object",
        "properties": {"who": {"type": "string", "private": True}, "n": {"type": "integer"}},
        "required": ["who"],
    },
    "steps": [
        {
            "id": "ask",
            "type": "llm",
            "prompt": "Is $who known?",
            "allowed_outputs": ["yes", "no"],
            "output_key": "known",
        },
        {"id": "echo", "type": "tool", "tool": "echo", "args": {"x": "$who"}, "is_terminal": True},
    ],
}
FLAKY = {
    "name": HOSTILE,
    "steps": [
        {
            "id": "try",
            "type": "tool",
            "tool": "flaky",
            "args": {},
            "on_error": "retry",
            "max_retries": 2,
            "retry": {"initial": 0.01, "jitter": False},
            "is_terminal": True,
        },
    ],
}
WAITING = {
    "name": "waiting",
    "steps": [
        {"id": "double", "type": "tool", "tool": "double", "args": {"n": 2}, "output_key": "four"},
        {"id": "paid", "type": "wait", "event": "payment", "output_key": "payment"},
        {"id": "end", "type": "tool", "tool": "double", "args": {"n": "$four"}, "is_terminal": True},
    ],
}
MAPPED = {
    "name": "mapped",
    "steps": [
        {
            "id": "each",
            "type": "map",
            "over": [1, 2, 3],
            "step": {"id": "one", "type": "tool", "tool": "double", "args": {"n": "$item"}},
        },
        {"id": "call", "type": "call", "program": "child", "inputs": {}, "is_terminal": True},
    ],
}
CHILD = {"name": "child", "steps": [{"id": "only", "type": "tool", "tool": "double", "args": {"n": 21}}]}


class Paid(NamedTuple):
    order_id: str
    amount: int


class Session:
    """What the command line hands to a desk."""

    def __init__(self, engine: ExecutionVM, has_tools: bool) -> None:
        self.engine = engine
        self.has_tools = has_tools

    def require_run(self, run_id: str, *, only_compensations: bool = False) -> None:
        """It has all tools, or none."""
        if not self.has_tools:
            raise InputError("TOOLS_MISSING", "none was given")


class Stage:
    """A database, its vault and what was really done. Programs run on machines of their own, as in other processes."""

    def __init__(self, directory: Path, *, new: bool = True) -> None:
        self.path = directory / "runs.db"
        self.paid: list[Paid] = []
        self.desks: list[Desk] = []
        self.has_tools = True  # at the desk
        self.entered, self.gate = threading.Event(), threading.Event()  # of the tool `double`
        self.gate.set()
        self.policy: Any = EXAMPLES / "refund.policy.yaml"  # in force, where nothing else is said
        if new:
            make_key_file(directory / "runs.db.key")
        self.vault = Vault.beside(self.path)
        self.model = MockLLMAdapter({"known": "yes", "__default__": "yes"}, usage=USAGE)
        self.told: list[dict[str, Any]] = []

    @classmethod
    def again(cls, directory: Path) -> Stage:
        """A copy of a directory that was filled."""
        return cls(directory, new=False)

    def close(self) -> None:
        for desk in self.desks:
            desk.close()

    def acting(self, *roles: str, id: str = "maria", **given: Any) -> Settings:
        """The settings of a studio that somebody acts in."""
        who = {"id": id, "roles": list(roles)}
        desk = Desk(self._session, who)
        self.desks.append(desk)
        return self.settings(principal=who, desk=desk, **given)

    @contextlib.contextmanager
    def _session(self) -> Iterator[Any]:
        vm = self.machine()
        try:
            yield Session(vm, self.has_tools)
        finally:
            vm.threads.close()
            vm.store.close()

    def tools(self) -> list[Any]:
        @tool(effect="pure")
        def lookup_order(order_id: str) -> dict:
            return {"id": order_id, "amount": 240 if order_id == "A-1002" else 40, "refundable": True}

        @tool(effect="idempotent")
        def send_refund(order_id: str, amount: int) -> dict:
            self.paid.append(Paid(order_id, amount))
            return {"receipt": f"r-{order_id}"}

        @tool(effect="idempotent")
        def notify_customer(order_id: str, text: str) -> str:
            return text

        @tool(effect="idempotent")
        def echo(x: str) -> str:
            return x

        @tool(effect="idempotent")
        def flaky() -> str:
            raise ToolError(f"no luck {HOSTILE}", code="NO_LUCK")

        @tool(effect="pure")
        def double(n: int) -> int:
            self.told.append({"n": n})
            self.entered.set()
            self.gate.wait(30)
            return 2 * n

        return [lookup_order, send_refund, notify_customer, echo, flaky, double]

    def machine(self, **options: Any) -> ExecutionVM:
        options.setdefault("policy", self.policy)
        return ExecutionVM(
            llm=self.model,
            tools=self.tools(),
            store=SqliteStore(self.path, durability="normal"),
            vault=self.vault,
            **options,
        )

    def run(self, work: Callable[[ExecutionVM], Any], **options: Any) -> Any:
        """Do something with a machine, which is closed then."""

        async def main() -> Any:
            vm = self.machine(**options)
            try:
                return await work(vm)
            finally:
                await vm.close()
                vm.store.close()

        return asyncio.run(main())

    def fill(self) -> None:
        """One run of each kind."""
        from nano_vm import Program

        async def work(vm: ExecutionVM) -> None:
            refund = Program.from_file(EXAMPLES / "governed_refund.yaml")
            ana = {"id": "ana", "roles": []}
            for order, name in (("A-1001", "small"), ("A-1002", "large")):
                await vm.run(
                    refund,
                    context={"order_id": order, "message": "It never came."},
                    trace_id=name,
                    principal=ana,
                )

        self.run(work)

        async def free(vm: ExecutionVM) -> None:
            await vm.run(FLAKY, trace_id="failed")
            await vm.run(WAITING, trace_id="waits")
            vm.save_program(CHILD)
            await vm.run(MAPPED, trace_id="mapped")
            await vm.run(PRIVATE, context={"who": SECRET, "n": 1}, trace_id="private")
            await vm.run(PRIVATE, context={"who": "Grace", "n": 2}, trace_id="erased")
            await vm.erase(subject="Grace", reason="asked for it", by="ana")

        self.run(free, policy=None)

    def settings(self, **given: Any) -> Settings:
        given.setdefault("path", self.path)
        return Settings(open_store=lambda: SqliteStore(self.path, durability="normal"), **given)


class Page:
    """One page, as a session sees it."""

    def __init__(self, name: str, **params: str) -> None:
        self.test = AppTest.from_function(_page, args=(name,), default_timeout=30)
        for key, value in params.items():
            self.test.query_params[key] = value
        self.run()

    def run(self) -> Page:
        self.test.run()
        assert [each.value for each in self.test.exception] == []
        return self

    def markup(self) -> str:
        """Everything that is drawn."""
        return "\n".join(json.loads(proto.json)["html"] for proto in self.drawn())

    def drawn(self) -> Iterator[Any]:
        for element in _elements(self.test.main):
            if element.proto.DESCRIPTOR.name == "BidiComponent":
                yield element.proto

    def everything(self) -> str:
        """All that is sent to the browser, as text."""
        parts = [str(element.proto) for element in _elements(self.test.main)]
        return self.markup() + "\n".join(parts)

    def choose(self, key: str, what: Any) -> Page:
        """Choose in a field: a select box, segments, a text or number."""
        for kind in ("selectbox", "button_group", "text_input", "number_input", "toggle", "text_area"):
            try:
                field = getattr(self.test, kind)(key=key)
            except KeyError:
                continue
            field.set_value(what)
            return self.run()
        raise KeyError(key)

    def markdown(self) -> str:
        """What Streamlit renders as Markdown, where an image would be a request."""
        kinds = (
            "markdown",
            "caption",
            "error",
            "info",
            "warning",
            "success",
            "toast",
            "title",
            "header",
            "subheader",
        )
        found = [each.value for kind in kinds for each in getattr(self.test, kind)]
        labelled = (
            "button",
            "checkbox",
            "toggle",
            "text_input",
            "text_area",
            "number_input",
            "selectbox",
            "radio",
        )
        return "\n".join(found + [each.label for kind in labelled for each in getattr(self.test, kind)])

    def codes(self) -> list[Any]:
        """What is shown as JSON."""
        return [json.loads(each.value) for each in self.test.code if each.language == "json"]

    def captions(self) -> str:
        return "\n".join(each.value for each in self.test.caption)

    def press(self, label: str, number: int = 0) -> Page:
        [each for each in self.test.button if each.label == label][number].click()
        return self.run()

    @property
    def labels(self) -> list[str]:
        return [each.label for each in self.test.button]


def _page(name: str) -> None:
    import importlib

    importlib.import_module(f"nano_vm.studio.screens.{name}").page()


def _elements(block: Any) -> Iterator[Any]:
    for child in block.children.values():
        if hasattr(child, "children"):
            yield from _elements(child)
        else:
            yield child


def done(stage: Stage) -> list[Job]:
    """Wait for everything that was handed in, and say what became of it, the oldest first."""
    jobs = [job for desk in stage.desks for job in desk.wait()]
    return sorted(jobs, key=lambda job: job.number)


def use(given: Settings) -> None:
    settings.use(given)
