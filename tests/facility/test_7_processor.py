"""A processor's view: a Java program reads an input and writes an output at ``alluxio://``."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.local_facility import ADDRESSES, ROOT, Facility

SOURCE = Path(__file__).parent / "processor"


@pytest.fixture(scope="module")
def class_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program, compiled, and the client's jars."""
    target = tmp_path_factory.mktemp("processor")
    subprocess.run(
        ["mvn", "--batch-mode", "--quiet", "-f", str(SOURCE / "pom.xml")]
        + ["dependency:copy-dependencies", f"-DoutputDirectory={target / 'lib'}"],
        check=True,
    )
    subprocess.run(
        ["javac", "-cp", f"{target / 'lib'}/*", "-d", str(target)]
        + [str(SOURCE / "src/main/java/Processor.java")],
        check=True,
    )
    return f"{target}:{target / 'lib'}/*"


def process(class_path: str, facility: Facility, source: str, target: str, user: str) -> list[str]:
    # The hosts know each other by name; this machine learns the names for this one program.
    hosts = facility.directory / "hosts.txt"
    names = {**ADDRESSES, socket.gethostname(): "10.89.8.1"}
    hosts.write_text("".join(f"{address} {name}\n" for name, address in names.items()))
    done = subprocess.run(
        ["java", f"-Djdk.net.hosts.file={hosts}", f"-Dalluxio.security.login.username={user}"]
        + ["-Dalluxio.logger.type=Console", "-cp", class_path, "Processor", source, target],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


def test_a_processor_reads_its_input_and_its_output_becomes_a_product(
    facility: Facility, class_path: str
) -> None:
    data = os.urandom(30 << 20)
    product = facility.upload(f"input-{time.time_ns()}.bin", data)
    source = product["files"][0]["uri"]
    assert source.startswith("alluxio://control:19998/")
    name = f"output-{time.time_ns()}.bin"
    target = f"alluxio://control:19998/incoming/processor/{name}"
    size, read, written = process(class_path, facility, source, target, "pod")
    assert (int(size), read) == (len(data), hashlib.sha256(data).hexdigest())
    token = facility.token("read", "ingest", subject="processor")
    body = {"source": target, "size": int(size), "sha256": written}
    output = facility.json("POST", "/v1/products", body, token=token)
    expected = bytes(byte ^ 0xFF for byte in data)
    assert facility.read(facility.link(output)) == expected
    assert output["files"][0]["sha256"] == hashlib.sha256(expected).hexdigest()
    facility.remove(output)
    facility.remove(product)


def test_a_processor_that_is_not_alluxio_s_own_user_cannot_change_a_product(
    facility: Facility, class_path: str
) -> None:
    """An accident is held off; whoever calls himself alluxio is not: the network decides that."""
    data = os.urandom(1 << 20)
    product = facility.upload(f"kept-{time.time_ns()}.bin", data)
    source = product["files"][0]["uri"]
    target = source.rpartition("/")[0] + "/intruder"
    with pytest.raises(AssertionError, match="Permission denied"):
        process(class_path, facility, source, target, "pod")
    assert facility.read(facility.link(product)) == data
    facility.remove(product)
