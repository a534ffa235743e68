"""Facilities of their own on fresh hosts, which are built beside the one of the other tests.

They share with it the bastion, the S3 server and the share that stand for a site's.  Where these do not
stand they are made, and everything is taken away at the end.  CI runs this folder beside the other tests.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.facility.conftest import KEEP, machine, s3_server
from tests.support.local_facility import Facility, ground


@pytest.fixture(scope="package")
def facility() -> Iterator[Facility]:
    """What is there before there is a facility."""
    found = Facility()
    with ground("hosts"):
        if "s3" in found.hosts_that_stand():
            yield found
            return
        before = machine()
        found.hosts("up", "bastion", "s3")
        s3_server()
        yield found
        if not KEEP:
            found.hosts("down")
            left = {what: lines - before[what] for what, lines in machine().items()}
            assert not any(left.values()), f"the local hosts left something here: {left}"


@pytest.fixture(autouse=True)
def healthy() -> None:
    """Nothing stands beside these tests that they could have done something to."""
