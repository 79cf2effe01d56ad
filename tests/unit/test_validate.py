"""validate.yml reports each problem of invalid input once, and nothing for valid input."""

from __future__ import annotations

import datetime
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from scripts.common import ROOT
from scripts.site import make_secrets
from tests.unit.repository import load

rules = load("plugins/plugin_utils/site_rules.py")
certificates = load("plugins/action/host_certificate.py")
probe = load("plugins/modules/validate_host.py")

GROUPS = {
    "all": ["s1", "g1", "db"],
    "ungrouped": [],
    "platform": ["s1", "g1"],
    "services": ["s1"],
    "gpu": ["g1"],
    "outside": ["db"],
    "mlflow": ["s1"],
}
FACTS = {
    "distribution": "Debian",
    "distribution_version": "12.11",
    "distribution_major_version": "12",
    "memtotal_mb": 8000,
}
SUPPORTED = {"Debian": ["12", "13"], "Ubuntu": ["24.04"]}
CA = "-----BEGIN CERTIFICATE-----\nMII=\n-----END CERTIFICATE-----\n"


def the_only(problems: list[Any]) -> Any:
    """Return the one problem there is, which must say what to do."""
    assert len(problems) == 1, problems
    assert problems[0].cure
    return problems[0]


# -- Inventory


def test_groups_with_hosts_pass() -> None:
    assert rules.empty_groups(GROUPS, ["mlflow"], "services") == []


@pytest.mark.parametrize("groups", [GROUPS | {"mlflow": []}, {}])
def test_empty_group(groups: dict[str, list[str]]) -> None:
    problem = the_only(rules.empty_groups(groups, ["mlflow"], "services"))
    assert problem.where == "group `mlflow`"
    assert "has no host" in problem.what
    assert "`services`" in problem.cure


def test_all_empty_groups_are_one_problem() -> None:
    problem = the_only(rules.empty_groups({}, ["mlflow", "postgresql"], "services"))
    assert (problem.where, problem.what) == ("groups `mlflow`, `postgresql`", "have no host")


def test_a_second_host_for_a_role_that_runs_on_one() -> None:
    problem = the_only(rules.crowded_groups({"mlflow": ["s1", "s2"], "postgresql": ["s1"]}, ["mlflow", "postgresql"]))
    assert problem.where == "group `mlflow`"
    assert "s1, s2" in problem.what


def test_placed_hosts_pass() -> None:
    assert rules.stray_hosts(GROUPS, ["platform", "outside"]) == []


def test_host_in_a_misspelt_group() -> None:
    groups = GROUPS | {"all": [*GROUPS["all"], "g2"], "gpus": ["g2"]}
    problem = the_only(rules.stray_hosts(groups, ["platform", "outside"]))
    assert problem.where == "host g2"
    assert problem.cure == "Did you mean group `gpu`?"


def test_host_in_no_group() -> None:
    groups = GROUPS | {"all": [*GROUPS["all"], "x"], "ungrouped": ["x"]}
    assert "in no group" in the_only(rules.stray_hosts(groups, ["platform", "outside"])).what


@pytest.mark.parametrize("name", ["gpu-1", "a", "gpu1.example.org"])
def test_host_names_that_work(name: str) -> None:
    assert rules.bad_host_names([name]) == []


@pytest.mark.parametrize("name", ["gpu_1", "GPU", "-a", "a-", "a b", "10.0.0.1", "fd00::1"])
def test_host_names_that_do_not_work(name: str) -> None:
    assert the_only(rules.bad_host_names([name])).where == f"host {name}"


def test_an_address_as_a_name_gets_a_line_to_copy() -> None:
    assert "`cpu-1: {ansible_host: 10.0.0.1}`" in the_only(rules.bad_host_names(["10.0.0.1"])).cure
    assert '`cpu-1: {ansible_host: "fd00::"}`' in the_only(rules.bad_host_names(["fd00::"])).cure


@pytest.mark.parametrize("address", ["10.0.0.1", "fd00::1"])
def test_address_that_works(address: str) -> None:
    assert rules.bad_address("a", address, {"has": True, "routed": ["10.0.0.1"]}) == []


