"""What verifying costs: a journal of 20,000 entries, folded and checked, beside hashing the same bytes.

    python benchmarks/verify.py
    python benchmarks/verify.py --quick      # a smoke run, without a verdict

Prints the time of `verify_run` as a multiple of two bare passes over the same bytes: one SHA-256 call per entry and per
payload (what a reader that trusts nothing has to do at least), and one single call over all bytes (which checks no
chain). The governed run tracks labels, and every call of it was decided by a policy, which is asked again. In that of
models every other step asks a model, which names itself and what its answer took. `bundle` is the whole of
`nano-vm verify FILE`, the receipt recomputed. CPU time, the best of several rounds, in one process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from hashlib import sha256

from nano_vm import ExecutionVM, MemoryStore, MockLLMAdapter, Program, tool
from nano_vm.evidence.bundle import export
from nano_vm.evidence.verify import verify_bundle
from nano_vm.journal.replay import verify_run
from nano_vm.policy.recheck import Recheck

ROUNDS = 5
POLICY = {"policy": "p", "rules": [{"id": "some", "tools": ["look"], "when": "$args.n >= 0"}]}


def program(
    entries: int, words: int, kind: str = "plain"
) -> tuple[Program, Callable[[int], dict[str, object]]]:
    """A loop of a tool and a condition: one entry per turn, with the next intent and the verdict in it. Of the kind
    `models` a model is asked after the condition, which makes it two."""
    governed, models = kind == "governed", kind == "models"
    counted = [0]
    text = "order A-1001 was looked at and found in order; " * words

    @tool(effect="irreversible", protected=["n"] if governed else [])
    def look(n: int) -> dict[str, object]:
        counted[0] += 1
        return {"n": counted[0], "text": text}

    steps = [
        {"id": "look", "type": "tool", "tool": "look", "args": {"n": "$n"}},
        {
            "id": "more",
            "type": "condition",
            "condition": f"$look.output.n < {(entries - 2) // (1 + models)}",
            "then": "ask" if models else "look",
            "otherwise": "end",
        },
        *([{"id": "ask", "type": "llm", "prompt": "Go on? $n", "next_step": "look"}] if models else []),
        {"id": "end", "type": "tool", "tool": "look", "args": {"n": "$n"}, "is_terminal": True},
    ]
    inputs = {"type": "object", "properties": {"n": {"type": "integer", "label": "trusted"}}}
    declared: dict[str, object] = {"inputs": inputs} if governed else {}
    if models:
        declared = {"max_tokens": 1_000 * entries}
    return Program.from_dict({"name": "loop", "max_steps": 4 * entries, "steps": steps, **declared}), look


def best(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    found = float("inf")
    for _ in range(rounds):
        before = time.process_time()
        work()
        found = min(found, time.process_time() - before)
    return found


def measure(entries: int, words: int, kind: str, rounds: int = ROUNDS) -> dict[str, float]:
    """Times in seconds: `single`, `each` (bare passes), `verify`, `bundle`; and `bytes`, `entries`."""
    made, look = program(entries, words, kind)
    governed = kind == "governed"
    answer = "It was looked at and found in order; " * words
    vm = ExecutionVM(
        llm=MockLLMAdapter(answer, usage={"prompt_tokens": 3, "completion_tokens": 9 * words}),
        tools=[look],
        store=MemoryStore(),
        policy=POLICY if governed else None,
    )
    trace = vm.run_sync(made, context={"n": 1})
    journal = vm.store.read(trace.trace_id)
    compiled = vm.load_program(trace.program_hash)
    texts = [entry.facts for entry in journal]
    texts += [entry.salt + entry.payload for entry in journal if entry.payload is not None]
    whole = b"".join(texts)
    data = export(vm.store, trace.trace_id).data

    def verify() -> None:
        watchers = (Recheck(compiled, vm.load_policy),) if governed else ()
        verify_run(compiled, None, journal, watchers=watchers)

    def each() -> None:
        for text in texts:
            sha256(text).digest()

    return {
        "entries": len(journal),
        "bytes": len(whole),
        "single": best(lambda: sha256(whole).digest(), rounds),
        "each": best(each, rounds),
        "verify": best(verify, rounds),
        "bundle": best(lambda: verify_bundle(data), min(rounds, 2)),
    }


def main(entries: int, rounds: int) -> None:
    print(
        f"{'':>10}{'bytes/entry':>12}{'verify, ms':>12}{'per hash':>10}{'per single pass':>17}{'bundle, ms':>12}"
    )
    kinds = [("plain", 1), ("plain", 20), ("plain", 400)]
    kinds += [(kind, words) for kind in ("governed", "models") for words in (1, 20)]
    for kind, words in kinds:
        found = measure(entries, words, kind, rounds)
        print(
            f"{kind:>10}"
            f"{found['bytes'] / found['entries']:>12.0f}{found['verify'] * 1e3:>12.0f}"
            f"{found['verify'] / max(found['each'], 1e-9):>9.1f}x"
            f"{found['verify'] / max(found['single'], 1e-9):>16.1f}x"
            f"{found['bundle'] * 1e3:>12.0f}"
        )


if __name__ == "__main__":
    quick = sys.argv[1:] == ["--quick"]
    main(200 if quick else 20_000, 1 if quick else ROUNDS)
