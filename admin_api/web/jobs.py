"""``/v1/imports``, ``/v1/removals``, ``/v1/jobs``: many products at once, item by item."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from flask import Response, request
from pydantic import BaseModel, ValidationError

from admin_api.catalog.jobs import JobEntry, JobFilter
from admin_api.errors import InvalidRequest, UnsupportedMediaType
from admin_api.services import idempotency, intake, jobs, scans, stac
from admin_api.services.access import Scope
from admin_api.services.intake import Asked
from admin_api.services.jobs import NewItem
from admin_api.services.wishes import other_digests
from admin_api.uris import shown
from admin_api.web import problems, schemas
from admin_api.web.auth import closed_blueprint, facility, json_body, needs, parsed, principal
from admin_api.web.body import manifest
from admin_api.web.replies import json_reply, ndjson, ndjson_documented

api = closed_blueprint("jobs", "Jobs", takes_json=False)

_LINES = ("application/x-ndjson", "application/ndjson", "application/jsonl")
_JSON = ("application/json", "application/geo+json")
T = TypeVar("T", bound=BaseModel)
_ANYBODY = (Scope.READ, Scope.INGEST, Scope.REMOVE)


def _bodies(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI documentation of the bodies that a job can begin with."""
    schema = model.model_json_schema()
    kinds = schema.pop("$defs", {})

    def inlined(part: Any) -> Any:
        if isinstance(part, list):
            return [inlined(item) for item in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return inlined(kinds[part["$ref"].rpartition("/")[2]])
        return {name: inlined(item) for name, item in part.items()}

    return {
        "requestBody": {
            "required": True,
            "content": {
                _LINES[0]: {"schema": {"type": "string", "format": "binary"}},
                _JSON[0]: {"schema": inlined(schema)},
            },
        }
    }


# -- beginning -----------------------------------------------------------------------------------
@api.post(
    "/imports",
    summary="Import many products",
    openapi_extensions=_bodies(schemas.ImportRequest),
    responses={"202": schemas.JobAnswer, **problems.responses(409, 415, 422, 502)},
)
@needs(Scope.INGEST)
def begin_import(query: schemas.ImportOptions, header: schemas.IdempotencyHeader) -> Response:
    """A manifest of JSON lines, taken as it arrives, with the options in the query; or JSON.

    A line is what `POST /v1/products` takes, a URL, or a STAC item.  JSON is a list of these, an
    object with `items` or `source`, or a STAC item collection.
    """

    def begin(chunks: Callable[[], Iterator[bytes]]) -> JobEntry:
        if request.mimetype in _LINES:
            return _receive(jobs.IMPORT, query, _manifest(chunks, _wanted))
        body = _body(chunks)
        if isinstance(body, list):
            return _receive(jobs.IMPORT, query, intake.listed(body, _wanted))
        if isinstance(body, dict) and body.get("type") == "FeatureCollection":
            return _receive(jobs.IMPORT, query, intake.listed(stac.features(body), _wanted))
        return import_of(_merged(query, body))

    return _begun(header, begin)


@api.post(
    "/removals",
    summary="Remove many products",
    openapi_extensions=_bodies(schemas.RemovalRequest),
    responses={"202": schemas.JobAnswer, **problems.responses(409, 415, 422, 502)},
)
@needs(Scope.REMOVE)
def begin_removal(query: schemas.RemovalOptions, header: schemas.IdempotencyHeader) -> Response:
    """By a manifest of JSON lines (objects with `id` or `name`, or ids), a list, or a filter."""

    def begin(chunks: Callable[[], Iterator[bytes]]) -> JobEntry:
        if request.mimetype in _LINES:
            return _receive(jobs.REMOVAL, query, _manifest(chunks, _unwanted))
        body = _body(chunks)
        if isinstance(body, list):
            return _receive(jobs.REMOVAL, query, intake.listed(body, _unwanted))
        return removal_of(_merged(query, body))

    return _begun(header, begin)


def import_of(body: object) -> JobEntry:
    """The job of an import that is asked for in JSON; raises InvalidRequest and SourceDenied."""
    asked = _valid(schemas.ImportRequest, body)
    if (asked.items is None) == (asked.source is None):
        raise InvalidRequest("Give either items or a source to search, not both.")
    if asked.items is not None:
        return _receive(jobs.IMPORT, asked, intake.listed(asked.items, _wanted))
    assert asked.source is not None
    scans.check(facility(), principal(), asked.source, asked.mode == "register")
    return _search(jobs.IMPORT, asked, {"source": asked.source})


def removal_of(body: object) -> JobEntry:
    """The job of a removal that is asked for in JSON; raises InvalidRequest."""
    asked = _valid(schemas.RemovalRequest, body)
    if (asked.items is None) == (asked.filter is None):
        raise InvalidRequest("Give either items or a filter, not both.")
    if asked.items is not None:
        return _receive(jobs.REMOVAL, asked, intake.listed(asked.items, _unwanted))
    assert asked.filter is not None
    told = asked.filter.model_dump(mode="json", exclude_none=True)
    if not told:
        raise InvalidRequest("The filter is empty: it would remove every product.")
    return _search(jobs.REMOVAL, asked, {"filter": told})


def _begun(
    header: schemas.IdempotencyHeader,
    begin: Callable[[Callable[[], Iterator[bytes]]], JobEntry],
) -> Response:
    named = f"POST {request.full_path}\0{request.content_length}\0{request.mimetype}"
    fingerprint = hashlib.sha256(named.encode("utf-8", "surrogateescape")).hexdigest()

    def action(chunks: Callable[[], Iterator[bytes]]) -> tuple[int, dict[str, Any]]:
        job = begin(chunks)
        report = jobs.show(facility(), principal(), job.id)
        return 202, schemas.job_answer(report).model_dump(mode="json")

    status, answer = idempotency.once(
        facility(), principal(), header.idempotency_key, fingerprint, action, _chunks
    )
    reply = json_reply(answer, status)
    reply.headers["Location"] = answer["href"]
    return reply


def _chunks() -> Iterator[bytes]:
    """The body: a manifest as it arrives, JSON within the limits for JSON."""
    if request.mimetype in _LINES:
        yield from manifest(request, facility().settings.limits)
    elif request.mimetype in _JSON:
        yield json_body()
    else:
        raise UnsupportedMediaType(
            f"The body must be a manifest of JSON lines ({_LINES[0]}) or {_JSON[0]}."
        )


def _body(chunks: Callable[[], Iterator[bytes]]) -> object:
    return parsed(b"".join(chunks()))


def _merged(query: BaseModel, body: object) -> object:
    """What the body says, and besides what only the query does."""
    return {**query.model_dump(exclude_unset=True), **body} if isinstance(body, dict) else body


def _manifest(
    chunks: Callable[[], Iterator[bytes]], read: intake.Reader
) -> Iterator[NewItem | None]:
    return intake.lines(chunks(), read, facility().settings.jobs.max_line_bytes)


def _options(asked: BaseModel, more: Mapping[str, Any]) -> dict[str, Any]:
    about = {"items", "source", "filter", "priority", "concurrency"}
    return {**asked.model_dump(mode="json", exclude=about, exclude_none=True), **more}


def _receive(
    kind: str,
    asked: schemas.ImportOptions | schemas.RemovalOptions,
    told: Iterator[NewItem | None] | Iterator[NewItem],
) -> JobEntry:
    options = _options(asked, {})
    return intake.receive(
        facility(), principal(), kind, options, told, asked.priority, asked.concurrency
    )


def _search(
    kind: str,
    asked: schemas.ImportOptions | schemas.RemovalOptions,
    where: Mapping[str, Any],
) -> JobEntry:
    options = _options(asked, where)
    return jobs.search(facility(), principal(), kind, options, asked.priority, asked.concurrency)


def _wanted(entry: object) -> Asked:
    """A line of an import."""
    if isinstance(entry, str):
        entry = {"source": entry}
    elif isinstance(entry, dict) and stac.is_item(entry):
        entry = stac.wanted(entry)
    item = _valid(schemas.IngestRequest, entry)
    if (item.source is None) == (not item.files):
        raise InvalidRequest("Name either one source or the files, not both and not neither.")
    for digests in (item.digests, *(file.digests for file in item.files)):
        other_digests(digests)
    sizes = [item.size] if item.source else [file.size for file in item.files]
    return Asked(
        item.model_dump(mode="json", exclude_unset=True),
        item.name or shown(item.source or "").rstrip("/").rpartition("/")[2],
        sum(size for size in sizes if size is not None) or None,
    )


def _unwanted(entry: object) -> Asked:
    """A line of a removal."""
    if isinstance(entry, str):
        entry = {"id": entry}
    item = _valid(schemas.RemovalItem, entry)
    if (item.id is None) == (item.name is None):
        raise InvalidRequest("Name the product by its id or by its name.")
    return Asked(item.model_dump(exclude_none=True), item.name or item.id or "", None)


def _valid(model: type[T], entry: object) -> T:
    try:
        return model.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[:5]
        told = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'it'}: {item['msg']}"
            for item in first
        )
        raise InvalidRequest(f"This is no item as it should be: {told}.") from None


