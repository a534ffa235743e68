"""What the facility does with products: one module per verb.

``facility`` (the parts put together), ``access`` (who may), ``ingest`` and ``uploads`` (products
come in, through ``reception``), ``sources`` and ``archives`` (where from), ``retrieval`` (out),
``removal`` (away), ``listing``, ``monitoring``, ``verification``, ``reconciliation`` and
``rebuilding`` (over ``histories``, all ``records`` by product), ``housekeeping`` and
``multiparts`` (what crashes leave behind).
"""
