"""Policies and what their limits have counted, in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from nano_vm import canonical
from nano_vm.stores import rules


def put_policy(con: sqlite3.Connection, policy_hash: str, body: bytes, now_ms: int) -> None:
    if con.execute("SELECT 1 FROM nvm_policies WHERE hash = ?", (policy_hash,)).fetchone() is None:
        con.execute(
            "INSERT INTO nvm_policies (hash, stored_at_ms, body) VALUES (?,?,?)", (policy_hash, now_ms, body)
        )


def find_policy(con: sqlite3.Connection, policy_hash: str) -> bytes:
    row = con.execute("SELECT body FROM nvm_policies WHERE hash = ?", (policy_hash,)).fetchone()
    if row is None:
        raise rules.policy_not_found(policy_hash)
    body: bytes = row[0]
    if canonical.digest(body) != policy_hash:
        raise rules.damaged(f"the policy `{policy_hash}` is not what its hash says", policy=policy_hash)
    return body


def counted(con: sqlite3.Connection, keys: Sequence[str], action: str) -> list[int]:
    sql = "SELECT coalesce(sum(amount), 0) FROM nvm_counts WHERE key = ? AND action <> ?"
    return [con.execute(sql, (key, action)).fetchone()[0] for key in keys]


def count(
    con: sqlite3.Connection, action: str, wanted: Sequence[tuple[str, int, int]], now_ms: int
) -> list[int] | None:
    """Inside a write transaction, so that nobody else counts in between."""
    so_far = counted(con, [key for key, _, _ in wanted], action)
    if any(found + amount > maximum for found, (_, amount, maximum) in zip(so_far, wanted, strict=True)):
        return None
    for key, amount, _ in wanted:
        held = con.execute("SELECT 1 FROM nvm_counts WHERE key = ? AND action = ?", (key, action)).fetchone()
        if held is None:
            con.execute("INSERT INTO nvm_counts VALUES (?,?,?,?)", (key, action, amount, now_ms))
    return so_far
