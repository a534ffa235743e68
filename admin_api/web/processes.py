"""``/v1/ogc``: bulk jobs in the shape of OGC API - Processes (part 1), over ``web/jobs.py``."""

from __future__ import annotations

from typing import Any

from flask import Response
from pydantic import BaseModel

from admin_api.catalog.jobs import JobFilter
from admin_api.errors import NotFound
from admin_api.services import jobs
from admin_api.services.access import Scope
from admin_api.services.jobs import Report
from admin_api.web import problems, schemas
from admin_api.web.auth import closed_blueprint, facility, needs, principal
from admin_api.web.jobs import import_of, removal_of
from admin_api.web.replies import NDJSON, json_reply

api = closed_blueprint("processes", "OGC API - Processes")

_ROOT = "/v1/ogc"
_CONFORMANCE = [
    f"http://www.opengis.net/spec/ogcapi-processes-1/1.0/conf/{name}"
    for name in ("core", "ogc-process-description", "json", "job-list", "dismiss")
]
_KINDS = {"import": jobs.IMPORT, "remove": jobs.REMOVAL}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_MODELS: dict[str, type[BaseModel]] = {
    "import": schemas.ImportRequest,
    "remove": schemas.RemovalRequest,
}
_TITLES = {"import": "Import many products", "remove": "Remove many products"}
_ANYBODY = (Scope.READ, Scope.INGEST, Scope.REMOVE)


def _link(path: str, relation: str, kind: str = "application/json") -> dict[str, str]:
    return {"href": path, "rel": relation, "type": kind}


@api.get(
    "/ogc/conformance",
    summary="What of OGC API - Processes is kept",
    responses={"200": schemas.Conformance, **problems.responses()},
)
@needs(*_ANYBODY)
def conformance() -> Response:
    """The conformance classes."""
    return json_reply({"conformsTo": _CONFORMANCE})


@api.get(
    "/ogc/processes",
    summary="List processes",
    responses={"200": schemas.ProcessList, **problems.responses()},
)
@needs(*_ANYBODY)
def list_processes() -> Response:
    """Import and removal."""
    links = [_link(f"{_ROOT}/processes", "self")]
    return json_reply({"processes": [_summary(name) for name in _KINDS], "links": links})


@api.get(
    "/ogc/processes/<process_id>",
    summary="Describe a process",
    responses={"200": schemas.Process, **problems.responses(404)},
)
@needs(*_ANYBODY)
def describe(path: schemas.ProcessPath) -> Response:
    """Its inputs with their schemas."""
    _require(path.process_id)
    schema = _MODELS[path.process_id].model_json_schema()
    inputs = {
        name: {
            "title": name,
            "minOccurs": 0,
            "schema": {**part, "$defs": schema["$defs"]} if "$defs" in schema else part,
        }
        for name, part in schema["properties"].items()
    }
    output = {"title": "The job's report", "schema": {"type": "object"}}
    return json_reply(
        {**_summary(path.process_id), "inputs": inputs, "outputs": {"report": output}}
    )


@api.post(
    "/ogc/processes/<process_id>/execution",
    summary="Execute a process",
    responses={"201": schemas.StatusInfo, **problems.responses(404, 415, 422, 502)},
)
@needs(Scope.INGEST, Scope.REMOVE)
def execute(path: schemas.ProcessPath, body: schemas.Execution) -> Response:
    """Always asynchronously: 201 with the job's status and its Location."""
    _require(path.process_id)
    principal().require(jobs.SCOPES[_KINDS[path.process_id]])
    job = (import_of if path.process_id == "import" else removal_of)(body.inputs)
    reply = json_reply(_status(jobs.show(facility(), principal(), job.id)), 201)
    reply.headers["Location"] = f"{_ROOT}/jobs/{job.id}"
    reply.headers["Preference-Applied"] = "respond-async"
    return reply


@api.get(
    "/ogc/jobs",
    summary="List jobs as OGC API - Processes does",
    responses={"200": schemas.StatusList, **problems.responses()},
)
@needs(*_ANYBODY)
def list_jobs(query: schemas.OgcJobsQuery) -> Response:
    """The newest first."""
    page, _ = jobs.find(facility(), principal(), JobFilter(), None, query.limit)
    return json_reply(
        {"jobs": [_status(report) for report in page], "links": [_link(f"{_ROOT}/jobs", "self")]}
    )


@api.get(
    "/ogc/jobs/<job_id>",
    summary="Show a job as OGC API - Processes does",
    responses={"200": schemas.StatusInfo, **problems.responses(404)},
)
@needs(*_ANYBODY)
def show(path: schemas.JobPath) -> Response:
    """Its status."""
    return json_reply(_status(jobs.show(facility(), principal(), path.job_id)))


@api.delete(
    "/ogc/jobs/<job_id>",
    summary="Dismiss a job",
    responses={"200": schemas.StatusInfo, **problems.responses(404)},
)
@needs(Scope.INGEST, Scope.REMOVE)
def dismiss(path: schemas.JobPath) -> Response:
    """What is done stays done."""
    return json_reply(_status(jobs.cancel(facility(), principal(), path.job_id)))


@api.get(
    "/ogc/jobs/<job_id>/results",
    summary="The results of a job",
    responses={"200": schemas.Results, **problems.responses(404)},
)
@needs(*_ANYBODY)
def results(path: schemas.JobPath) -> Response:
    """The report, once the job has ended; 404 before."""
    report = jobs.show(facility(), principal(), path.job_id)
    if report.job.ended_at is None:
        raise NotFound("The results are not ready: the job has not ended.")
    answer = schemas.job_answer(report).model_dump(mode="json")
    items = _link(f"/v1/jobs/{path.job_id}/items", "item", NDJSON)
    return json_reply({"report": answer, "items": items})


def _require(name: str) -> None:
    if name not in _KINDS:
        raise NotFound(f"There is no process {name!r}; there are import and remove.")


def _summary(name: str) -> dict[str, Any]:
    return {
        "id": name,
        "title": _TITLES[name],
        "version": "1.0.0",
        "jobControlOptions": ["async-execute", "dismiss"],
        "outputTransmission": ["value"],
        "links": [
            _link(f"{_ROOT}/processes/{name}", "self"),
            _link(
                f"{_ROOT}/processes/{name}/execution",
                "http://www.opengis.net/def/rel/ogc/1.0/execute",
            ),
        ],
    }


def _status(report: Report) -> dict[str, Any]:
    job = report.job
    ended = job.done + job.skipped + job.failed + job.dropped
    if job.ended_at is None:
        status = "running" if job.started_at is not None else "accepted"
    elif job.cancelled:
        status = "dismissed"
    else:
        status = "failed" if job.failed or job.problem else "successful"
    counts = f"{job.done} done, {job.skipped} skipped, {job.failed} failed of {job.received}"
    found: dict[str, Any] = {
        "processID": _NAMES[job.kind],
        "type": "process",
        "jobID": job.id,
        "status": status,
        "message": counts,
        "created": job.created_at.isoformat(),
        "updated": (job.ended_at or report.now).isoformat(),
        "progress": 100 * ended // job.received if job.received else 0,
        "links": [_link(f"{_ROOT}/jobs/{job.id}", "self")],
    }
    if job.started_at is not None:
        found["started"] = job.started_at.isoformat()
    if job.ended_at is not None:
        found["finished"] = job.ended_at.isoformat()
        relation = "http://www.opengis.net/def/rel/ogc/1.0/results"
        found["links"].append(_link(f"{_ROOT}/jobs/{job.id}/results", relation))
    return found
