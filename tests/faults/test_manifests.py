"""Manifests against what products hold: at ingest, re-delivery and verification, one meaning."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from admin_api.errors import ManifestMismatch, ProductExists
from admin_api.services import uploads
from admin_api.services.access import Principal
from admin_api.services.facility import Facility
from admin_api.services.ingest import Order, ingest
from admin_api.services.verification import verify
from admin_api.services.wishes import Expected, Level, Outcome, Policy, Result, Wish
from tests.conftest import make_facility
from tests.generator import make_s1, make_s2, make_s3


@pytest.fixture
def facility(tmp_path: Path) -> Iterator[Facility]:
    made = make_facility(tmp_path, {"type": "posix", "root": tmp_path / "store"})
    yield made
    made.catalog.close()


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    return tmp_path / "inbox"


def take(
    facility: Facility, operator: Principal, tree: Path, policy: Policy = Policy.SKIP
) -> Outcome:
    wish = Wish(name=tree.name, policy=policy, level=Level.MANIFEST)
    return ingest(facility, operator, wish, Order(source=tree.as_uri()))


def with_algorithm(tree: Path, algorithm: str, spelling: str) -> Path:
    """The tree with checksums by another algorithm in its manifest."""
    manifest = tree / "manifest.safe"
    text = manifest.read_text().replace('"MD5"', f'"{spelling}"')
    for path in tree.rglob("*.jp2"):
        data = path.read_bytes()
        text = text.replace(
            hashlib.md5(data).hexdigest(), hashlib.new(algorithm, data).hexdigest().upper()
        )
    manifest.write_text(text)
    return tree


def test_what_ingest_compares_verification_compares_by_the_same_algorithms(
    facility: Facility, operator: Principal, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = with_algorithm(make_s2(inbox, files=3), "sha3_256", "SHA3-256")
    product = take(facility, operator, tree).product
    opened: list[str] = []
    storage_open = facility.storage.open

    def counting(key: str, *more: int) -> Iterator[bytes]:
        opened.append(key)
        return storage_open(key, *more)

    monkeypatch.setattr(facility.storage, "open", counting)
    results = list(verify(facility, operator, product.id, with_manifest=True))
    assert [item for item in results if not item.passed] == []
    assert results[-1].message == "all 3 entries are right"
    images = [key for key in opened if key.endswith(".jp2")]
    assert len(images) == len(set(images)) == 3


def test_a_damaged_product_is_told_with_what_to_do_about_it(
    facility: Facility, operator: Principal, inbox: Path, tmp_path: Path
) -> None:
    tree = with_algorithm(make_s2(inbox, files=3), "sha512", "SHA-512")
    outcome = take(facility, operator, tree)
    damaged, gone = (file for file in outcome.files if file.path.endswith(("B00.jp2", "B01.jp2")))
    (tmp_path / "store" / damaged.key).chmod(0o644)
    (tmp_path / "store" / damaged.key).write_bytes(bytes(damaged.size))
    (tmp_path / "store" / gone.key).unlink()
    results = verify(facility, operator, outcome.product.id, with_manifest=True)
    failed = {item.path: item.message for item in results if not item.passed}
    assert failed.keys() == {damaged.path, gone.path, "manifest.safe"}
    assert "the store holds other bytes" in failed[damaged.path]
    assert "the store does not have it any more" in failed[gone.path]
    assert f"'{damaged.path}': sha512" in failed["manifest.safe"]
    assert f"'{gone.path}' is missing" in failed["manifest.safe"]
    for message in failed.values():
        assert "duplicates=replace" in message
        assert "docs/operations.md#a-damaged-product" in message
    page = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
    assert "## A damaged product\n" in page.read_text()


@pytest.mark.parametrize("make", [make_s1, make_s3])
def test_a_manifest_at_the_top_is_compared_whatever_the_product_is_called(
    make, facility: Facility, operator: Principal, inbox: Path
) -> None:
    tree = make(inbox)
    plain = tree.rename(inbox / "a-plain-name")
    victim = max(plain.rglob("*.*"), key=lambda path: path.stat().st_size)
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ManifestMismatch, match=victim.name):
        take(facility, operator, plain)
    victim.write_bytes(whole)
    assert take(facility, operator, plain).result is Result.CREATED


def test_an_algorithm_that_is_not_known_refuses_the_product_by_name(
    facility: Facility, operator: Principal, inbox: Path
) -> None:
    tree = make_s2(inbox, files=1)
    manifest = tree / "manifest.safe"
    manifest.write_text(manifest.read_text().replace('"MD5"', '"shake_128"'))
    with pytest.raises(ManifestMismatch, match=r"B00.jp2.*'shake_128' is not known here"):
        take(facility, operator, tree)


def test_another_delivery_under_the_same_name_is_refused_before_its_manifest_is_looked_at(
    facility: Facility, operator: Principal, inbox: Path
) -> None:
    tree = with_algorithm(make_s2(inbox, files=2), "sha3_256", "SHA3-256")
    take(facility, operator, tree)
    assert take(facility, operator, tree).result is Result.SKIPPED
    for image in tree.rglob("*.jp2"):
        data = image.read_bytes()
        image.write_bytes(data[::-1])
        manifest = tree / "manifest.safe"
        before, after = (hashlib.sha3_256(item).hexdigest().upper() for item in (data, data[::-1]))
        manifest.write_text(manifest.read_text().replace(before, after))
    with pytest.raises(ProductExists, match="with other content"):
        take(facility, operator, tree)
    image.rename(image.with_name("B99.jp2"))
    manifest.write_text(manifest.read_text().replace(image.name, "B99.jp2"))
    with pytest.raises(ProductExists, match="with other content"):
        take(facility, operator, tree)


def test_another_delivery_by_session_is_refused_as_one_too(
    facility: Facility, operator: Principal, inbox: Path
) -> None:
    tree = make_s2(inbox, files=2)
    take(facility, operator, tree)
    session = uploads.begin(facility, operator, Wish(name=tree.name, level=Level.MANIFEST))
    for path in (item for item in tree.rglob("*") if item.is_file()):
        data = path.read_bytes() + b"other"  # nor does it agree with its own manifest
        inner = path.relative_to(tree).as_posix()
        uploads.receive_file(facility, operator, session.upload.id, inner, iter([data]), Expected())
    with pytest.raises(ProductExists):
        uploads.commit(facility, operator, session.upload.id)


def test_names_kept_escaped_are_found_by_what_the_manifest_calls_them(
    facility: Facility, operator: Principal, inbox: Path
) -> None:
    storage = facility.settings.storage.model_copy(update={"escape_names": True})
    settings = facility.settings.model_copy(update={"storage": storage})
    escaping = replace(facility, settings=settings)
    tree = make_s2(inbox, files=2)
    image = next(tree.rglob("B00.jp2"))
    image.rename(image.with_name("what?.jp2"))
    manifest = tree / "manifest.safe"
    manifest.write_text(manifest.read_text().replace("B00.jp2", "what?.jp2"))
    product = take(escaping, operator, tree).product
    assert all(item.passed for item in verify(escaping, operator, product.id, True))
