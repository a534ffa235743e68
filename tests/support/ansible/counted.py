"""An Ansible connection to hosts that do not exist: every command succeeds, and is counted.

For tests that ask how much a playbook does for so many hosts, not what comes of it.
"""

from __future__ import annotations

import json
import os

from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = """
name: counted
short_description: Counts the commands of a playbook
description: Writes a line with the host's name for every command to the file COUNTED_COMMANDS.
author: the project
options: {}
"""

#: What the modules of the playbooks answer when all is well.
_WELL = {
    "changed": False, "rc": 0, "stdout": "1", "stderr": "", "status": 200, "content": "x",
    "ping": "pong", "msg": "",
}  # fmt: skip


class Connection(ConnectionBase):
    """Says yes to everything."""

    transport = "counted"
    has_pipelining = True

    def _connect(self) -> Connection:
        return self

    def exec_command(
        self, cmd: str, in_data: bytes | None = None, sudoable: bool = True
    ) -> tuple[int, bytes, bytes]:
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        with open(os.environ["COUNTED_COMMANDS"], "a", encoding="utf-8") as file:
            file.write(f"{self._play_context.remote_addr}\n")
        return 0, json.dumps(_WELL).encode(), b""

    def put_file(self, in_path: str, out_path: str) -> None:
        """Nothing is sent."""

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Nothing is there."""

    def close(self) -> None:
        """Nothing is open."""
