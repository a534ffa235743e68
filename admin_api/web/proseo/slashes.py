"""Double and trailing slashes, mended in place: these clients follow no redirects (contract, 1).

Put around the application by ``web/app.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

PREFIX = "/proseo/storage-mgr"
_OURS = re.compile(r"/+(?:proseo/+storage-mgr/|actuator/+health(?:/|$))")


class Slashes:
    """WSGI middleware; paths of others are left as they are."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if _OURS.match(path):
            environ["PATH_INFO"] = re.sub(r"/{2,}", "/", path).rstrip("/")
        return self._application(environ, start_response)
