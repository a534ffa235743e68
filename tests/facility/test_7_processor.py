"""A processor's view: a Java program reads an input and writes an output at ``alluxio://``."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import botocore
import botocore.config
import numpy
import pyarrow
import pyarrow.parquet
import pytest
import rasterio
import rasterio.transform

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


RASTER = """
import sys, numpy, rasterio
with rasterio.open("/vsicurl/" + sys.argv[1]) as found:
    print(int(found.read(1, window=((100, 110), (200, 210))).sum()))
"""
TABLE = """
import sys, ssl, fsspec, pyarrow.parquet
context = ssl.create_default_context(cafile=sys.argv[2])
with fsspec.open(sys.argv[1], ssl=context, cache_type="readahead") as file:
    print(pyarrow.parquet.read_table(file, columns=["b"]).column("b").to_pylist())
"""


def test_clients_that_read_parts_of_files_do_so_by_link(facility: Facility, tmp_path: Path) -> None:
    pixels = numpy.arange(512 * 512, dtype="uint32").reshape(512, 512)
    with rasterio.open(
        tmp_path / "in.tif",
        "w",
        driver="GTiff",
        width=512,
        height=512,
        count=1,
        dtype="uint32",
        transform=rasterio.transform.from_origin(0, 0, 10, 10),
    ) as raster:
        raster.write(pixels, 1)
    table = pyarrow.table({"a": list(range(100_000)), "b": list(range(100_000, 200_000))})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    links = {}
    for name in ("in.tif", "in.parquet"):
        data = (tmp_path / name).read_bytes()
        links[name] = facility.link(facility.upload(f"{time.time_ns()}-{name}", data))

    def said(program: str, *arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "GDAL_CURL_CA_BUNDLE": str(facility.ca)},
        ).stdout

    assert int(said(RASTER, links["in.tif"])) == pixels[100:110, 200:210].sum()
    assert json.loads(said(TABLE, links["in.parquet"], str(facility.ca))) == table["b"].to_pylist()


def test_aria2c_and_rclone_read_as_the_page_says(facility: Facility, tmp_path: Path) -> None:
    data = os.urandom(24 << 20)
    name = f"clients-{time.time_ns()}.bin"
    product = facility.upload(name, data)
    link = facility.link(product)
    # In pieces, from several connections.
    command = ["aria2c", "--quiet", f"--ca-certificate={facility.ca}", "-x", "4", "-s", "4"]
    subprocess.run([*command, "--min-split-size=4M", link], check=True, cwd=tmp_path)
    assert (tmp_path / name).read_bytes() == data

    rclone = [str(Path(sys.executable).parent / "rclone"), "--config", "", "--ca-cert"]
    rclone.append(str(facility.ca))
    subprocess.run([*rclone, "copyurl", link, str(tmp_path / "by-link")], check=True)
    assert (tmp_path / "by-link").read_bytes() == data
    key = product["files"][0]["uri"].split("/", 3)[3]
    token = facility.token("read", subject="clients")
    subprocess.run(
        [*rclone, "copyto", f":s3:{key}", str(tmp_path / "by-key"), "--s3-provider", "Other"]
        + ["--s3-endpoint", f"{facility.url('node2')}/api/v1/s3"]
        + ["--header", f"Authorization: Bearer {token}"],
        check=True,
    )
    assert (tmp_path / "by-key").read_bytes() == data
    facility.remove(product)


def test_wget_and_boto3_read_as_the_page_says(facility: Facility, tmp_path: Path) -> None:
    data = os.urandom(5 << 20)
    name = f"clients-{time.time_ns()}.bin"
    product = facility.upload(name, data)
    link = facility.link(product)
    command = ["wget", "--quiet", f"--ca-certificate={facility.ca}", "--content-disposition", "-c"]
    subprocess.run([*command, link], check=True, cwd=tmp_path)
    assert (tmp_path / name).read_bytes() == data

    client = boto3.client(
        "s3",
        endpoint_url=f"{facility.url('node2')}/api/v1/s3",
        region_name="us-east-1",
        verify=str(facility.ca),
        config=botocore.config.Config(
            signature_version=botocore.UNSIGNED,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"},
        ),
    )

    bearer = f"Bearer {facility.token('read', 'ingest', subject='clients')}"

    def add_token(request: Any, **_: object) -> None:
        request.headers["Authorization"] = bearer

    client.meta.events.register("before-send.s3", add_token)
    bucket, _, key = product["files"][0]["uri"].split("/", 3)[3].partition("/")
    assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == data
    client.download_file(bucket, key, str(tmp_path / "whole"))
    assert (tmp_path / "whole").read_bytes() == data
    client.put_object(Bucket="incoming", Key=f"clients/{name}", Body=data[:1000])
    assert client.head_object(Bucket="incoming", Key=f"clients/{name}")["ContentLength"] == 1000
    client.delete_object(Bucket="incoming", Key=f"clients/{name}")
    facility.remove(product)
