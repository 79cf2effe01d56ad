"""NVIDIA roles without a device: the facts module, and the tables for each distribution."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template
from ansible.utils.collection_loader import AnsibleCollectionConfig

from tests.unit.repository import load

ROLES = Path(__file__).resolve().parents[2] / "roles"
DRIVER = ROLES / "nvidia_driver"
DISTRIBUTIONS = {
    "debian_12": ("Debian", "bookworm", "6.1.0-42-amd64"),
    "debian_13": ("Debian", "trixie", "6.12.57+deb13-cloud-amd64"),
    "ubuntu_24": ("Ubuntu", "noble", "6.8.0-88-generic"),
}
VERSIONS = ["580.1.2", "595.3.4"]

if AnsibleCollectionConfig.collection_finder is None:
    init_plugin_loader([])
facts = load("plugins/modules/nvidia_facts.py")
modules = load("plugins/module_utils/kernel_modules.py")


def host(distribution: str, **nvidia: Any) -> dict[str, Any]:
    """Return the facts of a bare host with one GPU."""
    name, release, kernel = DISTRIBUTIONS[distribution]
    state = {
        "devices": ["0000:3b:00.0"],
        "container": False,
        "kernel": kernel,
        "kernels": [{"name": kernel, "headers": True, "built": []}],
        "loaded": "",
        "build_failure": {},
        "untrusted_key": "",
    }
    state |= {"nouveau": False, "gpus": [], "smi_error": "", "packages": {}, "interrupted": False, "sources": []}
    state |= {"ids": ["2335"], "dkms": [], "keyrings": [], "cdi": [], "docker": {}, "others": {}, "run_files": []}
    return {
        "distribution": name,
        "distribution_release": release,
        "distribution_major_version": distribution.split("_")[1],
        "architecture": "x86_64",
        "nvidia": state | nvidia,
    }


def role(name: str, distribution: str, ansible_facts: dict[str, Any], **variables: Any) -> Templar:
    """Return the variables of a role for a play on this host."""
    loader = DataLoader()
    files = [
        ROLES / name / "defaults/main.yml",
        ROLES / name / "vars/main.yml",
        ROLES / name / f"vars/{distribution}.yml",
    ]
    merged: dict[str, Any] = {"ansible_facts": ansible_facts, "inventory_hostname": "gpu-1"}
    merged["role_path"] = str(ROLES / name)
    for path in files:
        if path.exists():
            merged |= loader.load_from_file(str(path), trusted_as_template=True)
    return Templar(loader=loader, variables=merged | variables)


def value(templar: Templar, expression: str) -> Any:
    return templar.template(trust_as_template("{{ " + expression + " }}"))


def rendered(template: Path) -> str:
    """Return an expression for a rendered template."""
    return f"lookup('ansible.builtin.template', {json.dumps(str(template), ensure_ascii=False)})"


def driver(distribution: str, *, nvidia: dict[str, Any] | None = None, **variables: Any) -> Templar:
    variables.setdefault("nvidia_driver_versions", VERSIONS)
    # The variables that the role passes to its entry point `held`.
    for name, expression in (("names", "names"), ("version", "version"), ("before", "pin")):
        variables[f"nvidia_driver_held_{name}"] = trust_as_template(f"{{{{ __nvidia_driver_{expression} }}}}")
    return role("nvidia_driver", distribution, host(distribution, **(nvidia or {})), **variables)


# -- The facts module


def pci(root: Path, address: str, vendor: str, device_class: str) -> None:
    folder = root / "sys/bus/pci/devices" / address
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "class").write_text(f"{device_class}\n")


def test_devices_are_found_by_pci_id(tmp_path: Path) -> None:
    pci(tmp_path, "0000:00:02.0", "0x8086", "0x030000")  # another maker's graphics
    pci(tmp_path, "0000:01:00.0", "0x10de", "0x030200")  # compute-only card
    pci(tmp_path, "0000:01:00.1", "0x10de", "0x040300")  # the card's audio function
    pci(tmp_path, "0000:41:00.0", "0x10de", "0x030000")  # card with a display
    pci(tmp_path, "0000:c1:00.0", "0x10de", "0x068000")  # NVSwitch
    assert facts.find_devices(tmp_path) == ["0000:01:00.0", "0000:41:00.0"]


def test_ids_of_devices(tmp_path: Path) -> None:
    pci(tmp_path, "0000:01:00.0", "0x10de", "0x030200")
    pci(tmp_path, "0000:01:00.1", "0x10de", "0x040300")
    (tmp_path / "sys/bus/pci/devices/0000:01:00.0/device").write_text("0x2335\n")
    assert facts.device_ids(tmp_path) == ["2335"]


def test_a_host_without_pci_has_no_device(tmp_path: Path) -> None:
    assert facts.find_devices(tmp_path) == []


@pytest.mark.parametrize("mark", ["run/systemd/container", ".dockerenv", "run/.containerenv"])
def test_containers_are_recognised(tmp_path: Path, mark: str) -> None:
    assert not facts.in_container(tmp_path)
    (tmp_path / mark).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / mark).touch()
    assert facts.in_container(tmp_path)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.309.01  Mon Jun 1 2026\nGCC version: 12.2.0",
            "535.309.01",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.173.02  Release Build  (a@b)", "580.173.02"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.142  Release Build", "580.142"),
        ("", ""),
    ],
)
def test_version_of_the_loaded_driver(tmp_path: Path, text: str, version: str) -> None:
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(text)
    assert facts.loaded_version(tmp_path) == version


@pytest.mark.parametrize(
    ("status", "built"),
    [
        ("nvidia-current/535.309.01, 6.1.0-42-amd64, x86_64: installed\n", ["535.309.01"]),
        ("nvidia, 580.1.2, 6.1.0-42-amd64, x86_64: installed\n", ["580.1.2"]),
        ("nvidia/580.1.2, 6.1.0-41-amd64, x86_64: installed\n", []),
        ("nvidia/580.1.2, 6.1.0-42-amd64, x86_64: built\n", []),
        ("nvidia/580.1.2: added\n", []),
        ("nvidia/580.1.2, 6.1.0-42-amd64, x86_64: installed (WARNING! Missing some built modules!)\n", []),
        ("zfs/2.1.11, 6.1.0-42-amd64, x86_64: installed\n", []),
        ("", []),
    ],
)
def test_modules_built_for_a_kernel(status: str, built: list[str]) -> None:
    assert facts.built_versions(status, "6.1.0-42-amd64") == built


def test_module_sources(tmp_path: Path) -> None:
    for name in ("nvidia-current", "nvidia"):
        folder = tmp_path / f"usr/src/{name}-535.309.01"
        folder.mkdir(parents=True)
        text = f'PACKAGE_NAME="{name}"\nPACKAGE_VERSION="535.309.01"\nAUTOINSTALL="yes"\n'
        (folder / "dkms.conf").write_text(text)
    assert facts.dkms_sources(tmp_path) == ["nvidia/535.309.01", "nvidia-current/535.309.01"]


def test_packages_are_those_completely_installed() -> None:
    listing = (
        "hi |nvidia-smi|535.1-1\nii |libcuda1|535.1-1\niF |nvidia-kernel-dkms|535.1-1\nrc |cuda-drivers|1\nii |bash|5"
    )
    assert facts.parse_packages(listing) == {
        "nvidia-smi": {"version": "535.1-1", "held": True},
        "libcuda1": {"version": "535.1-1", "held": False},
    }


def test_gpus_are_parsed() -> None:
    assert facts.parse_gpus("NVIDIA H200, 580.1.2, Enabled\nNVIDIA H200, 580.1.2, Disabled\n") == [
        {"name": "NVIDIA H200", "driver": "580.1.2", "persistence": True},
        {"name": "NVIDIA H200", "driver": "580.1.2", "persistence": False},
    ]


def test_sources_of_both_formats_without_our_own(tmp_path: Path) -> None:
    parts = tmp_path / "etc/apt/sources.list.d"
    parts.mkdir(parents=True)
    (tmp_path / "etc/apt/sources.list").write_text(
        "# deb http://off.example.org/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://m.example.org/debian/ bookworm main # comment\n"
        "deb http://m.example.org/debian bookworm contrib\n"
        "deb-src http://m.example.org/debian bookworm main\n"
    )
    (parts / "security.sources").write_text(
        "# where updates come from\nTypes: deb\nURIs: http://s.example.org/debian-security\n"
        "Suites: bookworm-security\nComponents: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQ==\n\n"
        "Types: deb\nEnabled: no\nURIs: http://off.example.org/\nSuites: x\nComponents: main\n"
    )
    (parts / "nvidia-cuda.sources").write_text("Types: deb\nURIs: http://ours.example.org/\nSuites: /\n")
    assert facts.find_sources(tmp_path) == [
        {
            "uri": "http://m.example.org/debian/",
            "suite": "bookworm",
            "signed_by": "/k.gpg",
            "components": ["main", "contrib"],
            "file": "/etc/apt/sources.list",
        },
        {
            "uri": "http://s.example.org/debian-security",
            "suite": "bookworm-security",
            "signed_by": "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQ==",
            "components": ["main"],
            "file": "/etc/apt/sources.list.d/security.sources",
        },
    ]


def test_docker_is_detected() -> None:
    info = '{"ServerVersion": "26.1.5", "Runtimes": {"runc": {}, "nvidia": {}}, "CDISpecDirs": ["/etc/cdi"]}'
    assert facts.docker_state(info) == {"version": "26.1.5", "runtimes": ["nvidia", "runc"], "cdi": True}
    assert facts.docker_state('{"ServerVersion": "", "ServerErrors": ["down"]}') == {}
    assert facts.docker_state("") == {}


# -- The tables


def test_every_platform_of_the_roles_has_a_table() -> None:
    tables = {path.stem for path in (DRIVER / "vars").glob("*_*.yml")}
    assert tables == set(DISTRIBUTIONS) == {path.stem for path in (ROLES / "cuda/vars").glob("*_*.yml")}
    platforms = yaml.safe_load((DRIVER / "meta/main.yml").read_text())["galaxy_info"]["platforms"]
    names = {(platform["name"], release) for platform in platforms for release in platform["versions"]}
    assert names == {(name, release) for name, release, _ in DISTRIBUTIONS.values()}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_tables_are_complete(distribution: str) -> None:
    table = yaml.safe_load((DRIVER / f"vars/{distribution}.yml").read_text())
    repository = table["__nvidia_driver_repository"]
    assert set(repository) == {"folder", "key", "fingerprint", "oldest_branch"}
    assert re.fullmatch(r"[0-9A-F]{40}", repository["fingerprint"])
    # NVIDIA names a key file after the end of its fingerprint.
    assert repository["fingerprint"].endswith(repository["key"].removesuffix(".pub").upper())
    assert set(table["__nvidia_driver_sources"]) == {"nvidia", "distribution"}
    for source, names in table["__nvidia_driver_sources"].items():
        expected = {"packages", "modules", "module"} | ({"components", "branch"} if source == "distribution" else set())
        assert set(names) == expected
        assert set(names["modules"]) == {"open", "proprietary"}


@pytest.mark.parametrize(
    ("distribution", "url"),
    [
        ("debian_12", "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/"),
        ("debian_13", "https://developer.download.nvidia.com/compute/cuda/repos/debian13/x86_64/"),
        ("ubuntu_24", "https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2404/x86_64/"),
    ],
)
def test_repository_of_each_platform_is_found(distribution: str, url: str) -> None:
    variables = driver(distribution)
    text = value(variables, rendered(DRIVER / "templates/nvidia-cuda.sources.j2"))
    fingerprint = value(variables, "__nvidia_driver_repository.fingerprint")
    keyring = f"/etc/apt/keyrings/nvidia-{fingerprint[-16:].lower()}.asc"
    assert facts.deb822_sources(text) == [(url, "/", f"{keyring} {fingerprint}", [])]
    arm = host(distribution) | {"architecture": "aarch64"}
    variables = role("nvidia_driver", distribution, arm, nvidia_driver_repository_url="https://mirror.example.org/cuda")
    folder = value(variables, "__nvidia_driver_repository.folder")
    assert value(variables, "__nvidia_driver_repository_url") == f"https://mirror.example.org/cuda/{folder}/sbsa/"


DEBIAN = ["nvidia-driver-cuda", "nvidia-persistenced", "nvidia-kernel-open-dkms"]
UBUNTU = ["libnvidia-compute", "libnvidia-cfg1", "nvidia-persistenced", "nvidia-dkms-open"]
UBUNTU_580 = [
    "libnvidia-compute-580",
    "libnvidia-cfg1-580",
    "nvidia-utils-580",
    "nvidia-compute-utils-580",
    "nvidia-persistenced",
    "nvidia-dkms-580-open",
]


@pytest.mark.parametrize(
    ("distribution", "versions", "version", "core"),
    [
        ("debian_12", VERSIONS, "580.1.2", DEBIAN),
        ("debian_12", VERSIONS[1:], "595.3.4", DEBIAN),
        ("debian_13", VERSIONS, "595.3.4", DEBIAN),
        ("ubuntu_24", VERSIONS, "580.1.2", UBUNTU_580),
        ("ubuntu_24", VERSIONS[1:], "595.3.4", UBUNTU),
    ],
)
def test_packages_of_nvidia(distribution: str, versions: list[str], version: str, core: list[str]) -> None:
    variables = driver(distribution, nvidia_driver_versions=versions)
    assert value(variables, "__nvidia_driver_version") == version
    assert value(variables, "__nvidia_driver_pending_before") == [f"nvidia-driver-pinning-{version}"]
    assert value(variables, "__nvidia_driver_pending") == [f"{name}={version}-*" for name in core]


def test_an_unpublished_version_is_not_found() -> None:
    assert value(driver("debian_13", nvidia_driver_versions=["580.1.2"]), "__nvidia_driver_version") == ""


def test_modules_of_older_gpus() -> None:
    assert value(driver("debian_12", nvidia_driver_kernel_module="proprietary"), "__nvidia_driver_module") == (
        "nvidia-kernel-dkms"
    )
    assert value(driver("ubuntu_24", nvidia_driver_kernel_module="proprietary"), "__nvidia_driver_module") == (
        "nvidia-dkms-580"
    )


# 1df6 is a V100S, 1eb8 a T4, 2335 an H200, 2342 a GH200, 2901 a B200, 102d a K80, 3000 newer than the table.
@pytest.mark.parametrize(
    ("ids", "source", "flavour"),
    [
        ([], "nvidia", "open"),
        ([], "distribution", "proprietary"),
        (["2335"], "nvidia", "open"),
        (["2335"], "distribution", "proprietary"),
        (["1df6"], "nvidia", "proprietary"),
        (["1df6", "1eb8"], "nvidia", "proprietary"),
        (["2901", "2335"], "nvidia", "open"),
        (["2342"], "distribution", "open"),
        (["3000"], "nvidia", "open"),
    ],
)
def test_the_module_follows_the_devices(ids: list[str], source: str, flavour: str) -> None:
    variables = driver("debian_12", nvidia={"ids": ids}, nvidia_driver_source=source)
    assert value(variables, "__nvidia_driver_flavour") == flavour
    assert value(variables, "__nvidia_driver_unfit") == []


@pytest.mark.parametrize(
    ("distribution", "ids", "given", "words"),
    [
        (
            "debian_12",
            ["1df6"],
            {"kernel_module": "open"},
            "Volta (10de:1df6), which needs the proprietary kernel module",
        ),
        ("debian_12", ["2901"], {"kernel_module": "proprietary"}, "nvidia_driver_kernel_module is proprietary. Set it"),
        ("debian_12", ["2342"], {"kernel_module": "proprietary"}, "Grace Hopper (10de:2342), which needs the open"),
        ("debian_12", ["102d"], {}, "which no driver that is still maintained supports"),
        ("debian_12", ["1df6", "2901"], {}, "A host has one module: move one of the devices"),
        ("debian_13", ["1df6"], {}, "branch 595 of the driver no longer supports. Put a version of branch 580 first"),
        ("debian_12", ["2901"], {"source": "distribution"}, "branch 535 of the driver does not know yet"),
        ("debian_13", ["2b85"], {"source": "distribution"}, "Set nvidia_source to nvidia."),
    ],
)
def test_a_module_that_does_not_fit_is_refused(
    distribution: str, ids: list[str], given: dict[str, str], words: str
) -> None:
    variables = driver(distribution, nvidia={"ids": ids}, **{f"nvidia_driver_{k}": v for k, v in given.items()})
    (refused,) = value(variables, "__nvidia_driver_refused")
    assert refused.startswith("gpu-1 has a device of ")
    assert words in refused


def test_devices_that_the_module_fits_are_not_refused() -> None:
    for module in ("open", "proprietary"):
        variables = driver("debian_12", nvidia={"ids": ["2335"]}, nvidia_driver_kernel_module=module)
        assert value(variables, "__nvidia_driver_refused") == []
    variables = driver("debian_12", nvidia={"ids": ["1df6"]}, nvidia_driver_source="distribution")
    assert value(variables, "__nvidia_driver_refused") == []


@pytest.mark.parametrize(
    ("distribution", "pending"),
    [
        ("debian_12", ["libcuda1", "nvidia-smi", "nvidia-persistenced", "nvidia-kernel-dkms"]),
        ("debian_13", ["libcuda1", "nvidia-smi", "nvidia-persistenced", "nvidia-kernel-dkms"]),
        (
            "ubuntu_24",
            [
                "libnvidia-cfg1-580-server",
                "libnvidia-compute-580-server",
                "nvidia-utils-580-server",
                "nvidia-compute-utils-580-server",
                "nvidia-dkms-580-server-open",
            ],
        ),
    ],
)
def test_packages_of_the_distribution(distribution: str, pending: list[str]) -> None:
    assert value(driver(distribution, nvidia_driver_source="distribution"), "__nvidia_driver_pending") == pending


@pytest.mark.parametrize(
    ("distribution", "headers"),
    [
        ("debian_12", ["linux-headers-amd64", "linux-headers-6.1.0-42-amd64"]),
        ("debian_13", ["linux-headers-cloud-amd64", "linux-headers-6.12.57+deb13-cloud-amd64"]),
    ],
)
def test_headers_are_chosen_for_the_kernel(distribution: str, headers: list[str]) -> None:
    assert value(driver(distribution), "__nvidia_driver_missing_headers") == headers
    there = {name: {"version": "1", "held": False} for name in headers}
    assert value(driver(distribution, nvidia={"packages": there}), "__nvidia_driver_missing_headers") == []


def installed(version: str, *, held: bool = True) -> dict[str, Any]:
    names = ["nvidia-driver-pinning-580.1.2", *DEBIAN]
    return {name: {"version": f"{version}-1", "held": held} for name in names}


def test_a_converged_host_has_nothing_pending() -> None:
    variables = driver("debian_12", nvidia={"packages": installed("580.1.2")})
    assert value(variables, "__nvidia_driver_pending_before + __nvidia_driver_pending") == []
    assert value(variables, "__nvidia_driver_unheld") == []


def test_another_version_is_replaced_and_holds_are_renewed() -> None:
    variables = driver("debian_12", nvidia={"packages": installed("580.1.1", held=False)})
    assert value(variables, "__nvidia_driver_pending") == [f"{name}=580.1.2-*" for name in DEBIAN]
    assert value(variables, "__nvidia_driver_unheld") == DEBIAN


@pytest.mark.parametrize(
    ("state", "running", "reboot"),
    [
        ({}, False, False),
        ({"nouveau": True}, False, True),
        ({"nouveau": True, "devices": []}, False, False),
        ({"loaded": "580.1.1"}, False, True),
        ({"loaded": "580.1.2"}, True, False),
    ],
)
def test_state_of_the_driver(state: dict[str, Any], running: bool, reboot: bool) -> None:
    variables = driver("debian_12", nvidia={"packages": installed("580.1.2"), **state})
    assert value(variables, "__nvidia_driver_installed") == "580.1.2"
    assert value(variables, "__nvidia_driver_running") is running
    assert value(variables, "__nvidia_driver_needs_reboot") is reboot


NEWER = "6.1.0-43-amd64"


def kernels(**built: list[str]) -> list[dict[str, Any]]:
    return [
        {"name": name, "headers": True, "built": built[key]}
        for key, name in (("now", DISTRIBUTIONS["debian_12"][2]), ("next", NEWER))
        if key in built
    ]


@pytest.mark.parametrize(
    ("found", "unbuilt"),
    [
        (kernels(now=[]), ["6.1.0-42-amd64"]),
        (kernels(now=["580.1.2"]), []),
        (kernels(now=["580.1.2"], next=["580.1.2"]), []),
        (kernels(now=["580.1.2"], next=["580.1.1"]), [NEWER]),
        (kernels(now=[], next=[]), ["6.1.0-42-amd64", NEWER]),
    ],
)
def test_kernels_without_the_module(found: list[dict[str, Any]], unbuilt: list[str]) -> None:
    variables = driver("debian_12", nvidia={"packages": installed("580.1.2"), "kernels": found})
    assert value(variables, "__nvidia_driver_unbuilt | map(attribute='name') | list") == unbuilt


def test_headers_of_the_next_kernel_are_installed() -> None:
    variables = driver("debian_12", nvidia={"kernels": kernels(now=[], next=[])})
    headers = ["linux-headers-amd64", "linux-headers-6.1.0-42-amd64", f"linux-headers-{NEWER}"]
    assert value(variables, "__nvidia_driver_missing_headers") == headers


@pytest.mark.parametrize(
    ("installed_kernels", "expected"),
    [
        ([], ""),
        (["6.1.0-9-amd64"], ""),
        (["6.1.0-9-amd64", "6.1.0-8-amd64"], ""),
        (["6.1.0-9-amd64", "6.1.0-10-amd64"], "6.1.0-10-amd64"),
        (["6.12.57+deb13-amd64", "6.1.0-10-amd64"], "6.12.57+deb13-amd64"),
    ],
)
def test_the_kernel_of_the_next_boot(tmp_path: Path, installed_kernels: list[str], expected: str) -> None:
    (tmp_path / "boot").mkdir()
    for kernel in installed_kernels:
        (tmp_path / f"boot/vmlinuz-{kernel}").touch()
    assert modules.next_kernel(tmp_path, "6.1.0-9-amd64") == expected


@pytest.mark.parametrize(
    ("firmware", "shim", "on"),
    [(None, None, False), (0, None, False), (1, None, True), (1, 0, True), (1, 1, False)],
)
def test_secure_boot_is_found(tmp_path: Path, firmware: int | None, shim: int | None, on: bool) -> None:
    folder = tmp_path / modules.EFI_VARIABLES
    folder.mkdir(parents=True)
    for name, state in ((modules.SECURE_BOOT, firmware), (modules.SHIM_DOES_NOT_CHECK, shim)):
        if state is not None:
            (folder / name).write_bytes(bytes([6, 0, 0, 0, state]))
    assert modules.secure_boot(tmp_path) is on


def test_the_certificate_of_modules(tmp_path: Path) -> None:
    assert modules.signing_certificate(tmp_path) == "/var/lib/dkms/mok.pub"
    (tmp_path / "etc/dkms").mkdir(parents=True)
    (tmp_path / "etc/os-release").write_text('NAME="Ubuntu"\nID=ubuntu\nID_LIKE=debian\n')
    assert modules.signing_certificate(tmp_path) == "/var/lib/shim-signed/mok/MOK.der"
    (tmp_path / "etc/dkms/framework.conf").write_text("# mok_certificate=/no\nmok_certificate=/root/ours.der\n")
    assert modules.signing_certificate(tmp_path) == "/root/ours.der"


@pytest.mark.parametrize(
    ("answer", "trusted"),
    [
        ("/var/lib/dkms/mok.pub is already enrolled\n", True),
        ("/var/lib/dkms/mok.pub is already in db\n", True),
        ("/var/lib/dkms/mok.pub is not enrolled\n", False),
        ("/var/lib/dkms/mok.pub is already in the enrollment request\n", False),
        ("\nmokutil is not installed", False),
    ],
)
def test_whether_the_firmware_trusts_a_certificate(answer: str, trusted: bool) -> None:
    assert modules.trusts(answer) is trusted


def test_secure_boot_without_the_key_is_refused() -> None:
    key = "/var/lib/dkms/mok.pub"
    (message,) = value(driver("debian_12", nvidia={"untrusted_key": key}), "__nvidia_driver_refused")
    assert message.startswith(f"Secure Boot is on at gpu-1, and its firmware does not trust {key}")
    running = driver("debian_12", nvidia={"untrusted_key": key, "loaded": "580.1.2"})
    assert value(running, "__nvidia_driver_refused") == []


@pytest.mark.parametrize(
    ("line", "cure"),
    [
        ("nv-mm.c:12:3: error: implicit declaration of function 'pte_offset_map'", "does not know this kernel"),
        ("nv.c:1:1: error: 'struct vm_area_struct' has no member named 'vm_flags_set'", "does not know this kernel"),
        ("fatal error: error writing to /tmp/ccX.s: No space left on device", "Free space on the host's disk."),
        ("/bin/sh: 1: gcc-12: not found", "Install the compiler"),
        ("*** Unable to find the kernel source for the currently running kernel.", "Install the headers of exactly"),
        ("gcc: fatal error: Killed signal terminated program cc1", "memory"),
        ("make[1]: *** [Makefile:1] Error 2", ""),
    ],
)
def test_a_failed_build_is_told_with_its_cause(tmp_path: Path, line: str, cure: str) -> None:
    folder = tmp_path / "var/lib/dkms/nvidia/580.1.2/build"
    folder.mkdir(parents=True)
    (folder / "make.log").write_text(f"DKMS make.log\n  CC [M] nv.o\n{line}\n")
    failure = modules.build_failure(tmp_path)
    assert failure["lines"] == [line]
    assert failure["cure"] == cure if cure == "" else cure in failure["cure"]
    variables = driver("debian_12", nvidia={"build_failure": failure})
    text = value(variables, "__nvidia_driver_build_failure")
    assert text.startswith(f"The last build failed: {line} (/var/lib/dkms/nvidia/580.1.2/build/make.log).")


def test_without_a_failed_build_nothing_is_told(tmp_path: Path) -> None:
    assert modules.build_failure(tmp_path) == {}
    assert value(driver("debian_12"), "__nvidia_driver_build_failure") == ""


def test_every_gpu_must_be_in_persistence_mode() -> None:
    on, off = ({"name": "a", "driver": "1", "persistence": mode} for mode in (True, False))
    for gpus, expected in (([], False), ([on], True), ([on, off], False)):
        assert value(driver("debian_12", nvidia={"gpus": gpus}), "__nvidia_driver_persistent") is expected


def test_the_version_in_a_package_of_debian() -> None:
    packages = {"nvidia-kernel-dkms": {"version": "1:535.309.01-0+deb12u1", "held": True}}
    variables = driver("debian_12", nvidia={"packages": packages}, nvidia_driver_source="distribution")
    assert value(variables, "__nvidia_driver_installed") == "535.309.01"


def test_components_follow_the_hosts_own_sources() -> None:
    def source(uri: str, suite: str, components: list[str], signed_by: str = "") -> dict[str, Any]:
        return {"uri": uri, "suite": suite, "components": components, "signed_by": signed_by, "file": "/x"}

    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    sources = [
        source("http://m.example.org/debian", "bookworm", ["main", "contrib"], keyring),
        source("http://m.example.org/debian-security", "bookworm-security", ["main"]),
        source("http://m.example.org/debian", "bookworm-updates", ["main", "contrib", "non-free", "non-free-firmware"]),
        source("http://other.example.org", "bookworm", ["main"], "/etc/apt/keyrings/other.gpg"),
        source("http://other.example.org/pg", "bookworm-pgdg", ["main"]),
    ]
    variables = driver("debian_12", nvidia={"sources": sources}, nvidia_driver_source="distribution")
    template = DRIVER / "templates/distribution-components.sources.j2"
    assert facts.deb822_sources(value(variables, rendered(template))) == [
        ("http://m.example.org/debian", "bookworm", keyring, ["non-free", "non-free-firmware"]),
        ("http://m.example.org/debian-security", "bookworm-security", "", ["contrib", "non-free", "non-free-firmware"]),
    ]


def test_another_entry_for_the_repository_is_found() -> None:
    uri = "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/"
    file = "/etc/apt/sources.list.d/cuda-debian12-x86_64.list"
    entry = {"uri": uri, "suite": "/", "components": [], "signed_by": "/k.gpg", "file": file}
    assert value(driver("debian_12", nvidia={"sources": [entry]}), "__nvidia_driver_duplicates") == [file]


# -- CUDA and the container toolkit


@pytest.mark.parametrize(
    ("distribution", "version"),
    [("debian_12", "13.0.3"), ("debian_13", "13.2.2"), ("ubuntu_24", "13.0.3")],
)
def test_packages_of_cuda(distribution: str, version: str) -> None:
    wants = {"cuda_versions": ["13.0.3", "13.2.2"], "cuda_components": ["libraries", "toolkit"]}
    variables = role("cuda", distribution, host(distribution), **wants)
    release = version[:4].replace(".", "-")
    assert value(variables, "__cuda_version") == version
    assert value(variables, "__cuda_names") == [f"cuda-libraries-{release}", f"cuda-toolkit-{release}"]
    own = role("cuda", distribution, host(distribution), **wants, cuda_source="distribution")
    assert value(own, "__cuda_version") == ""
    names = value(own, "__cuda_names")
    assert names[-1] == "nvidia-cuda-toolkit"
    assert all(re.fullmatch(r"lib(cu|nv)[a-z]+[0-9.]+", name) for name in names[:-1])


@pytest.mark.parametrize(
    ("devices", "components", "wanted"), [([], ["toolkit"], False), (["x"], [], False), (["x"], ["toolkit"], True)]
)
def test_cuda_is_for_hosts_with_devices(devices: list[str], components: list[str], wanted: bool) -> None:
    variables = role(
        "cuda", "debian_12", host("debian_12", devices=devices), cuda_components=components, cuda_versions=[]
    )
    assert value(variables, "__cuda_wanted") is wanted


def toolkit(**nvidia: Any) -> Templar:
    wants = {"nvidia_container_toolkit_version": "1.20.1"}
    return role("nvidia_container_toolkit", "debian_12", host("debian_12", **nvidia), **wants)


def test_repository_of_the_container_toolkit() -> None:
    template = ROLES / "nvidia_container_toolkit/templates/nvidia-container-toolkit.sources.j2"
    text = value(toolkit(), rendered(template))
    fingerprint = "C95B321B61E88C1809C4F759DDCAE044F796ECB0"
    signed_by = f"/etc/apt/keyrings/nvidia-ddcae044f796ecb0.asc {fingerprint}"
    url = "https://nvidia.github.io/libnvidia-container/stable/deb/amd64/"
    assert facts.deb822_sources(text) == [(url, "/", signed_by, [])]


@pytest.mark.parametrize(
    ("docker", "lacks"),
    [
        ({}, False),
        ({"version": "20.10.24", "runtimes": ["runc"], "cdi": False}, True),
        ({"version": "20.10.24", "runtimes": ["nvidia", "runc"], "cdi": False}, False),
        ({"version": "26.1.5", "runtimes": ["nvidia", "runc"], "cdi": False}, True),
        ({"version": "28.5.1", "runtimes": ["runc"], "cdi": True}, True),
        ({"version": "28.5.1", "runtimes": ["nvidia", "runc"], "cdi": True}, False),
    ],
)
def test_docker_is_configured_if_something_is_missing(docker: dict[str, Any], lacks: bool) -> None:
    assert value(toolkit(docker=docker), "__nvidia_container_toolkit_docker_lacks") is lacks


@pytest.mark.parametrize(
    ("distribution", "source", "others", "refused"),
    [
        ("ubuntu_24", "nvidia", {}, ""),
        ("ubuntu_24", "nvidia", {"nvidia-dkms-580-open": "580.1.2-1"}, ""),
        ("ubuntu_24", "nvidia", {"nvidia-driver-535": "535.183.01-0ubuntu1"}, "nvidia-driver-535"),
        (
            "ubuntu_24",
            "nvidia",
            {"linux-modules-nvidia-580-generic": "6.8.0-88.89"},
            "linux-modules-nvidia-580-generic",
        ),
        ("ubuntu_24", "distribution", {"nvidia-dkms-580-server-open": "580.95.05-0ubuntu1"}, ""),
        ("ubuntu_24", "distribution", {"nvidia-driver-580": "580.95.05-0ubuntu1"}, "nvidia-driver-580"),
        ("debian_12", "distribution", {"nvidia-kernel-dkms": "535.247.01-1~deb12u1"}, ""),
        ("debian_12", "distribution", {"nvidia-tesla-470-kernel-dkms": "470.1-1"}, "nvidia-tesla-470-kernel-dkms"),
        ("debian_13", "nvidia", {"libcuda1": "550.163.01-2"}, "libcuda1"),
    ],
)
def test_packages_of_another_driver_are_refused(
    distribution: str, source: str, others: dict[str, str], refused: str
) -> None:
    versions = ["580.1.2"] if distribution == "ubuntu_24" else VERSIONS
    found = driver(
        distribution, nvidia={"others": others}, nvidia_driver_source=source, nvidia_driver_versions=versions
    )
    messages = value(found, "__nvidia_driver_refused")
    assert [refused in message for message in messages] == [True] * bool(refused)


def test_a_driver_from_a_run_file_is_refused() -> None:
    left = ["/usr/bin/nvidia-uninstall", "/var/lib/nvidia/log"]
    (message,) = value(driver("debian_13", nvidia={"run_files": left}), "__nvidia_driver_refused")
    assert "gpu-1 has a driver from NVIDIA's .run file (/usr/bin/nvidia-uninstall, /var/lib/nvidia/log)" in message
