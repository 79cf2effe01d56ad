"""Shared by the tests of the repository's files: paths, and how to read files."""

from __future__ import annotations

import importlib
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template
from ansible.utils.collection_loader import AnsibleCollectionConfig

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.parent.parent for path in ROOT.glob("roles/*/meta/main.yml"))
ROLE_NAMES = [role.name for role in ROLES]


def load(path: str) -> ModuleType:
    """Return a Python file of the tree as a module: by its path, or within the package that plugins/ is."""
    if path.startswith("plugins/"):
        return importlib.import_module(path.removesuffix(".py").replace("/", "."))
    module = ModuleType(Path(path).stem)
    SourceFileLoader(module.__name__, str(ROOT / path)).exec_module(module)
    return module


class Loader(yaml.SafeLoader):
    """A YAML loader that ignores Ansible's tags."""


for tag in ("!unsafe", "!vault"):
    Loader.add_constructor(tag, lambda loader, node: node.value)


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file, empty if it is missing."""
    return (yaml.load(path.read_text(), Loader) if path.exists() else None) or {}


def entry_points(role: Path) -> list[dict[str, dict[str, Any]]]:
    """Return the options of each of a role's entry points."""
    specs = read_yaml(role / "meta/argument_specs.yml")["argument_specs"]
    return [spec.get("options", {}) for spec in specs.values()]


def role_templar(role: Path, **variables: Any) -> Templar:
    """Return a Templar with a role's defaults and vars, and these variables."""
    if AnsibleCollectionConfig.collection_finder is None:
        init_plugin_loader([])
    loader = DataLoader()
    loader.set_basedir(str(role))
    known: dict[str, Any] = {"ansible_managed": "managed", "role_path": str(role)}
    for name in ("defaults/main.yml", "vars/main.yml"):
        known |= loader.load_from_file(str(role / name), trusted_as_template=True)
    known["ansible_search_path"] = [str(role)]
    return Templar(loader=loader, variables=known | variables)


def rendered(templar: Templar, path: Path) -> str:
    """Return a rendered template."""
    return str(templar.template(trust_as_template(f"{{{{ lookup('ansible.builtin.template', {str(path)!r}) }}}}")))
