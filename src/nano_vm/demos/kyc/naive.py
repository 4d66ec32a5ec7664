"""The same review as people write it by hand: steps in a list, a table of cases, an audit file, receipts.

It is no straw man. It saves its place after every step, checks the role of whoever approves, the signature of webhooks
and a limit, does nothing for a case that is already sealed, and deletes a customer's row when asked to. Nothing in it
was left out for the attacks' sake; what it lacks is what such code usually lacks.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nano_vm.demos.kyc import world
from nano_vm.demos.kyc.governed import own_file
from nano_vm.demos.kyc.world import CLERK, LIMIT, OFFICER, Bank, Customer, ObedientModel, Person

TURNS_MAX = 8
SIX = ("collect", "sanctions", "adverse_media", "agent_review", "human_approval", "seal")


class Naive:
    """Reviews in a directory: `cases.db`, `audit.jsonl`, `settings.json`, `receipts/`, `bank.jsonl`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.database = directory / "cases.db"
        self.audit = directory / "audit.jsonl"
        self.settings = directory / "settings.json"
        self.workflow = directory / "workflow.json"
        self.bank = Bank(directory / "bank.jsonl")
        self.webhook_secret = os.urandom(32)
        self.settings.write_text('{"limit_max": 50000}\n', encoding="utf-8")
        self.workflow.write_text(own_file("naive_workflow.json"), encoding="utf-8")
        self.tools: dict[str, Callable[..., Any]] = {
            "collect_documents": world.documents,
            "screen_sanctions": world.sanctions,
            "search_media": world.press,
            "search_register": world.register,
            "open_account": self.open_account,
            "close_file": lambda customer_id: self.bank.book("close_file", customer_id),
        }
        with self._connect() as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute(
                "CREATE TABLE IF NOT EXISTS cases (id TEXT PRIMARY KEY, customer_id TEXT, status TEXT, cursor TEXT, "
                "opened_by TEXT, approved_by TEXT, context TEXT)"
            )
        db.close()

    def open_account(self, customer_id: str, limit: int) -> dict[str, Any]:
        if limit > json.loads(self.settings.read_text(encoding="utf-8"))["limit_max"]:
            raise ValueError("more than anybody may have")
        return self.bank.book("open_account", customer_id, limit=limit)

    # --- cases -----------------------------------------------------------------------------------------------

    def submit(self, customer: Customer, limit: int = LIMIT, *, by: Person = CLERK) -> dict[str, Any]:
        """Open a case and run it to where it waits, or to its end."""
        self.register(customer, limit, by=by)
        return self.run(customer.id)

    def register(self, customer: Customer, limit: int = LIMIT, *, by: Person = CLERK) -> None:
        """Open a case, or open it again."""
        context = {"customer_id": customer.id, "name": customer.name, "limit": limit}
        first = json.loads(self.workflow.read_text(encoding="utf-8"))[0]["id"]
        self._sql(
            "INSERT OR REPLACE INTO cases VALUES (?, ?, 'new', ?, ?, NULL, ?)",
            (customer.id, customer.id, first, by.id, json.dumps(context)),
        )

    def case(self, case_id: str) -> dict[str, Any]:
        ((customer, status, cursor, opened_by, approved_by, context),) = self._sql(
            "SELECT customer_id, status, cursor, opened_by, approved_by, context FROM cases WHERE id = ?",
            (case_id,),
        )
        return {
            "id": case_id,
            "customer_id": customer,
            "status": status,
            "cursor": cursor,
            "opened_by": opened_by,
            "approved_by": approved_by,
            "context": json.loads(context),
        }

    def update(self, case_id: str, limit: int) -> None:
        """Correct what the applicant asks for, as the front office does."""
        context = self.case(case_id)["context"] | {"limit": limit}
        self._sql("UPDATE cases SET context = ? WHERE id = ?", (json.dumps(context), case_id))

    def run(self, case_id: str) -> dict[str, Any]:
        """Go on where the case stands."""
        workflow = json.loads(self.workflow.read_text(encoding="utf-8"))
        places = {step["id"]: place for place, step in enumerate(workflow)}
        case = self.case(case_id)
        context = case["context"]
        place = places[case["cursor"]]
        while place < len(workflow):
            step = workflow[place]
            if step.get("wait") and not self.case(case_id)["approved_by"]:
                self._save(case_id, "waiting", step["id"], context)
                return self.case(case_id)
            if "if" in step:
                place = places[step["goto"]] if _look_up(context, step["if"]) else place + 1
                continue
            result = self._do(step, context)
            context[step["id"]] = result
            if step["id"] == "collect":
                context |= result
            if step["id"] == "agent_review":
                context["concern"] = "concern" in str(result).lower()
            self._log(case_id, step["id"], result)
            if step.get("end"):
                break
            place += 1
            if place < len(workflow):
                self._save(case_id, "running", workflow[place]["id"], context)
        self._save(case_id, "sealed" if step["id"] == "seal" else "refused", step["id"], context)
        return self.case(case_id)

    def retry(self, case_id: str, from_step: str) -> dict[str, Any]:
        """Run a case again from a step, for the day when something broke."""
        self._sql("UPDATE cases SET cursor = ? WHERE id = ?", (from_step, case_id))
        return self.run(case_id)

    def approve(self, case_id: str, by: Person) -> dict[str, Any]:
        """The approval: it is noted, and the case goes on.

        Raises:
            PermissionError: for somebody who is no officer.
        """
        if OFFICER not in by.roles:
            raise PermissionError(f"{by.id} is no {OFFICER}")
        if self.case(case_id)["status"] == "sealed":
            return self.case(case_id)
        self._sql("UPDATE cases SET approved_by = ?, cursor = 'seal' WHERE id = ?", (by.id, case_id))
        self._log(case_id, "human_approval", {"by": by.id})
        return self.run(case_id)

    def sign(self, body: bytes) -> str:
        """How the approval portal signs what it sends."""
        return hmac.new(self.webhook_secret, body, hashlib.sha256).hexdigest()

    def webhook(self, body: bytes, signature: str) -> dict[str, Any]:
        """An approval from the portal. Raises PermissionError when it is not from there."""
        if not hmac.compare_digest(self.sign(body), signature):
            raise PermissionError("the signature is wrong")
        message = json.loads(body)
        return self.approve(message["case"], Person(message["by"], (OFFICER,)))

    def erase(self, customer_id: str) -> None:
        """Forget a customer."""
        self._sql("DELETE FROM cases WHERE customer_id = ?", (customer_id,))

    # --- evidence --------------------------------------------------------------------------------------------

    def receipt(self, case_id: str) -> Path:
        """Write a receipt with a checksum, to be kept or given away."""
        case = self.case(case_id)
        context = case["context"]
        document = {
            "case": case_id,
            "applicant": context["name"],
            "decision": case["status"],
            "limit": context["limit"],
            "approved_by": case["approved_by"],
            "steps": [step for step in SIX if step in context or step == "human_approval"],
        }
        path = self.directory / "receipts" / f"{case_id}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document | {"checksum": checksum(document)}, indent=1), encoding="utf-8")
        return path

    @staticmethod
    def check_receipt(path: Path) -> bool:
        """Whether a receipt is what it was."""
        try:
            document = json.loads(path.read_bytes())
            stated = document.pop("checksum")
            return bool(checksum(document) == stated)
        except (ValueError, KeyError, AttributeError):
            return False

    def check_audit(self, case_id: str) -> bool:
        """Whether the audit file is readable, and has all six steps of a case."""
        try:
            lines = [json.loads(line) for line in self.audit.read_text(encoding="utf-8").splitlines()]
        except ValueError:
            return False
        return {line["step"] for line in lines if line["case"] == case_id} >= set(SIX)

    def audited(self, step: str) -> list[dict[str, Any]]:
        """The lines of the audit file about a step."""
        if not self.audit.exists():
            return []
        lines = [json.loads(line) for line in self.audit.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if line["step"] == step]

    # --- means -----------------------------------------------------------------------------------------------

    def _do(self, step: dict[str, Any], context: dict[str, Any]) -> Any:
        if step.get("wait"):
            return {"approved": True}
        if step.get("agent"):
            return self._review(context)
        return self.tools[step["call"]](**{name: context[name] for name in step["with"]})

    def _review(self, context: dict[str, Any]) -> str:
        """The usual loop around a model that may call functions."""
        prompt = (
            f"Applicant: {context['name']}\nWhat the press says: {json.dumps(context['adverse_media'])}\n"
        )
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": "You judge what the press says. Look the applicant up first."},
            {"role": "user", "content": prompt + 'Answer "clear" or "concern".'},
        ]
        for _ in range(TURNS_MAX):
            text, call = ObedientModel().turn(messages)
            if call is None:
                return text
            name, arguments = call
            try:
                result = self.tools[name](**json.loads(arguments))
            except Exception as error:  # the model shall see it and go on
                result = f"{type(error).__name__}: {error}"
            self._log(
                context["customer_id"], "tool_call", {"tool": name, "arguments": arguments, "result": result}
            )
            function = {"name": name, "arguments": arguments}
            messages.append({"role": "assistant", "tool_calls": [{"type": "function", "function": function}]})
            messages.append({"role": "tool", "content": json.dumps(result)})
        raise RuntimeError("the model does not come to an end")

    def _save(self, case_id: str, status: str, cursor: str, context: dict[str, Any]) -> None:
        self._sql(
            "UPDATE cases SET status = ?, cursor = ?, context = ? WHERE id = ?",
            (status, cursor, json.dumps(context), case_id),
        )

    def _log(self, case_id: str, step: str, result: Any) -> None:
        with self.audit.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"case": case_id, "step": step, "result": result}) + "\n")

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.database, timeout=10)

    def _sql(self, statement: str, values: tuple[Any, ...]) -> list[Any]:
        db = self._connect()
        try:
            with db:
                return db.execute(statement, values).fetchall()
        finally:
            db.close()


def checksum(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _look_up(context: dict[str, Any], path: str) -> Any:
    """`a.b` of the context; nothing where there is nothing."""
    value: Any = context
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