# -- telling -------------------------------------------------------------------------------------
@api.get(
    "/jobs",
    summary="List jobs",
    responses={"200": schemas.JobPage, **problems.responses()},
)
@needs(*_ANYBODY)
def list_jobs(query: schemas.JobQuery) -> Response:
    """One's own jobs, the newest first; an administrator sees those of all."""
    wish = JobFilter(
        state=query.state,
        kind=query.kind,
        subject=query.subject,
        created_from=query.created_from,
        created_to=query.created_to,
    )
    page, cursor = jobs.find(facility(), principal(), wish, query.cursor, query.limit)
    return json_reply(
        schemas.JobPage(jobs=[schemas.job_answer(report) for report in page], next=cursor)
    )


@api.get(
    "/jobs/<job_id>",
    summary="Show a job",
    responses={"200": schemas.JobAnswer, **problems.responses(404)},
)
@needs(*_ANYBODY)
def show(path: schemas.JobPath) -> Response:
    """How far it is, at what rate, and what failed of what."""
    return json_reply(schemas.job_answer(jobs.show(facility(), principal(), path.job_id)))


@api.get(
    "/jobs/<job_id>/items",
    summary="List the items of a job",
    responses={"200": ndjson_documented(), **problems.responses(404)},
)
@needs(*_ANYBODY)
def list_items(path: schemas.JobPath, query: schemas.JobItemsQuery) -> Response:
    """A line for each item; the last line has the place to go on from (`next`)."""
    found = jobs.items(
        facility(), principal(), path.job_id, query.outcome, query.after, query.limit
    )

    def lines() -> Iterator[dict[str, Any]]:
        count, following = 0, query.after
        for item in found:
            count, following = count + 1, jobs.cursor_of(item, query.outcome)
            yield schemas.job_item(item)
        yield {"type": "summary", "items": count, "next": following}

    return ndjson(lines())


