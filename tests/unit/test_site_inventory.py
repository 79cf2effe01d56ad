"""scripts/site/inventory.py: one line comes or goes, nothing else changes, and what cannot work is refused."""

from __future__ import annotations

import difflib
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts.common import ProblemError
from scripts.site import inventory as editor
from tests.unit.repository import ROOT, read_yaml

HOSTS = """\
---
# Ours.
services:
  hosts:
    services-1: {ansible_host: 192.0.2.11}  # rack 1
cpu: # slow machines
  hosts:

    cpu-1:   {ansible_host: '192.0.2.31'}   # the old one
    cpu-2:
      ansible_host: 192.0.2.32   # behind a router
      ansible_port: 2222

  # A remark at the end.
gpu:
  hosts:
dev: {hosts: {dev-1: {ansible_host: 192.0.2.41}}}
all:
  vars:
    ansible_user: ops
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    place = tmp_path / "inventory/ours"
    shutil.copytree(ROOT / "inventory/example", place, symlinks=True)
    (tmp_path / "group_vars").symlink_to(ROOT / "group_vars")
    (place / "hosts.yml").write_text(HOSTS)
    (place / "hosts.yml").chmod(0o640)
    return place


def changes(site: Path) -> list[str]:
    """Return the lines that differ from the text above."""
    new = (site / "hosts.yml").read_text()
    lines = difflib.ndiff(HOSTS.splitlines(), new.splitlines())
    return [line for line in lines if line[0] in "+-"]


@pytest.mark.parametrize(
    ("group", "address", "line"),
    [
        ("cpu", "192.0.2.39", "+     cpu-9: {ansible_host: 192.0.2.39}"),
        ("gpu", "192.0.2.39", "+     cpu-9: {ansible_host: 192.0.2.39}"),
    ],
)
def test_a_host_is_one_more_line(site: Path, group: str, address: str, line: str) -> None:
    assert editor.add(site, "cpu-9", address, group) == site / "hosts.yml"
    assert changes(site) == [line]
    assert (site / "hosts.yml").stat().st_mode & 0o777 == 0o640
    assert read_yaml(site / "hosts.yml")[group]["hosts"]["cpu-9"] == {"ansible_host": address}
    assert editor.remove(site, "cpu-9") == [site / "hosts.yml"]
    assert (site / "hosts.yml").read_text() == HOSTS


def test_a_host_comes_after_the_last_one(site: Path) -> None:
    editor.add(site, "cpu-9", "192.0.2.39", "cpu")
    assert list(read_yaml(site / "hosts.yml")["cpu"]["hosts"]) == ["cpu-1", "cpu-2", "cpu-9"]
    assert (
        "      ansible_port: 2222\n    cpu-9: {ansible_host: 192.0.2.39}\n\n  # A remark"
        in (site / "hosts.yml").read_text()
    )


def test_an_address_with_colons_is_quoted(site: Path) -> None:
    text = HOSTS.replace("192.0.2.", "2001:db8::").replace("ansible_host: 2001:db8::11", "ansible_host: '2001:db8::11'")
    (site / "hosts.yml").write_text(
        text.replace("2001:db8::32  ", "'2001:db8::32'").replace("2001:db8::41", "'2001:db8::41'")
    )
    editor.add(site, "cpu-9", "2001:db8::39", "cpu")
    assert read_yaml(site / "hosts.yml")["cpu"]["hosts"]["cpu-9"] == {"ansible_host": "2001:db8::39"}


@pytest.mark.parametrize(
    ("name", "removed"),
    [
        ("cpu-1", ["-     cpu-1:   {ansible_host: '192.0.2.31'}   # the old one"]),
        (
            "cpu-2",
            ["-     cpu-2:", "-       ansible_host: 192.0.2.32   # behind a router", "-       ansible_port: 2222"],
        ),
        ("services-1", ["-     services-1: {ansible_host: 192.0.2.11}  # rack 1"]),
    ],
)
def test_a_host_goes_with_its_lines_alone(site: Path, name: str, removed: list[str]) -> None:
    editor.remove(site, name, check=True)
    assert changes(site) == []
    editor.remove(site, name)
    assert changes(site) == removed


def test_a_host_goes_from_all_groups(site: Path) -> None:
    (site / "more.yml").write_text("cpu:\n  hosts:\n    services-1:\ngpu:\n  hosts:\n    services-1:\n")
    assert editor.remove(site, "services-1") == [site / "hosts.yml", site / "more.yml"]
    assert read_yaml(site / "more.yml") == {"cpu": {"hosts": None}, "gpu": {"hosts": None}}


@pytest.mark.parametrize(
    ("name", "address", "group", "said"),
    [
        ("cpu-1", "192.0.2.39", "cpu", "host cpu-1: is in the inventory already"),
        ("cpu-9", "192.0.2.32", "cpu", "address 192.0.2.32: is that of cpu-2 already"),
        ("cpu-9", "192.0.2.39", "cpus", r"group `cpus`: does not exist.\n +Did you mean `cpu`\?"),
        ("cpu-9", "192.0.2.39", "inference", "`inference`: is not one of the platform's hardware groups"),
        ("cpu-9", "192.0.2.39", "outside", "`outside`: is not one of the platform's hardware groups"),
        ("services-2", "192.0.2.39", "services", "`postgresql`: contains services-1, the new host, but its role runs"),
        ("CPU_9", "192.0.2.39", "cpu", "host CPU_9: is not a valid host name"),
        ("192.0.2.39", "192.0.2.39", "cpu", "is named by its address"),
        ("gpu", "192.0.2.39", "cpu", "host gpu: has the name of a group"),
        ("s3.metalworks.internal", "192.0.2.39", "cpu", "has a name in metalworks.internal"),
        ("cpu-9", "cpu-9.example.org", "cpu", "is not an IP address"),
        ("cpu-9", "169.254.0.9", "cpu", "link-local"),
        ("cpu-9", "2001:db8::39", "cpu", "have IPv4 addresses"),
        ("", "192.0.2.39", "cpu", "is not a valid host name"),
        ("dev-2", "192.0.2.42", "dev", r"(?s)by hand:\n    dev-2: \{ansible_host: 192\.0\.2\.42\}"),
    ],
)
def test_what_cannot_work_is_refused(site: Path, name: str, address: str, group: str, said: str) -> None:
    with pytest.raises(ProblemError, match=said):
        editor.add(site, name, address, group)
    assert changes(site) == []


def test_an_inventory_in_another_form_is_refused_with_the_line_to_add(site: Path) -> None:
    (site / "hosts.yml").unlink()
    (site / "hosts").write_text(
        "[services]\nservices-1 ansible_host=192.0.2.11\n[cpu]\ncpu-1 ansible_host=192.0.2.31\n"
    )
    with pytest.raises(ProblemError, match=r"by hand:\n    cpu-9: \{ansible_host: 192\.0\.2\.39\}"):
        editor.add(site, "cpu-9", "192.0.2.39", "cpu")
    with pytest.raises(ProblemError, match=r"no YAML file of .* lists the host cpu-1"):
        editor.remove(site, "cpu-1", check=True)


def test_a_host_on_a_line_with_others_is_left_to_people(site: Path) -> None:
    with pytest.raises(ProblemError, match="remove dev-1 there by hand"):
        editor.remove(site, "dev-1", check=True)
    assert changes(site) == []


def test_what_comes_next_is_said(site: Path) -> None:
    command = [
        ROOT / ".venv/bin/python",
        "-m",
        "scripts.site.inventory",
        "add",
        "--",
        site,
        "cpu-9",
        "192.0.2.39",
        "cpu",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"ansible-playbook -i {site} site.yml --limit cpu-9" in done.stdout


GROUPS = """\
---
platform: # all
  children:
    services: # ours
