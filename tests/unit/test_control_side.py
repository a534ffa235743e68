"""What every play and task keeps to: no root on the control host, no secret in a journal.

The operator of a control host is an ordinary user without sudo.  The inventory's variable
``ansible_become`` beats the keyword ``become: false``, so whatever runs there says
``ansible_become: false`` among its variables.  And what a module is given stands in the journal of
the host that it runs on, unless the task says ``no_log``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path
    for folder in ("playbooks", "roles")
    for path in (ROOT / folder).rglob("*.yml")
    if path.parent.name in ("playbooks", "parts", "tasks")
)
BLOCKS = ("block", "rescue", "always", "tasks", "pre_tasks", "post_tasks")


def as_root(entries: list[dict[str, Any]], ordinary: bool = False) -> Iterator[str]:
    """Plays and tasks of the control host that would ask for sudo there."""
    for entry in entries:
        # What an include applies to its tasks stands beneath the action.
        applied = entry.get("ansible.builtin.include_tasks")
        applied = applied.get("apply", {}) if isinstance(applied, dict) else {}
        entry = {**applied, **entry}
        variables = {**applied.get("vars", {}), **entry.get("vars", {})}
        here = ordinary or variables.get("ansible_become") is False
        control = "localhost" in (entry.get("hosts"), entry.get("delegate_to"))
        if control and not here:
            yield str(entry.get("name"))
        for name in BLOCKS:
            yield from as_root(entry.get(name) or [], here)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_runs_on_the_control_host_asks_for_no_sudo_there(path: Path) -> None:
    assert list(as_root(yaml.safe_load(path.read_text()) or [])) == []


def speaking(entries: list[dict[str, Any]], silent: bool = False) -> Iterator[str]:
    """Tasks that hand a variable to a program's input, and so to the journal."""
    for entry in entries:
        here = silent or bool(entry.get("no_log"))
        for arguments in entry.values():
            given = arguments.get("stdin", "") if isinstance(arguments, dict) else ""
            if "{{" in given and not here:
                yield str(entry.get("name"))
        for name in BLOCKS:
            yield from speaking(entry.get(name) or [], here)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_program_is_given_to_read_is_in_no_journal(path: Path) -> None:
    assert list(speaking(yaml.safe_load(path.read_text()) or [])) == []
