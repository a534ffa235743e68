"""Terraform, driven by the package python-terraform, which nothing else of the project knows.

Of its many methods only ``cmd()`` is dependable (docs/adr/0023), and what ``cmd()`` lacks is here:
time limits, an interrupt that leaves neither a lock nor half a state, errors that are sentences.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess  # nosec B404 # only its types and exceptions; python-terraform starts Terraform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

#: Seconds for a command that only reads, and for one that waits for a cloud.
ASK_SECONDS = 600.0
WORK_SECONDS = 7200.0
#: Seconds that Terraform has, after it was told to stop, to finish what is under way at the cloud.
GRACE_SECONDS = 900.0

# Terraform in a process group of its own: a terminal sends Ctrl-C to all of its group, and a
# second one, of an impatient hand or from here, makes Terraform leave its lock and lose its state.
_OWN_GROUP = "import os, sys; os.setpgid(0, 0); os.execvp(sys.argv[1], sys.argv[1:])"
_POLL_SECONDS = 0.5


class TerraformError(Exception):
    """Terraform failed, was too slow, or is not there; the text is a sentence for people."""


@dataclass(frozen=True)
class Done:
    """How a command ended: its exit code, and what it said if that was kept."""

    code: int
    out: str
    err: str


class Terraform:
    """One Terraform environment: the folder in which commands run."""

    def __init__(self, folder: Path, *, to_stderr: bool = False) -> None:
        """``to_stderr``: what people are to see goes there, since machines read standard output.

        Raises :class:`TerraformError` if Terraform or python-terraform is not installed.
        """
        try:
            from python_terraform import Terraform as Package
        except ImportError as error:
            sentence = "The package python-terraform is not installed: run `make control`."
            raise TerraformError(sentence) from error

        class OwnGroup(Package):  # type: ignore[misc]  # the package has no types
            def generate_cmd_string(self, cmd: str, *args: Any, **kwargs: Any) -> list[str]:
                command: list[str] = super().generate_cmd_string(cmd, *args, **kwargs)
                return [sys.executable, "-ISc", _OWN_GROUP, *command]

        if shutil.which("terraform") is None:
            raise TerraformError("terraform is not installed.")
        self.folder = folder
        self._to_stderr = to_stderr
        # The package would read the whole state, secrets and all, and trip over a damaged one.
        self._package = OwnGroup(working_dir=str(folder), state="not-read")

    def ask(self, command: str, *arguments: str, seconds: float = ASK_SECONDS) -> str:
        """What a command prints, as of ``output -json``; raises :class:`TerraformError`."""
        done = self.run(command, *arguments, seconds=seconds)
        if done.code != 0:
            reason = click.unstyle(done.err or done.out).strip()[-2000:]
            raise TerraformError(f"terraform {command} failed: {reason}")
        return done.out

    def work(
        self,
        command: str,
        *arguments: str,
        variables: dict[str, Any] | None = None,
        seconds: float = WORK_SECONDS,
    ) -> None:
        """Run a command whose progress people see; raises :class:`TerraformError`."""
        done = self.run(command, *arguments, variables=variables, seconds=seconds, shown=True)
        if done.code != 0:
            raise TerraformError(f"terraform {command} failed; see above.")

    def run(
        self,
        command: str,
        *arguments: str,
        variables: dict[str, Any] | None = None,
        seconds: float = WORK_SECONDS,
        shown: bool = False,
    ) -> Done:
        """Run a command to its end, whatever its exit code.

        ``variables`` travel by a file: blanks, quotes and nested values arrive as they are.  After
        ``seconds``, and at Ctrl-C, Terraform is told to stop, once, and is waited for while it ends
        what is under way and writes down what it has made.  Raises :class:`TerraformError` when it
        was too slow, ``KeyboardInterrupt`` when it was interrupted.
        """
        streams = redirect_stdout(sys.stderr) if shown and self._to_stderr else nullcontext()
        with _noted_interrupts() as interrupts, streams:
            try:
                # A dictionary becomes a file of variables.  `synchronous` gives the process; False
                # would be handed on to Terraform, None is not.
                process, _, _ = self._package.cmd(
                    command,
                    *arguments,
                    var=variables,
                    capture_output=not shown,
                    synchronous=None,
                )
                done, late = _waited_for(process, interrupts, seconds)
            finally:
                self._package.temp_var_files.clean_up()
        if interrupts:
            raise KeyboardInterrupt
        if late:
            raise TerraformError(f"terraform {command} took more than {seconds:.0f} s: {late}")
        return done


@contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """Ctrl-C is written down, instead of raised where it would leave Terraform alone."""
    noted: list[int] = []

    def note(number: int, _: object) -> None:
        noted.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _waited_for(
    process: subprocess.Popen[bytes], interrupts: list[int], seconds: float
) -> tuple[Done, str]:
    """How the process ended, and what had to be done if it was late."""
    deadline = time.monotonic() + seconds
    told = 0
    late = ""
    while True:
        try:
            out, err = process.communicate(timeout=_POLL_SECONDS)
            said = [(text or b"").decode(errors="replace") for text in (out, err)]
            return Done(process.returncode, *said), late
        except subprocess.TimeoutExpired:
            pass
        overdue = time.monotonic() > deadline
        if told == 0 and (interrupts or overdue):
            if overdue:
                late = "it was stopped, and has written down what it had made."
            process.send_signal(signal.SIGINT)
            told = 1
            deadline = time.monotonic() + GRACE_SECONDS
        elif overdue and late:
            late = (
                "it did not stop when it was told to, and was killed. The state may be locked:"
                " the next error names the lock's id, for `terraform force-unlock ID`."
            )
            os.killpg(process.pid, signal.SIGKILL)
        if len(interrupts) > told >= 1:
            told = len(interrupts)
            click.echo("Terraform is writing down what it has made; please wait.", err=True)
