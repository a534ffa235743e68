"""The command ``storage-manager``: talks to the API like any client, but for serve, token, rebuild.

``main`` (the group), ``local`` (what runs on the service's host), ``products`` and ``operations``
(clients of the API), ``client`` (HTTP), ``parallel`` (transfers side by side), ``output`` (text,
JSON, progress).
"""
