"""The command ``storage-manager``: talks to the API like any client, but for serve, token, rebuild.

``main`` (the group, which loads a verb when it is asked for), ``local`` (what runs on the host of
the service), ``ingesting``, ``retrieving``, ``products``, ``jobs``, ``staging`` and ``operations``
(clients of the API), ``sending`` and ``pieces`` (local files on their way out), ``client`` (HTTP),
``failures`` (exit codes), ``parallel`` (transfers side by side), ``output`` (text, JSON, progress),
``times`` and ``completing`` (what is written on a command line).
"""