@pytest.mark.parametrize(
    ("address", "has", "what"),
    [
        ("gpu-1.corp.example", False, "only the name `gpu-1.corp.example`"),
        ("lab-gpu", True, "only the name `lab-gpu`"),
        ("192.0.2.9", False, "does not have the address 192.0.2.9 itself"),
    ],
)
def test_address_that_others_cannot_use(address: str, has: bool, what: str) -> None:
    problem = the_only(rules.bad_address("gpu-1", address, {"has": has, "routed": ["10.0.0.21", "fd00::21"]}))
    assert what in problem.what
    assert "`platform_address: 10.0.0.21`" in problem.cure


@pytest.mark.parametrize(
    ("others", "advised"),
    [([], "10.0.0.1"), (["a-name"], "10.0.0.1"), (["a-name", "fd00::2"], '"fd00::1"'), (["10.0.0.2"], "10.0.0.1")],
)
def test_the_advised_address_has_the_ip_version_of_the_other_hosts(others: list[str], advised: str) -> None:
    problem = the_only(rules.bad_address("a", "an-alias", {"has": False, "routed": ["10.0.0.1", "fd00::1"]}, others))
    assert f"`platform_address: {advised}`" in problem.cure


def test_ssh_port_that_the_firewall_would_close() -> None:
    sshd = [{"port": 2222, "unit": "ssh.service", "process": "sshd"}]
    assert rules.closed_ssh_port("a", 2222, sshd) == []
    problem = the_only(rules.closed_ssh_port("a", 22, sshd))
    assert "no SSH server on port 22" in problem.what
    assert "the SSH server listens on 2222" in problem.what
    assert "`firewall_ssh_port: 2222`" in problem.cure


def test_two_hosts_with_one_address() -> None:
    assert rules.shared_addresses({"a": "192.0.2.1", "b": "192.0.2.2"}) == []
    problem = the_only(rules.shared_addresses({"a": "192.0.2.1", "b": "192.0.2.2", "c": "192.0.2.1"}))
    assert (problem.where, problem.what) == ("hosts a and c", "have the same address, 192.0.2.1")


def test_link_local_address() -> None:
    problem = the_only(rules.bad_address("a", "fe80::1", {"has": True, "routed": ["fd00::1"]}))
    assert "link-local address fe80::1" in problem.what
    assert '`platform_address: "fd00::1"`' in problem.cure


def test_hosts_of_both_ip_versions() -> None:
    assert rules.mixed_addresses({"a": "192.0.2.1", "b": "192.0.2.2", "c": "an-alias"}) == []
    assert rules.mixed_addresses({"a": "fd00::1", "b": "fd00::2"}) == []
    problem = the_only(rules.mixed_addresses({"a": "192.0.2.1", "b": "fd00::2", "c": "192.0.2.3"}))
    assert "IPv4 addresses (a, c) and IPv6 addresses (b)" in problem.what


# -- Variables

KNOWN = {"mlflow_port", "mlflow_workers", "developers", "apt_mirror", "prefect_worker_pools"}


def unknown(*names: str, renamed: dict[str, str] | None = None) -> list[Any]:
    prefixes, choices = ("mlflow_", "prefect_worker_"), {"developers", "apt_mirror"}
    found: list[Any] = rules.unknown_variables(
        names, KNOWN, prefixes, choices, renamed or {}, lambda name: f" (of {name})"
    )
    return found


def test_known_and_foreign_variables_pass() -> None:
    assert unknown("mlflow_port", "developers", "team_colour") == []


def test_misspelt_variable_of_a_role() -> None:
    problem = the_only(unknown("mlflow_prot"))
    assert problem.where == "variable `mlflow_prot` (of mlflow_prot)"
    assert problem.cure == "Did you mean `mlflow_port`?"


def test_unheard_of_variable_of_a_role() -> None:
    assert "Remove it" in the_only(unknown("mlflow_favourite_colour")).cure


def test_misspelt_choice_of_the_site() -> None:
    assert the_only(unknown("developer")).cure == "Did you mean `developers`?"


def test_renamed_variable() -> None:
    problem = the_only(unknown("mlflow_listen", renamed={"mlflow_listen": "mlflow_port"}))
    assert (problem.what, problem.cure) == ("was renamed", "Use `mlflow_port`")


