"""receipt, envelopes, export, verify FILE, keys and log on the command line."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nano_vm import canonical
from nano_vm.evidence.note import parse_note
from unit.cli.conftest import ROOT, RUN, Cli


@pytest.fixture(autouse=True)
def own_keys(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("keys") / "kept"
    monkeypatch.setenv("NANO_VM_KEYS", str(place))
    return place


def test_a_receipt_in_its_three_forms(cli: Cli, waiting: str) -> None:
    plain = cli("receipt", waiting)
    assert plain.code == 0
    assert canonical.is_canonical(plain.out.strip().encode())
    assert cli("receipt", waiting, "--json").json == json.loads(plain.out)
    text = cli("receipt", waiting, "--narrative").out
    assert waiting in text
    assert "`seal`" in text
    assert cli("receipt", waiting, "--sign").code == 2
    assert cli("receipt", waiting, "--key", "x").code == 2
    cli("keys", "generate")
    envelope = json.loads(cli("receipt", waiting, "--sign").out)
    assert set(envelope) == {"payload", "payloadType", "signatures"}


def test_envelopes(cli: Cli, waiting: str) -> None:
    done = cli("envelopes", waiting)
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["step_id"] for line in lines] == ["greet", "judge", "kind"]
    assert cli("envelopes", waiting, "--json").json["envelopes"] == lines
    assert cli("envelopes", "nobody").code == 2


def test_a_bundle_goes_from_hand_to_hand(cli: Cli, waiting: str, tmp_path: Path) -> None:
    assert cli("export", waiting, "-o", "plain.bundle").code == 0
    plain = cli("verify", "plain.bundle", "--json")
    assert (plain.code, plain.json["runs"][0]["signer"]) == (0, None)
    assert cli("keys", "generate", "issuer").code == 0
    assert cli("keys", "export", "issuer", "-o", "issuer.pub").code == 0
    assert cli("export", waiting, "-o", "signed.bundle", "--json").json["signed_by"] == "issuer"
    auditor = ("--keys", str(tmp_path / "auditor"))
    assert cli("keys", "trust", "issuer.pub", "--name", "acme", *auditor).code == 0
    done = cli("verify", "signed.bundle", "--json", *auditor)
    assert done.code == 0
    assert done.json["runs"][0]["signer"] == cli("keys", "list", "--json", *auditor).json["keys"][0]["keyid"]
    assert cli("verify", "plain.bundle", *auditor).code == 5
    assert cli("verify", "plain.bundle", "--unsigned", *auditor).code == 0
    assert cli("verify", "signed.bundle", "plain.bundle", "--unsigned", *auditor).code == 0
    assert cli("keys", "distrust", "acme", *auditor).code == 0
    assert cli("keys", "list", "--json", *auditor).json["keys"] == []


def test_a_damaged_bundle_is_named_with_what_passed(cli: Cli, waiting: str) -> None:
    cli("export", waiting, "-o", "b")
    data = Path("b").read_bytes().replace(b"hello ana", b"hello eve")
    lines = data.splitlines(keepends=True)[:-1]
    body = b"".join(lines)
    Path("b").write_bytes(
        body + canonical.encode({"end": canonical.digest(body), "lines": len(lines)}) + b"\n"
    )
    done = cli("verify", "b", "--json")
    assert done.code == 5
    run = done.json["runs"][0]
    assert run["error"]["code"] == "COMMITMENT_MISMATCH"
    assert run["error"]["facts"]["seq"] == 1
    assert [step["check"] for step in run["steps"]] == ["container", "programs"]
    for junk in (b"", b"\x00" * 100, data[:-3]):
        Path("b").write_bytes(junk)
        assert cli("verify", "b").code == 5


def test_chosen_steps(cli: Cli, waiting: str) -> None:
    assert cli("export", waiting, "-o", "part", "--disclose", "judge").code == 0
    assert "hello ana" not in Path("part").read_text()
    done = cli("verify", "part", "--json")
    assert (done.code, done.json["runs"][0]["kind"]) == (0, "disclosure")
    assert cli("export", waiting, "-o", "part", "--disclose", "stop").code == 2


@pytest.mark.parametrize(
    ("argv", "code", "named"),
    [
        (["export", "nobody", "-o", "x"], 2, "RUN_NOT_FOUND"),
        (["export", "RUN", "-o", "no/such/directory/x"], 1, "BUNDLE_FILE"),
        (["export", "RUN", "-o", "x", "--key", "none"], 2, "KEY_NOT_FOUND"),
        (["export", "RUN", "-o", "x", "--key", "../x"], 2, "KEY_NAME"),
        (["export", "RUN", "-o", "x", "--key", "k", "--unsigned"], 2, "USAGE"),
        (["export", "RUN"], 2, "USAGE"),
        (["receipt", "nobody"], 2, "RUN_NOT_FOUND"),
        (["keys", "generate", "a/b"], 2, "KEY_NAME"),
        (["keys", "export", "none"], 2, "KEY_NOT_FOUND"),
        (["keys", "export"], 2, "USAGE"),
        (["keys", "trust", "no-file"], 1, "KEY_FILE"),
        (["keys", "trust", "greeting.yaml"], 1, "KEY_FILE"),
        (["keys", "distrust", "none"], 2, "KEY_NOT_FOUND"),
        (["log", "checkpoint"], 2, "KEY_NOT_FOUND"),
        (["log", "prove"], 2, "USAGE"),
        (["log", "prove", "nobody"], 2, "RUN_NOT_FOUND"),
        (["log", "verify"], 2, "USAGE"),
        (["log", "verify", "no-file"], 1, "BUNDLE_FILE"),
        (["log", "verify", "greeting.yaml"], 5, "NOTE_MALFORMED"),
        (["log", "checkpoint", "extra"], 2, "USAGE"),
        (["verify", "greeting.yaml", "RUN"], 2, "USAGE"),
        (["verify", "greeting.yaml", "--key", "no-file"], 2, "KEY_NOT_FOUND"),
    ],
)
def test_what_cannot_be_done_is_said(cli: Cli, waiting: str, argv: list[str], code: int, named: str) -> None:
    done = cli(*[waiting if word == "RUN" else word for word in argv], "--json")
    assert (done.code, done.json["error"]["code"]) == (code, named)
    assert not Path("x").exists()


def test_private_keys_are_private(cli: Cli, own_keys: Path) -> None:
    made = cli("keys", "generate")
    path = own_keys / "default.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secret = path.read_text().splitlines()[1]
    for done in (made, cli("keys", "list"), cli("keys", "export", "default"), cli("keys", "list", "--json")):
        assert secret not in done.out + done.err
    assert cli("keys", "generate").code == 2
    os.chmod(path, 0o644)
    done = cli("log", "checkpoint", "--json")
    assert done.code in (1, 2)


def test_the_log_is_kept_and_compared(cli: Cli, waiting: str) -> None:
    cli("keys", "generate")
    assert cli("log", "checkpoint", "-o", "one.note").code == 0
    assert parse_note(Path("one.note").read_text()).checkpoint.size == 1
    cli(*RUN, "--trace-id", "second")
    assert cli("log", "verify", "one.note").code == 0
    done = cli("log", "consistency", "one.note", "--json")
    assert (done.code, done.json["size"], len(done.json["checkpoints"][0]["proof"])) == (0, 2, 1)
    proof = cli("log", "prove", "second").out
    assert proof.startswith("c2sp.org/tlog-proof@v1\nindex 1\n")
    assert [leaf["run"] for leaf in cli("log", "show", "--json").json["leaves"]] == [waiting, "second"]
    assert cli("log", "checkpoint", "--origin", "a b").code == 2
    Path("other.db").unlink(missing_ok=True)
    cli(*RUN, "--store", "other.db")
    assert cli("log", "verify", "one.note", "--store", "other.db").code == 5


def test_a_tenant_exports_its_own_runs_and_has_a_log_of_its_own(cli: Cli) -> None:
    cli(*RUN, "--trace-id", "ours", "--tenant", "acme")
    cli(*RUN, "--trace-id", "theirs", "--tenant", "umbrella")
    cli("keys", "generate")
    assert cli("export", "ours", "-o", "ours.bundle", "--tenant", "acme").code == 0
    done = cli("verify", "ours.bundle", "--json")
    assert (done.code, done.json["runs"][0]["trace_id"]) == (0, "acme::ours")
    for words in (["export", "theirs", "-o", "x"], ["receipt", "theirs"], ["envelopes", "theirs"]):
        assert cli(*words, "--tenant", "acme").code == 2
    assert cli("log", "prove", "theirs", "--tenant", "acme").code == 2
    assert cli("log", "prove", "ours", "--tenant", "acme").code == 0
    mine = cli("log", "show", "--json", "--tenant", "acme").json
    assert [leaf["run"] for leaf in mine["leaves"]] == ["acme::ours"]
    assert mine["origin"] != cli("log", "show", "--json").json["origin"]
    assert cli("log", "checkpoint", "-o", "acme.note", "--tenant", "acme").code == 0
    assert cli("log", "verify", "acme.note", "--tenant", "acme").code == 0
    assert cli("log", "verify", "acme.note").code == 5


def test_what_needs_no_signature_needs_no_extra(tmp_path: Path, cli: Cli, waiting: str) -> None:
    """Without the extra `sign` receipts, bundles and their verification work; what signs says what is missing."""
    cli("export", waiting, "-o", "plain.bundle")
    cli("keys", "generate")
    cli("export", waiting, "-o", "signed.bundle")
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "cryptography":
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocked())
from nano_vm.cli.main import main
sys.exit(main(sys.argv[1:]))
"""

    def run(*argv: str) -> tuple[int, str]:
        environment = {
            "PYTHONPATH": str(ROOT / "src"),
            "NANO_VM_KEYS": str(tmp_path / "none"),
            "HOME": str(tmp_path),
        }
        done = subprocess.run(
            [sys.executable, "-c", code, *argv], env=environment, capture_output=True, text=True
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    assert run("verify", "plain.bundle")[0] == 0
    assert run("receipt", waiting)[0] == 0
    assert run("export", waiting, "-o", "again.bundle")[0] == 0
    for argv in (["verify", "signed.bundle"], ["keys", "generate"]):
        code_, err = run(*argv)
        assert code_ == 1
        assert "EXTRA_MISSING" in err
        assert "nano-vm[sign]" in err
