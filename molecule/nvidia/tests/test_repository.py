"""Installation from a repository in NVIDIA's layout: pins, holds, keys, and recovery."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

testinfra_hosts = ["ansible://nvidia-repository"]
DRIVER = {"nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-persistenced"}
TOOLKIT = {
    "libnvidia-container1",
    "libnvidia-container-tools",
    "nvidia-container-toolkit-base",
    "nvidia-container-toolkit",
}


@pytest.fixture
def mended(play) -> Iterator[None]:
    """Converge the host again after a test that changes its sources."""
    yield
    result = play()
    assert result.ok, result.text


def check(host, held, kernel: str, driver: str, cuda: str, toolkit: str) -> None:
    """Assert that these versions are installed, although newer ones are published, and that all are held."""
    wanted = dict.fromkeys(DRIVER, driver) | {"cuda-libraries-13-0": cuda} | dict.fromkeys(TOOLKIT, toolkit)
    wanted[f"nvidia-driver-pinning-{driver}"] = driver
    installed = {name: host.package(name) for name in wanted}
    assert {name: package.version for name, package in installed.items()} == {n: f"{v}-1" for n, v in wanted.items()}
    assert held() == set(wanted) - {f"nvidia-driver-pinning-{driver}"}
    assert f"nvidia/{driver}, {kernel}, x86_64: installed" in host.check_output("dkms status")


def test_pinned_versions_are_installed(host, held, kernel: str) -> None:
    check(host, held, kernel, "580.1.1", "13.0.2", "1.20.0")


def test_an_upgrade_does_not_change_pinned_versions(host) -> None:
    assert "595.1.1" in host.check_output("apt-cache madison nvidia-driver-cuda")
    planned = host.check_output("apt-get --simulate dist-upgrade")
    assert not [line for line in planned.splitlines() if line.startswith("Inst") and "nvidia" in line]


def test_changed_pins_upgrade_and_downgrade(host, held, kernel: str, play) -> None:
    newer = {"driver": "580.1.2", "cuda": "13.0.3", "container_toolkit": "1.20.1"}
    result = play(**newer)
    assert result.ok, result.text
    check(host, held, kernel, "580.1.2", "13.0.3", "1.20.1")
    assert play(**newer).changed == 0
    assert play().ok
    check(host, held, kernel, "580.1.1", "13.0.2", "1.20.0")


def test_a_missing_module_is_built_again(host, held, kernel: str, play) -> None:
    host.check_output(f"dkms remove nvidia/580.1.1 -k {kernel}")
    assert "installed" not in host.check_output("dkms status")
    result = play()
    assert result.ok, result.text
    check(host, held, kernel, "580.1.1", "13.0.2", "1.20.0")


def test_an_interrupted_installation_is_finished(host, held, kernel: str, play) -> None:
    host.check_output(
        "apt-get download nvidia-kernel-open-dkms=580.1.1-1 && dpkg --unpack nvidia-kernel-open-dkms_*.deb"
    )
    assert host.check_output("dpkg-query --show --showformat '${db:Status-Abbrev}' nvidia-kernel-open-dkms")[1] == "U"
    result = play()
    assert result.ok, result.text
    check(host, held, kernel, "580.1.1", "13.0.2", "1.20.0")


def test_a_lost_hold_is_renewed(host, held, play) -> None:
    host.check_output("apt-mark unhold nvidia-driver-cuda")
    assert play().changed == 1
    assert "nvidia-driver-cuda" in held()


def test_another_key_is_refused(host, play, mended) -> None:
    result = play(driver="580.1.2", fingerprint="0" * 40)
    assert not result.ok
    assert "or its key is not the expected one" in result.words
    assert "signature verification" in host.run("apt-get update").stderr
    assert host.package("nvidia-driver-cuda").version == "580.1.1-1"


def test_another_entry_for_the_repository_is_named(host, play) -> None:
    path = "/etc/apt/sources.list.d/cuda-debian12-x86_64.list"
    url = "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/"
    host.check_output(f"echo 'deb [signed-by=/usr/share/keyrings/k.gpg] {url} /' > {path}")
    result = play()
    host.check_output(f"rm {path}")
    assert not result.ok
    assert f"has NVIDIA's repository in {path} already" in result.words
