"""Write docs/choices.md from the schema of a site's choices, so that the two cannot differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from scripts.common import ROOT
from scripts.docs.roles import code

TARGET = ROOT / "docs/choices.md"
SCHEMA = ROOT / "roles/validate/files/choices.yml"
HEAD = """\
<!-- Written by `python -m scripts.docs.choices` from roles/validate/files/choices.yml; a test holds them together. -->
# Values that a site may set

Set these variables in `inventory/<site>/group_vars/all/site.yml`. What each one does is in
[`group_vars/all/main.yml`](../group_vars/all/main.yml), and other variables of roles are in [roles](roles.md).
[`playbooks/validate.yml`](checks.md) refuses any other value before a host is changed.

Write numbers and `true` or `false` without quotes. `[]` stands for each entry of a list, `*` for each key of a mapping.

| variable | default | what is accepted |
|---|---|---|
"""
TAIL = """
Besides its form, the name of a person must not be one that the platform, Debian or Ubuntu uses for an account or a
group, such as `prefect` or `daemon`, nor the account that Ansible logs in with. The domain must not be a host's name.

Every secret in `vault.yml` is text; write one that looks like a number in quotes.
"""


def document() -> str:
    """Return the page."""
    schema = yaml.safe_load(SCHEMA.read_text())
    defaults: dict[str, Any] = {}
    files = [*ROOT.glob("roles/*/defaults/main.yml"), *sorted((ROOT / "group_vars/all").rglob("*.yml"))]
    for path in files:
        defaults |= yaml.safe_load(path.read_text()) or {}
    rows = []
    for name, node in schema["properties"].items():
        if not name.startswith("vault_"):
            for place, words in fields(name, node, schema["$defs"]):
                default = code(defaults[name]) if place == name and name in defaults else ""
                rows.append(f"| `{place}` | {default} | {words.replace('|', '&#124;').replace('<', '&lt;')} |")
    return HEAD + "\n".join(rows) + "\n" + TAIL


def fields(place: str, node: dict[str, Any], defs: dict[str, Any], needed: bool = False) -> Iterator[tuple[str, str]]:
    """Yield the place of a value and of all values within it, each with what is accepted there."""
    node = defs[node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    yield place, node["description"] + (" (required)" if needed else "")
    if node.get("items"):
        inner = list(fields(f"{place}[]", node["items"], defs))
        yield from inner if len(inner) == 1 else inner[1:]
    for name, value in node.get("properties", {}).items():
        yield from fields(f"{place}.{name}", value, defs, name in node.get("required", ()))
    if isinstance(node.get("additionalProperties"), dict):
        inner = list(fields(f"{place}.*", node["additionalProperties"], defs))
        yield from inner if len(inner) == 1 else inner[1:]


def main() -> None:
    """Write the page."""
    TARGET.write_text(document())


if __name__ == "__main__":
    main()
