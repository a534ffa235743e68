"""What the documents print works as printed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from admin_api.settings import Settings
from tests.support.servers import ROOT, Service, wait_until


def printed(document: str, heading: str, language: str) -> list[str]:
    """The blocks of a language beneath a heading of a document."""
    text = (ROOT / document).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_settings_that_the_operations_page_shows_are_settings() -> None:
    [shown] = printed("docs/operations.md", "The admin API alone: set up", "toml")
    settings = Settings(**tomllib.loads(shown))
    assert settings.sources.s3[0].backend.bucket == "archive"


def test_the_admin_api_is_set_up_and_probed_as_the_operations_page_prints_it(
    make_service, tmp_path: Path
) -> None:
    set_up, probe = printed("docs/operations.md", "The admin API alone: set up", "sh")
    prepared: Service = make_service(auth={"key_file": tmp_path / "keys"})
    (tmp_path / "settings.toml").write_text(prepared.settings_file.read_text())
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "STORAGE_MANAGER_URL": prepared.url,
    }
    served = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", set_up],
        cwd=tmp_path,
        env=environment,
        start_new_session=True,
    )
    try:
        live = f"{prepared.url}/healthz/live"
        wait_until(lambda: prepared.pool.request("GET", live).status == 200, 60, "the service")
        done = subprocess.run(
            ["bash", "-c", probe], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    finally:
        os.killpg(served.pid, signal.SIGTERM)
        served.wait()


@pytest.mark.parametrize("ours", [True, False])
def test_a_new_demonstration_ends_the_one_that_was_left_running_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    from scripts import demo

    monkeypatch.setattr(demo, "DEMO", tmp_path / "demo")
    (tmp_path / "demo").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)", "serve"],
        cwd=tmp_path / "demo" if ours else tmp_path,
        start_new_session=True,
    )
    try:
        (tmp_path / "demo" / "pid").write_text(str(process.pid))
        # As the service, it is at work before it is told to end.
        wait_until(lambda: demo.words_of(process.pid)[-1:] == [b"serve"], 10, "the older one")
        demo.end_older()
        if ours:
            process.wait(60)
        else:
            assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_the_first_curl_of_the_readme_works_as_printed() -> None:
    text = (ROOT / "README.md").read_text()
    block = text.partition("## A first curl")[2].partition("```sh\n")[2].partition("```")[0]
    assert "make demo KEEP=1" in block
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.replace("curl ", "curl -fsS ")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "DATA": ""},
    )
    stop = re.search(r"Stop it with: kill (\d+)", done.stdout)
    if stop:
        os.killpg(int(stop[1]), signal.SIGTERM)
        time.sleep(1)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert '"profile":"posix"' in done.stdout
    assert '"result": "created"' in done.stdout
    assert done.stdout.count('"name":"first.toml"') == 1
