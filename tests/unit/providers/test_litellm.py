"""LiteLLM, which is too heavy for the development environment: in an environment of its own, when it is asked for."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nano_vm import LiteLLMAdapter
from nano_vm.errors import InputError
from nano_vm.providers.faults import ModelError
from unit.providers.test_openai_compatible import TOOLS, Server, call, calling, good, hang_up, reply
from unit.providers.test_openai_compatible import server as server

ROOT = Path(__file__).resolve().parents[3]
PROBE = Path(__file__).with_name("litellm_probe.py")
PYTHON_VARIABLE = "NANO_VM_LITELLM_PYTHON"  # an interpreter that has nano-vm's dependencies and litellm


class Reply:
    def __init__(self, value: Any) -> None:
        self.value = value

    def model_dump(self) -> Any:
        return self.value


class Refused(Exception):
    def __init__(self, status: int | None) -> None:
        super().__init__("quotes sk-very-secret-key")
        self.status_code = status


class Timeout(Exception):
    pass


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module in litellm's place: what we hand over, and what we make of what comes back."""
    module = ModuleType("litellm")
    module.seen = []  # type: ignore[attr-defined]
    module.answer = None  # type: ignore[attr-defined]

    async def acompletion(**arguments: Any) -> Reply:
        module.seen.append(arguments)
        if isinstance(module.answer, Exception):
            raise module.answer
        if module.answer is None:
            await asyncio.Event().wait()
        return Reply(module.answer)

    module.acompletion = acompletion  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "litellm", module)
    monkeypatch.delenv("LITELLM_LOCAL_MODEL_COST_MAP", raising=False)
    return module


def ask(adapter: LiteLLMAdapter, **params: Any) -> Any:
    return asyncio.run(adapter.complete([{"role": "user", "content": "hello"}], **params))


def test_every_attempt_is_ours_and_nothing_is_fetched(litellm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = LiteLLMAdapter("groq/m", prices={"groq/m": (1.0, 2.0)}, api_base="http://h")
    assert os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"
    litellm.answer = good()
    found = ask(adapter, temperature=0, num_retries=5, stream=True, max_retries=5)
    assert (found.text, found.usage.total_tokens) == ("yes", 14)
    assert found.usage.cost_usd == pytest.approx(17e-6)
    (seen,) = litellm.seen
    assert (seen["num_retries"], seen["max_retries"], seen["model"]) == (0, 0, "groq/m")
    assert (seen["api_base"], seen["temperature"]) == ("http://h", 0)
    assert "stream" not in seen
    assert adapter.price(None) == (1_000.0, 2_000.0)
    litellm.answer = calling(call())
    assert ask(adapter, tools=TOOLS, model="other").tool_calls[0].name == "pay"
    assert litellm.seen[-1]["model"] == "other"
    with pytest.raises(InputError):
        LiteLLMAdapter("")


@pytest.mark.parametrize(
    ("answer", "code", "lost"),
    [
        (Refused(401), "MODEL_REFUSED", False),
        (Refused(429), "MODEL_HTTP", False),
        (Refused(503), "MODEL_HTTP", False),
        (Refused(None), "MODEL_HTTP", True),
        (Timeout(), "MODEL_TIMEOUT", True),
        ({}, "MODEL_REPLY", False),
        (good(finish_reason="length"), "MODEL_TRUNCATED", False),
        (None, "MODEL_TIMEOUT", True),
    ],
)
def test_what_goes_wrong_is_one_of_our_errors_and_quotes_nothing(
    litellm: Any, answer: Any, code: str, lost: bool
) -> None:
    litellm.answer = answer
    with pytest.raises(ModelError) as caught:
        ask(LiteLLMAdapter("groq/m", timeout_seconds=0.05))
    error = caught.value
    assert (error.code, error.lost) == (code, lost)
    assert "secret" not in str(error) + repr(error.facts)
    assert error.__cause__ is None
    assert len(litellm.seen) == 1


def python_with_litellm(tmp_path: Path) -> str:
    if os.environ.get(PYTHON_VARIABLE):
        return os.environ[PYTHON_VARIABLE]
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    done = subprocess.run(
        [python, "-m", "pip", "install", "-qq", f"{ROOT}[litellm,http]"], capture_output=True, timeout=900
    )
    if done.returncode:
        pytest.skip("litellm cannot be installed here")
    return python


@pytest.mark.campaign
def test_the_real_litellm(server: Server, tmp_path: Path) -> None:
    server.answers = [
        reply(good()),
        reply(calling(call())),
        reply({"error": {"message": "no"}}, 503),
        reply({"error": {"message": "no"}}, 401),
        hang_up,
        reply(good(finish_reason="length")),
    ]
    done = subprocess.run(
        [python_with_litellm(tmp_path), str(PROBE), server.url],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["at_import"], found["elsewhere"]) == ([], [])
    yes, tools, *failures = found["answers"]
    assert (yes["text"], yes["usage"]) == ("yes", [11, 3, pytest.approx(17e-6)])
    assert tools["calls"] == [["pay", '{"amount": 5}']]
    assert [failure["code"] for failure in failures] == [
        "MODEL_HTTP",
        "MODEL_REFUSED",
        "MODEL_HTTP",
        "MODEL_TRUNCATED",
    ]
    assert not any(failure["leaks"] for failure in failures)
    assert len(server.requests) == 6  # one each: nothing repeats by itself
