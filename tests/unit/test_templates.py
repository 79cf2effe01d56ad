"""Every role's templates, rendered for the lab's hosts, are valid for the programs that read them."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template
from ansible.utils.collection_loader import AnsibleCollectionConfig
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager

from scripts.site import make_secrets
from tests.unit.repository import ROOT, read_yaml

# A .tmpl is a template of the program that reads it; test_alert_rules.py has its test.
TEMPLATES = sorted(path for path in ROOT.glob("roles/*/templates/**/*.j2") if not path.name.endswith(".tmpl.j2"))
NAMES = [f"{path.relative_to(ROOT / 'roles').parts[0]}/{path.name}" for path in TEMPLATES]
GROUPS = read_yaml(ROOT / "roles/validate/vars/main.yml")["__validate_role_groups"]
# Roles that others include, or that the lab does not use: a group, and the variables that are passed.
SHARED: dict[str, tuple[str, dict[str, Any]]] = {
    "python_app": ("mlflow", {"python_app_name": "mlflow", "python_app_requirements": "/requirements.txt"}),
    "docker_engine": ("cpu", {}),
    "monitoring": ("services", {}),
    "backup": ("postgresql", {"backup_target": {"path": "/mnt/backup"}, "__backup_version": "15"}),
}
# Facts that tasks gather on a host before they render.
LOOKED_UP: dict[str, Any] = {
    "nvidia": {
        "packages": {},
        "sources": [],
        "devices": [],
        "gpus": [],
        "keyrings": [],
        "cdi": [],
        "docker": {},
        "others": {},
        "run_files": [],
    }
}
FACTS = {
    "distribution": "Debian",
    "distribution_major_version": "12",
    "distribution_version": "12.11",
    "distribution_release": "bookworm",
    "os_family": "Debian",
    "architecture": "x86_64",
    "kernel": "6.1.0-42-amd64",
    "hostname": "host",
    "memtotal_mb": 16000,
    "processor_vcpus": 8,
    "python_version": "3.11.2",
    "service_mgr": "systemd",
    "pkg_mgr": "apt",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataLoader, InventoryManager, VariableManager]:
    """Return the lab's inventory with fake secrets."""
    return read_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def ipv6_site(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataLoader, InventoryManager, VariableManager]:
    """Return the same with IPv6 addresses in place of IPv4."""
    return read_site(tmp_path_factory.mktemp("ipv6_site"), ("198.51.100.", "fd00:1ab::"))


def read_site(root: Path, replaced: tuple[str, str] = ("", "")) -> tuple[DataLoader, InventoryManager, VariableManager]:
    """Return the lab's inventory with fake secrets, with one text of hosts.yml replaced by another."""
    if AnsibleCollectionConfig.collection_finder is None:
        init_plugin_loader([])
    place = root / "inventory/lab"
    ignore = shutil.ignore_patterns("vault.yml")
    shutil.copytree(ROOT / "inventory/lab", place, symlinks=True, ignore=ignore)
    (place / "hosts.yml").write_text((place / "hosts.yml").read_text().replace(*replaced))
    (root / "inventory/example").symlink_to(ROOT / "inventory/example")
    (root / "group_vars").symlink_to(ROOT / "group_vars")
    wanted = make_secrets.names((ROOT / "group_vars/all/vault.example.yml").read_text())
    secrets = make_secrets.complete({}, wanted, read_yaml(place / "group_vars/all/site.yml")["platform_users"])
    (place / "group_vars/all/vault.yml").write_text(yaml.safe_dump(secrets))
    loader = DataLoader()
    loader.set_basedir(str(place))  # as for an imported playbook: without files beside it
    inventory = InventoryManager(loader=loader, sources=[str(place)])
    variables = VariableManager(loader=loader, inventory=inventory)
    HostVars(inventory, variables, loader)
    return loader, inventory, variables


def render(site: tuple[DataLoader, InventoryManager, VariableManager], path: Path) -> str:
    """Render a template for the first lab host that its role runs on."""
    loader, inventory, manager = site
    role = ROOT / "roles" / path.relative_to(ROOT / "roles").parts[0]
    group, handed = SHARED.get(role.name, (GROUPS.get(role.name, role.name), {}))
    variables: dict[str, Any] = {}
    for name in ("defaults/main.yml", "vars/main.yml", "vars/debian_12.yml"):
        if (role / name).exists():
            found = loader.load_from_file(str(role / name), trusted_as_template=True) or {}
            # The inventory overrides a role's defaults, and a role's vars override both.
            host_names = manager.get_vars(host=inventory.get_hosts(group)[0]) if name.startswith("defaults") else {}
            variables |= found | host_names
    variables |= handed | {"ansible_facts": FACTS | LOOKED_UP, "role_path": str(role), "ansible_managed": "managed"}
    variables["hostvars"] = manager._hostvars
    templar = Templar(loader=loader, variables=variables)
    return str(
        templar.template(
            trust_as_template("{{ lookup('ansible.builtin.template', path) }}".replace("path", repr(str(path))))
        )
    )


