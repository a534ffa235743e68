"""The HTTP edge: thin, streaming, telling no internals.

``app`` (the factory), one module per resource (``products``, ``uploads``, ``files``, ``staging``,
``storage``, ``maintenance``, ``health``), ``proseo`` (another contract over the same services), and
what they share: ``auth``, ``problems``, ``schemas``, ``body``, ``replies``, ``cache``, ``metrics``,
``counts`` (where processes count), ``logs``.  Before them: ``server`` (the processes),
``connections`` (who gets a thread) and ``admission`` (of which class a request is).
"""
