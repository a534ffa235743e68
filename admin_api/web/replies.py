"""How answers are written: JSON, and JSON lines for long work.  Called by the views."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

from flask import Response, stream_with_context
from pydantic import BaseModel

from admin_api.errors import StorageManagerError

log = logging.getLogger(__name__)

NDJSON = "application/x-ndjson"


def json_reply(body: BaseModel | dict[str, Any], status: int = 200) -> Response:
    """A JSON answer in UTF-8."""
    if isinstance(body, BaseModel):
        text = body.model_dump_json()
    else:
        text = json.dumps(body, ensure_ascii=False)
    return Response(text + "\n", status, content_type="application/json")


def ndjson(lines: Iterator[dict[str, Any]]) -> Response:
    """Long work as it goes on: one JSON object per line, the last one says how it ended.

    The first line is made before the status is sent, so an error there becomes a problem.
    """
    first = next(lines, None)

    def text() -> Iterator[str]:
        try:
            if first is not None:
                yield json.dumps(first, ensure_ascii=False) + "\n"
            for line in lines:
                yield json.dumps(line, ensure_ascii=False) + "\n"
        except StorageManagerError as error:
            log.exception("long work failed")
            yield json.dumps({"type": "error", "code": error.code, "detail": error.detail}) + "\n"

    return Response(stream_with_context(text()), content_type=NDJSON)


def ndjson_documented() -> dict[str, Any]:
    """OpenAPI documentation of such an answer."""
    return {
        "description": "JSON lines; the last one has the type summary or error",
        "content": {NDJSON: {"schema": {"type": "string"}}},
    }
