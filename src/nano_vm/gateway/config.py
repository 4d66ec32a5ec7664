"""The gateway's configuration: a YAML or JSON file, then environment variables, then the command line.

Unknown fields are errors; a value that holds a secret is never written here but named by the environment variable that
holds it.
"""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from nano_vm.errors import InputError
from nano_vm.providers.script import read_data

ENVIRONMENT_PREFIX = "NANO_VM_MCP_"


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one client, and all of them together, may ask of the gateway."""

    request_bytes: int = 2 * 1024 * 1024
    requests_per_minute: int = 6_000  # of one principal, or of one address before it is known who calls
    concurrent_requests: int = 512
    concurrent_requests_per_principal: int = 256
    sessions: int = 1_000
    runs: int = 1_000  # under way at once
    wait_seconds: float = 25.0  # how long a call waits for a run that goes on without it
    max_steps: int = 100_000  # a program that declares more is refused


class LocalPrincipal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who calls when nobody has to show a token: on stdio, and on loopback without authentication."""

    id: str = "local"
    roles: tuple[str, ...] = ("admin",)
    tenant: str = "default"


class OAuth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Resource-server mode: tokens are signed by `issuer` for `resource` (RFC 9728, RFC 8707)."""

    issuer: str
    resource: str  # the URL clients reach this gateway under; the audience of their tokens
    jwks_url: str | None = None  # default: what the issuer's metadata says
    jwks_file: str | None = None
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    scopes: tuple[str, ...] = ()  # every token must hold them
    roles_claim: str = "roles"
    tenant_claim: str = "tenant"
    default_roles: tuple[str, ...] = ()


class Auth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`tokens`: bearer tokens made by `nano-vm token create`."""

    tokens: bool = False
    oauth: OAuth | None = None

    @property
    def required(self) -> bool:
        return self.tokens or self.oauth is not None


class Mount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An MCP server whose tools programs may use, as `<prefix><tool>`. Either `command` or `url`."""

    command: str | None = None
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    env_from: tuple[str, ...] = ()  # variables of ours that the server gets
    cwd: str | None = None
    url: str | None = None
    token_env: str | None = None  # variable that holds the bearer token for `url`
    prefix: str | None = None  # default: the mount's name and `_`
    tools: tuple[str, ...] | None = None  # only these; default all
    trust_annotations: bool = False  # believe readOnlyHint and idempotentHint
    effects: dict[str, str] = {}  # tool -> effect class that the operator vouches for
    secrets: dict[str, tuple[str, ...]] = {}  # tool -> parameters whose vault references are opened for it
    protected: dict[str, tuple[str, ...]] = {}  # tool -> parameters that take trusted values only
    timeout_seconds: float = 60.0


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it. `docs/guides/gateway.md` explains every field."""

    store: str | None = None
    durability: str | None = None
    tools: tuple[str, ...] = ()
    model: str | None = None
    base_url: str | None = None
    policy: str | None = None
    host: str = "127.0.0.1"
    port: int = 8808
    path: str = "/mcp"
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    behind_tls: bool = False  # a proxy in front speaks TLS and is trusted with the client's address
    auth: Auth = Auth()
    principal: LocalPrincipal = LocalPrincipal()
    limits: Limits = Limits()
    mounts: dict[str, Mount] = {}
    publish: str | tuple[str, ...] = "all"  # saved programs as tools: all, none, or their names
    inline_programs: bool = True  # whether clients may run programs that are not saved
    metrics: bool = True
    recover_seconds: float = 1.0
    drain_seconds: float = 30.0


# Environment variable (after the prefix) -> field, and how its text is read.
_VARIABLES: dict[str, tuple[str, type]] = {
    "HOST": ("host", str),
    "PORT": ("port", int),
    "PATH": ("path", str),
    "POLICY": ("policy", str),
    "TOOLS": ("tools", tuple),
    "MODEL": ("model", str),
    "BASE_URL": ("base_url", str),
    "ALLOWED_HOSTS": ("allowed_hosts", tuple),
    "ALLOWED_ORIGINS": ("allowed_origins", tuple),
    "BEHIND_TLS": ("behind_tls", bool),
    "PUBLISH": ("publish", str),
}


