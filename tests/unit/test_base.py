"""roles/base: certificates are split and checked, and uv's pin is the locked version."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.unit.repository import ROOT, load, read_yaml

certificates = state = load("plugins/modules/host_baseline.py")
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
