"""Buckets as they are: directory markers, and keys that cannot be ours (a moto server)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from admin_api.errors import InvalidKey, SourceDenied, SourceNotFound, SourceUnavailable, TooLarge
from admin_api.services.sources import Sources, buckets
from admin_api.settings import LimitSettings, SourceSettings

BUCKET = "inbox"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path):
    """A client of an empty bucket, and the sources that may be read from it."""
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
    client.create_bucket(Bucket=BUCKET)
    for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])
    credentials = tmp_path / "credentials"
    lines = "".join(f"{name} = {value}\n" for name, value in keys.items())
    credentials.write_text(f"[default]\n{lines}")
    backend = {
        "bucket": BUCKET,
        "endpoint": endpoint,
        "credentials_file": credentials,
        "retry_seconds": 0,
    }
    settings = SourceSettings(s3=[{"backend": backend}])
    return client, Sources(settings, LimitSettings(max_product_files=5))


def put(client, **objects: bytes) -> None:
    for key, data in objects.items():
        client.put_object(Bucket=BUCKET, Key=key, Body=data)


def listing(sources: Sources, key: str) -> dict[str, bytes]:
    found = sources.find(f"s3://{BUCKET}/{key}")
    return {file.path: b"".join(file.open()) for file in found.files}


def test_empty_objects_that_stand_for_directories_are_no_files(bucket) -> None:
    client, sources = bucket
    put(
        client,
        **{
            "a/": b"",
            "a/X.SAFE/": b"",
            "a/X.SAFE/measurement/": b"",
            "a/X.SAFE/measurement/deep/": b"",
            "a/X.SAFE_$folder$": b"",
            "a/X.SAFE/measurement_$folder$": b"",
            "a/X.SAFE/annotation": b"",
            "a/X.SAFE/annotation/a.xml": b"<a/>",
            "a/X.SAFE/measurement/m.tiff": b"tiff",
            "a/X.SAFE/empty.txt": b"",
        },
    )
    whole = {"annotation/a.xml": b"<a/>", "measurement/m.tiff": b"tiff", "empty.txt": b""}
    assert listing(sources, "a/X.SAFE") == whole
    assert listing(sources, "a/X.SAFE/") == whole
    assert listing(sources, "a/X.SAFE/empty.txt") == {"empty.txt": b""}


def test_a_directory_of_markers_only_names_nothing(bucket) -> None:
    client, sources = bucket
    put(client, **{"a/X.SAFE/": b"", "a/X.SAFE/measurement/": b""})
    with pytest.raises(SourceNotFound):
        listing(sources, "a/X.SAFE")


@pytest.mark.parametrize(
    "bad", ["//y.nc", "/m//y.nc", "/../y.nc", "/tab\t.nc", "/back\\slash", "/b/"]
)
def test_a_key_that_cannot_be_ours_is_named_beneath_the_source_and_matters_nowhere_else(
    bucket, bad: str
) -> None:
    client, sources = bucket
    put(client, **{"a/X.SAFE/x.nc": b"x", f"a/Y.SAFE{bad}": b"bad", "a//z": b"bad", "//": b"bad"})
    assert listing(sources, "a/X.SAFE") == {"x.nc": b"x"}
    with pytest.raises(InvalidKey, match="cannot be a file of a product") as caught:
        listing(sources, "a/Y.SAFE")
    assert repr(f"a/Y.SAFE{bad}") in str(caught.value)


def test_a_bucket_is_asked_with_one_client_however_many_files_are_listed(bucket) -> None:
    client, sources = bucket
    put(client, **{"a/1": b"1", "a/2": b"2"})
    made = buckets._bucket.cache_info().misses
    for key in ("a/1", "a/2", "a/1", "a"):
        listing(sources, key)
    assert buckets._bucket.cache_info().misses - made <= 1


def test_what_is_no_key_is_refused_and_no_other_key_is_read_for_it(bucket) -> None:
    client, sources = bucket
    put(client, **{"a/x": b"x"})
    for uri in (
        "s3://inbox/a/x?versionId=secret",
        "s3://inbox/a/x#secret",
        "s3://me:secret@inbox/a/x",
    ):
        with pytest.raises(SourceDenied) as caught:
            sources.find(uri)
        assert "secret" not in str(caught.value)
    with pytest.raises(InvalidKey):
        sources.find("s3://inbox/a//x")


def test_more_objects_than_a_product_may_have_end_the_listing(bucket) -> None:
    client, sources = bucket
    put(client, **{f"a/{number}": b"x" for number in range(25)})
    with pytest.raises(TooLarge, match="more than 5 files"):
        listing(sources, "a")


def test_a_service_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    backend = {
        "bucket": BUCKET,
        "endpoint": "http://127.0.0.1:9",
        "credentials_file": credentials,
        "retry_seconds": 0,
    }
    gone = Sources(SourceSettings(s3=[{"backend": backend}]), LimitSettings())
    with pytest.raises(SourceUnavailable):
        gone.find("s3://inbox/a")
