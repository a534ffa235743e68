"""``python -m admin_api`` is the command ``storage-manager``."""

from admin_api.cli.main import main

main(prog_name="storage-manager")
