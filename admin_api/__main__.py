"""``storage-manager`` and ``python -m admin_api`` begin here."""

import sys


def main() -> None:
    """Run the command; an interrupt that comes while it is still loaded ends it quietly, too."""
    try:
        from admin_api.cli.main import main as command

        command(prog_name="storage-manager")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
