"""Stores behind one protocol: ``base`` (the protocol), ``posix``, ``s3``, ``mounts``, ``probe``.

``multipart`` brings objects of several parts into a bucket; ``alluxio`` is a cache before a store.
"""
