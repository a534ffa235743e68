"""Writes every role's README from its argument specification: scripts/role_docs.py [--check].

With ``--check`` it changes nothing and fails if a README is not what it would write, or if a role's
defaults and its specification do not say the same.  Called by `make docs` and by the tests.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parents[1] / "roles"


def table(options: dict[str, Any]) -> list[str]:
    """A Markdown table of a specification's options."""
    if not options:
        return ["It has no variables."]
    lines = ["| variable | type | default | meaning |", "|---|---|---|---|"]
    for name, option in options.items():
        default = option.get("default", "")
        shown = "**required**" if option.get("required") else f"`{default!r}`"
        if default == "" and "default" not in option and not option.get("required"):
            shown = "from the inventory's groups"
        meaning = " ".join(str(option["description"]).split())
        if "choices" in option:
            meaning += f" One of {', '.join(map(str, option['choices']))}."
        lines.append(f"| `{name}` | {option['type']} | {shown} | {meaning} |")
        for inner, item in option.get("options", {}).items():
            text = " ".join(str(item["description"]).split())
            lines.append(f"| &nbsp;&nbsp;`.{inner}` | {item['type']} | | {text} |")
    return lines


def readme(role: str, specs: dict[str, Any]) -> str:
    """The README of one role."""
    lines = [f"# {role}", ""]
    for entry, spec in specs.items():
        if entry != "main":
            lines += ["", f"## Tasks `{entry}`", ""]
        lines.append(f"{spec['short_description']}.")
        for paragraph in spec.get("description", []):
            lines += ["", " ".join(paragraph.split())]
        lines += ["", *table(spec.get("options", {}))]
    lines += ["", "Made from `meta/argument_specs.yml` by `make docs`.", ""]
    return "\n".join(lines)


def differences(role: Path, specs: dict[str, Any]) -> list[str]:
    """What defaults and specification of a role say differently."""
    file = role / "defaults" / "main.yml"
    defaults = (yaml.safe_load(file.read_text()) or {}) if file.exists() else {}
    options = specs["main"].get("options", {})
    found = [
        f"{role.name}: {name} has a default and no specification"
        for name in defaults.keys() - options.keys()
    ]
    for name, option in options.items():
        if "default" in option and defaults.get(name, "nothing") != option["default"]:
            found.append(
                f"{role.name}: {name} is {defaults.get(name, 'not there')!r} in defaults and "
                f"{option['default']!r} in the specification"
            )
        if not name.startswith(f"{role.name}_"):
            found.append(f"{role.name}: {name} does not begin with the role's name")
    return found


def main() -> int:
    """0 if all is as it should be."""
    check = "--check" in sys.argv[1:]
    problems = []
    for role in sorted(path for path in ROLES.iterdir() if path.is_dir()):
        specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]
        problems += differences(role, specs)
        text, file = readme(role.name, specs), role / "README.md"
        if not check:
            file.write_text(text)
        elif not file.exists() or file.read_text() != text:
            problems.append(f"{file.relative_to(ROLES.parent)} is out of date: run `make docs`")
    print("\n".join(problems))
    return bool(problems)


if __name__ == "__main__":
    raise SystemExit(main())
