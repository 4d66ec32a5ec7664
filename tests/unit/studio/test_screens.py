"""Every page, full, empty and in trouble: what it shows, and what it never shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit", reason="the extra [studio] is not installed")

from nano_vm import RuntimeFault, SqliteStore, StoreError
from nano_vm.observe.wording import duration
from nano_vm.policy import load_policy
from nano_vm.studio import frame
from nano_vm.studio.settings import SecretLine, Settings
from unit.studio.studio_stage import EXAMPLES, HOSTILE, SECRET, Page, Stage, use

LOOKED_AT: list[tuple[str, dict[str, str]]] = [
    ("runs", {}),
    ("run", {}),
    ("run", {"id": "large"}),
    ("run", {"id": "failed"}),
    ("run", {"id": "mapped"}),
    ("run", {"id": "private"}),
    ("run", {"id": "erased"}),
    ("approvals", {}),
    ("programs", {}),
    ("diff", {"a": "small", "b": "private"}),
    ("drift", {}),
    ("costs", {}),
    ("policies", {}),
]
PAGES = sorted({name for name, _ in LOOKED_AT})


@pytest.mark.parametrize(("name", "params"), LOOKED_AT, ids=lambda value: str(value))
def test_every_page_shows_a_full_store_escaped_and_without_a_private_value(
    looked_at: Stage, name: str, params: dict[str, str]
) -> None:
    page = Page(name, **params)
    shown = page.everything()
    assert 'role="alert"' not in shown
    assert page.markup() or page.labels  # something is there
    assert HOSTILE not in page.markup()  # an author's name is text, and no markup
    assert SECRET not in shown
    assert "Grace" not in shown
    assert "evil.example" not in page.markdown()
    assert not page.markup().count("<img")


@pytest.mark.parametrize("name", PAGES)
def test_every_page_says_what_would_fill_an_empty_store(tmp_path: Path, name: str) -> None:
    path = tmp_path / "empty.db"
    SqliteStore(path).close()
    use(Settings(open_store=lambda: SqliteStore(path), path=path))
    assert "card empty" in Page(name).markup()


@pytest.mark.parametrize("name", PAGES)
def test_every_page_says_that_there_is_no_database_and_finds_it_when_it_comes(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "to_come.db"
    use(Settings(open_store=lambda: SqliteStore(path), path=path))
    page = Page(name)
    assert "STORE_NOT_FOUND" in page.markup()
    SqliteStore(path).close()
    assert "STORE_NOT_FOUND" not in page.run().markup()


@pytest.mark.parametrize("name", PAGES)
def test_a_file_that_is_not_ours_is_said_to_be_so(tmp_path: Path, name: str) -> None:
    path = tmp_path / "letters.db"
    path.write_bytes(b"these are letters, and no database of anybody" * 100)
    use(Settings(open_store=lambda: SqliteStore(path), path=path))
    shown = Page(name).markup()
    assert "STORE_FOREIGN" in shown or "STORE_DAMAGED" in shown


@pytest.mark.parametrize("name", PAGES)
def test_a_locked_store_is_an_error_on_the_page_and_no_traceback(tmp_path: Path, name: str) -> None:
    def locked() -> Any:
        raise StoreError("STORE_LOCKED", "another process holds it", help="wait for it")

    use(Settings(open_store=locked))
    shown = Page(name).markup()
    assert "STORE_LOCKED" in shown
    assert "wait for it" in shown


def test_another_file_in_the_place_of_the_database_is_taken_up(own: Stage, tmp_path: Path) -> None:
    page = Page("runs")
    assert "private_case" in page.markup()
    own.path.unlink()
    for left in own.path.parent.glob("runs.db-*"):
        if left.is_file():
            left.unlink()
    assert "STORE_NOT_FOUND" in page.run().markup()
    SqliteStore(own.path).close()
    assert "No runs yet" in page.run().markup()


def test_a_run_that_nobody_knows_is_named_as_such(looked_at: Stage) -> None:
    assert "RUN_NOT_FOUND" in Page("run", id="nobody").markup()


def test_runs_are_filtered_by_status_program_and_part_of_an_id(looked_at: Stage) -> None:
    page = Page("runs")
    assert "run:large" in page.markup()
    page.choose("runs_status", "FAILED")
    assert "run:failed" in page.markup()
    assert "run:large" not in page.markup()
    page.choose("runs_status", "any").choose("runs_program", "waiting")
    assert "run:waits" in page.markup()
    assert "run:failed" not in page.markup()
    page.choose("runs_program", "any").choose("runs_text", "rivat")
    assert "run:private" in page.markup()
    assert "run:waits" not in page.markup()
    assert "Nothing matches" in page.choose("runs_text", "no such thing").markup()


def test_runs_come_in_pages_and_none_is_shown_twice_or_left_out(own: Stage) -> None:
    async def many(vm: Any) -> None:
        for number in range(120):
            await vm.run(
                {"name": "many", "steps": [{"id": "a", "type": "tool", "tool": "double", "args": {"n": 1}}]},
                trace_id=f"many-{number}",
            )

    own.run(many, policy=None)
    page = Page("runs").choose("runs_program", "many")
    seen: list[str] = []
    for _ in range(3):
        seen += [part.split('"')[0] for part in page.markup().split('data-pick="run:')[1:]]
        if "Older" in [each.label for each in page.test.button if not each.disabled]:
            page.press("Older")
    assert seen == [f"many-{number}" for number in range(119, -1, -1)]


def test_runs_that_another_process_starts_show_up(own: Stage) -> None:
    page = Page("runs")
    assert "run:later" not in page.markup()
    own.run(
        lambda vm: vm.run(
            {"name": "later", "steps": [{"id": "a", "type": "tool", "tool": "double", "args": {"n": 1}}]},
            trace_id="later",
        ),
        policy=None,
    )
    assert "run:later" in page.run().markup()


def test_the_head_of_a_run_is_what_its_trace_says(looked_at: Stage) -> None:
    page = Page("run", id="small")
    trace = frame.library().sight("small").trace
    shown = page.markup()
    for figure in (
        f"{len(trace.steps)}</b>",
        f"{trace.total_tokens()}</b>",
        f"${trace.total_cost_usd():.4f}",
        duration(trace.duration_ms),
    ):
        assert figure in shown
    assert "refunded" in shown
    assert "started by ana" in shown


def test_the_graph_is_coloured_by_how_steps_stand_and_a_wait_is_no_work(looked_at: Stage) -> None:
    drawn = Page("run", id="large").markup()
    assert "title>find_order: SUCCESS<" in drawn
    assert "title>pay: " in drawn
    waiting = Page("run", id="waits").markup()
    assert "title>paid: WAITING<" in waiting
    assert "title>paid: RUNNING<" not in waiting


def test_the_views_of_a_run_agree_with_its_journal(looked_at: Stage) -> None:
    sight = frame.library().sight("small")
    page = Page("run", id="small")
    journal = page.choose("run_view", "Journal").markup()
    for entry in sight.entries:
        assert f'title="{entry.digest}"' in journal
    steps = page.choose("run_view", "Steps").markup()
    assert steps.count('data-pick="at:') == len(sight.steps)
    timeline = page.choose("run_view", "Timeline").markup()
    assert timeline.count('data-pick="step:') == len(sight.steps)
    receipt = page.choose("run_view", "Receipt")
    assert sight.trace.trace_hash in receipt.markup()
    assert "VERIFIED" in receipt.press("Verify").markup()


def test_a_run_whose_journal_was_changed_does_not_verify(own: Stage) -> None:
    import sqlite3

    page = Page("run", id="small").choose("run_view", "Receipt")
    con = sqlite3.connect(own.path)
    con.executescript("DROP TRIGGER IF EXISTS nvm_segments_no_update; ")
    for (name,) in con.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        con.execute(f'DROP TRIGGER "{name}"')
    number = con.execute("SELECT no FROM nvm_runs WHERE run_id = 'small'").fetchone()[0]
    found = con.execute("SELECT n, payloads FROM nvm_segments WHERE run = ?", (number,)).fetchall()
    place, payloads = next((n, body) for n, body in found if body and b"refundable" in body)
    con.execute(
        "UPDATE nvm_segments SET payloads = ? WHERE n = ?",
        (payloads.replace(b'"amount":40', b'"amount":90'), place),
    )
    con.commit()
    con.close()
    shown = page.press("Verify").markup()
    assert "NOT VERIFIED" in shown
    assert ">COMMITMENT_MISMATCH<" in shown


def test_private_values_are_marked_and_erased_ones_are_tombstones(looked_at: Stage) -> None:
    private = Page("run", id="private")
    assert private.codes()[0]["output"] == "[PRIVATE]"
    erased = Page("run", id="erased")
    assert erased.codes()[0]["output"] == "[REDACTED_TOMBSTONE]"
    assert ">erased<" in erased.markup()
    assert "asked for it" in Page("policies").markup()


@pytest.mark.parametrize("run_id", ["private", "erased", "mapped", "failed"])
def test_runs_verify_without_any_key(looked_at: Stage, run_id: str) -> None:
    page = Page("run", id=run_id).choose("run_view", "Receipt").press("Verify")
    assert ">VERIFIED<" in page.markup()
    assert ("opens them with the key" in page.markup()) is (run_id == "private")


def test_policies_show_their_rules_and_what_was_decided(looked_at: Stage) -> None:
    shown = Page("policies").markup()
    for rule in ("small", "large", "daily", "never"):
        assert f"<code>{rule}</code>" in shown
    assert "What was decided" not in shown  # that is a heading of the page
    assert "2 runs are pinned to it" in shown


def test_secrets_are_listed_without_their_values(filled: Stage) -> None:
    lines = [SecretLine("vault://secret/card", ("charge",), 1_700_000_000_000, True)]
    use(filled.settings(secrets=lambda: lines))
    shown = Page("policies").markup()
    assert "vault://secret/card" in shown
    assert "legal hold" in shown


def test_the_command_lists_a_real_vault_without_a_value_and_says_what_is_missing(
    own: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nano_vm.cli.arguments import global_defaults
    from nano_vm.cli.commands import studio
    from nano_vm.cli.main import command_parser

    value = "4111-1111-1111-1111"
    own.vault.put("card-token", value, tools=["charge"])
    words = ["--store", str(own.path), "--principal", "ana", "--role", "viewer"]
    given = studio.make_settings(command_parser("studio", studio).parse_args(words, global_defaults()))
    assert given.desk is None  # a viewer looks
    use(given)
    page = Page("policies")
    assert "vault://secret/card-token" in page.markup()
    assert "<td>charge</td>" in page.markup()
    assert value not in page.everything()
    Path(f"{own.path}.key").unlink()
    assert "--key-file" in page.run().markup()


def test_costs_are_the_sum_of_what_the_traces_say(looked_at: Stage) -> None:
    page = Page("costs")
    shelf = frame.library().shelf()
    traces = [frame.library().sight(record.run_id).trace for record in shelf.records]
    total = frame.meter().total()
    assert total.cost_nanousd == sum(trace.total_cost_nanousd() for trace in traces) > 0
    assert total.tokens_in + total.tokens_out == sum(trace.total_tokens() for trace in traces)
    assert f"${total.cost_nanousd / 1e9:,.4f}" in page.markup()


def test_what_a_fork_shares_with_another_run_is_not_paid_for_again(own: Stage) -> None:
    Page("costs")
    before = frame.meter().total()
    own.run(
        lambda vm: vm.fork(
            "small", "tell_customer", principal={"id": "o", "roles": []}, new_trace_id="forked"
        )
    )
    Page("costs")
    assert frame.library().sight("forked").trace.total_cost_nanousd() > 0
    assert frame.meter().total() == before


def test_a_program_shows_its_findings_and_what_was_proved_of_it(filled: Stage) -> None:
    from nano_vm.tools.registry import ToolSet

    policy = load_policy(EXAMPLES / "refund.policy.yaml")
    schemas = ToolSet({each.__name__: each for each in filled.tools()}).schemas()
    use(filled.settings(policy=policy, schemas=schemas))
    wanted = next(each.hash for each in frame.library().programs() if each.name == "governed_refund")
    page = Page("programs", hash=wanted)
    assert 'data-step="pay"' in page.markup()
    shown = page.choose("program_view", "Findings and proofs").markup()
    assert "tool lookup_order" in shown
    assert ">proved<" in shown
    assert "missed" not in shown
    source = page.choose("program_view", "Source")
    assert source.codes()[0]["name"] == "governed_refund"


def test_a_guard_that_some_way_misses_is_shown_with_the_way(own: Stage) -> None:
    policy = load_policy(EXAMPLES / "refund.policy.yaml")
    use(own.settings(policy=policy))
    blind = {
        "name": "blind",
        "steps": [
            {"id": "pay", "type": "tool", "tool": "send_refund", "args": {"order_id": "A-1001", "amount": 5}}
        ],
    }

    async def save(vm: Any) -> str:
        return str(vm.save_program(blind))

    wanted = own.run(save, policy=None)
    shown = Page("programs", hash=wanted).choose("program_view", "Findings and proofs").markup()
    assert ">missed<" in shown
    assert "GUARD_MISSED" in shown


def test_two_runs_are_compared_step_by_step(looked_at: Stage) -> None:
    shown = Page("diff", a="small", b="large").markup()
    assert "another outcome" in shown
    assert "<code>pay</code>" in shown
    assert "same program" in shown


def test_drift_says_when_there_are_too_few_runs_and_reports_when_there_are_enough(own: Stage) -> None:
    page = Page("drift").press("Compare")
    assert "SMALL_BASELINE" in page.markup()

    async def many(vm: Any) -> None:
        for number in range(48):
            n = 1 if number < 30 else 5
            await vm.run(
                {
                    "name": "drifting",
                    "inputs": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
                    "max_steps": 100,
                    "steps": [
                        {
                            "id": "add",
                            "type": "tool",
                            "tool": "double",
                            "args": {"n": 1},
                            "output_key": "two",
                        },
                        {
                            "id": "again",
                            "type": "condition",
                            "condition": "$n > 3",
                            "then": "other",
                            "otherwise": "end",
                        },
                        {
                            "id": "other",
                            "type": "tool",
                            "tool": "double",
                            "args": {"n": 1},
                            "next_step": "end",
                        },
                        {
                            "id": "end",
                            "type": "tool",
                            "tool": "double",
                            "args": {"n": "$two"},
                            "is_terminal": True,
                        },
                    ],
                },
                context={"n": n},
                trace_id=f"drift-{number:02d}",
            )

    own.run(many, policy=None)
    page = Page("drift")
    page.test.slider(key="drift_share").set_value(60)
    page.press("Compare")
    shown = page.markup()
    assert "CUSUM" in shown
    assert ">degraded<" in shown or ">drifting<" in shown
    assert "run:drift-" in shown


def test_an_attack_in_the_laboratory_is_carried_out_on_both_sides(looked_at: Stage) -> None:
    page = Page("laboratory").choose("lab_attack", "skip_step").press("Attack")
    shown = page.markup()
    plain, governed = shown.split("Governed by nano-vm")
    assert ">through<" in plain
    assert ">broken<" in plain
    assert ">stopped<" in governed
    assert ">held<" in governed
    assert ">through<" not in governed


def test_a_laboratory_that_lacks_something_says_what(
    looked_at: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nano_vm.demos.kyc import lab

    def lacks(name: str, **_: Any) -> Any:
        raise RuntimeFault("EXTRA_MISSING", "the laboratory needs keys", help="pip install 'nano-vm[vault]'")

    monkeypatch.setattr(lab, "run", lacks)
    shown = Page("laboratory").press("Attack").markup()
    assert "EXTRA_MISSING" in shown
    assert "nano-vm[vault]" in shown


def test_the_application_itself_leads_to_every_page(looked_at: Stage) -> None:
    from streamlit.testing.v1 import AppTest

    import nano_vm.studio as studio

    test = AppTest.from_file(str(Path(studio.__file__).with_name("app.py")), default_timeout=30).run()
    assert [each.value for each in test.exception] == []
    assert set(frame.PAGES) == {*PAGES, "laboratory"}
    frame.PAGES.clear()


def test_the_door_lets_nobody_in_without_the_key(filled: Stage) -> None:
    from streamlit.testing.v1 import AppTest

    import nano_vm.studio as studio

    use(filled.settings(key="k" * 32))
    app = str(Path(studio.__file__).with_name("app.py"))
    shut = AppTest.from_file(app, default_timeout=30).run()
    assert not shut.selectbox
    wrong = AppTest.from_file(app, default_timeout=30)
    wrong.query_params["key"] = "x" * 32
    assert not wrong.run().selectbox
    right = AppTest.from_file(app, default_timeout=30)
    right.query_params["key"] = "k" * 32
    assert right.run().selectbox
    frame.PAGES.clear()
