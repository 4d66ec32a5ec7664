"""Which programs are paused, in a database."""

from __future__ import annotations

from nano_vm.journal.port import Pause
from nano_vm.stores.rows import Connection


def mark(con: Connection, pause: Pause) -> None:
    con.execute(
        "INSERT INTO nvm_pauses (tenant, program, paused, reason, by_whom, at_ms) VALUES (?1,?2,?3,?4,?5,?6)",
        (pause.tenant, pause.program, int(pause.paused), pause.reason, pause.by, pause.at_ms),
    )


def find(con: Connection, tenant: str | None) -> list[Pause]:
    """The last word about each program, where that is that it is paused."""
    sql = (
        "SELECT tenant, program, paused, reason, by_whom, at_ms FROM nvm_pauses "
        "WHERE n IN (SELECT max(n) FROM nvm_pauses GROUP BY tenant, program) AND paused <> 0 "
        + ("" if tenant is None else "AND tenant = ?1 ")
        + "ORDER BY n"
    )
    rows = con.execute(sql, () if tenant is None else (tenant,)).fetchall()
    return [
        Pause(tenant=owner, program=program, paused=bool(paused), reason=reason, by=by, at_ms=at_ms)
        for owner, program, paused, reason, by, at_ms in rows
    ]