def test_the_options_of_playbooks_are_no_misspellings() -> None:
    """Playbooks that end with site.yml pass theirs on to it."""
    texts = [path.read_text() for folder in ("playbooks", "docs") for path in (ROOT / folder).glob("*.*")]
    options = {name for text in texts for name in re.findall(r"-e (\w+)=", text)}
    assert {"host", "restore_set"} <= options
    prefixes = [f"{path.name}_" for path in (ROOT / "roles").iterdir()]
    choices = rules.settings((ROOT / "group_vars/all/main.yml").read_text())
    assert rules.unknown_variables(options, set(), prefixes, choices, {}, lambda name: "") == []


def test_names_that_a_file_sets() -> None:
    assert rules.settings("---\n# no: 1\nyes: 2\n__internal: 3\nnested:\n  deeper: 4\n") == {
        "yes",
        "__internal",
        "nested",
    }


def test_secrets_that_a_file_needs(tmp_path: Path) -> None:
    path = tmp_path / "wiring.yml"
    path.write_text(
        "a: '{{ vault_a }}'\n# b: '{{ vault_comment }}'\nc: \"{{ vault_c | default('') }}\"\n"
        "d: '{{ vault_d if x else 0 }}'\ne: '{{ vault_keys.worker }}'\n"
    )
    assert rules.referenced_secrets([path]) == {"vault_a": "wiring.yml", "vault_keys": "wiring.yml"}


NEEDED = {"vault_a": "wiring.yml", "vault_keys": "wiring.yml", "vault_c": "mlflow.yml"}


def missing(secrets: dict[str, Any], **absent: list[str]) -> list[Any]:
    return list(rules.missing_secrets(NEEDED, secrets, absent, "Run this"))


def test_secrets_that_are_there_pass() -> None:
    assert missing({"vault_a": "x", "vault_keys": {"worker": "x"}, "vault_c": "x"}) == []


def test_missing_secret() -> None:
    found = missing({"vault_c": "x"}, vault_a=[])
    assert the_only(found) == ("secret `vault_a`", "is not defined, but wiring.yml needs it", "Run this")


def test_empty_secret() -> None:
    found = missing({"vault_a": "", "vault_c": "x"}, vault_a=[])
    assert the_only(found) == ("secret `vault_a`", "is empty", "Run this")


def test_misspelt_secret() -> None:
    found = rules.missing_secrets(
        {"vault_password": "wiring.yml"}, {"vault_pasword": "x"}, {"vault_password": []}, "Run this"
    )
    assert the_only(found).cure == "Rename `vault_pasword` to `vault_password`"


def test_missing_key() -> None:
    found = missing({"vault_keys": {"other": "x"}}, vault_keys=["worker", "ada"])
    assert the_only(found) == ("secret `vault_keys`", "has no key for worker, ada", "Run this")


def test_what_one_command_adds_is_one_problem() -> None:
    found = missing({"vault_a": "x"}, vault_c=[], vault_keys=["ada"])
    assert the_only(found) == ("secrets", "2 are missing or empty: `vault_c`, `vault_keys` (for ada)", "Run this")


@pytest.mark.parametrize("secrets", [{}, {"vault_a": "", "vault_c": None}, {"vault_mine": "x"}])
def test_empty_vault(secrets: dict[str, Any]) -> None:
    found = missing(secrets, vault_a=[], vault_c=[], vault_keys=[])
    assert the_only(found) == ("secrets", "none of the 3 that the platform needs is set", "Run this")


@pytest.mark.parametrize(
    ("queues", "said"),
    [
        ({"urgent": 1, "default": 2}, []),
        ({}, []),
        (None, []),  # the schema refuses that
        ({"urgent": 1, "default": 1}, ["contains 1 more than once"]),
    ],
)
def test_queue_order(queues: object, said: list[str]) -> None:
    assert [problem.what for problem in rules.queue_order(queues, "work_queues")] == said


def test_duplicates() -> None:
    assert rules.duplicates("`developers`", ["ada", "bob"]) == []
    assert "ada more than once" in the_only(rules.duplicates("`developers`", ["ada", "bob", "ada"])).what


