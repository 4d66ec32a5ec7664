"""Policies and what their limits have counted, in a database."""

from __future__ import annotations

from collections.abc import Sequence

from nano_vm import canonical
from nano_vm.stores import rules
from nano_vm.stores.rows import Connection


def put_policy(con: Connection, policy_hash: str, body: bytes, now_ms: int) -> None:
    if con.execute("SELECT 1 FROM nvm_policies WHERE hash = ?1", (policy_hash,)).fetchone() is None:
        con.execute(
            "INSERT INTO nvm_policies (hash, stored_at_ms, body) VALUES (?1,?2,?3)",
            (policy_hash, now_ms, body),
        )


def find_policy(con: Connection, policy_hash: str) -> bytes:
    row = con.execute("SELECT body FROM nvm_policies WHERE hash = ?1", (policy_hash,)).fetchone()
    if row is None:
        raise rules.policy_not_found(policy_hash)
    body: bytes = row[0]
    if canonical.digest(body) != policy_hash:
        raise rules.damaged(f"the policy `{policy_hash}` is not what its hash says", policy=policy_hash)
    return body


def counted(con: Connection, keys: Sequence[str], action: str) -> list[int]:
    sql = "SELECT CAST(coalesce(sum(amount), 0) AS bigint) FROM nvm_counts WHERE key = ?1 AND action <> ?2"
    return [con.execute(sql, (key, action)).fetchone()[0] for key in keys]


def count(
    con: Connection, action: str, wanted: Sequence[tuple[str, int, int]], now_ms: int
) -> list[int] | None:
    """Inside a write transaction, so that nobody else counts in between."""
    so_far = counted(con, [key for key, _, _ in wanted], action)
    if any(found + amount > maximum for found, (_, amount, maximum) in zip(so_far, wanted, strict=True)):
        return None
    for key, amount, _ in wanted:
        held = con.execute(
            "SELECT 1 FROM nvm_counts WHERE key = ?1 AND action = ?2", (key, action)
        ).fetchone()
        if held is None:
            con.execute("INSERT INTO nvm_counts VALUES (?1,?2,?3,?4)", (key, action, amount, now_ms))
    return so_far
