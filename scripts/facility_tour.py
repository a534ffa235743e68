"""The tour of the local facility, each command shown as it is run.  Called by `make facility`."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.generator import make_s5p  # noqa: E402 - needs the path
from tests.support.local_facility import NODES, Facility  # noqa: E402 - as above

facility = Facility()
HOME = facility.directory.parent


def say(text: str) -> None:
    """A heading between the commands."""
    print(f"\n# {text}", flush=True)


def curl(arguments: str, show: int = 0) -> str:
    """Show a curl command, run it, show the beginning of what it says."""
    command = f"curl -sS --cacert {HOME}/ca.crt -H @{HOME}/header {arguments}"
    print(f"$ {command}", flush=True)
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode != 0:
        raise SystemExit(f"The command failed: {done.stderr}")
    if show:
        print("  " + done.stdout.strip()[:show].replace("\n", "\n  "), flush=True)
    return done.stdout


def main() -> int:
    """Ingest, read cold and warm through every balancer, look at tiers and nodes, remove."""
    facility.wait_ready()
    (HOME / "ca.crt").write_text(facility.ca.read_text())
    (HOME / "token").write_text(facility.operator + "\n")
    (HOME / "header").write_text(f"Authorization: Bearer {facility.operator}\n")
    for secret in ("token", "header"):
        (HOME / secret).chmod(0o600)
    url = facility.url()
    say("The nodes and how full their tiers are")
    curl(f"{url}/v1/nodes", show=1200)
    with tempfile.TemporaryDirectory() as directory:
        product = make_s5p(Path(directory), int(time.time()) % 100_000, size=64 << 20)
        say("A product goes in (digested on its way into the under-store)")
        answer = json.loads(curl(f"-T {product} {url}/v1/uploads/{product.name}", show=600))
    say("It is read by signed link: cold (from the under-store), then warm, through every balancer")
    href = f"/v1/products/{answer['id']}/files/{answer['files'][0]['path']}"
    for turn in ("cold", "warm"):
        for node in NODES:
            form = shlex.quote(f"{turn} through {node}: %{{http_code}}, %{{time_total}} s\n")
            curl(f"-L -o /dev/null -w {form} {facility.url(node)}{href}", show=200)
    say("What is cached of it, where")
    curl(f"{url}/v1/products/{answer['id']}/cache", show=600)
    say("The tiers of the facility")
    print("  " + json.dumps(json.loads(curl(f"{url}/v1/storage"))["tiers"]))
    say("It is removed; a tombstone stays")
    curl(f"-X DELETE {url}/v1/products/{answer['id']}", show=300)
    print(
        f"""
The facility is up: {url} (any node's balancer will do)
  authority  {HOME}/ca.crt
  token      {HOME}/token (for 24 h)
  try        curl --cacert {HOME}/ca.crt -H @{HOME}/header {url}/v1/storage
  stop       make facility-down"""
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
