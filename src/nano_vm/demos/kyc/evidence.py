"""Attacks on what is left afterwards: receipts that are changed, and people who asked to be forgotten."""

from __future__ import annotations

import base64
import json
import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nano_vm.demos.kyc.governed import ISSUER, Governed
from nano_vm.demos.kyc.naive import Naive, checksum
from nano_vm.demos.kyc.outcome import GOVERNED, NAIVE
from nano_vm.demos.kyc.scene import Scene, answer_of
from nano_vm.demos.kyc.tampering import exported, mended, verified
from nano_vm.demos.kyc.world import CHIEF, HONEST, LIMIT, PLANTED, Customer

FLIPS = 48
SEED = 20_261


def corrupt_receipt(scene: Scene) -> None:
    """Somebody changes the evidence of a review after the fact. Whoever reads it has what an auditor has: the file,
    and the public key that was handed over earlier."""
    naive, governed = scene.naive, scene.governed
    scene.case_id = scene.trace_id = HONEST.id
    naive.submit(HONEST)
    naive.approve(HONEST.id, CHIEF)
    receipt = json.loads(naive.receipt(HONEST.id).read_text(encoding="utf-8"))
    governed.command("keys", "generate", ISSUER)
    governed.submit(HONEST, name=HONEST.id)
    governed.approve(HONEST.id, CHIEF)
    lines = exported(governed, HONEST.id)
    whole = b"".join(lines)
    untouched = verified(governed, {"untouched.bundle": whole})["untouched.bundle"]
    scene.evidence.append(f"the bundle as it was exported: {untouched or 'verifies'}")

    what = {
        "limit": f"a limit of {LIMIT} becomes {10 * LIMIT}, and whatever can be computed again is",
        "drop": "a step is taken out, and whatever can be computed again is",
        "forge": "a whole other review is passed off as this one",
        "flips": f"single bits are changed, in {FLIPS} copies",
    }
    naive_forged = {
        "limit": _with_checksum(receipt, limit=10 * LIMIT),
        "drop": _with_checksum(
            receipt, steps=[step for step in receipt["steps"] if step != "human_approval"]
        ),
        "forge": _with_checksum(receipt, applicant=PLANTED.name, limit=10 * LIMIT),
    }
    kept = [line for line in lines if not _is_step(line, "human_approval")]
    governed_forged = {
        "limit.bundle": mended(
            [line.replace(b'"limit":%d' % LIMIT, b'"limit":%d' % (10 * LIMIT)) for line in lines]
        ),
        "drop.bundle": mended(_with_count(kept, len(lines) - len(kept))),
        "forge.bundle": _of_another_issuer(scene),
    }
    codes = verified(governed, governed_forged)
    for name in ("limit", "drop", "forge"):
        path = naive.directory / f"{name}.json"
        path.write_bytes(naive_forged[name])
        taken = naive.check_receipt(path)
        scene.note(NAIVE, what[name], "", lambda taken=taken: "the check is content" if taken else None)  # type: ignore[misc]
        code = codes[f"{name}.bundle"]
        scene.note(GOVERNED, what[name], code or "", lambda code=code: None if code else "it verifies")  # type: ignore[misc]

    taken_by_naive = sum(
        naive.check_receipt(_written(naive.directory / "flip.json", data))
        for data in _flips(naive.receipt(HONEST.id).read_bytes())
    )
    scene.note(NAIVE, what["flips"], f"{FLIPS - taken_by_naive} of {FLIPS} found", _if_any(taken_by_naive))
    flipped = verified(governed, {f"flip-{number}.bundle": data for number, data in enumerate(_flips(whole))})
    missed = sum(code is None for code in flipped.values())
    kinds = ", ".join(sorted({code for code in flipped.values() if code}))
    scene.note(GOVERNED, what["flips"], f"{FLIPS - missed} of {FLIPS} found ({kinds})", _if_any(missed))
    for number in range(FLIPS):
        (governed.directory / f"flip-{number}.bundle").unlink()
    # What an attacker has to get past when the file looks right: without the signature, every hash would fit.
    scene.evidence += [f"nano-vm verify {name}: {code}" for name, code in codes.items()]