def test_readable_ca_file_passes(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(CA)
    assert rules.unreadable_ca_files([str(tmp_path / "ca.pem")], "extra_ca_certificates") == []


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "No such file"), (b"hello", "no PEM certificate"), (b"\x30\x82\xff\xfe", "is it DER?")],
)
def test_unreadable_ca_file(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    problem = the_only(rules.unreadable_ca_files([str(path)], "extra_ca_certificates"))
    assert problem.where == "variable `extra_ca_certificates`"
    assert str(path) in problem.what
    assert said in problem.what


def test_relative_ca_file() -> None:
    assert "absolute" in the_only(rules.unreadable_ca_files(["ca.pem"], "extra_ca_certificates")).what


def test_variable_that_cannot_be_computed() -> None:
    problem = the_only(rules.unresolved({("mlflow_url", "'my_host' is undefined"): ["s1", "g1"]}, []))
    assert problem.where == "variable `mlflow_url` of s1, g1"
    assert problem.cure == "Set `my_host` in the inventory's group_vars"


def test_a_secret_that_a_vault_lacks_comes_from_make_secrets() -> None:
    """As after an upgrade to a release that has another secret."""
    problem = the_only(rules.unresolved({("mlflow_url", "'vault_x' is undefined"): ["s1"]}, []))
    assert problem.cure.startswith("Run `make secrets INVENTORY=inventory/<site>`")
    assert "put `vault_x` into the vault" in problem.cure


def test_consequences_of_a_missing_secret_are_not_reported() -> None:
    assert rules.unresolved({("mlflow_url", "'vault_x' is undefined"): ["s1"]}, ["vault_x"]) == []


# -- Hosts


def test_unreachable_host() -> None:
    reason = "Data could not be sent. Make sure this host can be reached over ssh: Connection timed out."
    problem = rules.unreachable("g1", "192.0.2.1", reason)
    assert problem.what == "cannot be reached at 192.0.2.1 (Connection timed out)"
    assert "ansible_user" in problem.cure


def test_host_without_sudo() -> None:
    assert "sudo: a password is required" in rules.unusable("g1", "sudo: a password is required").what


@pytest.mark.parametrize(("name", "version"), [("Debian", "12.11"), ("Debian", "13.1"), ("Ubuntu", "24.04")])
def test_supported_systems(name: str, version: str) -> None:
    facts = {"distribution": name, "distribution_version": version, "distribution_major_version": version.split(".")[0]}
    assert rules.unsupported_system("g1", facts, SUPPORTED) == []


@pytest.mark.parametrize(("name", "version"), [("Debian", "11.9"), ("Ubuntu", "24.10"), ("Rocky", "9.4")])
def test_unsupported_system(name: str, version: str) -> None:
    facts = {"distribution": name, "distribution_version": version, "distribution_major_version": version.split(".")[0]}
    problem = the_only(rules.unsupported_system("g1", facts, SUPPORTED))
    assert name in problem.what
    assert problem.cure == "Install one of: Debian 12, 13; Ubuntu 24.04"


def test_old_python() -> None:
    assert rules.old_python("g1", [3, 11], [3, 11]) == []
    assert "has Python 3.10; at least 3.11" in the_only(rules.old_python("g1", [3, 10], [3, 11])).what


NEED = {"memory_mb": 4000, "disk_mb": 20000, "free_mb": 2000, "group": "group `gpu`"}


def test_large_enough_host_passes() -> None:
    assert rules.too_small("g1", FACTS, {"/opt": {"size_mb": 20000, "free_mb": 2000}}, NEED) == []


@pytest.mark.parametrize(
    ("memory", "size", "free", "said"),
    [
        (3999, 20000, 2000, "3999 MB of memory; group `gpu` needs 4000 MB"),
        (4000, 19999, 2000, "a disk of 19999 MB under /opt; group `gpu` needs 20000 MB"),
        (4000, 20000, 1999, "1999 MB free under /opt"),
    ],
)
def test_too_small_host(memory: int, size: int, free: int, said: str) -> None:
    disks = {path: {"size_mb": size, "free_mb": free} for path in ("/opt", "/var")}
    assert said in the_only(rules.too_small("g1", {"memtotal_mb": memory}, disks, NEED)).what


@pytest.mark.parametrize(("devices", "wanted"), [(1, True), (0, False), (1, False)])
def test_gpu_host_with_its_devices_passes(devices: int, wanted: bool) -> None:
    assert rules.missing_device("g1", devices, wanted) == []


def test_gpu_host_without_a_device() -> None:
    problem = the_only(rules.missing_device("g1", 0, True))
    assert problem.what == "is in group `nvidia` but has no NVIDIA device"
    assert "nvidia_require_device" in problem.cure


@pytest.mark.parametrize(
    ("docker", "runtimes"), [(True, {"mlflow_runtime": "docker"}), (False, {"mlflow_runtime": "podman"}), (False, {})]
)
def test_a_host_with_the_engine_that_it_needs_passes(docker: bool, runtimes: dict[str, str]) -> None:
    assert rules.missing_engine("s1", docker, runtimes) == []


def test_a_host_without_the_engine_that_it_needs() -> None:
    runtimes = {"mlflow_runtime": "docker", "prefect_server_runtime": "native"}
    problem = the_only(rules.missing_engine("s1", False, runtimes))
    assert problem.what == "has no Docker engine that runs, as wanted by mlflow_runtime"
    assert "group `docker_engine`" in problem.cure


def test_a_sockets_file_alone_is_no_engine(tmp_path: Path) -> None:
    path = str(tmp_path / "docker.sock")
    assert not probe.listens(path)
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(path)
        assert not probe.listens(path)
        engine.listen()
        assert probe.listens(path)


def test_devices_are_counted_by_pci_id(tmp_path: Path) -> None:
    for name, vendor, kind in (("a", "0x10de", "0x030200"), ("b", "0x10de", "0x040300"), ("c", "0x8086", "0x030000")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    assert probe.nvidia_devices(tmp_path) == 1
    assert probe.nvidia_devices(tmp_path / "none") == 0


def test_the_largest_requirement_of_a_hosts_groups_counts() -> None:
    minimums = {"gpu": {"memory_mb": 4, "disk_mb": 1}, "dev": {"memory_mb": 2, "disk_mb": 9}}
    need = rules.strictest(["dev", "gpu", "all"], minimums)
    assert (need["memory_mb"], need["disk_mb"], need["free_mb"]) == (4, 9, 0)


WANT = [{"port": 5000, "unit": "mlflow.service", "setting": "mlflow_port"}]


@pytest.mark.parametrize(
    "listener",
    [
        {"port": 5000, "unit": "mlflow.service", "process": "mlflow"},
        {"port": 22, "unit": "ssh.service", "process": "sshd"},
    ],
)
def test_own_and_other_ports_pass(listener: dict[str, Any]) -> None:
    assert rules.taken_ports("s1", [listener], WANT) == []


@pytest.mark.parametrize(
    ("unit", "process", "holder"),
    [("wiki.service", "python3", "wiki.service"), ("", "python3", "python3"), ("", "", "another program")],
)
def test_taken_port(unit: str, process: str, holder: str) -> None:
    problem = the_only(rules.taken_ports("s1", [{"port": 5000, "unit": unit, "process": process}], WANT))
    assert problem.what == f"port 5000, which mlflow.service needs, is in use by {holder}"
    assert problem.cure.endswith("), or set mlflow_port to a free port")


def test_taken_port_that_the_site_cannot_move() -> None:
    held = [{"port": 5000, "unit": "wiki.service", "process": "python3"}]
    problem = the_only(rules.taken_ports("s1", held, [WANT[0] | {"setting": ""}]))
    assert problem.cure == "Stop it there (`systemctl disable --now wiki.service`)"


def test_a_port_may_be_held_by_a_unit_of_a_pattern() -> None:
    want = [{"port": 5432, "unit": "postgresql@*-main.service", "setting": "postgresql_port"}]
    held = [{"port": 5432, "unit": "postgresql@15-main.service", "process": "postgres"}]
    assert rules.taken_ports("s1", held, want) == []
    other = [held[0] | {"unit": "postgresql@15-wiki.service"}]
    problem = the_only(rules.taken_ports("s1", other, want))
    assert problem.what == "port 5432, which postgresql.service needs, is in use by postgresql@15-wiki.service"


def test_two_parts_on_one_port() -> None:
    two = [*WANT, {"port": 5000, "unit": "inference-a.service", "setting": "the port of a in inference_services"}]
    assert rules.two_on_one_port("s1", WANT) == []
    problem = the_only(rules.two_on_one_port("s1", two))
    assert "both set to listen on port 5000" in problem.what
    assert problem.cure == "Change mlflow_port or the port of a in inference_services"
    fixed = the_only(rules.two_on_one_port("s1", [WANT[0] | {"setting": ""}, two[1]]))
    assert fixed.cure == "Change the port of a in inference_services"


def test_report_numbers_every_problem() -> None:
    text = rules.report([rules.Problem("host a", "is down", "Start it"), rules.Problem("host b", "is slow", "Wait")])
    assert text.splitlines() == [
        "2 problems found; no host was changed.",
        "  1. host a: is down.",
        "     Start it",
        "  2. host b: is slow.",
        "     Wait",
    ]
    assert rules.report([rules.Problem("a", "b", "c")]).startswith("1 problem found;")


# -- Facts of a host


def test_unit_is_the_innermost_of_a_process() -> None:
    assert (
        probe.unit_of("0::/system.slice/system-postgresql.slice/postgresql@15-main.service\n")
        == "postgresql@15-main.service"
    )
    assert probe.unit_of("1:name=systemd:/docker/4f/system.slice/mlflow.service\n2:cpu:/\n") == "mlflow.service"
    assert probe.unit_of("0::/user.slice/user-1000.slice/session-3.scope\n") == "session-3.scope"
    assert probe.unit_of("0::/\n") == ""


def test_listening_port_is_found_with_its_holder() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        found = probe.holders(probe.listening_inodes(Path("/proc/net/tcp").read_text()), Path("/proc"))
        mine = [each for each in found if each["port"] == port]
        assert [each["process"] for each in mine] == [Path("/proc/self/comm").read_text().strip()]
    assert port not in probe.listening_inodes(Path("/proc/net/tcp").read_text()).values()


def test_port_of_a_hidden_process_is_told_without_a_holder(tmp_path: Path) -> None:
    assert probe.holders({"123": 5000}, tmp_path) == [{"port": 5000, "unit": "", "process": ""}]


def test_disk_of_a_path_that_does_not_exist_yet(tmp_path: Path) -> None:
    there = os.statvfs(tmp_path)
    assert probe.disk(str(tmp_path / "not/yet"))["size_mb"] == there.f_blocks * there.f_frsize >> 20


# -- Users and secrets


def test_people_named_like_an_account() -> None:
    problem = the_only(rules.reserved_names(["ada", "backup"], {"backup", "inference"}, "platform_users"))
    assert problem == (
        "variable `platform_users`",
        "backup is the name of an account of the system or the platform",
        "Choose another name for this person",
    )


def test_a_person_named_like_the_account_that_ansible_uses() -> None:
    problem = the_only(rules.names_of_the_operator(["ada", "ops"], {"ops"}, "platform_users"))
    assert problem == (
        "variable `platform_users`",
        "ops is the account that Ansible logs in with (ansible_user)",
        "Choose another name for this person, or another account for Ansible",
    )


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        ("Tr0ub4dor&3", "shorter than 16"),
        ("changemechangeme", "well-known"),
        ("Password-123456789", "well-known"),
        ("metalworks-admin-2026", "well-known"),
        ("aaaaaaaaaaaaaaaaaaaa", "repeats"),
        ("ab1ab1ab1ab1ab1ab1", "repeats"),
        ("8164302957183046", "one kind"),
        ("correcthorsebatterystaple", "one kind"),
    ],
)
def test_weak_secrets(secret: str, reason: str) -> None:
    for secrets in ({"vault_a": secret}, {"vault_a": {"ada": secret}}):
        problem = the_only(rules.weak_secrets(secrets, [], "Run `make secrets`"))
        assert "`vault_a`" in problem.where
        assert reason in problem.what
        assert "make secrets" in problem.cure
        assert secret not in str(problem)


