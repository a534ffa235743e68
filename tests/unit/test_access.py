"""Tokens: forged, stale and confused ones are refused (RFC 8725); keys must be secrets."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from admin_api import keyfiles
from admin_api.errors import ConfigurationError, Forbidden, Unauthorized
from admin_api.services.access import Authority, Principal, Scope, new_key_file
from admin_api.settings import AuthSettings, Issuer

NOW = datetime.now(UTC)
KEY = secrets.token_hex(32)
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_PEM = RSA_KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "keys").write_text(f"k1 {KEY}\nk2 {secrets.token_hex(32)}\n")
    issuers = []
    for name, key, algorithm in (("rsa", RSA_KEY, "RS256"), ("ec", EC_KEY, "ES256")):
        algorithms = {"RS256": jwt.algorithms.RSAAlgorithm, "ES256": jwt.algorithms.ECAlgorithm}
        jwk = algorithms[algorithm].to_jwk(key.public_key(), as_dict=True) | {"kid": name}
        (tmp_path / f"{name}.json").write_text(json.dumps({"keys": [jwk]}))
        issuers.append(
            Issuer(issuer=name, jwks_file=tmp_path / f"{name}.json", algorithm=algorithm)
        )
    return Authority(AuthSettings(key_file=tmp_path / "keys", issuers=issuers))


def claims(**changed: Any) -> dict[str, Any]:
    base = {
        "iss": "storage-manager",
        "aud": "storage-manager",
        "sub": "tester",
        "exp": NOW + timedelta(hours=1),
        "scope": "read",
    }
    return {key: value for key, value in (base | changed).items() if value is not None}


def token(
    key: Any = KEY, algorithm: str = "HS256", kid: Any = "k1", headers: Any = None, **changed: Any
) -> str:
    heads = {"kid": kid, **(headers or {})} if kid is not None else dict(headers or {})
    return jwt.encode(claims(**changed), key, algorithm=algorithm, headers=heads)


def raw(header: dict[str, Any], payload: Any, signature: bytes = b"x") -> str:
    parts = [json.dumps(header).encode(), json.dumps(payload, default=str).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


GOOD = token()
FORGED: dict[str, str] = {
    "empty": "",
    "word": "garbage",
    "two parts": ".".join(GOOD.split(".")[:2]),
    "four parts": GOOD + ".x",
    "no signature": ".".join([*GOOD.split(".")[:2], ""]),
    "other payload": ".".join(
        [GOOD.split(".")[0], token(sub="root").split(".")[1], GOOD.split(".")[2]]
    ),
    "cut signature": GOOD[:-4],
    "alg none": raw({"alg": "none", "kid": "k1"}, claims(exp=4_000_000_000), b""),
    "alg None": raw({"alg": "None", "kid": "k1"}, claims(exp=4_000_000_000), b""),
    "alg missing": raw({"kid": "k1"}, claims(exp=4_000_000_000)),
    "alg number": raw({"alg": 5, "kid": "k1"}, claims(exp=4_000_000_000)),
    "HS384": token(algorithm="HS384"),
    "HS512": token(algorithm="HS512"),
    "RS256 with our issuer": token(RSA_KEY, "RS256"),
    "other key": token(secrets.token_hex(32)),
    "empty key": raw({"alg": "HS256", "kid": "k1"}, claims(exp=4_000_000_000), b""),
    "unknown kid": token(kid="k9"),
    "no kid": token(kid=None),
    "kid path": token(kid="../../dev/null"),
    "kid sql": token(kid="k1' OR '1'='1"),
    "kid list": raw({"alg": "HS256", "kid": ["k1"]}, claims(exp=4_000_000_000)),
    "kid of another issuer": token(kid="rsa"),
    "expired": token(exp=NOW - timedelta(minutes=5)),
    "no exp": token(exp=None),
    "exp text": raw({"alg": "HS256", "kid": "k1"}, claims(exp="never")),
    "exp negative": token(exp=-1),
    "exp huge": raw({"alg": "HS256", "kid": "k1"}, claims(exp=10**400)),
    "nbf in the future": token(nbf=NOW + timedelta(hours=1)),
    "iat in the future": token(iat=NOW + timedelta(hours=1)),
    "no iss": token(iss=None),
    "other iss": token(iss="elsewhere"),
    "iss list": raw({"alg": "HS256", "kid": "k1"}, claims(iss=["storage-manager"])),
    "no aud": token(aud=None),
    "other aud": token(aud="elsewhere"),
    "aud empty list": token(aud=[]),
    "no sub": token(sub=None),
    "sub with newline": token(sub="a\r\nb"),
    "sub too long": token(sub="x" * 300),
    "scope list": token(scope=["admin"]),
    "missions text": token(missions="S1"),
    "missions numbers": token(missions=[1]),
    "payload list": raw({"alg": "HS256", "kid": "k1"}, [1, 2]),
    "public key as HMAC key": raw(
        {"alg": "HS256", "kid": "rsa"}, claims(iss="rsa", exp=4_000_000_000)
    ),
    "RSA issuer, EC token": token(EC_KEY, "ES256", "rsa", iss="rsa"),
    "EC issuer, RSA token": token(RSA_KEY, "RS256", "ec", iss="ec"),
    "RSA issuer, our key": token(KEY, "HS256", "rsa", iss="rsa"),
    "RSA issuer, PS256": token(RSA_KEY, "PS256", "rsa", iss="rsa"),
    "embedded key": token(headers={"jwk": {"kty": "oct", "k": "AAAA"}}, key=secrets.token_hex(32)),
    "jku": token(headers={"jku": "https://evil.example/keys"}, key=secrets.token_hex(32)),
    "crit": token(headers={"crit": ["b64"], "b64": False}),
    "too long": GOOD + "A" * 9000,
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_tokens_are_refused(authority: Authority, name: str) -> None:
    with pytest.raises(Unauthorized):
        authority.check(FORGED[name])


def test_there_are_enough_forged_tokens() -> None:
    assert len(FORGED) >= 40


def test_good_tokens_of_every_issuer_are_accepted(authority: Authority) -> None:
    assert authority.check(GOOD).subject == "tester"
    assert authority.check(token(RSA_KEY, "RS256", "rsa", iss="rsa")).subject == "tester"
    assert authority.check(token(EC_KEY, "ES256", "ec", iss="ec")).subject == "tester"
    issued = authority.issue("me", [Scope.READ, Scope.INGEST], timedelta(hours=1), ["S1"])
    principal = authority.check(issued)
    assert principal.scopes == {"read", "ingest"}
    assert principal.missions == {"S1"}


def test_clocks_may_differ_by_a_minute_and_not_by_more(authority: Authority) -> None:
    now = datetime.now(UTC)
    assert authority.check(token(exp=now - timedelta(seconds=30))).subject == "tester"
    with pytest.raises(Unauthorized, match="expired"):
        authority.check(token(exp=now - timedelta(seconds=90)))


def test_rotated_keys_are_taken_up_without_a_restart(authority: Authority) -> None:
    path = authority._settings.key_file
    fresh = secrets.token_hex(33)
    path.write_text(f"k3 {fresh}\n")
    assert authority.check(token(fresh, kid="k3")).subject == "tester"
    with pytest.raises(Unauthorized):
        authority.check(GOOD)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no line"),
        ("k1", "not `kid key`"),
        ("k1 short", "shorter than 32"),
        ("k1 " + "a" * 64, "looks like a sample"),
        ("k1 changeme-changeme-changeme-0123456789", "looks like a sample"),
        ("k1 this-is-an-example-key-of-enough-bytes", "looks like a sample"),
    ],
)
def test_keys_that_are_no_secrets_are_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "keys").write_text(content)
    with pytest.raises(ConfigurationError, match=said):
        Authority(AuthSettings(key_file=tmp_path / "keys"))


def test_a_new_key_signs_once_all_balancers_have_it(authority: Authority) -> None:
    """Tokens and links alike; a line that was put first by hand waits for the balancers, too."""
    path = authority._settings.key_file
    lines = [f"new {secrets.token_hex(32)}", f"old {secrets.token_hex(32)}"]
    path.write_text("\n".join(lines))
    assert keyfiles.signing(path) == tuple(lines[0].split()), "where there are no balancers"
    known = path.with_name(f"{path.name}.known")
    digests = [hashlib.sha256(line.encode()).hexdigest() for line in lines]
    for have, signs in (([1], 1), ([0, 1], 0)):
        known.write_text("\n".join(digests[number] for number in have))
        assert keyfiles.signing(path) == tuple(lines[signs].split())
        issued = authority.issue("me", [Scope.READ], timedelta(hours=1))
        assert jwt.get_unverified_header(issued)["kid"] == lines[signs].split()[0]
        assert authority.check(issued).subject == "me"
    path.write_text(f"other {secrets.token_hex(32)}")
    assert keyfiles.signing(path) is None
    with pytest.raises(ConfigurationError, match=r"site\.yml"):
        authority.issue("me", [Scope.READ], timedelta(hours=1))


def test_a_missing_key_file_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        Authority(AuthSettings(key_file=tmp_path / "nowhere"))


def test_a_new_key_is_private_and_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    new_key_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    Authority(AuthSettings(key_file=path))
    with pytest.raises(ConfigurationError, match="exists"):
        new_key_file(path)


def test_scopes_and_missions_restrict() -> None:
    reader = Principal("r", frozenset(["read"]), frozenset(["S1"]))
    reader.require(Scope.READ)
    with pytest.raises(Forbidden, match="ingest"):
        reader.require(Scope.INGEST)
    with pytest.raises(Forbidden, match="S1"):
        reader.require_mission("S2")
    assert reader.sees("S1")
    assert not reader.sees("S2")
    assert not reader.sees(None)