def gdpr_erase(scene: Scene) -> None:
    """A customer asks to be forgotten. Somebody who has all files, and back-ups from before, looks for them."""
    naive, governed = scene.naive, scene.governed
    scene.case_id = scene.trace_id = HONEST.id
    naive.submit(HONEST)
    naive.approve(HONEST.id, CHIEF)
    naive.receipt(HONEST.id)
    governed.submit(HONEST, name=HONEST.id)
    governed.approve(HONEST.id, CHIEF)
    governed.close()
    exported(governed, HONEST.id)
    before = governed.step(HONEST.id, "collect")
    scene.evidence.append(
        f"before: the journal's owner reads the passport number: {before.output['passport'] == HONEST.passport}"
    )
    governed.close()
    old_naive = shutil.copytree(naive.directory, scene.directory / "backup-naive")
    old_governed = shutil.copytree(
        governed.directory,
        scene.directory / "backup-governed",
        ignore=shutil.ignore_patterns("*.keys", "*.key"),
    )
    head = governed.vm.trace(HONEST.id).head
    naive.erase(HONEST.id)
    governed.wait(lambda vm: vm.erase(subject=HONEST.id, reason="asked to be forgotten", by=CHIEF.principal))
    governed.close()

    what = "every byte of every file is searched for the name, the birth date and the passport number"
    _search(scene, NAIVE, what, naive.directory)
    _search(scene, GOVERNED, what, governed.directory)
    what = "every byte of a back-up from before the request is searched (its keys are kept apart from it)"
    _search(scene, NAIVE, what, old_naive)
    _search(scene, GOVERNED, what, old_governed)

    what = "the database is restored from the back-up and read with what is there now"
    shutil.copy(old_naive / "cases.db", naive.database)
    again = answer_of(lambda: naive.case(HONEST.id))
    scene.note(
        NAIVE,
        what,
        again,
        lambda: None if again else f"the case is back: {naive.case(HONEST.id)['context']['name']}",
    )
    restored = scene.another("restored")
    restored.close()
    shutil.copy(old_governed / "reviews.db", restored.database)
    shutil.rmtree(f"{restored.database}.keys", ignore_errors=True)
    shutil.copytree(f"{governed.database}.keys", f"{restored.database}.keys")
    shutil.copy(f"{governed.database}.key", f"{restored.database}.key")
    read = _read(restored)
    scene.note(
        GOVERNED, what, read, lambda: "the passport number can be read" if HONEST.passport in read else None
    )

    shown = governed.step(HONEST.id, "collect")
    scene.evidence += [
        f"what is shown of `collect` now: {shown.output}",
        f"the journal begins as before: {any(entry.digest == head for entry in governed.vm.trace(HONEST.id).entries)}",
        *(
            f"verify, {name}: {detail}"
            for name, detail in governed.vm.verify(HONEST.id).steps
            if name != "record"
        ),
    ]


# --- what attackers do ------------------------------------------------------------------------------------------------


def _with_checksum(receipt: dict[str, Any], **changes: Any) -> bytes:
    document = {name: value for name, value in receipt.items() if name != "checksum"} | changes
    return json.dumps(document | {"checksum": checksum(document)}, indent=1).encode()


def _is_step(line: bytes, step: str) -> bool:
    return line.startswith(b'{"digest"') and b'"step":"%b"' % step.encode() in line


def _with_count(lines: list[bytes], fewer: int) -> list[bytes]:
    """The head of the journal says how many entries follow: it says the right number again."""

    def head(line: bytes) -> bytes:
        if not line.startswith(b'{"entries":'):
            return line
        count, rest = line.removeprefix(b'{"entries":').split(b",", 1)
        return b'{"entries":%d,%b' % (int(count) - fewer, rest)

    return [head(line) for line in lines]


def _of_another_issuer(scene: Scene) -> bytes:
    """A review that never took place here, in a bundle that verifies - under the attacker's own key."""
    other = scene.another("forged")
    other.command("keys", "generate", ISSUER)
    other.submit(HONEST, 10 * LIMIT, name=HONEST.id)
    other.approve(HONEST.id, CHIEF)
    return b"".join(exported(other, HONEST.id))


def _flips(data: bytes) -> Iterable[bytes]:
    chance = random.Random(SEED)
    for _ in range(FLIPS):
        place, bit = chance.randrange(len(data)), chance.randrange(8)
        yield data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _if_any(count: int) -> Any:
    return lambda: f"{count} pass for the original" if count else None


def _search(scene: Scene, side: str, what: str, directory: Path) -> None:
    found = traces_of(HONEST, directory)
    files = sum(path.is_file() for path in directory.rglob("*"))
    answer = f"{files} files searched"
    scene.note(side, what, answer, lambda: f"found in {', '.join(found)}" if found else None)


def traces_of(customer: Customer, directory: Path) -> list[str]:
    """Files that hold personal data of somebody, as they are, in hexadecimal or in base64."""
    wanted = []
    for text in (customer.name, customer.born, customer.passport):
        data = text.encode()
        wanted += [data, data.hex().encode(), base64.b64encode(data).rstrip(b"=")[:-1]]
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return [path.name for path in files if any(one in path.read_bytes() for one in wanted)]


def _read(governed: Governed) -> str:
    """What can be read of the restored review."""
    seen: list[str] = []
    failed = answer_of(lambda: seen.append(str(governed.step(HONEST.id, "collect").output)))
    return failed or seen[0]


__all__ = ["Naive", "corrupt_receipt", "gdpr_erase", "traces_of"]
