"""Serve programs, runs and their evidence to MCP clients. Needs the extra: pip install 'nano-vm[mcp]'

  nano-vm mcp --tools refund_tools.py --model mock:yes           on standard input and output
  nano-vm mcp serve --config gateway.yaml                        over HTTP, on 127.0.0.1:8808/mcp
  nano-vm mcp serve --port 9000 --tools refund_tools.py
  nano-vm mcp pins                                               definitions of the tools of mounted servers
  nano-vm mcp accept shop price                                  accept one that has changed

Without authentication only this machine is served; `nano-vm token create` makes tokens. A configuration comes from
--config, then NANO_VM_MCP_… variables, then options. SIGTERM lets calls under way finish; runs that are not done are
taken up by the next gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from nano_vm.cli.arguments import STORE_VARIABLE, add_tools, gateway_store, whole
from nano_vm.cli.console import Console, compact, printable
from nano_vm.errors import InputError

if TYPE_CHECKING:
    from nano_vm.cli.models import Model
    from nano_vm.gateway.config import GatewayConfig
    from nano_vm.gateway.service import Gateway


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=("stdio", "serve", "pins", "accept"),
        default="stdio",
        help="stdio (default): one client on standard input and output; serve: HTTP; pins, accept: definitions of "
        "mounted tools",
    )
    parser.add_argument("mount", nargs="?", metavar="MOUNT", help="with accept: the mounted server")
    parser.add_argument("tool", nargs="?", metavar="TOOL", help="with accept: one tool of it (default: all)")
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON; see docs/guides/gateway.md")
    parser.add_argument("--host", metavar="HOST", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument(
        "--port", metavar="PORT", type=whole, help="port to listen on (default: 8808; 0: a free one)"
    )
    add_tools(parser)


def execute(args: argparse.Namespace, console: Console) -> int:
    from nano_vm.gateway.serving import require_extra

    if (args.action == "accept") != (args.mount is not None):
        raise InputError(
            "USAGE", "`accept` names a mount, and nothing else does", help="mcp accept MOUNT [TOOL]"
        )
    if args.action in ("pins", "accept"):
        return _pins(args, console)
    require_extra()
    if args.json and args.action == "stdio":
        raise InputError("USAGE", "standard output belongs to the client", help="leave --json out")
    config = read_config(args)
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    gateway, model = make_gateway(args, config)
    try:
        _serve(args, console, gateway)
    finally:
        model.close()
    return 0


def _serve(args: argparse.Namespace, console: Console, gateway: Gateway) -> None:
    from nano_vm.gateway.serving import serve_http, serve_stdio

    if args.action == "serve":

        def announce(address: str) -> None:
            if console.json_only:
                console.json_line({"listening": address})
            else:
                console.line(f"listening on {address}")
                console.note("stop with Ctrl-C or SIGTERM")
            sys.stdout.flush()

        asyncio.run(serve_http(gateway, announce))
    else:
        asyncio.run(serve_stdio(gateway))


def _pins(args: argparse.Namespace, console: Console) -> int:
    """Show the pinned definitions, or accept those that a server offers instead."""
    from nano_vm.gateway.config import load_config
    from nano_vm.gateway.state import SUFFIX, GatewayState

    config = load_config(args.config, os.environ)
    if config.store and not args.store and not os.environ.get(STORE_VARIABLE):
        args.store = config.store
    state = GatewayState(gateway_store(args) + SUFFIX)
    try:
        if args.action == "accept":
            accepted = state.accept(args.mount, args.tool, args.principal or "operator")
            if not accepted:
                raise InputError(
                    "PIN_NOT_FOUND",
                    "no changed definition waits under that name",
                    help="`nano-vm mcp pins` shows what there is",
                )
            console.document({"accepted": accepted})
            for name in accepted:
                console.line(f"accepted {printable(args.mount)} {printable(name)}")
            return 0
        pins = [_readable(pin) for pin in state.pins()]
        console.document({"pins": pins})
        for pin in pins:
            stands = "pinned" if pin["offered"] is None else "CHANGED"
            console.line(f"{stands}  {printable(pin['server'])} {printable(pin['tool'])}  {pin['digest']}")
            if pin["offered"] is not None:
                console.line(f"         was {compact(pin['definition'], 2_000)}")
                console.line(f"         now {compact(pin['offered_definition'], 2_000)}")
        if not pins:
            console.line("no mounted tools")
    finally:
        state.close()
    return 0


def _readable(pin: dict[str, Any]) -> dict[str, Any]:
    texts = ("definition", "offered_definition")
    return {name: json.loads(pin[name]) if name in texts and pin[name] else pin[name] for name in pin}


def read_config(args: argparse.Namespace) -> GatewayConfig:
    """File, environment and options, the later before the earlier."""
    from nano_vm.gateway.config import load_config

    config = load_config(args.config, os.environ)
    changes: dict[str, Any] = {}
    if args.host is not None:
        changes["host"] = args.host
    if args.port is not None:
        if not 0 <= args.port <= 65_535:
            raise InputError("USAGE", "--port is a number from 0 to 65535", help="--port 8808")
        changes["port"] = args.port
    if args.tools:
        changes["tools"] = tuple(args.tools)
    if args.model is not None:
        changes["model"] = args.model
    if args.base_url is not None:
        changes["base_url"] = args.base_url
    if args.policy is not None:
        changes["policy"] = args.policy
    if args.principal is not None:
        roles = tuple(args.role) or config.principal.roles
        changes["principal"] = msgspec.structs.replace(config.principal, id=args.principal, roles=roles)
    elif args.role:
        changes["principal"] = msgspec.structs.replace(config.principal, roles=tuple(args.role))
    return msgspec.structs.replace(config, **changes)


def make_gateway(args: argparse.Namespace, config: GatewayConfig) -> tuple[Gateway, Model]:
    """The engine on its store, with tools and model as configured; the model is closed when the gateway is."""
    from nano_vm.cli.models import Model
    from nano_vm.cli.toolfiles import load_tools
    from nano_vm.cli.vaults import open_vault
    from nano_vm.gateway.programs import GatewayStore
    from nano_vm.gateway.service import Gateway
    from nano_vm.gateway.state import SUFFIX, GatewayState
    from nano_vm.runtime.engine import Engine
    from nano_vm.tools.registry import ToolSet

    tools = load_tools(config.tools) if config.tools else ToolSet()
    if config.store and not args.store and not os.environ.get(STORE_VARIABLE):
        args.store = config.store
    args.model, args.base_url = config.model, config.base_url
    path = gateway_store(args)
    chosen = config.durability if args.durability == "full" else args.durability
    model = Model(args)
    try:
        store = GatewayStore(path, durability="normal" if chosen == "normal" else "full")
        vault = open_vault(args)
        engine = Engine(
            llm=model.client,
            tools=tools,
            store=store,
            secrets=vault,
            keys=vault,
            policy=config.policy,
        )
        state = GatewayState(path + SUFFIX)
        gateway = Gateway(engine, store, state, config)
        if config.mounts:
            from nano_vm.gateway.mounts import Mounts

            gateway.mounts = Mounts(engine, tools, state, config)
        return gateway, model
    except BaseException:
        model.close()
        raise
