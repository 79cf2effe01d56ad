"""Generate the secrets a site lacks: inventory/<site>/group_vars/all/vault.yml, readable by its owner only.

What stands there is kept, so running this again changes nothing. Values are never printed. The names come
from group_vars/all/vault.example.yml; the object store's keys are one per consumer and one per developer.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from scripts.common import ROOT, ProblemError, capture, end

EXAMPLE = ROOT / "group_vars" / "all" / "vault.example.yml"
PER_CONSUMER = "vault_object_store_secret_keys"
CONSUMERS = ("mlflow", "worker")
# What somebody else gives us: only a lab, whose other side is ours too, makes these.
GIVEN = frozenset({"vault_raw_database_password"})
HEADER = (
    "---\n# Secrets of this site: made by `make secrets`, which adds what is missing and keeps what stands.\n"
    "# Encrypt it (`ansible-vault encrypt`) or keep it out of Git.\n"
)


def names(example: str) -> list[str]:
    """The secrets which the example file lists."""
    return re.findall(r"^#\s*(vault_\w+):", example, re.MULTILINE)


def new_value() -> str:
    """A fresh secret: 256 bits, and no character that needs quoting anywhere."""
    return secrets.token_urlsafe(32)


def complete(present: dict[str, Any], wanted: Iterable[str], people: Iterable[str]) -> dict[str, Any]:
    """The secrets that stand, with the missing ones added."""
    result = dict(present)
    for name in wanted:
        if name == PER_CONSUMER:
            keys = dict(result.get(name) or {})
            for consumer in (*CONSUMERS, *people):
                keys.setdefault(consumer, new_value())
            result[name] = keys
        elif not result.get(name):
            result[name] = new_value()
    return result


def developers(inventory: Path) -> list[str]:
    """The names of the site's developers, as Ansible reads them from the inventory."""
    listed = json.loads(capture(["ansible-inventory", "-i", inventory, "--list"]))
    for variables in listed.get("_meta", {}).get("hostvars", {}).values():
        people = variables.get("developers", [])
        if not isinstance(people, list):
            raise ProblemError(f"`developers` in {inventory} has to be a literal list for its keys to be generated")
        return [person["name"] for person in people]
    raise ProblemError(f"{inventory} has no hosts: write hosts.yml first")


def read(vault: Path) -> dict[str, Any]:
    """The secrets that stand; an encrypted file cannot be added to."""
    if not vault.exists():
        return {}
    text = vault.read_text()
    if text.startswith("$ANSIBLE_VAULT"):
        raise ProblemError(f"{vault} is encrypted: `ansible-vault decrypt` it, run this again, encrypt it again")
    loaded = yaml.safe_load(text) or {}
    if not isinstance(loaded, dict):
        raise ProblemError(f"{vault} is no YAML mapping")
    return loaded


def write(vault: Path, content: dict[str, Any]) -> None:
    """Replace the file at once, never readable by others."""
    vault.parent.mkdir(parents=True, exist_ok=True)
    partial = vault.with_name(f".{vault.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(HEADER)
        yaml.safe_dump(content, handle, sort_keys=False)
    partial.replace(vault)


def ensure(inventory: Path, *, also_given: bool = False) -> list[str]:
    """Write what is missing and return the names that were added."""
    if not inventory.is_dir():
        raise ProblemError(f"{inventory} is no inventory directory; give one like inventory/lab")
    vault = inventory / "group_vars" / "all" / "vault.yml"
    present = read(vault)
    wanted = [name for name in names(EXAMPLE.read_text()) if also_given or name not in GIVEN]
    content = complete(present, wanted, developers(inventory))
    if content == present:
        return []
    write(vault, content)
    return sorted(name for name in content if content[name] != present.get(name))


def main() -> None:
    """Complete the secrets of one inventory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inventory", type=Path, help="the inventory's directory, for example inventory/lab")
    parser.add_argument(
        "--also-given", action="store_true", help="also make those that somebody else gives (for a lab)"
    )
    arguments = parser.parse_args()
    added = ensure(arguments.inventory.resolve(), also_given=arguments.also_given)
    print(f"added: {', '.join(added)}" if added else "complete already")


if __name__ == "__main__":
    try:
        main()
    except ProblemError as error:
        end(error)
