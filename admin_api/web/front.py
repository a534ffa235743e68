"""``/``: what somebody finds who opens the service in a browser.  Says nothing to keep secret."""

from __future__ import annotations

from flask import Blueprint, Response

from admin_api.services import monitoring
from admin_api.web.auth import facility

api = Blueprint("front", __name__)

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Storage manager</title>
<style>
body {{ font: 1rem/1.5 system-ui; margin: 3rem auto; max-width: 40rem; padding: 0 1rem }}
code {{ background: #8883; padding: .1em .3em }}
</style>
<h1>Storage manager</h1>
<p>It takes the products of a processing facility in, hands them out, removes them, and says at any
time what is stored.</p>
<p>Health: <strong>{health}</strong> (<a href="healthz/ready">what is checked</a>)</p>
<ul>
<li><a href="openapi/swagger">The API, to read and to try</a>{how}</li>
<li><a href="openapi/openapi.json">Its OpenAPI description</a></li>
</ul>
<p>On a command line: <code>storage-manager --url … --token-file … ls</code></p>
</html>
"""
_HOW = ": a browser asks for a name (any) and a password (your token)"


@api.get("/")
def front() -> Response:
    """The front page; health in one word, as ``/healthz/ready`` has it in full."""
    failing = any(problem is not None for problem in monitoring.readiness(facility()).values())
    page = _PAGE.format(
        health="failing" if failing else "ok",
        how="" if facility().settings.auth.public_docs else _HOW,
    )
    response = Response(page, content_type="text/html; charset=utf-8")
    response.headers["Cache-Control"] = "no-store"
    response.headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
