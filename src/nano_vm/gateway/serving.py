"""Serving: the gateway put together, over stdio or HTTP, until it is told to stop. Stopping is graceful: no new runs,
calls under way finish, everything is journaled, and what is not done is taken up by the next gateway."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable
from typing import Any

from nano_vm.errors import InputError, NanoVMError, RuntimeFault
from nano_vm.gateway.config import GatewayConfig, check_exposure
from nano_vm.gateway.faults import log
from nano_vm.gateway.limits import Gate
from nano_vm.gateway.principals import Principal
from nano_vm.gateway.service import Gateway

ANSWER_SECONDS = 5.0
EXTRA_HELP = "pip install 'nano-vm[mcp]'"


def require_extra() -> None:
    """Raises RuntimeFault EXTRA_MISSING, naming the extra."""
    try:
        import mcp.server.lowlevel  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise RuntimeFault(
            "EXTRA_MISSING",
            f"the gateway needs `{error.name or 'mcp'}`, which is not installed",
            help=EXTRA_HELP,
            facts={"extra": "mcp"},
        ) from None


def local_principal(config: GatewayConfig) -> Principal:
    return Principal(config.principal.id, tuple(config.principal.roles), config.principal.tenant)


async def serve_stdio(gateway: Gateway) -> None:
    """Serve one client over standard input and output, until it closes them or a signal comes."""
    from mcp.server.stdio import stdio_server

    from nano_vm.gateway.attendant import Attendant
    from nano_vm.gateway.server import build_server

    who = local_principal(gateway.config)
    server = build_server(gateway, lambda ctx: who)
    attendant = Attendant(gateway)
    await _mount(gateway)
    await attendant.complete_erasures()  # it begins with a lot of reading, and holds nobody up yet
    stop = asyncio.Event()
    _on_signals(stop.set)
    looking = asyncio.get_running_loop().create_task(attendant.run())

    async def serve() -> None:
        async with stdio_server() as (read_stream, write_stream):
            await server.run(read_stream, write_stream, server.create_initialization_options())

    serving = asyncio.get_running_loop().create_task(serve())
    stopping = asyncio.get_running_loop().create_task(stop.wait())
    try:
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
    finally:
        looking.cancel()
        stopping.cancel()
        await drain(gateway)
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await serving
        close(gateway)


async def serve_http(
    gateway: Gateway, announce: Callable[[str], None], server: Any = None, event_store: Any = None
) -> None:
    """Serve over HTTP until a signal comes.

    Args:
        announce: told the URL as soon as it answers.
        server: instead of the gateway's own; `event_store`: keeps streams of the older era for clients that come back.

    Raises:
        InputError: GATEWAY_EXPOSED, GATEWAY_ADDRESS when the address cannot be bound.
    """
    import uvicorn

    from nano_vm.gateway.attendant import Attendant
    from nano_vm.gateway.http import HttpGateway, identify_bearer
    from nano_vm.gateway.server import build_server

    config = gateway.config
    check_exposure(config)
    who = local_principal(config)
    identify = identify_bearer if config.auth.required else (lambda ctx: who)
    verifier, routes, metadata_url = _authentication(gateway)
    attendant = Attendant(gateway)
    app = HttpGateway(
        gateway,
        server if server is not None else build_server(gateway, identify),
        attendant,
        verifier,
        routes,
        metadata_url,
        event_store,
    )
    listening = _bind(config)
    try:
        await _mount(gateway)
        await attendant.complete_erasures()  # it begins with a lot of reading, and holds nobody up yet
    except BaseException:
        listening.close()
        raise
    port = listening.getsockname()[1]
    settings = uvicorn.Config(
        app.app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=config.behind_tls,
        timeout_graceful_shutdown=1,  # what is left then are streams that clients keep open to listen
        h11_max_incomplete_event_size=64 * 1024,
        limit_concurrency=None,
        ws="none",
    )
    web = uvicorn.Server(settings)
    stopping = asyncio.Event()
    serving = asyncio.get_running_loop().create_task(_serve_quietly(web, listening))
    _on_signals(stopping.set)
    host = f"[{config.host}]" if ":" in config.host else config.host
    announce(f"http://{host}:{port}{config.path}")
    waiting = asyncio.get_running_loop().create_task(stopping.wait())
    await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    app.draining = True
    await drain(gateway)
    await _answered(app.gate)
    web.should_exit = True
    await serving
    close(gateway)


async def _answered(gate: Gate) -> None:
    """Until those who wait for an answer have it."""
    until = asyncio.get_running_loop().time() + ANSWER_SECONDS
    while gate.at_once and asyncio.get_running_loop().time() < until:
        await asyncio.sleep(0.01)


async def _serve_quietly(web: Any, listening: socket.socket) -> None:
    # uvicorn would take the signals for itself: it serves, and we say when it ends.
    web.capture_signals = contextlib.nullcontext
    await web.serve(sockets=[listening])


def _authentication(gateway: Gateway) -> tuple[Any, list[Any], Any]:
    """The verifier of bearer tokens, routes that clients need to get one, and where these are."""
    from nano_vm.gateway.http import TokenVerifier

    auth = gateway.config.auth
    if not auth.required:
        return None, [], None
    if auth.oauth is None:
        return TokenVerifier(gateway), [], None
    from nano_vm.gateway.oauth import JwtVerifier, check_oauth, resource_routes

    check_oauth(auth.oauth)
    routes, url = resource_routes(auth.oauth)
    return TokenVerifier(gateway if auth.tokens else None, JwtVerifier(auth.oauth)), routes, url


def _bind(config: GatewayConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((config.host, config.port))
        listening.listen(1_024)
    except OSError as error:
        listening.close()
        raise InputError(
            "GATEWAY_ADDRESS",
            f"`{config.host}:{config.port}` cannot be listened on: {(error.strerror or 'no such host').lower()}",
            help="choose another with --host and --port; port 0 takes a free one",
        ) from error
    listening.setblocking(False)
    return listening


async def _mount(gateway: Gateway) -> None:
    if gateway.mounts is not None:
        await gateway.mounts.start()


async def drain(gateway: Gateway) -> None:
    """Let calls under way finish and release every run; nothing is lost."""
    try:
        await gateway.engine.drain(gateway.config.drain_seconds)
    except NanoVMError as error:
        log.warning("closing: %s", error.code)
    if gateway.driving:  # the runs have been let go of: whoever waits for one is told
        await asyncio.wait(list(gateway.driving), timeout=ANSWER_SECONDS)
    for task in list(gateway.driving):
        task.cancel()
    if gateway.mounts is not None:
        await gateway.mounts.close()


def close(gateway: Gateway) -> None:
    with contextlib.suppress(NanoVMError):
        gateway.store.close()
    gateway.state.close()


def _on_signals(tell: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, tell)
