"""The driver that Debian ships, with modules that DKMS built for Debian's kernel."""

from __future__ import annotations

testinfra_hosts = ["ansible://nvidia-distribution"]
PACKAGES = {"libcuda1", "nvidia-smi", "nvidia-kernel-dkms", "nvidia-persistenced"}


def test_driver_is_installed_and_held(host, held) -> None:
    for name in PACKAGES:
        assert host.package(name).is_installed
    assert held() == PACKAGES


def test_module_is_built_for_the_kernel(host, kernel: str) -> None:
    version = host.package("nvidia-kernel-dkms").version.split("-")[0]
    assert f"nvidia-current/{version}, {kernel}, x86_64: installed" in host.check_output("dkms status")
    for module in ("nvidia-current", "nvidia-current-uvm"):
        path = f"/lib/modules/{kernel}/updates/dkms/{module}.ko"
        assert host.check_output(f"modinfo --field version {path}") == version
        assert host.check_output(f"modinfo --field vermagic {path}").split()[0] == kernel


def test_an_upgrade_does_not_change_the_driver(host) -> None:
    # As if a newer driver existed: the candidate is the version that apt would install without the hold.
    planned = host.check_output("apt-get --simulate --option Dir::Etc::Preferences=/dev/null dist-upgrade")
    assert not [line for line in planned.splitlines() if line.startswith("Inst") and "nvidia" in line]


def test_components_are_added_to_the_hosts_own_sources(host) -> None:
    text = host.file("/etc/apt/sources.list.d/metalworks-nvidia-components.sources").content_string
    assert "Components: contrib non-free non-free-firmware" in text
    assert host.run("apt-get --print-uris update").rc == 0


def test_nouveau_is_disabled(host) -> None:
    assert host.file("/etc/modprobe.d/metalworks-nouveau.conf").contains("^blacklist nouveau$")


def test_a_kernel_without_the_module_is_refused(play) -> None:
    result = play(kernel="6.1.0-0-none", headers=["linux-headers-amd64"])
    assert not result.ok
    assert "its module is not built for kernel 6.1.0-0-none, whose headers are missing" in result.words


def test_a_kernel_without_headers_is_refused(play) -> None:
    result = play(kernel="6.1.0-0-amd64")
    assert not result.ok
    assert "The headers of kernel 6.1.0-0-amd64 (linux-headers-6.1.0-0-amd64) could not be installed" in result.words


def test_a_second_run_changes_nothing(play) -> None:
    result = play()
    assert result.ok, result.text
    assert result.changed == 0
