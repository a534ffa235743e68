"""Callers that have no token: names with a password, or with a client certificate.

prosEO's components say who they are by HTTP Basic (contract, 3.12): the facility's user, a wrapper
user for each mission, users of the GUI.  The callers file has a line for each::

    NAME SECRET SCOPE[,SCOPE...] [MISSION[,MISSION...]]

SECRET is what ``storage-manager proseo-caller`` makes of a password, or the word ``certificate``.
Called by ``web/proseo`` and by that command.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import threading
from dataclasses import dataclass
from pathlib import Path

from admin_api.errors import ConfigurationError, Unauthorized
from admin_api.services.access import Principal, Scope
from admin_api.services.watched import Watched
from admin_api.settings import ProseoSettings

_CERTIFICATE = "certificate"
#: Cost of one guess: about 4 MiB and some milliseconds.
_N, _R, _P = 1 << 12, 8, 1
_REMEMBERED = 1024
MIN_PASSWORD = 8


@dataclass(frozen=True, slots=True)
class _Caller:
    name: str
    secret: str
    scopes: frozenset[str]
    missions: frozenset[str] | None


class Callers:
    """Who may call; the file is read again when it changes."""

    def __init__(self, settings: ProseoSettings) -> None:
        """Read the file; raises ConfigurationError for one that cannot be used."""
        self._callers = (
            Watched(settings.callers_file, "callers file", read) if settings.callers_file else None
        )
        #: One guess at a time: guessing neither takes all memory nor holds up who is known.
        self._guessing = threading.Lock()
        #: What was right once need not be computed again; nothing can be read off these.
        self._salt = secrets.token_bytes(32)
        self._known: dict[str, bytes] = {}
        self._nobody = hashed(secrets.token_hex(16))
        try:
            self._proxies = [ipaddress.ip_network(item) for item in settings.proxies]
        except ValueError as error:
            raise ConfigurationError(f"proseo.proxies: {error}.") from error

    def by_password(self, name: str, password: str, request_id: str | None = None) -> Principal:
        """Who has this name and password; raises Unauthorized."""
        caller = self._named(name)
        if caller is None or caller.secret == _CERTIFICATE:
            with self._guessing:
                _verify(self._nobody, password)  # takes as long as for a name that is known
            raise Unauthorized("The name or the password is not right.")
        mark = hmac.digest(self._salt, f"{caller.secret}\0{password}".encode(), "sha256")
        if not hmac.compare_digest(self._known.get(name, b""), mark):
            with self._guessing:
                if not _verify(caller.secret, password):
                    raise Unauthorized("The name or the password is not right.")
                if len(self._known) >= _REMEMBERED:
                    self._known.clear()
                self._known[name] = mark
        return _principal(caller, request_id)

    def by_certificate(
        self, name: str, address: str | None, request_id: str | None = None
    ) -> Principal:
        """Whom the proxy at ``address`` has verified; raises Unauthorized if none of ours has."""
        try:
            source = ipaddress.ip_address(address or "")
        except ValueError:
            source = None
        if source is None or not any(source in network for network in self._proxies):
            raise Unauthorized("Certificates are taken from the facility's own proxies only.")
        caller = self._named(name)
        if caller is None or caller.secret != _CERTIFICATE:
            raise Unauthorized("The certificate's name is not known here.")
        return _principal(caller, request_id)

    def _named(self, name: str) -> _Caller | None:
        return self._callers.current().get(name) if self._callers else None


def read(path: Path) -> dict[str, _Caller]:
    """The callers of a file by their names; raises ConfigurationError with the line, OSError."""
    callers: dict[str, _Caller] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        parts = line.split()
        if not parts or line.startswith("#"):
            continue
        where = f"{path}, line {number}"
        if len(parts) not in (3, 4):
            raise ConfigurationError(f"{where} is not `NAME SECRET SCOPES [MISSIONS]`.")
        name, secret, scopes = parts[:3]
        unknown = set(scopes.split(",")) - {item.value for item in Scope}
        if unknown:
            raise ConfigurationError(f"{where}: there is no scope {sorted(unknown)[0]!r}.")
        if secret != _CERTIFICATE and not secret.startswith("scrypt$"):
            raise ConfigurationError(
                f"{where}: the secret is none that `storage-manager proseo-caller` has made."
            )
        if name in callers:
            raise ConfigurationError(f"{where}: {name!r} is there twice.")
        missions = frozenset(parts[3].split(",")) if len(parts) == 4 else None
        callers[name] = _Caller(name, secret, frozenset(scopes.split(",")), missions)
    return callers


def hashed(password: str) -> str:
    """What is kept of a password."""
    salt = secrets.token_hex(16)
    return f"scrypt${_N}${salt}${_scrypt(password, _N, salt).hex()}"


def line_of(
    name: str, password: str | None, scopes: list[Scope], missions: list[str] | None
) -> str:
    """A line of the callers file (without a password: for a certificate).

    Raises ConfigurationError for names and passwords that cannot be used.
    """
    if not name or any(character.isspace() for character in name + "".join(missions or [])):
        raise ConfigurationError("Names of callers and missions have no blanks.")
    if name.startswith("#") or ":" in name:
        raise ConfigurationError("A caller's name has no ':' and does not begin with '#'.")
    if password is not None and len(password) < MIN_PASSWORD:
        raise ConfigurationError(f"A password has at least {MIN_PASSWORD} characters.")
    secret = _CERTIFICATE if password is None else hashed(password)
    return " ".join([name, secret, ",".join(scopes), *([",".join(missions)] if missions else [])])


def _verify(secret: str, password: str) -> bool:
    try:
        _, cost, salt, wanted = secret.split("$")
        found = _scrypt(password, int(cost), salt)
        return hmac.compare_digest(found, bytes.fromhex(wanted))
    except ValueError:
        return False


def _scrypt(password: str, cost: int, salt: str) -> bytes:
    return hashlib.scrypt(
        password.encode("utf-8", "replace"), salt=salt.encode(), n=cost, r=_R, p=_P, dklen=32
    )


def _principal(caller: _Caller, request_id: str | None) -> Principal:
    return Principal(caller.name, caller.scopes, caller.missions, request_id)
