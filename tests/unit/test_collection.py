"""The repository is the collection metalworks.platform: in the checkout, and built and installed elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.unit.repository import ROOT, read_yaml

PLACE = "ansible_collections/metalworks/platform"
PLAY = """\
- name: Call a module, an action plugin and a filter, and read a role
  hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - name: Import module_utils
      metalworks.platform.managed_files:
        directories: [{path: /var/lib/metalworks-nowhere}]
    - name: Import plugin_utils
      metalworks.platform.validate_host:
        home: nobody
    - name: Load a filter
      ansible.builtin.assert:
        that: "({'viewer': 'GET /a'} | metalworks.platform.route_map)[0].role == 'viewer'"
    - name: Find a role
      when: false
      ansible.builtin.import_role:
        name: metalworks.platform.gateway
"""


def ansible(program: str, *arguments: str | Path, **variables: str) -> str:
    """Return the output of one of Ansible's programs, run independently of this checkout."""
    home = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    command = [Path(sys.executable).with_name(program), *arguments]
    environment = home | {"LC_ALL": "C.UTF-8", "ANSIBLE_CONFIG": "/nowhere/ansible.cfg"} | variables
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the collection from the files in Git, install it, and return its folder."""
    folder = tmp_path_factory.mktemp("collection")
    # As in a fresh clone, without other files that may be here.
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(os.path.lexists, (ROOT / name for name in listed.split("\0") if name)):
        copy = folder / "checkout" / name.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, copy, follow_symlinks=False)
    ansible("ansible-galaxy", "collection", "build", folder / "checkout", "--output-path", folder)
    (tarball,) = folder.glob("metalworks-platform-*.tar.gz")
    ansible("ansible-galaxy", "collection", "install", tarball, "--offline", "--no-deps", "--collections-path", folder)
    return folder


def test_a_play_runs_from_the_installed_collection(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(PLAY)
    arguments = [
        "-i",
        "localhost,",
        tmp_path / "play.yml",
        "-e",
        json.dumps({"ansible_python_interpreter": sys.executable}),
    ]
    said = ansible("ansible-playbook", "--check", *arguments, ANSIBLE_COLLECTIONS_PATH=str(installed))
    assert "ok=3" in said
    assert "failed=0" in said


def test_the_collection_holds_the_product_and_nothing_else(installed: Path) -> None:
    place = installed / PLACE
    wanted = ["README.md", "LICENSE", "site.yml", "pyproject.toml", "meta/runtime.yml", "group_vars/all/versions.yml"]
    assert [name for name in wanted if not (place / name).is_file()] == []
    builder = next(ROOT.glob("scripts/**/build_wheel.py")).relative_to(ROOT)
    assert (place / builder).is_file()  # a role installs the project's own package
    kept = {"CHANGELOG.md", "CONTRIBUTING.md", "FILES.json", "LICENSE", "MANIFEST.json", "README.md", "SECURITY.md"}
    kept |= {"README.zh-TW.md", "ansible.cfg", "docs", "examples", "group_vars", "meta", "mkdocs.yml", "playbooks"}
    kept |= {"plugins", "pyproject.toml", "roles", "scripts", "site.yml", "src"}
    assert {path.name for path in place.iterdir()} - kept == set()


def test_a_role_can_build_the_docs_site_from_it(installed: Path, tmp_path: Path) -> None:
    assert [path.name for path in (installed / PLACE).glob("examples/*/*")] == ["README.md"]
    program = "import pathlib, sys; from scripts.docs.site import ROOT, build; "
    program += "sys.exit(build(ROOT, *map(pathlib.Path, sys.argv[1:])).stderr)"
    command = [sys.executable, "-c", program, tmp_path / "pages", tmp_path / "site"]
    done = subprocess.run(command, cwd=installed / PLACE, capture_output=True, text=True, check=False)
    assert "WARNING" not in done.stderr, done.stderr
    assert (tmp_path / "site/examples/flights/index.html").is_file()


def test_the_collection_contains_no_secret() -> None:
    assert "inventory" in read_yaml(ROOT / "galaxy.yml")["build_ignore"]


def test_the_checkout_is_found_as_the_collection() -> None:
    """The links lead to folders without links, so that a walk that follows links ends."""
    links = {path.name: path.resolve() for path in (ROOT / "collections" / PLACE).iterdir()}
    assert links == {name: ROOT / name for name in ("meta", "plugins", "roles")}
    inside = [path for folder in links.values() for path in folder.rglob("*") if path.is_symlink()]
    assert [path for path in inside if path.resolve().is_relative_to(ROOT / "collections")] == []


def test_versions_and_ranges_are_the_same_everywhere() -> None:
    galaxy = read_yaml(ROOT / "galaxy.yml")
    ranges = {one["name"]: one["version"] for one in read_yaml(ROOT / "requirements.yml")["collections"]}
    assert galaxy["dependencies"] == {name: ranges[name] for name in galaxy["dependencies"]}
    assert f'version = "{galaxy["version"]}"' in (ROOT / "pyproject.toml").read_text()


def test_modules_are_called_by_their_full_names() -> None:
    """In an installed collection, playbooks find modules only by their full name."""
    modules = {path.stem for path in (ROOT / "plugins/modules").glob("*.py")}
    short = []
    for path in [*ROOT.glob("roles/*/tasks/*.yml"), *ROOT.glob("playbooks/*.yml"), *ROOT.glob("molecule/*/*.yml")]:
        tasks = json.loads(json.dumps(yaml.load(path.read_text(), yaml.BaseLoader)))
        short += [str(path) for task in tasks or () if isinstance(task, dict) and modules & task.keys()]
    assert short == []
