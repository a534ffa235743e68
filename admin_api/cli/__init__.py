"""The command ``storage-manager``: talks to the API like any client, but for serve, token, rebuild.

``main`` (the group), ``local`` (what runs on the service's host), ``products``, ``staging`` and
``operations`` (clients of the API), ``sending`` and ``pieces`` (local files on their way out),
``client`` (HTTP), ``parallel`` (transfers side by side), ``output`` (text, JSON, progress).
"""
