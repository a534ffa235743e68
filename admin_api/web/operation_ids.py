"""What the operations are called in the OpenAPI description, and so in clients made from it.

An operation without a line here is an error at the start.  Names are kept: clients call them.
"""

from __future__ import annotations

#: Blueprint and view -> operation id.
_IDS = {
    ("cache", "change"): "changeProductCache",
    ("cache", "look"): "getProductCache",
    ("cache", "nodes"): "listNodes",
    ("files", "archive"): "getProductArchive",
    ("files", "retrieve"): "getProductFile",
    ("health", "live"): "isAlive",
    ("health", "ready"): "isReady",
    ("jobs", "begin_import"): "createImport",
    ("jobs", "begin_removal"): "createRemoval",
    ("jobs", "cancel"): "cancelJob",
    ("jobs", "list_items"): "listJobItems",
    ("jobs", "list_jobs"): "listJobs",
    ("jobs", "pause"): "pauseJob",
    ("jobs", "resume"): "resumeJob",
    ("jobs", "retry"): "retryJob",
    ("jobs", "show"): "getJob",
    ("maintenance", "probe"): "probeStores",
    ("maintenance", "purge"): "purgeProducts",
    ("maintenance", "read_through_nodes"): "readThroughNodes",
    ("maintenance", "reconcile"): "reconcileCatalog",
    ("processes", "conformance"): "getConformance",
    ("processes", "describe"): "getProcess",
    ("processes", "dismiss"): "dismissExecution",
    ("processes", "execute"): "executeProcess",
    ("processes", "list_jobs"): "listExecutions",
    ("processes", "list_processes"): "listProcesses",
    ("processes", "results"): "getExecutionResults",
    ("processes", "show"): "getExecution",
    ("products", "ingest"): "ingestProduct",
    ("products", "keep"): "keepProduct",
    ("products", "list_products"): "listProducts",
    ("products", "remove"): "removeProduct",
    ("products", "show"): "getProduct",
    ("products", "verify"): "verifyProduct",
    ("resumable", "append"): "appendToResumableFile",
    ("resumable", "create"): "createResumableFile",
    ("resumable", "give_up"): "deleteResumableFile",
    ("resumable", "show"): "getResumableFile",
    ("staging", "end"): "endLease",
    ("staging", "renew"): "renewLease",
    ("staging", "show"): "getLease",
    ("staging", "stage"): "stageProducts",
    ("storage", "chain"): "verifyEvents",
    ("storage", "events"): "listEvents",
    ("storage", "storage"): "getStorage",
    ("uploads", "abort"): "abortUpload",
    ("uploads", "begin"): "beginUpload",
    ("uploads", "commit"): "commitUpload",
    ("uploads", "show"): "getUpload",
    ("uploads", "upload"): "uploadProduct",
    ("uploads", "upload_file"): "uploadFile",
}


def operation_id(*, bp_name: str, name: str, path: str, method: str) -> str:
    """The id of a view of a blueprint, for flask-openapi3."""
    return _IDS[bp_name, name]
