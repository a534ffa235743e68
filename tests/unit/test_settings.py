"""Settings: wrong ones are told by key, unknown ones are errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from admin_api.errors import ConfigurationError
from admin_api.settings import HousekeepingSettings, load

GOOD = """
state_dir = "/tmp/state"
[storage]
mounts = [{ backend = { type = "posix", root = "/tmp/store" } }]
[auth]
key_file = "/tmp/keys"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


def test_few_settings_are_enough(path: Path) -> None:
    path.write_text(GOOD)
    settings = load(path)
    assert settings.profile == "posix"
    assert settings.catalog.url == "sqlite:////tmp/state/catalog.sqlite"
    assert settings.server.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("[server]\nprot = 80\n", "server.prot"),
        ("[surver]\nport = 80\n", "surver"),
        ("[server]\nport = 99999\n", "server.port"),
        ("[server\n", "not valid TOML"),
        ("[catalog]\nurl = 3\n", "catalog.url"),
        ("[housekeeping]\ngrace_seconds = 0.9\n", "grace_seconds.*given up while it runs. Set at"),
        ("[housekeeping]\ncommit_grace_seconds = 0\n", "commit_grace_seconds.*Set at least 1.0"),
    ],
)
def test_wrong_settings_are_told_by_key(path: Path, added: str, said: str) -> None:
    path.write_text(GOOD + added)
    with pytest.raises(ConfigurationError, match=said):
        load(path)


@pytest.mark.parametrize("grace", [1.0, 4.0, 30.0, 3600.0])
@pytest.mark.parametrize("commit_grace", [1.0, 2.0, 30.0, 3600.0])
def test_several_signs_of_life_fit_into_every_grace_time(grace: float, commit_grace: float) -> None:
    settings = HousekeepingSettings(grace_seconds=grace, commit_grace_seconds=commit_grace)
    assert 0 < settings.beat_seconds <= min(grace, commit_grace) / 4
    assert settings.beat_seconds <= 5


def test_a_misspelt_variable_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(GOOD)
    monkeypatch.setenv("STORAGE_MANAGER_SERVER__PORT", "1234")
    assert load(path).server.port == 1234
    monkeypatch.setenv("STORAGE_MANAGER_SEVRER__PORT", "1234")
    with pytest.raises(ConfigurationError, match="SEVRER"):
        load(path)


def test_a_template_without_the_name_is_refused(path: Path) -> None:
    path.write_text(GOOD.replace("mounts =", 'key_template = "{mission}"\nmounts ='))
    with pytest.raises(ConfigurationError, match="must end with"):
        load(path)


def test_no_settings_file_is_told_with_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match="--settings"):
        load(None)


def test_the_settings_of_the_operations_manual_are_valid(path: Path) -> None:
    manual = Path(__file__).parents[2] / "docs/operations.md"
    path.write_text(manual.read_text().partition("```toml\n")[2].partition("```")[0])
    settings = load(path)
    assert settings.profile == "s3_nfs"
    assert [mount.path for mount in settings.storage.mounts] == ["", "archive"]


def test_the_settings_of_the_page_about_proseo_are_valid(path: Path) -> None:
    page = Path(__file__).parents[2] / "docs/proseo.md"
    path.write_text(GOOD + page.read_text().partition("```toml\n")[2].partition("```")[0])
    settings = load(path)
    assert settings.proseo.enabled
    assert settings.staging.in_place is False


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("[proseo]\nenabled = true\nmount = 'x'\n", "proseo.mount 'x' is the path of no mount"),
        ("[proseo]\nenabled = true\naccept = ['basic']\n", "needs proseo.callers_file"),
        (
            "[proseo]\nenabled = true\naccept = ['certificate']\ncallers_file = '/x'\n",
            "needs proseo.proxies",
        ),
        ("[proseo]\naccept = ['password']\n", "proseo.accept"),
        ("[staging]\nlow_percent = 90\n", "low_percent must be below"),
    ],
)
def test_settings_of_staging_and_proseo_that_contradict_each_other_are_told(
    path: Path, added: str, said: str
) -> None:
    path.write_text(GOOD + added)
    with pytest.raises(ConfigurationError, match=said):
        load(path)
