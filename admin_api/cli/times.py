"""Times as people write them: a date or a time, in UTC unless it says otherwise."""

from __future__ import annotations

from datetime import UTC, datetime

import click

#: For the help of options that take a time.
HELP = "2026-01-31 (its midnight), 2026-01-31T12:00; UTC unless it says otherwise"


def utc(text: str) -> str:
    """A time of RFC 3339; raises ValueError for what is none."""
    time = datetime.fromisoformat(text)
    return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).isoformat()


class _Time(click.ParamType[str]):
    name = "time"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The value as the service takes it."""
        try:
            return utc(value)
        except ValueError:
            self.fail(f"{value!r} is no time: {HELP}.", param, ctx)


#: The type of options that take a time.
TIME = _Time()
