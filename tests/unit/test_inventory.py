"""Variables reach every entry point, and a site's choices override the defaults."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.repository import ROOT, read_yaml

PROGRAMS = Path(sys.executable).parent
CHOICES = read_yaml(ROOT / "group_vars/all/main.yml")
HARDWARE = ("services", "gpu", "cpu", "dev")


def hosts_of(inventory: Path) -> dict[str, dict[str, Any]]:
    """Return host → variables, as `ansible-inventory` sees them."""
    command = [str(PROGRAMS / "ansible-inventory"), "-i", str(inventory), "--list"]
    listed = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    found: dict[str, dict[str, Any]] = listed["_meta"]["hostvars"]
    return found


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a site as a team creates it: a copy of the example with its own choices."""
    place = tmp_path / "inventory/ours"
    shutil.copytree(ROOT / "inventory/example", place, symlinks=True)
    (tmp_path / "group_vars").symlink_to(ROOT / "group_vars")
    return place


@pytest.mark.parametrize("inventory", sorted(path.parent.name for path in ROOT.glob("inventory/*/groups.yml")))
def test_every_inventory_sees_the_product(inventory: str) -> None:
    link = ROOT / "inventory" / inventory / "group_vars/all/00-product"
    assert link.is_symlink()
    assert link.resolve() == ROOT / "group_vars/all"
    for host, variables in hosts_of(ROOT / "inventory" / inventory).items():
        assert set(CHOICES) <= set(variables), host
        assert "uv_version" in variables, host


def test_site_overrides_every_choice(site: Path) -> None:
    ours = {name: f"ours: {name}" for name in CHOICES}
    (site / "group_vars/all/site.yml").write_text(json.dumps(ours))
    hosts = hosts_of(site)
    assert hosts
    for variables in hosts.values():
        assert {name: variables[name] for name in CHOICES} == ours


@pytest.mark.parametrize("playbook", ["site.yml", "playbooks/probe.yml"])
def test_playbooks_see_the_site(site: Path, playbook: str) -> None:
    """Ansible ignores group_vars beside a playbook for imported playbooks, but reads those of the inventory."""
    root = site.parent.parent
    (root / "playbooks").mkdir()
    probe = {"hosts": "all", "gather_facts": False, "tasks": [{"ansible.builtin.debug": {"var": "apt_mirror"}}]}
    (root / "playbooks/probe.yml").write_text(json.dumps([probe]))
    (root / "site.yml").write_text(json.dumps([{"ansible.builtin.import_playbook": "playbooks/probe.yml"}]))
    (site / "group_vars/all/site.yml").write_text("apt_mirror: https://mirror.example.org/ours\n")
    command = [str(PROGRAMS / "ansible-playbook"), "-i", str(site), str(root / playbook)]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    assert done.stdout.count("https://mirror.example.org/ours") == len(hosts_of(site))


def test_molecule_uses_the_lab() -> None:
    scenario = (ROOT / "molecule/cluster/molecule.yml").read_text()
    assert "--inventory=${MOLECULE_PROJECT_DIRECTORY}/inventory/lab" in scenario


def test_groups_are_the_same_everywhere() -> None:
    """A site can change its own groups.yml; all shipped ones are the same."""
    example = (ROOT / "inventory/example/groups.yml").read_text()
    assert [path for path in ROOT.glob("inventory/*/groups.yml") if path.read_text() != example] == []


def test_every_group_is_declared() -> None:
    groups = read_yaml(ROOT / "inventory/example/groups.yml")
    assert set(groups["platform"]["children"]) == set(HARDWARE)
    used = {play["hosts"] for path in ROOT.glob("playbooks/*.yml") for play in read_yaml(path) if "hosts" in play}
    # A pattern that is a template names a host, not a group.
    named = {name.partition("[")[0] for hosts in used if "{{" not in hosts for name in hosts.split(":")} - {"localhost"}
    assert named <= set(groups) | set(HARDWARE)
    layered = {
        child for name, group in groups.items() if name != "platform" for child in (group or {}).get("children", {})
    }
    assert layered <= set(HARDWARE)
