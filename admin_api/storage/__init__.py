"""Stores behind one protocol: ``base`` (the protocol), ``posix``, ``s3``, ``mounts``, ``probe``."""
