"""Writes `spec/vectors/receipt.json`: journals of every kind of run, and the receipts they come to.

python tests/conformance/make_receipt_vectors.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit" / "evidence"))

from evidence_runs import KINDS  # noqa: E402

from nano_vm import canonical  # noqa: E402
from nano_vm.evidence.bundle import without_values  # noqa: E402
from nano_vm.evidence.narrative import narrative  # noqa: E402
from nano_vm.evidence.receipt import receipt  # noqa: E402
from nano_vm.evidence.sign import statement  # noqa: E402

TARGET = ROOT / "spec" / "vectors" / "receipt.json"


def vector(name: str) -> dict[str, Any]:
    vm, run = KINDS[name]()
    trace = vm.trace(run)
    entries = [
        {
            "facts": entry.facts.decode(),
            **(
                {} if entry.payload is None else {"payload": entry.payload.decode(), "salt": entry.salt.hex()}
            ),
        }
        for entry in trace.entries
    ]
    made = receipt(trace)
    return {
        "name": name,
        "program": canonical.decode(vm.store.program(trace.program_hash)),
        "run": run,
        "entries": entries,
        "receipt": made,
        "receipt_digest": canonical.digest_value(made),
        "disclosed_digest": canonical.digest_value(without_values(made)),
        "statement_digest": canonical.digest(statement(made, [(run, trace.head)])),
        "narrative": narrative(made).splitlines(),
    }


def vectors() -> dict[str, Any]:
    return {
        "about": "spec/receipt.md: each journal (facts and payloads as their canonical text) comes to this receipt",
        "receipts": [vector(name) for name in sorted(KINDS)],
    }


if __name__ == "__main__":
    TARGET.write_text(json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