def is_ini(text: str) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(text)
    assert parser.sections()


def is_sources(text: str) -> None:
    """Check that stanzas are in apt's format, with the required fields."""
    stanzas = [part for part in re.sub(r"^#.*\n", "", text, flags=re.M).split("\n\n") if part.strip()]
    for stanza in stanzas:
        fields = dict(line.split(": ", 1) for line in stanza.strip().splitlines() if not line.startswith(" "))
        assert {"Types", "URIs", "Suites"} <= set(fields)


def is_shell(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def is_hba(text: str) -> None:
    for line in text.splitlines():
        if line and not line.startswith("#"):
            assert len(shlex.split(line)) >= (4 if line.startswith("local") else 5), line


def is_settings(text: str) -> None:
    for line in text.splitlines():
        assert not line or re.match(r"#|\w+ = ('[^'\n]*'|[\w.]+)$", line), line


READERS: dict[str, Callable[[str], Any]] = {
    "sources": is_sources,
    "sh": is_shell,
    "toml": tomllib.loads,
    "yml": yaml.safe_load,
    "yaml": yaml.safe_load,
    "json": json.loads,
    "pip.conf": is_ini,
    "pgbackrest.conf": is_ini,
    "pg_hba.conf": is_hba,
    "postgresql/metalworks.conf": is_settings,
}


@pytest.mark.parametrize("path", TEMPLATES, ids=NAMES)
def test_template_renders(path: Path, site: tuple[DataLoader, InventoryManager, VariableManager]) -> None:
    text = render(site, path)
    assert text.strip()
    assert text.endswith("\n")
    assert ".tmpl" in path.name or "{{" not in text  # a template of Go's has braces of its own
    assert "Undefined" not in text
    assert not re.search(r"[=: ]None$", text, re.M)
    name = path.name.removesuffix(".j2")
    role = path.relative_to(ROOT / "roles").parts[0]
    reader = READERS.get(name) or READERS.get(f"{role}/{name}") or READERS.get(name.rpartition(".")[2])
    if reader:
        reader(text)


def variable(site: tuple[DataLoader, InventoryManager, VariableManager], host: str, name: str) -> Any:
    """Return a variable of a host."""
    loader, inventory, manager = site
    found = inventory.get_host(host)
    assert found
    return Templar(loader=loader, variables=manager.get_vars(host=found) | {"hostvars": manager._hostvars}).template(
        trust_as_template("{{ " + name + " }}")
    )


@pytest.mark.parametrize("path", TEMPLATES, ids=NAMES)
def test_template_has_no_ipv4_address_of_the_platform_over_ipv6(
    path: Path, ipv6_site: tuple[DataLoader, InventoryManager, VariableManager]
) -> None:
    assert "198.51.100." not in render(ipv6_site, path)


def test_hosts_with_ipv6_addresses_reach_each_other(
    ipv6_site: tuple[DataLoader, InventoryManager, VariableManager],
) -> None:
    files = {path.name: path for path in TEMPLATES}
    nginx = render(ipv6_site, files["nginx.conf.j2"])
    assert nginx.count("listen [::]:443") == nginx.count("listen 0.0.0.0:443") > 0
    clients = {line.split()[3] for line in render(ipv6_site, files["pg_hba.conf.j2"]).splitlines() if "hostssl" in line}
    assert clients == {"127.0.0.1/32", "::1/128", "fd00:1ab::11/128"}
    assert "fd00:1ab::21" in variable(ipv6_site, "services-1", "firewall_platform_addresses")
    assert "fd00:1ab::11" in variable(ipv6_site, "services-1", "certificates_names")
    assert variable(ipv6_site, "gpu-1", "inference_address") == "::"
    assert variable(ipv6_site, "services-1", "gateway_addresses")["gpu-1"] == "fd00:1ab::21"
    lines = [line for line in variable(ipv6_site, "gpu-1", "base_hosts") if line["name"] == "services-1"]
    assert lines == [{"name": "services-1", "address": "fd00:1ab::11"}]


def test_hosts_without_ipv6_are_not_asked_to_listen_there(
    site: tuple[DataLoader, InventoryManager, VariableManager],
) -> None:
    """A kernel without IPv6 has no such address, and nginx would not start."""
    assert variable(site, "services-1", "gateway_listen_addresses") == ["0.0.0.0"]
    assert variable(site, "gpu-1", "inference_address") == "0.0.0.0"


@pytest.mark.parametrize("path", [path for path in TEMPLATES if ".json" not in path.name])
def test_template_says_who_manages_the_file(path: Path) -> None:
    assert path.read_text().startswith("{{ ansible_managed | comment }}\n")
