"""Which programs are paused, in SQLite."""

from __future__ import annotations

import sqlite3

from nano_vm.journal.port import Pause


def mark(con: sqlite3.Connection, pause: Pause) -> None:
    con.execute(
        "INSERT INTO nvm_pauses (tenant, program, paused, reason, by_whom, at_ms) VALUES (?,?,?,?,?,?)",
        (pause.tenant, pause.program, pause.paused, pause.reason, pause.by, pause.at_ms),
    )


def find(con: sqlite3.Connection, tenant: str | None) -> list[Pause]:
    """The last word about each program, where that is that it is paused."""
    sql = (
        "SELECT tenant, program, paused, reason, by_whom, at_ms FROM nvm_pauses "
        "WHERE n IN (SELECT max(n) FROM nvm_pauses GROUP BY tenant, program) AND paused "
        + ("" if tenant is None else "AND tenant = ? ")
        + "ORDER BY n"
    )
    rows = con.execute(sql, () if tenant is None else (tenant,)).fetchall()
    return [
        Pause(tenant=owner, program=program, paused=bool(paused), reason=reason, by=by, at_ms=at_ms)
        for owner, program, paused, reason, by, at_ms in rows
    ]
