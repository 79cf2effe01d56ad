"""Write docs/roles.md from the roles' argument specs, so that the two cannot differ."""

from __future__ import annotations

from typing import Any

import yaml

from scripts.common import ROOT

TARGET = ROOT / "docs/roles.md"
HEAD = """\
<!-- Written by `python -m scripts.docs.roles` from roles/*/meta/argument_specs.yml; a test compares the two. -->
# Roles and their variables

Each role does one job. The files in `group_vars/all/parts/` hand it what it needs of others; a site sets only what it
wants different, in `inventory/<site>/group_vars/all/site.yml`. The choices that most sites make are in
[`group_vars/all/main.yml`](../group_vars/all/main.yml), with a comment each.
"""


def document() -> str:
    """Return the page."""
    parts = [HEAD]
    for path in sorted(ROOT.glob("roles/*/meta/argument_specs.yml")):
        specs: dict[str, Any] = yaml.safe_load(path.read_text())["argument_specs"]
        parts.append(section(path.parent.parent.name, specs))
    return "\n".join(parts)


def section(role: str, specs: dict[str, Any]) -> str:
    """Return what a page says about one role: its purpose and a table for each entry point."""
    lines = [f"## {role}"]
    for entry, spec in specs.items():
        lines += ["", f"`tasks_from: {entry}`: {text(spec['short_description'])}."] if entry != "main" else []
        lines += ["", text(spec.get("description", spec["short_description"]))]
        if options := spec.get("options"):
            lines += ["", "| variable | type | default | what it is |", "|---|---|---|---|"]
            lines += [row(name, option) for name, option in options.items()]
    return "\n".join(lines) + "\n"


def row(name: str, option: dict[str, Any]) -> str:
    """Return a variable's line of the table."""
    kind = option.get("type", "str") + (f" of {option['elements']}" if "elements" in option else "")
    default = "**required**" if option.get("required") else code(option.get("default"))
    words = text(option.get("description", ""))
    if choices := option.get("choices"):
        words += f" One of {', '.join(code(choice) for choice in choices)}."
    cells = [f"`{name}`", kind, default, words]
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def code(value: Any) -> str:
    """Return a value as YAML has it, in one line, for a cell of a table."""
    if value in ("", None):
        return "empty"
    flow = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    one_line = flow.removesuffix("...\n").strip().replace("|", "\\|")
    return f"`{one_line}`"


def text(words: str | list[str]) -> str:
    """Return a spec's description as one paragraph, its C(…) as code."""
    joined = " ".join(words) if isinstance(words, list) else words
    for mark in ("C(", "I(", "V("):
        while mark in joined:
            before, _, rest = joined.partition(mark)
            inner, _, after = rest.partition(")")
            joined = f"{before}`{inner}`{after}"
    return " ".join(joined.split())


def main() -> None:
    """Write the page."""
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(document())


if __name__ == "__main__":
    main()
