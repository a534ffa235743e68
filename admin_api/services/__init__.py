"""What the facility does with products: one module per verb, and what they stand on.

The verbs: ``ingest``, ``uploads`` and ``registration`` (products come in), ``retrieval`` (out),
``removal`` (away), ``listing``, ``monitoring``, ``verification``, ``reconciliation``,
``rebuilding`` (over ``histories``, all records by product), ``caching``, ``node_reads``,
``staging`` and ``leases`` (files as paths, over ``stage_cache``).

As prosEO wants them: ``gathering`` (files that come one by one), ``paths`` (files by where they
lie), ``fetching``, ``joborders``, ``callers`` and ``download_tokens``.

How one comes in: ``sources``, ``incoming`` and ``archives`` (where from; ``unpacking``, ``spool``),
``session_files`` and ``resumable`` (the files of an upload session, whole or in pieces), ``wishes``
(what is wanted), ``reception`` and ``contents`` (the bytes), ``lifecycle`` (every change of a
state), ``records`` (what the store is told).

Beside them: ``facility`` (the parts put together), ``access`` (who may), ``identity`` (whose the
stores are), ``transfers`` (one budget for all that a process does at once), ``watch`` (whether
stores and catalog answer), ``idempotency``, ``heartbeat`` (signs of life), ``reserve``, ``pace``,
``housekeeping`` and ``multiparts`` (what crashes leave behind).
"""
