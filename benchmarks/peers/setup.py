"""Make one environment per peer under `benchmarks/peers/.envs`, from pinned requirement lines.

    python benchmarks/peers/setup.py                 # all peers that are not there yet
    python benchmarks/peers/setup.py burr dbos       # these
    python benchmarks/peers/setup.py --again burr    # from scratch

Where the pinned version cannot be installed the nearest one of the same series is taken, then any; what is
measured is printed here and in every result. The environments use the interpreter that runs this script.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ENVS = Path(__file__).resolve().parent / ".envs"

# The first line of a peer is the package whose version is reported.
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "llm_nano_vm": ("llm-nano-vm==0.8.9",),
    "langgraph": ("langgraph==1.2.22", "langgraph-checkpoint-sqlite==3.1.2", "aiosqlite==0.22.1"),
    "burr": ("apache-burr[tracking-client]==0.42.0", "aiosqlite==0.22.1"),
    "dbos": ("dbos==3.4.0",),
    "transitions": ("transitions==0.9.3",),
}


def python_of(peer: str) -> Path:
    folder = ENVS / peer
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def relaxed(requirement: str) -> tuple[str, ...]:
    """The requirement itself, the same series, any version."""
    name, _, version = requirement.partition("==")
    series = ".".join(version.split(".")[:2])
    return (requirement, f"{name}=={series}.*", name)


def pip_install(peer: str, requirements: Sequence[str]) -> subprocess.CompletedProcess[str]:
    command = [
        str(python_of(peer)),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        *requirements,
    ]
    return subprocess.run(command, capture_output=True, text=True)


def install_nearest(peer: str, requirement: str) -> str | None:
    """Install the requirement or the nearest version there is; returns what went wrong, or None."""
    problem = "no message"
    for candidate in relaxed(requirement):
        done = pip_install(peer, [candidate])
        if done.returncode == 0:
            return None
        problem = (done.stderr.strip().splitlines() or [problem])[-1]
    return problem


def installed_version(peer: str) -> str:
    package = re.split(r"[\[=]", REQUIREMENTS[peer][0])[0]
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([str(python_of(peer)), "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "not installed"


def make(peer: str, *, again: bool) -> str:
    """Make a peer's environment; returns the version installed."""
    if again and (ENVS / peer).exists():
        shutil.rmtree(ENVS / peer)
    if installed_version_or_none(peer) is None:
        venv.create(ENVS / peer, with_pip=True, clear=True)
        if pip_install(peer, REQUIREMENTS[peer]).returncode != 0:
            for requirement in REQUIREMENTS[peer]:
                problem = install_nearest(peer, requirement)
                if problem is not None:
                    return f"failed: {problem}"
    return installed_version(peer)


def installed_version_or_none(peer: str) -> str | None:
    if not python_of(peer).exists():
        return None
    version = installed_version(peer)
    return None if version == "not installed" else version


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the peers' environments.")
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(REQUIREMENTS)}; default all")
    parser.add_argument("--again", action="store_true", help="make them anew even if they are there")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.peers) - set(REQUIREMENTS))
    if unknown:
        parser.error(f"unknown peer {', '.join(unknown)}; choose from {', '.join(REQUIREMENTS)}")
    failures = 0
    for peer in options.peers or REQUIREMENTS:
        version = make(peer, again=options.again)
        failures += version.startswith(("failed", "not installed"))
        wanted = REQUIREMENTS[peer][0]
        note = "" if wanted.endswith(f"=={version}") else f"   (wanted {wanted})"
        print(f"{peer:<14} {version}{note}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
