"""An inventory whose hosts nobody can reach: for playbooks that refuse before they connect."""

from __future__ import annotations

import shutil
from pathlib import Path

from scripts.site import make_secrets
from tests.unit.repository import ROOT

NO_CONNECTION = """\
all:
  vars:
    ansible_connection: ssh
    ansible_port: 9
"""


def make(folder: Path, hosts: str) -> Path:
    """Make an inventory of these hosts, beside the product's group_vars and with secrets, and return its folder."""
    place = folder / "inventory/ours"
    shutil.copytree(ROOT / "inventory/example", place, symlinks=True)
    (folder / "group_vars").symlink_to(ROOT / "group_vars")
    (place / "hosts.yml").write_text(hosts + NO_CONNECTION)
    make_secrets.ensure(place)
    return place


def files(place: Path) -> dict[str, str]:
    """Return the text of each YAML file."""
    return {str(path): path.read_text() for path in place.rglob("*.yml")}
