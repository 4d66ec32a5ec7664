"""What all pages have in common: the library of this process, the way from page to page, empty states, and errors.

What an author, a model or a tool has written goes through `markup`, never into Streamlit's Markdown: a name could else
be an image, and an image a request to somebody.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import streamlit as st
from streamlit.errors import StreamlitAPIException

from nano_vm import canonical
from nano_vm.errors import NanoVMError
from nano_vm.studio import settings as settings_
from nano_vm.studio.desk import Job
from nano_vm.studio.library import Library
from nano_vm.studio.markup import Markup, chip, code, join, soft, tag, text
from nano_vm.studio.meter import Meter
from nano_vm.studio.settings import Settings
from nano_vm.studio.view import show

DRAWN_MAX = 1_000  # steps of a program that is drawn: a browser has to hold them
PAGES: dict[str, Any] = {}  # by address, as the navigation knows them
_lock = threading.Lock()
_library: Library | None = None
_meter: Meter | None = None


def settings() -> Settings:
    return settings_.current()


def library() -> Library:
    """The library of this process, for all of its sessions."""
    global _library
    with _lock:
        if _library is None or _library.settings is not settings():
            if _library is not None:
                _library.close()
            _library = Library(settings())
        return _library


def meter() -> Meter:
    """What has been read of the whole journal so far, for all sessions."""
    global _meter
    shelf = library()
    with _lock:
        if _meter is None or _meter.library is not shelf:
            _meter = Meter(shelf)
        return _meter


def go(page: str, **params: str) -> None:
    """To another page, with parameters that are part of its address."""
    if page in PAGES:
        st.switch_page(PAGES[page], query_params=params)
    st.session_state["went"] = (page, params)  # there is no navigation around a page that is tested alone


def again() -> None:
    """Make this part of the page again."""
    try:
        st.rerun(scope="fragment")
    except StreamlitAPIException:  # the whole page is being made
        st.rerun()


def param(name: str) -> str | None:
    value = st.query_params.get(name)
    return value or None


def guarded(page: Callable[[], None]) -> Callable[[], None]:
    """A page whose errors are shown as errors are shown everywhere: what, where, and how to mend it. One that waits for
    its database looks again by itself."""

    def run() -> None:
        try:
            page()
        except NanoVMError as error:
            show_error(error)
            if error.code in _PASSING:
                st.fragment(_look_again(), run_every=settings().seconds)()

    run.__name__ = page.__name__
    return run


def part(name: str, body: Callable[[], None], seconds: float) -> None:
    """A part of a page that is made again every few seconds; its errors are shown in its place."""

    def run() -> None:
        try:
            body()
        except NanoVMError as error:
            show_error(error, f"error:{name}")

    st.fragment(run, run_every=seconds, key=name)()


_PASSING = ("STORE_NOT_FOUND", "STORE_LOCKED")


def _look_again() -> Callable[[], None]:
    """Makes the page again when the store can be read; not at once, or a page that cannot be made would spin."""
    looked: list[bool] = []

    def look() -> None:
        if looked:
            try:
                library().generation()
            except NanoVMError:
                return
            st.rerun()
        looked.append(True)

    return look


def show_error(error: NanoVMError, key: str = "error") -> None:
    """An error of ours."""
    if error.code == "STORE_NOT_FOUND":
        lines = (soft(str(settings().path)), code(command("run", "my.yaml")), soft(error.code))
        empty("There is no database yet", "A first run makes one, and it shows up here.", *lines, key=key)
        return
    where = str(error.place) if error.place is not None else ""
    show(
        tag(
            "div",
            tag(
                "div",
                chip("failed", error.code),
                tag("span", error.message, class_="lead"),
                class_="row",
                role="alert",
            ),
            tag("p", code(where)) if where else None,
            tag("p", text(error.help), class_="soft") if error.help else None,
            class_="card",
        ),
        key,
    )


def empty(headline: str, *lines: object, key: str = "empty") -> None:
    """A page that has nothing to show, and says why, and what would fill it."""
    show(tag("div", tag("b", headline), *(tag("div", line) for line in lines), class_="card empty"), key)


def too_large(steps: int, line: str) -> Markup:
    """Instead of a graph that a browser could not hold."""
    return tag(
        "div",
        tag("b", f"A graph of {steps:,} steps"),
        tag("div", "is more than a page can show. As a file:"),
        tag("div", code(f"{line} --format svg > graph.svg")),
        class_="card empty",
    )


def command(*words: str, **options: bool) -> str:
    """A command on the same database, to be copied."""
    make = settings().command
    return make(*words, **options) if make is not None else f"nano-vm {' '.join(words)}"


def run_link(run_id: str, label: object | None = None) -> Markup:
    from urllib.parse import quote

    from nano_vm.studio.markup import pick

    return pick(
        f"run:{run_id}", code(run_id) if label is None else label, href=f"run?id={quote(run_id, safe='')}"
    )


def follow(picked: str | None) -> None:
    """Go where a chosen link leads."""
    if picked is None:
        return
    kind, _, name = picked.partition(":")
    if kind == "run":
        go("run", id=name)
    elif kind == "program":
        go("programs", hash=name)


def _left(job: Job) -> tuple[str, object]:
    """What has become of something that was left for a worker."""
    answer = library().store.answered(job.run_id, job.mail or "")
    if answer is None:
        return "left", join(
            ("for a worker, which has the tools: ", code(command("worker", "--tools", "FILE")))
        )
    said = canonical.decode(answer)
    if said and said["code"] != "DUPLICATE":  # a repetition is answered like the first time
        return "failed", join((code(said["code"]), " ", said["message"]))
    return "done", "by a worker"


def show_jobs(run_id: str | None = None, key: str = "jobs") -> None:
    """What was asked for here, and what has become of it."""
    desk = settings().desk
    if desk is None:
        return
    rows = []
    for job in desk.jobs(run_id)[:5]:
        said: object = ""
        if job.error is not None:
            said = join(
                (
                    code(job.error.code),
                    " ",
                    job.error.message,
                    f" - {job.error.help}" if job.error.help else "",
                )
            )
        elif job.unexpected is not None:
            said = f"unexpected {job.unexpected}"
        elif job.result is not None and job.result != job.run_id:
            said = run_link(job.result)
        state = job.state
        if state == "left":
            state, said = _left(job)
        status = {"working": "RUNNING", "done": "SUCCESS", "left": "SUSPENDED"}.get(state, "FAILED")
        rows.append(tag("div", chip(status, state), job.what, run_link(job.run_id), said, class_="row"))
    if rows:
        follow(show(tag("div", *rows, class_="card"), key))
