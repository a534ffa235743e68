"""Who may: tokens are made and checked here, and what they allow (design section 6).

Follows RFC 8725: the algorithm is fixed per issuer, ``kid`` is only a key into our own table,
``iss``, ``aud`` and ``exp`` are required.  Called by ``web/auth.py`` and ``storage-manager token``.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import jwt

from admin_api import keyfiles
from admin_api.catalog.events import Actor
from admin_api.errors import ConfigurationError, Forbidden, NotFound, Unauthorized
from admin_api.services.watched import Watched
from admin_api.settings import AuthSettings

_LATEST_EXPIRY = 9_999_999_999
MIN_KEY_BYTES = 32
_MAX_TOKEN_BYTES = 8192
_SUBJECT = re.compile(r"[\x21-\x7e]{1,200}")
_SAMPLE_WORDS = ("changeme", "example", "secret", "password", "sample", "insecure", "default")


class Scope(StrEnum):
    """What a token can allow; ``admin`` allows everything."""

    READ = "read"
    INGEST = "ingest"
    REMOVE = "remove"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: subject, scopes, and the missions they are restricted to (None: all)."""

    subject: str
    scopes: frozenset[str]
    missions: frozenset[str] | None
    request_id: str | None = None

    @property
    def actor(self) -> Actor:
        """For the event log."""
        return Actor(self.subject, self.request_id)

    @property
    def is_admin(self) -> bool:
        """Whether the token allows everything (within its missions)."""
        return Scope.ADMIN in self.scopes

    def has(self, scope: Scope) -> bool:
        """Whether the token allows what ``scope`` stands for."""
        return scope in self.scopes or self.is_admin

    def require(self, scope: Scope) -> None:
        """Raise Forbidden unless the token has ``scope``."""
        if not self.has(scope):
            raise Forbidden(f"This needs a token with the scope {scope.value!r}.")

    def sees(self, mission: str | None) -> bool:
        """Whether products of ``mission`` exist for this principal."""
        return self.missions is None or mission in self.missions

    def require_sight(self, mission: str | None, what: str) -> None:
        """Raise NotFound for what this principal may not know of."""
        if not self.sees(mission):
            raise NotFound(f"There is no {what}.")

    def require_mission(self, mission: str | None) -> None:
        """Raise Forbidden unless products of ``mission`` may be ingested."""
        if not self.sees(mission):
            allowed = ", ".join(sorted(self.missions or ()))
            raise Forbidden(
                f"The token is restricted to the missions {allowed}; the product's is {mission}."
            )


