"""The storage manager of a prosEO processing facility: admin API and command line.

Import direction is downwards only: cli -> web -> services -> (products, catalog, storage)
-> settings, errors.  ``tests/unit/test_architecture.py`` keeps it so.
"""

__version__ = "0.1.0"