def test_generated_and_foreign_secrets_pass() -> None:
    generated = [make_secrets.new_value() for _ in range(500)]
    key = make_secrets.ca({})["vault_ca_private_key"]
    given = {"vault_raw_database_password": "short", "vault_ca_private_key": key, "vault_empty": "", "vault_none": {}}
    secrets = {"vault_a": dict(enumerate(generated)), "vault_hex": "0f3c9a7be1d24568", **given}
    secrets["vault_number"] = 12345678  # the schema refuses that
    assert rules.weak_secrets(secrets, ["vault_raw_database_password"], "Run it") == []


# -- Models in service

SERVICE = {"name": "delay", "model": "flight-delay"}


def test_valid_services_pass() -> None:
    full = {**SERVICE, "alias": "best", "shadow": "challenger", "canary": {"alias": "next"}}
    empty = {**SERVICE, "shadow": "", "canary": {}}
    assert rules.contradicting_services([SERVICE, empty, full], "inference_services") == []


@pytest.mark.parametrize(
    ("options", "what", "cure"),
    [
        ({"shadow": "champion"}, "uses `champion` as both alias and shadow", "cannot be compared with itself"),
        (
            {"alias": "canary", "canary": {"percent": 5}},
            "uses `canary` as both alias and canary.alias",
            "different aliases",
        ),
        ({"alias": "latest"}, "sets alias to latest, a name that MLflow reserves", "another alias"),
    ],
)
def test_aliases_of_services(options: dict[str, Any], what: str, cure: str) -> None:
    problem = the_only(rules.contradicting_services([{**SERVICE, **options}], "inference_services"))
    assert problem.where == "variable `inference_services`, service delay"
    assert what in problem.what
    assert cure in problem.cure