class Authority:
    """Makes and checks tokens; key files are read again when they change."""

    def __init__(self, settings: AuthSettings) -> None:
        """Read the keys; raises ConfigurationError for short, missing or sample keys."""
        self._settings = settings
        self._own = Watched(settings.key_file, "key file", read_keys)
        self._foreign = {
            known.issuer: (
                Watched(known.jwks_file, "key set", partial(_read_jwks, known.algorithm)),
                known.algorithm,
            )
            for known in settings.issuers
        }

    def issue(
        self,
        subject: str,
        scopes: list[Scope],
        lifetime: timedelta,
        missions: list[str] | None = None,
    ) -> str:
        """A token signed with the first key of the key file that all balancers have."""
        if not _SUBJECT.fullmatch(subject):
            raise ConfigurationError(
                "A subject has 1 to 200 printable ASCII characters, no spaces."
            )
        now = datetime.now(UTC)
        claims: dict[str, Any] = {
            "iss": self._settings.issuer,
            "aud": self._settings.audience,
            "sub": subject,
            "iat": now,
            "exp": now + lifetime,
            "jti": secrets.token_hex(8),
            "scope": " ".join(scopes),
        }
        if missions is not None:
            claims["missions"] = missions
        signing = keyfiles.signing(self._settings.key_file)
        if signing is None:
            raise ConfigurationError(
                f"The balancers have no key of {self._settings.key_file} yet: run site.yml."
            )
        kid, key = signing
        return jwt.encode(claims, key, algorithm="HS256", headers={"kid": kid})

    def check(self, token: str, request_id: str | None = None) -> Principal:
        """Who the token speaks for; raises Unauthorized with the reason."""
        if len(token) > _MAX_TOKEN_BYTES:
            raise Unauthorized("The token is too long.")
        try:
            header = jwt.get_unverified_header(token)
            issuer = jwt.decode(token, options={"verify_signature": False}).get("iss")
            key, algorithm = self._key_for(issuer, header.get("kid"))
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._settings.audience,
                issuer=issuer,
                leeway=self._settings.leeway_seconds,
                options={"require": ["iss", "aud", "exp", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthorized("The token has expired.") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise Unauthorized("The token does not hold.") from None
        return self._principal(claims, request_id)

    def _key_for(self, issuer: object, kid: object) -> tuple[Any, str]:
        if not isinstance(kid, str) or not isinstance(issuer, str):
            raise Unauthorized("The token names no issuer or no key.")
        if issuer == self._settings.issuer:
            own = self._own.current()
            if kid in own:
                return own[kid], "HS256"
        if issuer in self._foreign:
            watched, algorithm = self._foreign[issuer]
            keys = watched.current()
            if kid in keys:
                return keys[kid], algorithm
        raise Unauthorized("The token's issuer or key is not known here.")

    @staticmethod
    def _principal(claims: dict[str, Any], request_id: str | None) -> Principal:
        subject, scope, missions = claims["sub"], claims.get("scope", ""), claims.get("missions")
        if not isinstance(subject, str) or not _SUBJECT.fullmatch(subject):
            raise Unauthorized("The token's subject is not acceptable.")
        # Whole seconds of this age: what the balancers take, no text and no milliseconds.
        if type(claims["exp"]) is not int or claims["exp"] > _LATEST_EXPIRY:
            raise Unauthorized("The token's expiry is not acceptable.")
        if not isinstance(scope, str):
            raise Unauthorized("The token's scope must be a string of words.")
        if missions is not None and not (
            isinstance(missions, list) and all(isinstance(item, str) for item in missions)
        ):
            raise Unauthorized("The token's missions must be a list of strings.")
        known = {item.value for item in Scope}
        return Principal(
            subject,
            frozenset(scope.split()) & known,
            None if missions is None else frozenset(missions),
            request_id,
        )


def read_keys(path: Path) -> dict[str, str]:
    """The HS256 keys of a key file: lines of ``kid key``.

    Raises ConfigurationError for a missing file and for keys that are short or samples.
    """
    keys = keyfiles.read(path)
    for kid, key in keys.items():
        if len(key.encode()) < MIN_KEY_BYTES:
            raise ConfigurationError(
                f"{path}: the key {kid!r} is shorter than {MIN_KEY_BYTES} bytes. "
                "Make one with `storage-manager token --new-key FILE`."
            )
        if len(set(key)) < 8 or any(word in key.lower() for word in _SAMPLE_WORDS):
            raise ConfigurationError(
                f"{path}: the key {kid!r} looks like a sample, not a secret. "
                "Make one with `storage-manager token --new-key FILE`."
            )
    return keys


def new_key_file(path: Path) -> None:
    """Write a key file with one fresh key, readable by its owner only.

    Raises ConfigurationError if the file exists: a key in use is not overwritten.
    """
    try:
        with open(path, "x", encoding="utf-8", opener=_private) as file:
            file.write(f"k{datetime.now(UTC):%Y%m%d} {secrets.token_hex(32)}\n")
    except OSError as error:
        raise ConfigurationError(f"Cannot write the key file {path}: {error.strerror}.") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _read_jwks(algorithm: str, path: Path) -> dict[str, Any]:
    try:
        keys = jwt.PyJWKSet.from_dict(json.loads(path.read_text(encoding="utf-8"))).keys
    except (ValueError, jwt.PyJWTError) as error:
        raise ConfigurationError(f"The key set {path} cannot be used: {error}.") from error
    family = {"RS256": "RSA", "ES256": "EC"}[algorithm]
    return {key.key_id: key.key for key in keys if key.key_id and key.key_type == family}
