"""Where an attack takes place: both reviews, each in a directory of its own, and what was tried on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nano_vm import NanoVMError, Trace, TraceAnalyzer
from nano_vm.demos.kyc.governed import Governed
from nano_vm.demos.kyc.naive import Naive
from nano_vm.demos.kyc.outcome import GOVERNED, NAIVE, Attempt
from nano_vm.demos.kyc.world import Bank, Customer

Harm = Callable[[], str | None]


class Scene:
    """Both reviews and the record of an attack on them.

    Args:
        directory: gets `naive/` and `governed/`.
        make: makes the governed review; tests weaken it here, to see that an attack would be noticed.
    """

    def __init__(self, directory: Path, make: Callable[[Path], Governed] = Governed) -> None:
        self.directory = directory
        self.make = make
        self.naive = Naive(directory / NAIVE)
        self.governed = make(directory / GOVERNED)
        self.also: list[Governed] = []  # stores of their own, for attacks that leave a store damaged
        self.attempts: dict[str, list[Attempt]] = {NAIVE: [], GOVERNED: []}
        self.case_id: str | None = None
        self.trace_id: str | None = None
        self.evidence: list[str] = []

    def another(self, name: str) -> Governed:
        """A governed review on files of its own."""
        made = self.make(self.directory / GOVERNED / name)
        self.also.append(made)
        return made

    def on_naive(self, what: str, act: Callable[[], Any], harm: Harm) -> None:
        self.note(NAIVE, what, answer_of(act), harm)

    def on_governed(self, what: str, act: Callable[[], Any], harm: Harm) -> None:
        self.note(GOVERNED, what, answer_of(act), harm)

    def note(self, side: str, what: str, answer: str, harm: Harm) -> None:
        """Keep what was tried and answered, and look whether it did the harm it was meant to do."""
        done = harm()
        words = "; ".join(part for part in (answer, done) if part)
        self.attempts[side].append(Attempt(what, done is not None, words or "nothing happened"))

    def refusals(self) -> list[str]:
        """What the journals of the governed reviews say was refused."""
        found = []
        for record in self.governed.vm.runs():
            receipt = TraceAnalyzer(self.governed.vm.trace(record.run_id)).receipt()
            found += [
                f"journal of {record.run_id}, entry {one['seq']}: {one['code']}" for one in receipt["refused"]
            ]
        return found

    def unsound(self) -> list[str]:
        """Codes of what does not verify in the store that was attacked through the front door."""
        found = []
        for record in self.governed.vm.runs():
            answer = answer_of(lambda run=record.run_id: self.governed.vm.verify(run))  # type: ignore[misc]
            if answer:
                found.append(f"{record.run_id}: {answer}")
        return found

    def close(self) -> None:
        for governed in (self.governed, *self.also):
            governed.close()


class Denied(Exception):
    """A run came to nothing: its error's type is the answer."""


def settled(trace: Trace) -> Trace:
    """A run that did not fail. Raises Denied."""
    if trace.status == "FAILED":
        raise Denied(str((trace.error or {}).get("type", "FAILED")))
    return trace


def answer_of(act: Callable[[], Any]) -> str:
    """The code, or the type, of what an action raised; else the text that it returned, if it did."""
    try:
        answer = act()
    except NanoVMError as error:
        codes = [finding.code for finding in getattr(error, "diagnostics", ()) if finding.severity == "error"]
        return ", ".join(dict.fromkeys(codes)) or error.code
    except Denied as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return answer if type(answer) is str else ""


def new_account(bank: Bank, customer: Customer, limit_min: int = 0) -> Harm:
    """Harm: since now, an account was opened for somebody."""
    before = len(bank.accounts(customer))

    def harm() -> str | None:
        new = [line for line in bank.accounts(customer)[before:] if line["limit"] >= limit_min]
        if not new:
            return None
        return f"{customer.id} got an account with a limit of {', '.join(str(line['limit']) for line in new)}"

    return harm


def second_account(bank: Bank, customer: Customer) -> Harm:
    """Harm: somebody has more than one account."""

    def harm() -> str | None:
        count = len(bank.accounts(customer))
        return None if count < 2 else f"{customer.id} has {count} accounts"

    return harm
