"""The HTTP edge: thin, streaming, telling no internals.

``app`` (the factory), one module per resource (``products``, ``uploads``, ``files``, ``storage``,
``maintenance``, ``health``), and what they share: ``auth``, ``problems``, ``schemas``, ``body``,
``replies``, ``metrics``, ``logs``, ``server``.
"""
