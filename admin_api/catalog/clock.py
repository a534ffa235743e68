"""The database's clock: hosts disagree about the time, the catalog is one.

Signs of life, deadlines and the times of events are taken from it and compared with it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement

from admin_api.catalog.models import UtcDateTime


class now(FunctionElement[datetime]):  # noqa: N801 - named as SQL functions are
    """The present time in SQL, to the microsecond (SQLite: millisecond)."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(now, "postgresql")
def _postgresql(_element: Any, _compiler: Any, **_options: Any) -> str:
    return "clock_timestamp()"


@compiles(now, "sqlite")
def _sqlite(_element: Any, _compiler: Any, **_options: Any) -> str:
    # Six digits behind the second, as SQLAlchemy writes and compares them.
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


def read(session: Session) -> datetime:
    """The present time."""
    found: datetime = session.execute(select(now())).scalar_one()
    return found
