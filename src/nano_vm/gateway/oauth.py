"""OAuth resource-server mode: access tokens that an authorization server signs for this gateway.

The gateway issues nothing and asks nobody per call: it checks signature, issuer, audience (RFC 8707), time and scopes
of a JWT (RFC 9068) against the issuer's keys, and tells clients where to get one (RFC 9728).
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.routes import build_resource_metadata_url, create_protected_resource_routes
from pydantic import AnyHttpUrl
from starlette.routing import Route

from nano_vm.errors import InputError
from nano_vm.gateway.config import OAuth, is_loopback
from nano_vm.gateway.faults import log
from nano_vm.gateway.principals import Principal
from nano_vm.journal.port import DEFAULT_TENANT, check_tenant

KEYS_SECONDS = 600.0  # how long the issuer's keys are kept
RENEW_SECONDS = 10.0  # an unknown key has them fetched again, at most so often
DOCUMENT_BYTES_MAX = 256 * 1024
TIMEOUT_SECONDS = 10.0
LEEWAY_SECONDS = 30
SUBJECT_CHARS_MAX = 200
ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)


def check_oauth(oauth: OAuth) -> None:
    """Raises InputError GATEWAY_CONFIG."""
    problem = ""
    for name in ("issuer", "resource", "jwks_url"):
        url = getattr(oauth, name)
        if url is None:
            continue
        parts = urlsplit(url)
        if not parts.hostname or (parts.scheme != "https" and not is_loopback(parts.hostname)):
            problem = f"`auth.oauth.{name}` is no https address"
    unknown = sorted(set(oauth.algorithms) - ALGORITHMS)
    if unknown or not oauth.algorithms:
        problem = f"`auth.oauth.algorithms` has {', '.join(unknown) or 'nothing'}"
    if oauth.jwks_file is not None and not Path(oauth.jwks_file).is_file():
        problem = "`auth.oauth.jwks_file` is no file"
    if problem:
        raise InputError("GATEWAY_CONFIG", problem, help="see docs/guides/gateway.md")


class JwtVerifier:
    """Access tokens of one issuer."""

    def __init__(self, oauth: OAuth) -> None:
        self._oauth = oauth
        self._keys: dict[str, Any] = {}
        self._fetched_at = float("-inf")
        self._fetching = asyncio.Lock()

    async def verify_token(self, token: str) -> AccessToken | None:
        """Who the token is for; None when anything about it is not as it must be."""
        oauth = self._oauth
        try:
            header = jwt.get_unverified_header(token)
            key = await self._key(header.get("kid"))
            if key is None:
                return None
            claims = jwt.decode(
                token,
                key.key,
                algorithms=list(oauth.algorithms),
                audience=oauth.resource,
                issuer=oauth.issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"], "verify_iat": True},
            )
        except (jwt.InvalidTokenError, ValueError, TypeError):
            return None
        who = self._principal(claims)
        if who is None:
            return None
        return AccessToken(
            token="",
            client_id=f"{who.tenant}/{who.id}",
            scopes=_words(claims.get("scope", claims.get("scp"))),
            expires_at=int(claims["exp"]),
            resource=oauth.resource,
            subject=who.id,
            claims={"iss": oauth.issuer, "nano_vm": who.to_dict()},
        )

    def _principal(self, claims: dict[str, Any]) -> Principal | None:
        """Who the claims name; None for somebody who has no name here: nobody is taken for somebody else, and nobody
        whose tenant cannot be read for one of the default tenant."""
        subject, tenant = claims["sub"], claims.get(self._oauth.tenant_claim, DEFAULT_TENANT)
        try:
            check_tenant(tenant)
        except InputError:
            return None
        if type(subject) is not str or not 0 < len(subject) <= SUBJECT_CHARS_MAX:
            return None
        roles = _words(claims.get(self._oauth.roles_claim)) or list(self._oauth.default_roles)
        return Principal(subject, tuple(roles), tenant)

    # --- keys -------------------------------------------------------------------------------------------------

    async def _key(self, kid: Any) -> Any:
        name = kid if isinstance(kid, str) else ""
        age = time.monotonic() - self._fetched_at
        if age > KEYS_SECONDS or (name not in self._keys and age > RENEW_SECONDS):
            async with self._fetching:
                if time.monotonic() - self._fetched_at >= min(age, RENEW_SECONDS):
                    await self._fetch()
        if name in self._keys:
            return self._keys[name]
        return next(iter(self._keys.values())) if not name and len(self._keys) == 1 else None

    async def _fetch(self) -> None:
        try:
            document = await asyncio.to_thread(self._read)
            keys = jwt.PyJWKSet.from_dict(document).keys
        except Exception as error:
            log.warning("the keys of the issuer cannot be read: %s", type(error).__name__)
            self._fetched_at = time.monotonic() - KEYS_SECONDS + RENEW_SECONDS
            return
        self._keys = {key.key_id or "": key for key in keys}
        self._fetched_at = time.monotonic()

    def _read(self) -> dict[str, Any]:
        oauth = self._oauth
        if oauth.jwks_file is not None:
            return _object(Path(oauth.jwks_file).read_bytes())
        url = oauth.jwks_url
        if url is None:
            base = oauth.issuer.rstrip("/")
            metadata = _object(_get(f"{base}/.well-known/oauth-authorization-server"))
            if metadata.get("issuer") != oauth.issuer:
                raise ValueError("the metadata is of another issuer")
            url = str(metadata["jwks_uri"])
        return _object(_get(url))


def resource_routes(oauth: OAuth) -> tuple[list[Route], Any]:
    """The metadata that tells clients where to get a token, and its URL for `WWW-Authenticate`."""
    resource = AnyHttpUrl(oauth.resource)
    routes = create_protected_resource_routes(
        resource_url=resource,
        authorization_servers=[AnyHttpUrl(oauth.issuer)],
        scopes_supported=list(oauth.scopes) or None,
    )
    return routes, build_resource_metadata_url(resource)


def _get(url: str) -> bytes:
    parts = urlsplit(url)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise ValueError("not an https address")
    request = urllib.request.Request(url, headers={"Accept": "application/json"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        body: bytes = answer.read(DOCUMENT_BYTES_MAX + 1)
    if len(body) > DOCUMENT_BYTES_MAX:
        raise ValueError("too large")
    return body


def _object(body: bytes) -> dict[str, Any]:
    document = json.loads(body)
    if not isinstance(document, dict):
        raise ValueError("not an object")
    return document


def _words(value: Any) -> list[str]:
    if isinstance(value, str):
        return value.split()
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []
