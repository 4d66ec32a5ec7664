"""Attacks on what happens when: steps left out, things in another order, and the same thing twice."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
from pathlib import Path
from typing import Any

from nano_vm.demos.kyc.governed import Governed
from nano_vm.demos.kyc.naive import Naive
from nano_vm.demos.kyc.outcome import GOVERNED, NAIVE
from nano_vm.demos.kyc.scene import Scene, answer_of, new_account, second_account
from nano_vm.demos.kyc.tampering import exported, mended, verified
from nano_vm.demos.kyc.world import CHIEF, CLERK, HONEST, LIMIT, LISTED, SECOND, Bank

JOIN_SECONDS_MAX = 30


def skip_step(scene: Scene) -> None:
    """Somebody wants the last step without the one before it."""
    naive, governed = scene.naive, scene.governed
    scene.case_id = scene.trace_id = HONEST.id

    what = "the last step is asked for by its name while the review waits for an officer"
    naive.submit(HONEST)
    scene.on_naive(what, lambda: naive.retry(HONEST.id, "seal"), new_account(naive.bank, HONEST))
    governed.submit(HONEST, name=HONEST.id)
    jump = {"approved": True}
    scene.on_governed(
        what,
        lambda: governed.wait(lambda vm: vm.resume(HONEST.id, jump, step="seal", principal=CHIEF.principal)),
        new_account(governed.bank, HONEST),
    )

    what = "the waiting review is simply told to go on"
    naive.submit(HONEST)
    scene.on_naive(what, lambda: f"still {naive.run(HONEST.id)['status']}", new_account(naive.bank, HONEST))
    scene.on_governed(
        what,
        lambda: (
            f"still {governed.wait(lambda vm: vm.step(HONEST.id, principal=CLERK.principal)).status.value}"
        ),
        new_account(governed.bank, HONEST),
    )

    what = "the place where the review stands is changed in the database"
    naive.submit(HONEST)
    scene.on_naive(what, lambda: _move_cursor(naive), new_account(naive.bank, HONEST))
    other = scene.another("moved")
    other.submit(HONEST, name=HONEST.id)
    scene.on_governed(what, lambda: _move_record(other), new_account(other.bank, HONEST))

    what = "an approval is copied in the database from a review that has one"
    naive.submit(SECOND)
    naive.approve(SECOND.id, CHIEF)
    naive.submit(HONEST)
    scene.on_naive(what, lambda: _copy_approval(naive), new_account(naive.bank, HONEST))
    grafted = scene.another("grafted")
    grafted.submit(HONEST, name=HONEST.id)
    grafted.submit(SECOND, name=SECOND.id)
    grafted.approve(SECOND.id, CHIEF)
    scene.on_governed(what, lambda: _graft(grafted), new_account(grafted.bank, HONEST))


def reorder_steps(scene: Scene) -> None:
    """Events come when they should not, and histories are put in another order."""
    naive, governed = scene.naive, scene.governed
    scene.case_id = scene.trace_id = HONEST.id

    what = "the approval comes before anything was looked at"
    naive.register(LISTED)
    scene.on_naive(what, lambda: naive.approve(LISTED.id, CHIEF), new_account(naive.bank, LISTED))
    governed.wait(
        lambda vm: vm.start(
            governed.program, governed.application(LISTED), trace_id="early", principal=CLERK.principal
        )
    )
    scene.on_governed(what, lambda: governed.approve("early", CHIEF), new_account(governed.bank, LISTED))

    what = "the approval comes after the refusal"
    naive.submit(LISTED)
    scene.on_naive(what, lambda: naive.approve(LISTED.id, CHIEF), new_account(naive.bank, LISTED))
    governed.submit(LISTED, name="late")
    scene.on_governed(what, lambda: governed.approve("late", CHIEF), new_account(governed.bank, LISTED))

    what = "two steps of the recorded history change places"
    naive.submit(HONEST)
    naive.approve(HONEST.id, CHIEF)
    _swap_lines(naive.audit, "human_approval", "agent_review")
    checked = naive.check_audit(HONEST.id)
    scene.on_naive(what, lambda: None, lambda: "the check of the audit file is content" if checked else None)
    governed.submit(HONEST, name=HONEST.id)
    governed.approve(HONEST.id, CHIEF)
    bundle = exported(governed, HONEST.id)
    places = [place for place, line in enumerate(bundle) if line.startswith(b'{"digest"')]
    bundle[places[3]], bundle[places[4]] = bundle[places[4]], bundle[places[3]]
    (found,) = verified(governed, {"swapped.bundle": mended(bundle)}).values()
    scene.note(GOVERNED, what, found or "", lambda: None if found else "the bundle verifies")


def replay_attack(scene: Scene) -> None:
    """Somebody has kept what was sent, and sends it again."""
    naive, governed = scene.naive, scene.governed
    scene.case_id = scene.trace_id = HONEST.id

    what = "the approval is sent again while the first one is at the bank, and once more afterwards"
    naive.submit(HONEST)
    body = json.dumps({"case": HONEST.id, "by": CHIEF.id}).encode()
    signature = naive.sign(body)
    scene.on_naive(what, lambda: _send_thrice(naive, body, signature), second_account(naive.bank, HONEST))
    governed.submit(HONEST, name=HONEST.id)
    (asked,) = governed.vm.approvals()
    yes = {"approved": True, "action": asked.action, "nonce": asked.nonce}
    scene.on_governed(what, lambda: _resume_thrice(governed, yes), second_account(governed.bank, HONEST))

    what = "the old approval is sent to the review of a later application, for ten times the limit"
    naive.submit(HONEST, 10 * LIMIT)
    scene.on_naive(what, lambda: naive.webhook(body, signature), new_account(naive.bank, HONEST, 10 * LIMIT))
    governed.submit(HONEST, 10 * LIMIT, name="later")
    scene.on_governed(
        what,
        lambda: governed.wait(lambda vm: vm.resume("later", yes, principal=CHIEF.principal)),
        new_account(governed.bank, HONEST, 10 * LIMIT),
    )

    what = "the database is put back to before the approval, and the approval is sent again"
    before = Naive(scene.directory / NAIVE / "restored")
    before.submit(HONEST)
    kept = _copy(before.database, scene.directory / "naive-kept.db")
    before.webhook(body, before.sign(body))
    _copy(kept, before.database)
    scene.on_naive(what, lambda: before.webhook(body, before.sign(body)), second_account(before.bank, HONEST))
    restored = scene.another("restored")
    restored.submit(HONEST, name=HONEST.id)
    restored.close()
    kept = _copy(restored.database, scene.directory / "governed-kept.db")
    restored.approve(HONEST.id, CHIEF)
    restored.close()
    _copy(kept, restored.database)
    scene.on_governed(what, lambda: _approve_again(restored), second_account(restored.bank, HONEST))


# --- what attackers do ------------------------------------------------------------------------------------------------


def _move_cursor(naive: Naive) -> None:
    _edit(naive.database, "UPDATE cases SET cursor = 'seal'")
    naive.run(HONEST.id)


def _copy_approval(naive: Naive) -> None:
    _edit(
        naive.database,
        "UPDATE cases SET approved_by = (SELECT approved_by FROM cases WHERE id = ?) WHERE id = ?",
        (SECOND.id, HONEST.id),
    )
    naive.run(HONEST.id)


def _move_record(governed: Governed) -> None:
    """What the record says about where the run stands is overwritten; then the runtime takes the run up."""
    governed.close()
    _edit(
        governed.database,
        "UPDATE nvm_runs SET status = 'RUNNING', waits = '[]', owner = NULL, lease_until_ms = 0, wake_at_ms = 0",
    )
    _recover(governed)


def _graft(governed: Governed) -> None:
    """What followed the approval in one journal is appended to another; then the runtime takes the run up."""
    governed.close()
    numbers = dict(_edit(governed.database, "SELECT run_id, no FROM nvm_runs"))
    source, target = numbers[SECOND.id], numbers[HONEST.id]
    ((end,),) = _edit(
        governed.database,
        "SELECT seq + length(digests) / 32 FROM nvm_segments WHERE run = ? ORDER BY seq DESC LIMIT 1",
        (target,),
    )
    rows = _edit(
        governed.database,
        "SELECT digests, facts, payloads FROM nvm_segments WHERE run = ? ORDER BY seq DESC LIMIT 1",
        (source,),
    )
    _edit(
        governed.database,
        "INSERT INTO nvm_segments (run, seq, digests, facts, payloads) VALUES (?, ?, ?, ?, ?)",
        (target, end, *rows[0]),
    )
    _edit(
        governed.database,
        "UPDATE nvm_runs SET status = 'RUNNING', waits = '[]', owner = NULL, lease_until_ms = 0 WHERE no = ?",
        (target,),
    )
    _recover(governed)


def _recover(governed: Governed) -> None:
    failures: list[Exception] = []
    governed.wait(lambda vm: vm.recover(on_error=lambda _, error: failures.append(error)))
    if failures:
        raise failures[0]


def _send_thrice(naive: Naive, body: bytes, signature: str) -> None:
    naive.bank.meanwhile = lambda: _in_another_thread(lambda: naive.webhook(body, signature))
    naive.webhook(body, signature)
    naive.webhook(body, signature)


def _resume_thrice(governed: Governed, yes: dict[str, Any]) -> str:
    """The same from two engines: the second sends while the first is at the bank, and waits for what comes of it."""
    threads: list[threading.Thread] = []

    def send() -> None:
        elsewhere = Governed.__new__(Governed)
        elsewhere.__dict__ = governed.__dict__ | {"_vm": None}
        answer_of(lambda: elsewhere.wait(lambda vm: vm.resume(HONEST.id, yes, principal=CHIEF.principal)))
        elsewhere.close()

    def begin() -> None:
        threads.append(threading.Thread(target=send))
        threads[0].start()

    governed.bank.meanwhile = begin
    governed.wait(lambda vm: vm.resume(HONEST.id, yes, principal=CHIEF.principal))
    for thread in threads:
        thread.join(JOIN_SECONDS_MAX)
    governed.wait(lambda vm: vm.resume(HONEST.id, yes, principal=CHIEF.principal))
    return _counted(governed.bank)


def _approve_again(governed: Governed) -> str:
    governed.approve(HONEST.id, CHIEF)
    return _counted(governed.bank)


def _counted(bank: Bank) -> str:
    return f"the same answer again; {HONEST.id} has {len(bank.accounts(HONEST))} account"


def _in_another_thread(act: Any) -> None:
    thread = threading.Thread(target=act)
    thread.start()
    thread.join(JOIN_SECONDS_MAX)


def _edit(database: Path, statement: str, values: tuple[Any, ...] = ()) -> list[Any]:
    """What anybody can do who may write the file."""
    db = sqlite3.connect(database, timeout=10)
    try:
        with db:
            return db.execute(statement, values).fetchall()
    finally:
        db.close()


def _copy(source: Path, target: Path) -> Path:
    """A database whose write-ahead log is in it, copied; what was beside the target goes."""
    db = sqlite3.connect(source)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    db.close()
    for suffix in ("-wal", "-shm"):
        Path(f"{target}{suffix}").unlink(missing_ok=True)
    shutil.copy(source, target)
    return target


def _swap_lines(path: Path, one: str, other: str) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    first, second = (
        next(i for i, line in enumerate(lines) if f'"step": "{word}"' in line) for word in (one, other)
    )
    lines[first], lines[second] = lines[second], lines[first]
    path.write_text("".join(lines), encoding="utf-8")