# -- Names and pools


@pytest.mark.parametrize("host", ["ml.example.org", "s3.ml.example.org"])
def test_domain_that_is_the_name_of_a_host(host: str) -> None:
    problem = the_only(rules.domain_of_a_host("ml.example.org", ["s3", "mlflow"], ["gpu-1", host]))
    assert problem.what == f"gives the platform the name {host}, which a host has already"


def test_hosts_below_the_domain_pass() -> None:
    assert rules.domain_of_a_host("ml.example.org", ["s3"], ["gpu-1.ml.example.org", "example.org"]) == []


def test_pool_without_a_limit() -> None:
    assert rules.pools_without_a_limit({"gpu": 1, "cpu": 2}, {"gpu": ["g"], "cpu": ["c"]}, "worker_limits") == []
    assert rules.pools_without_a_limit({"gpu": 1}, {"gpu": ["g"], "cpu": []}, "worker_limits") == []
    problem = the_only(rules.pools_without_a_limit({"gpu": 1}, {"gpu": ["g"], "cpu": ["c"]}, "worker_limits"))
    assert problem.what == "has no limit for the pool cpu"


# -- A team's own certificates


@pytest.fixture
def own(tmp_path: Path) -> dict[str, str]:
    """Return the files of a certificate for `s1` and other names, from a CA created by `make secrets`."""
    secrets = make_secrets.ca({})
    ca, ca_key = certificates.certificate(secrets["vault_ca_certificate"], ""), secrets["vault_ca_private_key"]
    key = make_secrets.new_ca_key()
    signer = certificates.private_key(ca_key, "")
    host = certificates.issue(request(key), ca, signer, ["s1", "*.lab.test", "10.1.2.3", "fd00::7"], 90)
    texts = {"certificate": host, "key": key, "ca": secrets["vault_ca_certificate"], "ca_key": ca_key}
    for kind, text in texts.items():
        (tmp_path / kind).write_text(text)
    return {kind: str(tmp_path / kind) for kind in ("certificate", "key", "ca")}


