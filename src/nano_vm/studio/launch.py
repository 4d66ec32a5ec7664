"""Starting the studio: Streamlit's server in this process, on loopback, with nothing that calls out."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nano_vm.errors import InputError, RuntimeFault
from nano_vm.studio.settings import Settings, use

HOST = "127.0.0.1"
PORT = 8501
START_SECONDS = 120.0
APP = Path(__file__).with_name("app.py")

LIGHT = {
    "primaryColor": "#2667e0",
    "backgroundColor": "#f7f9fb",
    "secondaryBackgroundColor": "#ffffff",
    "textColor": "#1d2733",
    "borderColor": "#e1e6ec",
}
DARK = {
    "primaryColor": "#3373e8",
    "backgroundColor": "#12161d",
    "secondaryBackgroundColor": "#1b212b",
    "textColor": "#e8edf4",
    "borderColor": "#2d3643",
}


def require_extra() -> None:
    """Raises RuntimeFault EXTRA_MISSING, naming the extra."""
    try:
        import streamlit  # noqa: F401
    except ImportError as error:
        raise RuntimeFault(
            "EXTRA_MISSING",
            f"the studio needs `{error.name or 'streamlit'}`, which is not installed",
            help="pip install 'nano-vm[studio]'",
            facts={"extra": "studio"},
        ) from None


def free_port(wanted: int) -> int:
    """The port to listen on: the one that is wanted, or a free one for 0.

    Raises:
        InputError: USAGE for what is no port. RuntimeFault: GATEWAY_ADDRESS when it is taken.
    """
    if not 0 <= wanted <= 65_535:
        raise InputError("USAGE", f"{wanted} is no port", help="--port 8501; 0 takes a free one")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except OSError as error:
            raise RuntimeFault(
                "GATEWAY_ADDRESS",
                f"port {wanted} of {HOST} cannot be listened on: {(error.strerror or 'taken').lower()}",
                help="another program has it: --port with another one, or 0 for a free one",
                facts={"port": wanted},
            ) from None
        port: int = probe.getsockname()[1]
        return port


def new_key() -> str:
    """A key for the door: 192 bits."""
    return secrets.token_urlsafe(24)


def options(port: int) -> dict[str, Any]:
    """Streamlit's options: on loopback and for loopback only, no statistics, no watching of files, our colours."""
    found: dict[str, Any] = {
        "server_address": HOST,
        "server_port": port,
        "server_headless": True,
        "server_allowedHosts": [HOST, "localhost"],
        "server_fileWatcherType": "none",
        "server_runOnSave": False,
        "server_enableStaticServing": False,
        "server_maxUploadSize": 1,
        "browser_gatherUsageStats": False,
        "browser_serverAddress": HOST,
        "client_toolbarMode": "viewer",
        "client_showErrorDetails": "none",
        "client_showErrorLinks": False,
        "logger_level": "warning",
        "logger_hideWelcomeMessage": True,
        "global_developmentMode": False,
        "runner_magicEnabled": False,
        "theme_baseRadius": "medium",
    }
    for scheme, colours in (("light", LIGHT), ("dark", DARK)):
        for name, value in colours.items():
            found[f"theme_{scheme}_{name}"] = value
        found[f"theme_{scheme}_sidebar_backgroundColor"] = "#ffffff" if scheme == "light" else "#171c24"
    return found


def serve(settings: Settings, port: int, announce: Callable[[str], None]) -> None:
    """Serve until a signal ends it.

    Args:
        announce: is told the address, key included, when it can be opened.

    Raises:
        RuntimeFault: EXTRA_MISSING, GATEWAY_ADDRESS.
    """
    require_extra()
    from streamlit.web import bootstrap

    port = free_port(port)
    use(settings)
    given = options(port)
    bootstrap.load_config_options(given)
    address = f"http://{HOST}:{port}/" + (f"?key={settings.key}" if settings.key else "")
    threading.Thread(target=_when_listening, args=(port, lambda: announce(address)), daemon=True).start()
    try:
        bootstrap.run(str(APP), False, [], given)
    finally:
        if settings.desk is not None:
            settings.desk.close()


def _when_listening(port: int, then: Callable[[], None]) -> None:
    """Streamlit says nothing when it listens: knock until somebody opens."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        with socket.socket() as knock:
            knock.settimeout(1.0)
            if knock.connect_ex((HOST, port)) == 0:
                then()
                return
        time.sleep(0.05)
