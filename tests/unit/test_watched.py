"""Files that operators change while the service runs: a slip of the pen locks nobody out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from admin_api.errors import ConfigurationError, Unauthorized
from admin_api.services.access import Authority, Scope
from admin_api.services.callers import Callers, line_of
from admin_api.services.download_tokens import DownloadTokens
from admin_api.settings import AuthSettings, ProseoSettings
from tests.proseo.conftest import token

SLIPS = [b"", b"one\n", b"\xff\xfe", None, Path("a directory")]
KEY = "k1 0123456789abcdef0123456789abcdef\n"
SECRET = "a secret of both services"


def caller(file: Path) -> Callable[[], object]:
    file.write_text(line_of("wrapper", "wrapper-password", [Scope.READ], None) + "\n")
    callers = Callers(ProseoSettings(callers_file=file))
    return lambda: callers.by_password("wrapper", "wrapper-password")


def bearer(file: Path) -> Callable[[], object]:
    file.write_text(KEY)
    authority = Authority(AuthSettings(key_file=file))
    made = authority.issue("ann", [Scope.READ], timedelta(hours=1))
    return lambda: authority.check(made)


def downloader(file: Path) -> Callable[[], object]:
    file.write_text(SECRET)
    tokens = DownloadTokens(ProseoSettings(secret_file=file))
    made = token("x.nc", secret=SECRET)
    return lambda: tokens.check(made)


@pytest.mark.parametrize(
    "slip", SLIPS, ids=["empty", "half a line", "not UTF-8", "gone", "unreadable"]
)
@pytest.mark.parametrize("kind", [caller, bearer, downloader])
def test_a_file_that_cannot_be_used_any_more_is_told_once_and_what_it_said_counts_on(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: Callable[[Path], Callable[[], object]],
    slip: bytes | Path | None,
) -> None:
    file = tmp_path / "watched"
    check = kind(file)
    check()
    if isinstance(slip, bytes):
        file.write_bytes(slip)
    else:
        file.unlink()
        if slip is not None:
            file.mkdir()
    if (kind, slip) == (caller, b""):  # nobody may call, which an operator can want
        with pytest.raises(Unauthorized):
            check()
        return
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            check()
    (told,) = (record.getMessage() for record in caplog.records)
    assert "counts on" in told
    assert SECRET not in told and "0123456789" not in told


@pytest.mark.parametrize("kind", [caller, bearer, downloader])
def test_a_file_that_was_mended_counts_at_once(
    tmp_path: Path, kind: Callable[[Path], Callable[[], object]]
) -> None:
    file = tmp_path / "watched"
    check = kind(file)
    file.write_bytes(b"x")
    check()
    other = {
        caller: line_of("other", "other-password", [Scope.READ], None),
        bearer: "k2 fedcba9876543210fedcba9876543210",
        downloader: "another secret of both services",
    }
    file.write_text(other[kind])
    with pytest.raises(Unauthorized):
        check()


def test_a_service_does_not_start_with_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "watched"
    for slip in (b"\xff\xfe", None):
        file.unlink(missing_ok=True)
        if slip is not None:
            file.write_bytes(slip)
        with pytest.raises(ConfigurationError, match="Cannot read the callers file"):
            Callers(ProseoSettings(callers_file=file))