def request(key: str) -> str:
    """Return a signed request for a certificate."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding

    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(certificates.private_key(key, ""), hashes.SHA256()).public_bytes(Encoding.PEM).decode()


NAMES = ["s1", "mlflow.lab.test", "10.1.2.3", "fd00:0::7"]


def test_own_certificate_that_fits_passes(own: dict[str, str]) -> None:
    assert rules.bad_own_certificate("s1", own, NAMES) == []
    assert rules.bad_own_certificate("s1", {}, NAMES) == []


def reissue(own: dict[str, str], valid_days: int = 90, **moved: Any) -> None:
    """Replace the certificate by one issued at another time."""
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(**moved)
    directory = Path(own["ca"]).parent
    ca = certificates.certificate(Path(own["ca"]).read_text(), "")
    signer = certificates.private_key((directory / "ca_key").read_text(), "")
    text = certificates.issue(request(Path(own["key"]).read_text()), ca, signer, ["s1"], valid_days, now)
    Path(own["certificate"]).write_text(text)


def test_own_certificate_not_yet_valid(own: dict[str, str]) -> None:
    reissue(own, days=3)
    assert "is not valid before" in the_only(rules.bad_own_certificate("s1", own, ["s1"])).what


def test_own_certificate_expired(own: dict[str, str]) -> None:
    # The CA is one hour old, and the host's certificate was issued and expired within it.
    reissue(own, valid_days=0, minutes=-10)
    problem = the_only(rules.bad_own_certificate("s1", own, ["s1"]))
    assert "expired on" in problem.what
    assert "newer" in problem.cure


@pytest.mark.parametrize("name", ["s2", "a.b.lab.test", "10.1.2.4", "lab.test"])
def test_own_certificate_for_other_names(own: dict[str, str], name: str) -> None:
    problem = the_only(rules.bad_own_certificate("s1", own, ["s1", name]))
    assert f"is not valid for {name}" in problem.what
    assert "*.lab.test" in problem.cure


def test_own_key_that_does_not_fit(own: dict[str, str]) -> None:
    Path(own["key"]).write_text(make_secrets.new_ca_key())
    problem = the_only(rules.bad_own_certificate("s1", own, ["s1"]))
    assert "is not the key" in problem.what
    assert problem.where == "variable `own_certificates` of s1"


def test_own_certificate_of_another_ca(own: dict[str, str]) -> None:
    Path(own["ca"]).write_text(make_secrets.ca({})["vault_ca_certificate"])
    assert "does not chain to" in the_only(rules.bad_own_certificate("s1", own, ["s1"])).what


def test_own_chain_that_ends_with_the_ca_passes(own: dict[str, str]) -> None:
    with Path(own["certificate"]).open("a") as chain:
        chain.write(Path(own["ca"]).read_text())
    assert rules.bad_own_certificate("s1", own, ["s1"]) == []


@pytest.mark.parametrize("kind", ["certificate", "key", "ca"])
def test_unusable_own_files(own: dict[str, str], kind: str) -> None:
    for path, what in (("/nowhere", "cannot be read"), ("relative", "is not an absolute path"), ("", f"lacks {kind}")):
        assert what in the_only(rules.bad_own_certificate("s1", own | {kind: path}, ["s1"])).what
    Path(own[kind]).write_text("damaged")
    assert f"{kind} {own[kind]} contains no" in the_only(rules.bad_own_certificate("s1", own, ["s1"])).what


ONE_CA = {"certificate": "/c", "key": "/k", "ca": "/ca"}


@pytest.mark.parametrize(
    ("own", "what"),
    [
        ({"s1": ONE_CA}, "lacks s2, but all hosts must share one CA"),
        ({"s1": ONE_CA, "s2": {}}, "lacks s2"),
        ({"s1": ONE_CA, "s2": ONE_CA, "s3": ONE_CA}, "lists s3, not a host of the platform"),
        ({"s1": ONE_CA, "s2": ONE_CA | {"ca": "/other"}}, "uses several CA files: /ca, /other"),
    ],
)
def test_own_certificates_are_for_all_hosts_and_from_one_ca(own: Any, what: str) -> None:
    assert what in the_only(rules.uneven_own_certificates(own, ["s1", "s2"])).what


@pytest.mark.parametrize("own", [{}, None, {"s1": ONE_CA, "s2": ONE_CA}])
def test_own_certificates_for_none_or_all_pass(own: Any) -> None:
    assert rules.uneven_own_certificates(own, ["s1", "s2"]) == []


def test_own_files_may_be_encrypted(own: dict[str, str]) -> None:
    plain = {path: Path(path).read_bytes() for path in own.values()}
    Path(own["key"]).write_text("$ANSIBLE_VAULT;1.1;AES256\n")
    assert rules.bad_own_certificate("s1", own, NAMES, contents=plain.__getitem__) == []
