"""scripts/lab/hosts.py: the scenario, the inventory and the engine agree on the hosts."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.common import ROOT, ProblemError
from scripts.lab import host_image
from scripts.lab import hosts as lab_hosts

ONE = "-----BEGIN CERTIFICATE-----\nAAAA\nBBBB\n-----END CERTIFICATE-----"
TWO = "-----BEGIN CERTIFICATE-----\nCCCC\n-----END CERTIFICATE-----"


def container(name: str, address: str, image: str = "new", running: bool = True) -> dict[str, Any]:
    networks = {lab_hosts.NETWORK: {"IPAMConfig": {"IPv4Address": address}}}
    binds = {"Binds": [f"{ROOT}/.cache/uv:/var/cache/metalworks/uv:rw", "/sys/fs/cgroup:/sys/fs/cgroup:rw"]}
    state = {"State": {"Running": running}, "NetworkSettings": {"Networks": networks}, "HostConfig": binds}
    return {"Image": image, "Name": name, **state}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A fake engine with these containers that records its commands."""
    world: dict[str, Any] = {"containers": {}, "done": []}

    def logged(argv: list[str], **_: object) -> None:
        world["done"].append(" ".join(map(str, argv)))
        for name in argv[argv.index("--volumes") + 1 :] if "--volumes" in argv else []:
            del world["containers"][name]

    def molecule(command: str) -> None:
        world["done"].append(f"molecule {command}")
        for host in lab_hosts.declared():
            world["containers"].setdefault(host.name, container(host.name, host.address))

    def authorize(these: list[lab_hosts.Host]) -> None:
        world["done"].append("authorize " + " ".join(host.name for host in these))

    monkeypatch.setattr(lab_hosts, "prepare_machine", lambda: None)
    monkeypatch.setattr(lab_hosts, "STATE", tmp_path / "molecule")
    monkeypatch.setattr(lab_hosts, "SSH_CONFIG", tmp_path / "ssh_config")
    monkeypatch.setattr(lab_hosts, "containers", lambda: world["containers"])
    monkeypatch.setattr(host_image, "current", lambda: "image")
    monkeypatch.setattr(lab_hosts, "capture", lambda argv: "new\n")
    monkeypatch.setattr(lab_hosts, "logged", logged)
    monkeypatch.setattr(lab_hosts, "molecule", molecule)
    monkeypatch.setattr(lab_hosts, "authorize", authorize)
    return world


