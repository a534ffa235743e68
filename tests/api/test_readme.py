"""The README's first curl works as printed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time

from tests.support.servers import ROOT


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