object_store: # data
  children: # a server
    services: # with disks
postgresql: {children: {services: }, vars: {a: 1}} # rows
mlflow:
  hosts:
    services-1: {ansible_host: 192.0.2.11}
prefect_server:
  children:
    services:
  hosts:
    services-1:
gateway:
"""


@pytest.mark.parametrize(
    ("group", "lines"),
    [
        ("object_store", [("  children: # a server", "  hosts: # a server"), ("services: # with", "store-1: # with")]),
        ("postgresql", [("{children: {services: }, vars", "{hosts: {store-1: }, vars")]),
    ],
)
def test_a_role_moves_and_comments_stay(site: Path, group: str, lines: list[tuple[str, str]]) -> None:
    place, wanted = site / "groups.yml", GROUPS
    place.write_text(GROUPS)
    for old, new in lines:
        wanted = wanted.replace(old, new, 1)
    assert editor.move(site, group, "store-1", check=True) == place
    assert place.read_text() == GROUPS
    assert editor.move(site, group, "store-1") == place
    assert place.read_text() == wanted
    editor.move(site, group, "store-2")
    assert place.read_text() == wanted.replace("store-1", "store-2")


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ("mlflow", "without variables there"),
        ("prefect_server", "in a form that this command cannot change"),
        ("gateway", "no YAML file of .* lists hosts of the group `gateway`"),
        ("nothing", "no YAML file of .* lists hosts of the group `nothing`"),
    ],
)
def test_a_role_in_another_form_is_left_to_people(site: Path, group: str, said: str) -> None:
    (site / "groups.yml").write_text(GROUPS)
    with pytest.raises(ProblemError, match=said):
        editor.move(site, group, "store-1")
    assert (site / "groups.yml").read_text() == GROUPS


def test_a_role_in_two_files_is_left_to_people(site: Path) -> None:
    (site / "more.yml").write_text("object_store: {hosts: {services-1: }}\n")
    with pytest.raises(ProblemError, match=r"2 files of .* list hosts of the group `object_store`"):
        editor.move(site, "object_store", "store-1")