def all_hosts(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    made = {host.name: container(host.name, host.address) for host in lab_hosts.declared()}
    return {**made, **{name.replace("_", "-"): value for name, value in changes.items()}}


NAMES = "cpu-1 customer-db dev-1 dev-2 git gpu-1 offsite services-1"


def test_missing_hosts_are_created_and_accept_the_key(engine: dict[str, Any]) -> None:
    assert lab_hosts.up() == "created " + NAMES.replace(" ", ", ")
    assert engine["done"] == ["molecule create", f"authorize {NAMES}"]


def test_hosts_that_run_are_left_alone(engine: dict[str, Any]) -> None:
    engine["containers"] = all_hosts()
    lab_hosts.SSH_CONFIG.touch()
    assert lab_hosts.up() == "all run already"
    assert engine["done"] == []


def test_a_stopped_host_is_started_again(engine: dict[str, Any]) -> None:
    engine["containers"] = all_hosts(gpu_1=container("gpu-1", "198.51.100.21", running=False))
    assert lab_hosts.up() == "started gpu-1"
    assert engine["done"] == ["docker start gpu-1", f"authorize {NAMES}"]


def test_hosts_of_an_old_image_are_recreated_except_ones_added_by_hand(engine: dict[str, Any]) -> None:
    old = container("gpu-1", "198.51.100.21", image="old")
    engine["containers"] = all_hosts(gpu_1=old, cpu_2=container("cpu-2", "198.51.100.32", image="old"))
    assert lab_hosts.up() == "created gpu-1"
    assert engine["done"][:2] == ["docker rm --force --volumes gpu-1", "molecule create"]
    assert "cpu-2" in engine["containers"]


def test_the_lab_of_another_checkout_is_not_taken_over(engine: dict[str, Any]) -> None:
    foreign = container("gpu-1", "198.51.100.21")
    foreign["HostConfig"]["Binds"][0] = "/elsewhere/clone/.cache/uv:/var/cache/metalworks/uv:rw"
    engine["containers"] = all_hosts(gpu_1=foreign)
    for work in (lab_hosts.up, lambda: lab_hosts.add(lab_hosts.Host("cpu-2", "198.51.100.32"))):
        with pytest.raises(ProblemError, match="the lab of /elsewhere/clone is up"):
            work()
    assert engine["done"] == []


def test_a_linked_cache_belongs_to_the_same_checkout(
    engine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large-disk" / "uv").mkdir(parents=True)
    (tmp_path / "cache").symlink_to(tmp_path / "large-disk")
    monkeypatch.setattr(lab_hosts, "CACHE", tmp_path / "cache")
    ours = container("gpu-1", "198.51.100.21")
    ours["HostConfig"]["Binds"][0] = f"{tmp_path}/cache/uv:/var/cache/metalworks/uv:rw"
    lab_hosts.refuse_foreign({"gpu-1": ours})


def test_discarded_hosts_are_removed_from_known_hosts(
    engine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, three = lab_hosts.Host("cpu-2", "198.51.100.32"), lab_hosts.Host("cpu-3", "198.51.100.33")
    engine["containers"] = all_hosts(cpu_2=container(two.name, two.address))
    monkeypatch.setattr(lab_hosts, "KNOWN_HOSTS", tmp_path / "known_hosts")
    monkeypatch.setattr(lab_hosts, "CONTROL_SOCKETS", tmp_path)
    lab_hosts.KNOWN_HOSTS.write_text("198.51.100.31 ssh-ed25519 A\n198.51.100.32 ssh-ed25519 B\n")
    (tmp_path / two.address).touch()  # path of a persistent connection
    lab_hosts.discard(two, three)
    assert engine["done"] == ["docker rm --force --volumes cpu-2"]
    assert lab_hosts.KNOWN_HOSTS.read_text() == "198.51.100.31 ssh-ed25519 A\n"
    assert not (tmp_path / two.address).exists()
    assert two.address not in lab_hosts.SSH_CONFIG.read_text()
    assert "Host cpu-1\n" in lab_hosts.SSH_CONFIG.read_text()


def test_an_existing_host_is_not_replaced(engine: dict[str, Any]) -> None:
    engine["containers"] = all_hosts()
    with pytest.raises(ProblemError, match="cpu-1 exists"):
        lab_hosts.add(lab_hosts.Host("cpu-2", "198.51.100.32"), lab_hosts.Host("cpu-1", "198.51.100.33"))
    assert engine["done"] == []


def test_the_kernels_limit_is_raised_for_many_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts that run already count too, whichever scenario or clone started them."""
    limit = tmp_path / "max_user_instances"
    limit.write_text("128\n")
    monkeypatch.setattr(lab_hosts, "INOTIFY", limit)
    monkeypatch.setattr(lab_hosts, "capture", lambda argv: "one\ntwo\nthree\n" if "ps" in argv else "")
    lab_hosts.let_watch(7)
    assert limit.read_text() == "128\n"
    lab_hosts.let_watch(22)
    assert limit.read_text() == "300"
    monkeypatch.setattr(lab_hosts, "INOTIFY", Path("/proc/version"))  # not writable, even by root
    monkeypatch.setattr(Path, "read_text", lambda _: "128")
    with pytest.raises(ProblemError, match="max_user_instances=300"):
        lab_hosts.let_watch(22)


def test_the_scenario_has_the_inventorys_hosts() -> None:
    inventory = yaml.safe_load((lab_hosts.INVENTORY / "hosts.yml").read_text())
    listed = {
        name: variables["ansible_host"]
        for group in inventory.values()
        for name, variables in (group.get("hosts") or {}).items()
    }
    assert listed == {host.name: host.address for host in lab_hosts.declared()}


@pytest.mark.parametrize("path", sorted((ROOT / "molecule").glob("*/molecule.yml")), ids=lambda path: path.parent.name)
def test_hosts_of_all_scenarios_are_created_alike(path: Path) -> None:
    """molecule/shared/create.yml creates them all; a scenario only gives names, releases, networks and shares."""
    said = yaml.safe_load(path.read_text()) or {}
    assert "create" not in said.get("ansible", {}).get("playbooks", {})
    for platform in said.get("platforms", []):
        assert platform.keys() <= {"name", "image", "labels", "docker_networks", "networks", "volumes"}, platform[
            "name"
        ]
        assert platform.get("image") in {None, *(f"{host_image.NAME}:{suite}" for suite in host_image.SUITES)}


def test_an_added_host_is_created_like_the_labs(engine: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_hosts, "molecule_environment", dict)
    lab_hosts.add(lab_hosts.Host("cpu-2", "198.51.100.32"))
    made, authorized = engine["done"]
    assert str(lab_hosts.CREATE) in made
    platform = yaml.safe_load(made.partition("--extra-vars ")[2])["platforms"][0]
    model = yaml.safe_load(lab_hosts.SCENARIO.read_text())["platforms"][1]
    network = {"name": "metalworks-lab", "ipv4_address": "198.51.100.32"}
    assert platform == model | {"name": "cpu-2", "networks": [network]}
    assert authorized == "authorize cpu-2"


def test_an_added_host_needs_room(engine: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    room = []
    monkeypatch.setattr(lab_hosts, "molecule_environment", dict)
    monkeypatch.setattr(lab_hosts, "let_watch", room.append)
    lab_hosts.add(lab_hosts.Host("cpu-2", "198.51.100.32"))
    assert room == [1]


def test_only_missing_certificates_are_passed_on() -> None:
    rewrapped = ONE.replace("AAAA\nBBBB", "AAAABBBB")
    assert lab_hosts.additional_certificates(f"{ONE}\n{TWO}\n", f"# comment\n{rewrapped}\n") == [TWO]


def test_the_ssh_configuration_names_hosts_and_takes_no_key_on_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab_hosts, "SSH_CONFIG", tmp_path / "config")
    lab_hosts.write_ssh_config([lab_hosts.Host("dev-1", "198.51.100.41")])
    written = (tmp_path / "config").read_text()
    assert "Host dev-1\n  HostName 198.51.100.41\n" in written
    assert "StrictHostKeyChecking yes" in written


def test_ssh_finds_the_labs_files_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "It's 100% ours 測試"
    place.mkdir()
    for name, file in {"KEY": "id_ed25519", "KNOWN_HOSTS": "known_hosts", "SSH_CONFIG": "ssh_config"}.items():
        monkeypatch.setattr(lab_hosts, name, place / file)
    lab_hosts.write_ssh_config([lab_hosts.Host("cpu-1", "198.51.100.31")])
    said = subprocess.run(
        ["ssh", "-G", "-F", place / "ssh_config", "cpu-1"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    # ssh quotes or expands some values, so check for the blank after which a second path would follow.
    assert f"userknownhostsfile {place / 'known_hosts'}" in said
    assert f"identityfile {place / 'id_ed25519'}".replace("%", "%%") in said


def test_the_paths_of_sockets_are_short() -> None:
    """A socket's path has at most 108 bytes, and ssh adds 17 while it creates it."""
    assert len(bytes(lab_hosts.CONTROL_SOCKETS / "198.51.100.111")) - len(bytes(Path.home())) + 17 < 80
