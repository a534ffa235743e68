"""What the facility does with products: one module per verb, and what they stand on.

The verbs: ``ingest``, ``uploads`` and ``registration`` (products come in), ``retrieval`` (out),
``removal`` (away), ``listing``, ``monitoring``, ``verification``, ``reconciliation``,
``rebuilding`` (over ``histories``, all records by product), ``caching``.

How one comes in: ``sources``, ``incoming`` and ``archives`` (where from; ``unpacking``, ``spool``),
``wishes`` (what is wanted), ``reception`` and ``contents`` (the bytes), ``lifecycle`` (every change
of a state), ``records`` (what the store is told).

Beside them: ``facility`` (the parts put together), ``access`` (who may), ``identity`` (whose the
stores are), ``idempotency``, ``heartbeat`` (signs of life), ``reserve``, ``pace``,
``housekeeping`` and ``multiparts`` (what crashes leave behind).
"""