# -- controlling ---------------------------------------------------------------------------------
@api.post(
    "/jobs/<job_id>/retry",
    summary="Queue the failed items of a job again",
    responses={"200": schemas.RetryAnswer, **problems.responses(404)},
)
@needs(Scope.INGEST, Scope.REMOVE)
def retry(path: schemas.JobPath, query: schemas.RetryQuery) -> Response:
    """Only those; lines of the manifest that told no item stay failed."""
    report, count = jobs.retry(facility(), principal(), path.job_id, query.code)
    answer = schemas.job_answer(report)
    return json_reply(schemas.RetryAnswer(**dict(answer), retried=count))


@api.post(
    "/jobs/<job_id>/pause",
    summary="Begin no more items of a job for now",
    responses={"200": schemas.JobAnswer, **problems.responses(404)},
)
@needs(Scope.INGEST, Scope.REMOVE)
def pause(path: schemas.JobPath) -> Response:
    """Those under way end as they do."""
    report = jobs.pause(facility(), principal(), path.job_id, True)
    return json_reply(schemas.job_answer(report))


@api.post(
    "/jobs/<job_id>/resume",
    summary="Go on with a paused job",
    responses={"200": schemas.JobAnswer, **problems.responses(404)},
)
@needs(Scope.INGEST, Scope.REMOVE)
def resume(path: schemas.JobPath) -> Response:
    """As if it had never been paused."""
    report = jobs.pause(facility(), principal(), path.job_id, False)
    return json_reply(schemas.job_answer(report))


@api.delete(
    "/jobs/<job_id>",
    summary="Cancel a job",
    responses={"200": schemas.JobAnswer, **problems.responses(404)},
)
@needs(Scope.INGEST, Scope.REMOVE)
def cancel(path: schemas.JobPath) -> Response:
    """Idempotent.  What is done stays done; items under way end as they do."""
    return json_reply(schemas.job_answer(jobs.cancel(facility(), principal(), path.job_id)))
