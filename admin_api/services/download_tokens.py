"""prosEO's download tokens: made by its Ingestor, checked here (contract, section 4; RFC 8725).

A compact JWS whose algorithm is HS256 and no other, with ``sub`` (a plain file name) and ``exp``.
The key is made of the secret that both services share, in the way that both have always done.
Called by ``web/proseo``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import jwt

from admin_api.errors import ConfigurationError, Unauthorized
from admin_api.services.watched import Watched
from admin_api.settings import ProseoSettings

#: What prosEO ships; whoever knows it could read everything.
_SHIPPED = "MyVeryLongSecretMustBeAtLeast32Bytes"
_SHORT = 16
_KEY_BYTES = 32
_MAX_TOKEN_BYTES = 8192


class Expired(Unauthorized):
    """The token was right until ``at``."""

    def __init__(self, at: datetime) -> None:
        super().__init__(f"The token expired at {at.isoformat()}.")
        self.at = at


class DownloadTokens:
    """Checks tokens with the shared secret; its file is read again when it changes."""

    def __init__(self, settings: ProseoSettings) -> None:
        """Read the secret; raises ConfigurationError for one that must not be used."""
        self._weak = settings.weak_secret
        self._key = (
            Watched(settings.secret_file, "secret of download tokens", self._read)
            if settings.secret_file
            else None
        )

    def check(self, token: str) -> str:
        """The file name that the token is for; raises Unauthorized (Expired)."""
        if self._key is None:
            raise Unauthorized("No secret for download tokens is set here.")
        if len(token) > _MAX_TOKEN_BYTES:
            raise Unauthorized("The token is too long.")
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") != "HS256" or "crit" in header:
                raise Unauthorized("The token is not signed with HS256.")
            claims = jwt.decode(
                token,
                self._key.current(),
                algorithms=["HS256"],
                options={"require": ["exp", "sub"], "verify_exp": False},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise Unauthorized("The token does not hold.") from None
        expires, subject = claims["exp"], claims["sub"]
        if type(expires) is not int or not 0 <= expires < 1 << 40 or not isinstance(subject, str):
            raise Unauthorized("The token's subject or expiry is not acceptable.")
        if expires <= datetime.now(UTC).timestamp():
            raise Expired(datetime.fromtimestamp(min(expires, 253_402_300_799), UTC))
        return subject

    def _read(self, path: Path) -> bytes:
        secret = path.read_text(encoding="utf-8").strip("\r\n")
        if not secret.strip() or secret == _SHIPPED:
            raise ConfigurationError(
                "The secret of download tokens is empty or the one that prosEO ships; set another "
                "here and in the Ingestor."
            )
        if len(secret) < _SHORT and not self._weak:
            raise ConfigurationError(
                f"The secret of download tokens has fewer than {_SHORT} characters; set a longer "
                "one here and in the Ingestor, or proseo.weak_secret while that cannot be."
            )
        return derive(secret)


def derive(secret: str) -> bytes:
    """The key: secret and 16 blanks in UTF-8, cut or filled with NUL to 32 bytes."""
    return (secret + " " * 16).encode()[:_KEY_BYTES].ljust(_KEY_BYTES, b"\0")
