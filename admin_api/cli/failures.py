"""How a command fails: a sentence, an exit code (docs/api.md), and the service's problem if any."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

Item = TypeVar("Item")

#: Exit codes; 0 is success, 1 a failed check or operation, 2 a wrong command line.
EXIT_FAILED = 1
EXIT_NOT_FOUND = 3
EXIT_REFUSED = 4
EXIT_NOT_ALLOWED = 5
EXIT_UNAVAILABLE = 6
EXIT_PARTIAL = 7
EXIT_INTERRUPTED = 130

#: What does not come by a status: the codes with which items of a job fail.
EXITS_BY_CODE = {
    "forbidden": EXIT_NOT_ALLOWED,
    "source_denied": EXIT_NOT_ALLOWED,
    "not_found": EXIT_NOT_FOUND,
    "gone": EXIT_NOT_FOUND,
    "already_exists": EXIT_REFUSED,
    "held": EXIT_REFUSED,
    "leased": EXIT_REFUSED,
    "no_space": EXIT_REFUSED,
    "product_exists": EXIT_REFUSED,
    "retained": EXIT_REFUSED,
    "catalog_unavailable": EXIT_UNAVAILABLE,
    "source_unavailable": EXIT_UNAVAILABLE,
    "storage_denied": EXIT_UNAVAILABLE,
    "storage_unavailable": EXIT_UNAVAILABLE,
}
#: Lines of a report that are printed; `--json` has them all.
_TOLD_LINES = 20


class Failure(click.ClickException):
    """A failure with a sentence and an exit code."""

    def __init__(self, message: str, exit_code: int, problem: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it for the class
        self.problem = problem or {}

    def format_message(self) -> str:
        """The sentence, and what a manifest has against the product."""
        return "\n".join([self.message, *self.details()])

    def details(self) -> list[str]:
        """What a manifest has against the product, line by line, within reason."""
        report = self.problem.get("manifest") or {}
        lines = [
            f"    wrong    {item['path']}: {item['reason']}" for item in report.get("wrong", [])
        ]
        lines += [f"    missing  {path}" for path in report.get("missing", [])]
        if len(lines) > _TOLD_LINES:
            lines[_TOLD_LINES:] = [f"    and {len(lines) - _TOLD_LINES} more (--json: all)"]
        return lines


def shown(path: str | os.PathLike[str]) -> str:
    """A path as it can be printed, though its name may not be UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def local_failure(error: OSError, path: str | os.PathLike[str]) -> Failure:
    """What this machine's own files and disks refuse, as a sentence."""
    return Failure(f"{shown(path)}: {error.strerror or error}.", EXIT_FAILED)


def document(error: click.ClickException) -> dict[str, Any]:
    """A failure for machines: the service's problem, or what is known here."""
    problem = error.problem if isinstance(error, Failure) else {}
    return {"detail": error.message, **problem, "type": "error", "exit_code": error.exit_code}


def teller(as_json: bool) -> Callable[[str, Failure], None]:
    """Says of a product that something failed for it, where others are still to be done."""

    def tell(reference: str, failure: Failure) -> None:
        line = {"reference": reference, **document(failure)}
        text = f"FAILED  {reference}: {failure.format_message()}"
        click.echo(json.dumps(line, ensure_ascii=False) if as_json else text)

    return tell


def for_each(
    items: Sequence[Item],
    action: Callable[[Item], None],
    failed: Callable[[Item, Failure], None],
) -> None:
    """Do ``action`` for every item: ``failed`` tells of one that fails, and the others go on.

    Raises Failure at the end if any failed.  At once: the only one's own, an interrupt, and that of
    a service which does not answer, since the others would fail alike.
    """
    codes = []
    for item in items:
        try:
            action(item)
        except Failure as failure:
            if len(items) == 1 or failure.exit_code == EXIT_INTERRUPTED:
                raise
            failed(item, failure)
            if failure.exit_code == EXIT_UNAVAILABLE and not failure.problem:
                raise
            codes.append(failure.exit_code)
    if codes:
        raise Failure(
            f"{len(codes)} of {len(items)} failed.",
            codes[0] if len(set(codes)) == 1 else EXIT_FAILED,
        )
