"""Writes the tables of variables and outputs into the READMEs of the Terraform folders.

    scripts/terraform_docs.py [--check]

The text above the mark is people's.  With ``--check`` it changes nothing and fails if a README is
not what it would write.  Called by `make docs` and by `make lint`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

TERRAFORM = Path(__file__).resolve().parents[1] / "terraform"
MARK = "<!-- Below: made from variables.tf and outputs.tf by `make docs`. -->"


def blocks(file: Path, kind: str) -> list[tuple[str, str]]:
    """Name and body of every block of a kind."""
    pattern = rf'^{kind} "(\w+)" \{{\n(.*?)^\}}'
    return re.findall(pattern, file.read_text() if file.exists() else "", re.M | re.S)


def attribute(body: str, name: str) -> str:
    """The text of an attribute, on one line; empty if it is not there."""
    found = re.search(rf"^  {name}\s*=\s*(.*?)(?=^  \w|\n*\Z)", body, re.M | re.S)
    return " ".join(found.group(1).split()) if found else ""


def tables(folder: Path) -> list[str]:
    """Both tables of a folder."""
    lines = ["| variable | type | default | meaning |", "|---|---|---|---|"]
    for name, body in blocks(folder / "variables.tf", "variable"):
        kind = re.sub(r"object\(\{.*\}\)", "object", attribute(body, "type"))
        default = attribute(body, "default")
        shown = f"`{default}`" if default else "**required**"
        lines.append(
            f"| `{name}` | `{kind}` | {shown} | {attribute(body, 'description').strip(chr(34))} |"
        )
    lines += ["", "| output | meaning |", "|---|---|"]
    for name, body in blocks(folder / "outputs.tf", "output"):
        lines.append(f"| `{name}` | {attribute(body, 'description').strip(chr(34))} |")
    return lines


def main() -> int:
    """See the top of this file."""
    check = sys.argv[1:] == ["--check"]
    stale = []
    for versions in sorted(TERRAFORM.glob("*/*/versions.tf")):
        file = versions.parent / "README.md"
        text = file.read_text() if file.exists() else f"# {versions.parent.name}\n\n{MARK}\n"
        head, mark, _ = text.partition(MARK)
        made = f"{head}{MARK}\n\n" + "\n".join(tables(versions.parent)) + "\n"
        if not mark or made != text:
            stale.append(file.relative_to(TERRAFORM.parent))
            if not check:
                file.write_text(made)
    for path in stale:
        print(f"{path} {'is stale: run `make docs`' if check else 'written'}")
    return bool(check and stale)


if __name__ == "__main__":
    raise SystemExit(main())
