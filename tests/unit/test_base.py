"""roles/base: certificates are split and checked, and uv's pin is the locked version."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.unit.repository import ROOT, load, read_yaml

certificates = state = load("plugins/modules/host_baseline.py")
managed_files = load("plugins/module_utils/managed_files.py")
BUNDLE = Path(ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt")


@pytest.fixture(scope="module")
def pems() -> list[str]:
    """Return three certificates of this machine's bundle."""
    return list(certificates.PEM.findall(BUNDLE.read_text(errors="replace")))[:3]


def test_bundle_is_split(pems: list[str]) -> None:
    text = "# a comment\n" + "\n\nanother\n".join(pems)
    found = certificates.certificates(text)
    assert list(found.values()) == [f"{pem}\n" for pem in pems]
    assert all(len(key) == 32 for key in found)


def test_same_certificate_counts_once(pems: list[str]) -> None:
    again = pems[0].replace("\n", "\r\n")
    assert len(certificates.wanted({"a.pem": pems[0], "b.pem": again + "\n" + pems[1]})) == 2


@pytest.mark.parametrize(
    "text",
    ["", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "-----BEGIN PRIVATE KEY-----"],
)
def test_unreadable_file_is_named(text: str, pems: list[str]) -> None:
    with pytest.raises(ValueError, match=r"bad\.pem is not a readable PEM file with certificates"):
        certificates.wanted({"good.pem": pems[0], "bad.pem": text})


def test_packages_of_all_of_a_hosts_roles_are_installed_at_once() -> None:
    """Installing many packages at once is much faster, so the wiring lists them, too."""
    everywhere = read_yaml(ROOT / "group_vars/all/wiring.yml")["base_packages"]
    for role, part in {
        "firewall": "",
        "unattended_upgrades": "",
        "git_access": "prefect_worker",
        "workstation": "workstation",
    }.items():
        found = read_yaml(ROOT / f"group_vars/all/parts/{part}.yml")[f"part_{part}"]["packages"] if part else []
        for package in read_yaml(ROOT / f"roles/{role}/vars/main.yml")[f"__{role}_packages"]:
            assert package in found or f"'{package}'" in everywhere, package


def test_system_libraries_are_on_all_hosts_that_train_or_serve() -> None:
    for part in ("inference", "prefect_worker", "workstation"):
        listed = read_yaml(ROOT / f"group_vars/all/parts/{part}.yml")[f"part_{part}"]["packages"]
        assert "runtime_packages" in listed, part
    assert "libgomp1" in read_yaml(ROOT / "group_vars/all/main.yml")["runtime_packages"]


def test_uv_is_the_locked_one() -> None:
    version = read_yaml(ROOT / "group_vars/all/versions.yml")["uv_version"]
    assert f"uv=={version} \\\n" in (ROOT / "roles/base/files/requirements.txt").read_text()


class Module:
    """The part of AnsibleModule that is used."""

    def __init__(self, *, check_mode: bool = False) -> None:
        self.check_mode = check_mode


def test_differing_kernel_parameters_are_set(tmp_path: Path) -> None:
    for name, value in (("kernel/kptr_restrict", "0"), ("net/ipv4/conf/all/rp_filter", "2")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(f"{value}\n")
    wanted = {"kernel.kptr_restrict": 2, "net.ipv4.conf.all.rp_filter": 2, "kernel.yama.ptrace_scope": 1}
    assert state.ensure_kernel(Module(check_mode=True), wanted, tmp_path) == ["kernel.kptr_restrict"]
    assert state.ensure_kernel(Module(), wanted, tmp_path) == ["kernel.kptr_restrict"]
    assert (tmp_path / "kernel/kptr_restrict").read_text() == "2\n"
    assert state.ensure_kernel(Module(), wanted, tmp_path) == []
    assert not (tmp_path / "kernel/yama").exists(), "a kernel without this parameter"


def value(text: str, name: str) -> str:
    """Return a variable of a text in the form of /etc/environment."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)[name]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("", "ml.example.org,.ml.example.org"),
        ("http_proxy=http://192.0.2.9:3128\n", "ml.example.org,.ml.example.org"),
        ('export no_proxy="corp.example, 10.0.0.1"\n', "corp.example,10.0.0.1,ml.example.org,.ml.example.org"),
        ("NO_PROXY='a,b'\nno_proxy=b,c\n", "a,b,c,ml.example.org,.ml.example.org"),
        ("no_proxy=.ml.example.org\n", ".ml.example.org,ml.example.org"),
        ("no_proxy=*\n", "*"),
    ],
)
def test_the_platform_is_reached_without_the_images_proxy(image: str, expected: str) -> None:
    names = ["ml.example.org", ".ml.example.org"]
    block = state.direct(image, names)
    assert (value(block, "no_proxy"), value(block, "NO_PROXY")) == (expected, expected)
    written = managed_files.with_block(image, state.DIRECT, block)
    assert managed_files.with_block(written, state.DIRECT, state.direct(written, names)) == written


def test_a_list_that_pam_would_cut_off_ends_with_a_whole_name() -> None:
    names = ["ml.example.org", *(f"cpu-{number}" for number in range(1000))]
    value_of = value(state.direct("", names), "no_proxy")
    assert len(f"NO_PROXY={value_of}") < 1024
    assert value_of.split(",") == names[: value_of.count(",") + 1]


def test_requests_for_the_platform_never_go_to_a_proxy() -> None:
    """On Ubuntu, sudo reads /etc/environment, so that Ansible's own tasks have its proxy, too."""
    tasks = [task for path in ROOT.glob("roles/*/tasks/*.yml") for task in read_yaml(path)]
    called = [task["ansible.builtin.uri"] for task in tasks if "ansible.builtin.uri" in task]
    assert called
    assert [uri["url"] for uri in called if uri.get("use_proxy") is not False] == []
