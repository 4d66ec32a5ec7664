"""Evidence bundles as an attacker handles them: taken apart, changed, and put together well formed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from nano_vm.demos.kyc.governed import Governed


def exported(governed: Governed, trace_id: str, name: str = "review.bundle") -> list[bytes]:
    """The lines of a run's bundle; the file stays."""
    done = governed.command("export", trace_id, "-o", name)
    if done.exit_code:
        raise RuntimeError(f"export: exit code {done.exit_code}")
    return (governed.directory / name).read_bytes().splitlines(keepends=True)


def mended(lines: Sequence[bytes]) -> bytes:
    """The bundle with an end that fits its lines, as anybody can compute it."""
    body = b"".join(lines[:-1])
    end = b'{"end":"sha256:%b","lines":%d}\n' % (hashlib.sha256(body).hexdigest().encode(), len(lines) - 1)
    return body + end


def verified(governed: Governed, bundles: Mapping[str, bytes]) -> dict[str, str | None]:
    """What `nano-vm verify` says of each: the code of the first thing that is wrong, or None."""
    for name, data in bundles.items():
        (governed.directory / name).write_bytes(data)
    document = governed.command("verify", *bundles).document
    found = {run.get("bundle") or run["trace_id"]: run for run in document.get("runs", ())}
    return {name: None if found[name]["ok"] else found[name]["error"]["code"] for name in bundles}