_SAID = {"1": True, "true": True, "yes": True, "on": True} | {
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


def load_config(path: str | None, environment: Mapping[str, str]) -> GatewayConfig:
    """The configuration of a file (or none) and the environment.

    Raises:
        InputError: GATEWAY_CONFIG, naming the field.
    """
    data: dict[str, Any] = {}
    if path is not None:
        found = read_data(Path(path), "GATEWAY_CONFIG")
        if not isinstance(found, dict):
            raise InputError("GATEWAY_CONFIG", f"`{path}` holds no mapping", help="write one field per line")
        data = found
    for name, text in environment.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or text == "":
            continue
        word = name.removeprefix(ENVIRONMENT_PREFIX)
        if word == "AUTH":
            data["auth"] = _with_tokens(data.get("auth"), name, text)
            continue
        if word not in _VARIABLES:
            close = difflib.get_close_matches(word, [*_VARIABLES, "AUTH"], n=1)
            raise InputError(
                "GATEWAY_CONFIG",
                f"the environment variable `{name}` means nothing",
                help=f"did you mean `{ENVIRONMENT_PREFIX}{close[0]}`?"
                if close
                else "see docs/guides/gateway.md",
            )
        field, kind = _VARIABLES[word]
        data[field] = _read(name, text, kind)
    return config_from(data, path)


def _with_tokens(given: Any, name: str, text: str) -> Any:
    """What the file says of authentication, and tokens besides. Whoever asks for something else is not left without."""
    if text.strip().lower() != "tokens":
        raise InputError(
            "GATEWAY_CONFIG", f"`{name}` is not `tokens`", help=f"{name}=tokens, or leave it out"
        )
    if given is not None and not isinstance(given, dict):
        return given  # it is named as what it is
    return {**(given or {}), "tokens": True}


def _read(name: str, text: str, kind: type) -> Any:
    if kind is int:
        if not (text.isascii() and text.isdigit() and len(text) < 16):
            raise InputError("GATEWAY_CONFIG", f"`{name}` is not a number", help=f"{name}=8808")
        return int(text)
    if kind is bool:
        said = _SAID.get(text.strip().lower())
        if said is None:
            raise InputError("GATEWAY_CONFIG", f"`{name}` is neither true nor false", help=f"{name}=true")
        return said
    if kind is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def config_from(data: Mapping[str, Any], source: str | None = None) -> GatewayConfig:
    """Checks the fields. Raises InputError GATEWAY_CONFIG."""
    where = f"`{source}`: " if source else ""
    _check_names(data, where)
    try:
        config = msgspec.convert(dict(data), GatewayConfig)
    except msgspec.ValidationError as error:
        raise InputError(
            "GATEWAY_CONFIG", f"{where}{_lowered(str(error))}", help="see docs/guides/gateway.md"
        ) from None
    _check(config, where)
    return config


def _check_names(data: Mapping[str, Any], where: str) -> None:
    known = [field.name for field in msgspec.structs.fields(GatewayConfig)]
    for name in data:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            raise InputError(
                "GATEWAY_CONFIG",
                f"{where}there is no field `{str(name)[:60]}`",
                help=f"did you mean `{close[0]}`?" if close else f"one of: {', '.join(known)}",
            )


def _check(config: GatewayConfig, where: str) -> None:
    problem, remedy = "", ""
    if not config.path.startswith("/") or config.path in ("/health", "/ready", "/metrics", "/"):
        problem, remedy = "`path` cannot be used", "a path like /mcp"
    elif not 0 <= config.port <= 65_535:
        problem, remedy = "`port` is no port", "a number from 0 to 65535"
    elif isinstance(config.publish, str) and config.publish not in ("all", "none"):
        problem, remedy = "`publish` is neither all, none nor a list of names", "publish: all"
    elif config.durability not in (None, "full", "normal"):
        problem, remedy = "`durability` is neither full nor normal", "durability: full"
    elif not 0 < config.recover_seconds <= 3_600 or not 0 <= config.drain_seconds <= 3_600:
        problem, remedy = "`recover_seconds` or `drain_seconds` is out of range", "a number of seconds"
    else:
        for name in (field.name for field in msgspec.structs.fields(Limits)):
            if getattr(config.limits, name) <= 0:
                problem, remedy = f"`limits.{name}` is not above 0", "a number above 0"
    for name, mount in config.mounts.items():
        if (mount.command is None) == (mount.url is None):
            problem, remedy = f"`mounts.{name}` needs `command` or `url`, and not both", "command: my-server"
        elif not name.replace("_", "").isalnum() or not name.isascii():
            problem, remedy = f"`mounts.{name}` is no name", "letters, digits and _"
        elif mount.timeout_seconds <= 0:
            problem, remedy = f"`mounts.{name}.timeout_seconds` is not above 0", "timeout_seconds: 60"
    if problem:
        raise InputError("GATEWAY_CONFIG", f"{where}{problem}", help=remedy)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(config: GatewayConfig) -> None:
    """Nobody without a token gets further than this machine. Raises InputError GATEWAY_EXPOSED."""
    if not is_loopback(config.host) and not config.auth.required:
        raise InputError(
            "GATEWAY_EXPOSED",
            f"`{config.host}` can be reached from other machines and nobody has to show a token",
            help="set `auth: {tokens: true}` and make one with `nano-vm token create`, or use 127.0.0.1",
        )


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
