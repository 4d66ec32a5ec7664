"""Examine the installation and the database: can every run that has not ended go on, and how?

exit codes: 0 all is well, 1 something needs attention (each with its remedy)
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import sqlite3
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from nano_vm.cli import exits
from nano_vm.cli.arguments import is_address, shown_store, store_path
from nano_vm.cli.console import Console, printable
from nano_vm.cli.session import Session, command
from nano_vm.cli.views import moment
from nano_vm.errors import NanoVMError
from nano_vm.journal.port import RunQuery, RunRecord

DEPENDENCIES = ("msgspec", "pyyaml", "jsonschema-rs", "rich")
# extra -> the module it brings
EXTRAS = {"http": "httpx", "litellm": "litellm", "postgres": "psycopg", "redis": "redis"}
DISK_BYTES_MIN = 100 * 1024 * 1024
PAGE = 500
_MARKS = {"ok": ("good", "good"), "note": ("dot", "dim"), "problem": ("bad", "bad")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def execute(args: argparse.Namespace, console: Console) -> int:
    examination = Examination(args, console)
    examination.installation()
    examination.disk()
    examination.database()
    return examination.conclude()


class Examination:
    """What was looked at: one finding each, `level` ok, note or problem."""

    def __init__(self, args: argparse.Namespace, console: Console) -> None:
        self.args = args
        self.console = console
        self.findings: list[dict[str, Any]] = []

    def installation(self) -> None:
        from nano_vm import __version__

        self._find(
            "ok", "version", f"nano-vm {__version__}, Python {platform.python_version()}, {sys.platform}"
        )
        self._find("ok", "sqlite", f"SQLite {sqlite3.sqlite_version}")
        for name in DEPENDENCIES:
            try:
                self._find("ok", name, f"{name} {metadata.version(name)}")
            except metadata.PackageNotFoundError:
                self._find(
                    "problem", name, f"{name} is not installed", "pip install --force-reinstall nano-vm"
                )
        for extra, module in EXTRAS.items():
            if importlib.util.find_spec(module) is None:
                self._find(
                    "note", module, f"extra [{extra}] is not installed", f"pip install 'nano-vm[{extra}]'"
                )
            else:
                self._find("ok", module, f"extra [{extra}] is installed")

    def disk(self) -> None:
        name = store_path(self.args)
        place = Path.cwd() if is_address(name) else Path(name).absolute().parent
        if not os.path.isdir(place):
            self._find("problem", "disk", f"there is no directory `{place}`", f"mkdir -p {place}")
            return
        free = shutil.disk_usage(place).free
        level = "ok" if free >= DISK_BYTES_MIN else "problem"
        self._find(level, "disk", f"{free // 1024**2} MiB free", "free some space" if level != "ok" else None)

    def database(self) -> None:
        name = store_path(self.args)
        size = ""
        if is_address(name):
            name = shown_store(self.args)
        else:
            try:
                size = f", {os.stat(name).st_size // 1024} KiB"
            except (FileNotFoundError, NotADirectoryError):
                self._find("note", "store", f"there is no database `{name}` yet", "`nano-vm run` makes one")
                return
            except OSError as error:  # a name that the operating system cannot even look for
                what = f"the database cannot be looked for: {error.strerror}"
                self._find("problem", "store", what, "name a file with --store PATH")
                return
        try:
            with Session(self.args) as session:
                self._find("ok", "store", f"`{name}` opens{size}")
                self._integrity(session)
                self._runs(session)
        except NanoVMError as error:
            self._find("problem", "store", f"{error.code} {error.message}", error.help)

    def _integrity(self, session: Session) -> None:
        problems = session.store.integrity()
        for problem in problems:
            self._find("problem", "integrity", problem, "restore a back-up, and see `nano-vm verify`")
        if not problems:
            self._find("ok", "integrity", "every row is sound")

    def _runs(self, session: Session) -> None:
        """Every run that has not ended must have a live owner, a timer to come, or a wait with a name."""
        now = session.engine.clock.now_ms()
        records = [record for status in ("RUNNING", "SUSPENDED") for record in _records(session, status)]
        free = set(session.store.claimable(now, len(records) + 1))
        stuck = 0
        for record in records:
            problem = self._stuck(record, record.run_id in free, now)
            if problem is not None:
                stuck += 1
                self._find(
                    "problem", "run", f"{record.run_id} ({record.program_name}): {problem[0]}", problem[1]
                )
        owned = [record for record in records if record.owner is not None]
        for record in owned:
            self._find("note", "lease", f"{record.run_id} is owned until {moment(record.lease_until_ms)}")
        if not stuck:
            self._find("ok", "runs", f"{len(records)} in progress, none stuck")

    def _stuck(self, record: RunRecord, free: bool, now: int) -> tuple[str, str] | None:
        recover = command(self.args, "recover", "--tools", "FILE")
        if record.status == "RUNNING":
            return ("nobody drives it", recover) if free else None
        if record.wake_at_ms and record.wake_at_ms <= now and free:
            return f"its timer was due at {moment(record.wake_at_ms)}", f"{recover}, or keep a worker running"
        if free:
            return "a message for it has not been read", recover
        if not record.waits and not record.wake_at_ms:
            return "it waits for nothing that has a name", command(self.args, "verify", record.run_id)
        return None

    def _find(self, level: str, what: str, text: str, remedy: str | None = None) -> None:
        self.findings.append({"level": level, "what": what, "text": text, "remedy": remedy})
        symbol, style = _MARKS[level]
        mark = self.console.style(self.console.symbol(symbol), style)
        self.console.line(f"{mark} {what:<13}  {printable(text)}")
        if remedy is not None:
            self.console.line(f"  {'':<13}  remedy: {printable(remedy)}")

    def conclude(self) -> int:
        problems = sum(finding["level"] == "problem" for finding in self.findings)
        code = exits.FAILED if problems else exits.DONE
        self.console.document({"ok": not problems, "findings": self.findings, "exit_code": code})
        self.console.line(
            "all is well" if not problems else f"{problems} need attention", "bad" if problems else "good"
        )
        return code


def _records(session: Session, status: str) -> list[RunRecord]:
    found: list[RunRecord] = []
    after = None
    while page := session.store.records(RunQuery(status=status, parent="", after=after, limit=PAGE)):
        found += page
        after = page[-1].run_id
    return found
