"""Each version is defined in one place, where Renovate finds it."""

from __future__ import annotations

import json
import re
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from scripts.maintenance import locks
from tests.unit.repository import ROOT, read_yaml

PINS = ROOT / "group_vars/all/versions.yml"
# A digest or key belongs to the version above it.
COMPANION = re.compile(r"_(sum|sha256|fingerprint)$")
# upgrade.yml brings a package of the distribution, named with its major version, to the newest minor one.
FLOATING = re.compile(r":latest\b|\bversion: ['\"]?latest|\bstate: latest(?!.*\n +only_upgrade: true)")
ROLE_COLLECTION = re.compile(r"^\s*(?:- )?((?:community|ansible|amazon|containers)\.[a-z]+)\.[a-z_0-9]+:", re.M)


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_renovate_finds_every_pin() -> None:
    manager = json.loads((ROOT / "renovate.json").read_text())["customManagers"][0]
    files = [pattern.strip("/") for pattern in manager["managerFilePatterns"]]
    assert any(re.search(pattern, str(PINS.relative_to(ROOT))) for pattern in files)
    pattern = manager["matchStrings"][0].replace("(?<", "(?P<")
    found = {match["currentValue"] for match in re.finditer(pattern, PINS.read_text())}
    wanted: set[str] = set()
    for name, value in read_yaml(PINS).items():
        if not COMPANION.search(name):
            wanted |= set(map(str, value if isinstance(value, list) else [value]))
    assert wanted
    assert found == wanted


def test_every_version_is_pinned() -> None:
    places = [*ROOT.glob("roles/**/*.yml"), *ROOT.glob("molecule/**/*.yml"), *ROOT.glob("playbooks/*.yml"), PINS]
    assert [str(path) for path in places if FLOATING.search(path.read_text())] == []


def test_uv_is_the_same_here_and_on_hosts() -> None:
    here = [Requirement(line) for line in project()["dependency-groups"]["dev"] if line.startswith("uv==")]
    assert [str(requirement.specifier) for requirement in here] == [f"=={read_yaml(PINS)['uv_version']}"]


def test_one_version_of_prefect_and_mlflow() -> None:
    """Server, workers and clients have the same version."""
    pins: dict[str, set[str]] = {}
    for group in project()["dependency-groups"].values():
        for requirement in map(Requirement, group):
            if requirement.name in ("prefect", "mlflow"):
                pins.setdefault(requirement.name, set()).add(str(requirement.specifier))
    assert {name: len(found) for name, found in pins.items()} == {"prefect": 1, "mlflow": 1}


def test_exports_equal_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    assert locks.stale() == []


def collections() -> dict[str, str]:
    return {each["name"]: each["version"] for each in read_yaml(ROOT / "requirements.yml")["collections"]}


def test_collections_of_the_package_are_in_the_ranges() -> None:
    """The ranges for Galaxy include the tested versions, which came with the package `ansible`."""
    root = Path(sysconfig.get_path("purelib")) / "ansible_collections"
    for name, versions in collections().items():
        manifest = json.loads((root / name.replace(".", "/") / "MANIFEST.json").read_text())
        assert SpecifierSet(versions).contains(Version(manifest["collection_info"]["version"])), name


def test_collections_that_roles_use_are_required() -> None:
    used: set[str] = set()
    for path in (*ROOT.glob("roles/*/tasks/*.yml"), *ROOT.glob("playbooks/*.yml"), *ROOT.glob("molecule/**/*.yml")):
        used |= set(ROLE_COLLECTION.findall(path.read_text()))
    used -= {"ansible.builtin"}
    assert used <= set(collections())


def test_the_tested_ansible_is_installed() -> None:
    pins = [Requirement(line) for line in project()["dependency-groups"]["dev"] if line.startswith("ansible==")]
    fitting = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    assert [str(pin.specifier) for pin in fitting] == [f"=={metadata.version('ansible')}"]
