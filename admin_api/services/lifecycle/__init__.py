"""What can happen to a product, and in which order: every change of a state is made here.

::

    begin ──► receiving ──claim──► committing ──promote──► available ──retire──► removing
                  │                     │                      ▲ keep                │
                  └─give_up─► removing ◄┴─undo                                     bury
                                  └───────────────bury──────────────────────────► removed

A transition is one guarded ``UPDATE ... RETURNING``, for one product or for many, with its events
and the sums of ``catalog/usage.py`` in the same transaction: of two who try the same, one is told
that it came too late.  Between two transitions lies what the store is told: data, then the record
(``claim`` to ``promote``); the record, then the bytes go (``retire`` to ``bury``).  Whether a
commit happened is decided by the store alone (``settle``).  Numbers of generations and of
statements are taken in the catalog first and are never given twice; times are the database's.

Called by ``reception``, ``uploads``, ``removal`` and ``housekeeping``; calls ``records`` for the
store's side.  An available product can get and lose files (``extend``, ``withdraw``): a statement
with the next number says what it consists of then; its keys never change their bytes.
"""

from __future__ import annotations

from admin_api.services.lifecycle.beginning import (
    begin,
    begin_many,
    foresee,
    leave_taken,
    of_name,
    refuse_kept,
    refuse_other,
)
from admin_api.services.lifecycle.committing import Committed, SuperfluousError, commit, commit_many
from admin_api.services.lifecycle.forgetting import forget
from admin_api.services.lifecycle.giving_up import clear_forgotten, discard, expire
from admin_api.services.lifecycle.growing import extend, withdraw
from admin_api.services.lifecycle.keeping import keep, lease, record_kept, unlease
from admin_api.services.lifecycle.loose import (
    claim_loose,
    clear_stale_loose,
    give_up_loose,
    release_loose,
)
from admin_api.services.lifecycle.promoting import promote
from admin_api.services.lifecycle.removing import finish, remove, remove_many, sweep
from admin_api.services.lifecycle.settling import settle, take_in
from admin_api.services.lifecycle.transitions import ALONE, TAKEN, add_files

__all__ = [
    "ALONE",
    "TAKEN",
    "Committed",
    "SuperfluousError",
    "add_files",
    "begin",
    "begin_many",
    "claim_loose",
    "clear_forgotten",
    "clear_stale_loose",
    "commit",
    "commit_many",
    "discard",
    "expire",
    "extend",
    "finish",
    "foresee",
    "forget",
    "give_up_loose",
    "keep",
    "lease",
    "leave_taken",
    "of_name",
    "promote",
    "record_kept",
    "refuse_kept",
    "refuse_other",
    "release_loose",
    "remove",
    "remove_many",
    "settle",
    "sweep",
    "take_in",
    "unlease",
    "withdraw",
]
