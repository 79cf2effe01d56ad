"""The check of GPU hosts, with readings of real devices in place of a device: each check passes, and each can fail.

`Recorded` stands in for the host at the edge where readings enter. No test here has run on a device.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from roles.gpu_checks.files.gpu_checks import (
    containers,
    cuda,
    driver,
    products,
    programs,
    readings,
    validate,
    verdict,
)
from roles.gpu_checks.files.gpu_checks import (
    host as hosts,
)
from tests.unit.repository import ROOT, read_yaml

READINGS = {path.stem: path.read_text() for path in (ROOT / "tests/unit/gpu_readings").glob("*.xml")}
GENERATIONS = read_yaml(ROOT / "roles/nvidia_driver/files/generations.yml")

# The form of /proc/driver/nvidia/version as people show it in public, such as that of 555.58.02 and of 535.309.01.
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (dvs-builder@U16-I3-B03-4-3)\n"
PROPRIETARY = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Tue Oct  8 16:30:26 UTC 2024\n"
LOADED = "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  550.90.12  Release Build\nnvidia-uvm: Loaded\n"
# Lines that others posted: of a wiki (79), stas00/ml-engineering (63), a pastebin (69), and issues on GitHub.
XIDS = {
    31: "NVRM: Xid (PCI:0000:00:06): 31, pid=79749, name=exe, Ch 0000000a, intr 00000000. MMU Fault: ENGINE GRAPHICS "
    "GPC2 GPCCLIENT_T1_7 faulted @ 0x2b57_b3000000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_WRITE",
    63: "NVRM: Xid (PCI:0000:10:1c): 63, pid=1896, Row Remapper: New row marked for remapping, reset gpu to activate.",
    69: "NVRM: Xid (PCI:0000:08:00): 69, Class Error: ChId 003b, Class 0000c197, Offset 00002040, Data 00004b30, "
    "ErrorCode 0000000c",
    79: "NVRM: Xid (PCI:0000:01:00): 79, pid=1122, GPU has fallen off the bus.",
    120: "NVRM: Xid (PCI:0000:23:00): 120, GSP task exception: load access page fault (cause:0xd) @ pc:0x13636b2, "
    "partition:2#0, task:3, gfid: 0",
}
FULL = "/system.slice/models-delay.service\n"


class Recorded(hosts.Host):
    """A host with these readings, which are the same idle and under load."""

    def __init__(self, reading: str, *, form: str = OPEN) -> None:
        self.idle = self.busy = READINGS[reading]
        self.version = readings.value(readings.parsed(self.idle), "driver_version")
        self.pci = [readings.Gpu(each).address.lower()[-12:] for each in readings.parsed(self.idle).findall("gpu")]
        self.log = LOADED
        self.files = {"/proc/driver/nvidia/version": form.format(self.version), "/proc/777/cgroup": f"0::{FULL}"}
        self.files["/proc/4242/environ"] = "A=1\0CUDA_VISIBLE_DEVICES=0\0"
        self.held = dict.fromkeys(["libcuda1", "nvidia-smi", "nvidia-kernel-open-dkms"], f"{self.version}-1")
        self.states = dict.fromkeys(self.held, "hi ")
        self.computed: dict[str, Any] = {"error": "", "code": 0}
        self.computed["devices"] = [{"name": "a", "rounds": 40, "wrong": {}} for _ in self.pci]
        self.in_container = [f"GPU {i}: x (UUID: GPU-x)" for i, _ in enumerate(self.pci)]
        self.after_reload = self.in_container
        self.answers: dict[str, tuple[int, str]] = {
            "nvidia-ctk --version": (0, "NVIDIA Container Toolkit CLI version 1.20.1"),
            "docker info": (0, '29.1.0 ["/etc/cdi","/var/run/cdi"]'),
            "podman info": (127, "podman: No such file or directory"),
            "docker ps": (0, ""),
            "docker run": (0, "0123"),
            "systemctl list-units": (0, "prefect-worker-gpu.service loaded active running Prefect worker\n"),
            "systemctl show": (0, "4242\n"),
            "uname -r": (0, "6.1.0-44-amd64\n"),
            "linux-version list": (0, "6.1.0-44-amd64\n6.1.0-45-amd64\n"),
            "linux-version sort": (0, "6.1.0-45-amd64\n6.1.0-44-amd64\n"),
            "dkms status": (0, f"nvidia-current/{self.version}, 6.1.0-45-amd64, x86_64: installed\n"),
        }
        self.seen_in_worker, self.torch = "count 1\n", (0, "PyTorch 2.9.0+cu130 computes on 1\n")
        self.calls: list[str] = []

    def with_process(self) -> Recorded:
        """Let the model's process compute on the device, as nvidia-smi would list it."""
        listed = "<processes><process_info><pid>777</pid></process_info></processes></gpu>"
        self.idle = self.busy = self.idle.replace("</gpu>", listed)
        return self

    def run(self, *command: str, seconds: float = 30, text: str | None = None) -> tuple[int, str]:
        words = " ".join(command)
        self.calls.append(words)
        if words == "nvidia-smi -q -x":
            return 0, self.idle
        if command[0] == "dpkg-query":
            rows = [f"{self.states[name]}|{name}|{version}" for name, version in self.held.items()]
            return 0, "\n".join([*rows, "ii |libc6|2.36-9", "ii |nvidia-persistenced|535.171.04-1", "no packages"])
        if command[0] == "journalctl":
            return 0, self.log
        if command[0] == "nsenter":
            return self.torch if text == programs.TORCH else (0, self.seen_in_worker)
        if command[1:2] == ("exec",):
            reloaded = "systemctl daemon-reload" in self.calls
            return 0, "\n".join(self.after_reload if reloaded else self.in_container)
        known = [answer for start, answer in self.answers.items() if words.startswith(start)]
        return known[0] if known else (0, "")

    def read(self, path: str) -> str:
        return self.files.get(path, "")

    def container(self) -> bool:
        return False

    def devices(self) -> list[str]:
        return self.pci

    def environments(self, home: str) -> list[str]:
        return ["/var/lib/prefect-worker/environments/a/bin/python"]

    def loaded(self) -> tuple[str, dict[str, Any]]:
        return self.busy, self.computed


def wanted(host: Recorded, **other: Any) -> dict[str, Any]:
    want = {"require_device": True, "gpus": 0, "pcie_lanes": 0, "inference": ["delay"], "worker_home": "/x"}
    want["gpu_pools"] = ["gpu"]
    return want | {"driver_versions": [host.version], "generations": GENERATIONS} | other


def judged(host: Recorded, **other: Any) -> dict[str, dict[str, Any]]:
    found = {each["name"]: each for each in validate.verdicts(host, wanted(host, **other))}
    assert json.dumps(found)
    return found


def failed(found: dict[str, dict[str, Any]]) -> list[str]:
    return [name for name, each in found.items() if not each["ok"]]


# -- Recorded readings as they are


def test_a_good_host_passes_every_check() -> None:
    found = judged(Recorded("h200").with_process())
    assert list(found) == list(validate.CHECKS)
    assert failed(found) == []
    assert [each["name"] for each in found.values() if each["skipped"]] == []
    assert found["GPU devices"]["detail"] == "1: NVIDIA H200"
    assert found["GPU PCIe link"]["detail"] == "PCIe 5 x16 under load"
    assert found["GPU memory"]["detail"] == "ECC on, nothing to repair"


# What was recorded on these machines is not right in all respects, and in no other.
@pytest.mark.parametrize(
    ("reading", "form", "wrong"),
    [
        ("h200", OPEN, {}),
        ("h200", PROPRIETARY, {}),
        ("a100_mig", PROPRIETARY, {"GPU persistence": "persistence mode is off for NVIDIA A100-SXM4-80GB"}),
        ("l4", OPEN, {"GPU persistence": "persistence mode is off for NVIDIA L4 at 0000:01:00.0"}),
        ("rtx_3080", OPEN, {"GPU persistence": "persistence mode is off"}),
        ("v100s", PROPRIETARY, {"GPU persistence": "persistence mode is off for Tesla V100S-PCIE-32GB"}),
        # Idle, these two: their links sleep, and one has half of its lanes.
        ("rtx_4000_ada", OPEN, {"GPU PCIe link": "works as PCIe 1, and could as PCIe 4"}),
        ("quadro_p2000", PROPRIETARY, {"GPU PCIe link": "works on 8 of 16 PCIe lanes"}),
    ],
)
def test_recorded_readings_are_judged(reading: str, form: str, wrong: dict[str, str]) -> None:
    found = judged(Recorded(reading, form=form).with_process())
    assert failed(found) == list(wrong)
    for name, words in wrong.items():
        assert words in found[name]["detail"]


def test_a_slot_with_fewer_lanes_is_accepted_where_it_is_said() -> None:
    host = Recorded("quadro_p2000", form=PROPRIETARY).with_process()
    assert "PCIe 1" in judged(host, pcie_lanes=8)["GPU PCIe link"]["detail"]
    host.busy = host.busy.replace("<current_link_gen>1<", "<current_link_gen>3<")
    assert failed(judged(host, pcie_lanes=8)) == []


def test_programs_errors_do_not_count_against_the_device() -> None:
    host = Recorded("h200").with_process()
    host.log += XIDS[31] + "\n"
    found = judged(host)
    assert failed(found) == []
    assert found["GPU errors (XID)"]["detail"] == "none of a device; 1 of programs (XID 31)"


def test_warnings_around_the_readings_are_left_out() -> None:
    host = Recorded("h200").with_process()
    host.idle = f"warning\n{host.idle}WARNING: infoROM is corrupted at gpu 0000:03:00.0\n"
    assert failed(judged(host)) == []


def test_a_host_without_the_distributions_kernels_is_not_judged_by_them() -> None:
    host = Recorded("h200").with_process()
    host.answers["linux-version list"] = (127, "linux-version: No such file or directory")
    assert judged(host)["GPU next kernel"]["skipped"]
    host.answers["linux-version list"] = (0, "6.1.0-44-amd64\n")
    host.answers["linux-version sort"] = (0, "6.1.0-44-amd64\n")
    assert judged(host)["GPU next kernel"]["detail"] == "6.1.0-44-amd64, which runs, is the newest"


# -- Spoilt one by one


def reading(old: str, new: str) -> Callable[[Recorded], None]:
    """Change the readings, idle and under load."""

    def spoil(host: Recorded) -> None:
        assert old in host.idle, old
        host.idle, host.busy = (text.replace(old, new, 1) for text in (host.idle, host.busy))

    return spoil


def put(**attributes: Any) -> Callable[[Recorded], None]:
    """Change attributes of the recorded host; a mapping is merged."""

    def spoil(host: Recorded) -> None:
        for name, new in attributes.items():
            old = getattr(host, name)
            setattr(host, name, old | new if isinstance(new, dict) else new)

    return spoil


def old_module_on_blackwell(host: Recorded) -> None:
    reading("233510DE", "290110DE")(host)
    put(files={"/proc/driver/nvidia/version": PROPRIETARY.format(host.version)})(host)


def xid(number: int) -> Callable[[Recorded], None]:
    return put(log=LOADED + XIDS[number] + "\n")


def slowed(reason: str) -> Callable[[Recorded], None]:
    return reading(f"{reason}>Not Active<", f"{reason}>Active<")


LIBRARY = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 550.163\n"
DEVICE = {"name": "NVIDIA H200", "rounds": 40, "wrong": {}}
SPOILT: list[tuple[str, str, Callable[[Recorded], None], str, str]] = [
    ("GPU devices", "h200", put(pci=["0000:03:00.0", "0000:04:00.0"]), "0000:04:00.0 is missing", "journalctl -k -b"),
    ("GPU devices", "h200", reading("reset_required>No<", "reset_required>Yes<"), "asks for a reset", "--gpu-reset"),
    ("GPU driver", "h200", put(files={"/proc/driver/nvidia/version": ""}), "no driver of NVIDIA", "playbooks/gpu.yml"),
    ("GPU driver", "h200", put(held={"libcuda1": "550.163.01-2"}), "of several versions", "playbooks/gpu.yml"),
    ("GPU driver", "h200", put(states={"nvidia-kernel-open-dkms": "ii "}), "may replace nvidia-kernel-open-dkms",
     "playbooks/gpu.yml"),
    ("GPU driver", "h200", put(states={"libcuda1": "ii ", "nvidia-smi": "ii "}), "may replace libcuda1, nvidia-smi",
     "playbooks/gpu.yml"),
    ("GPU driver", "h200", put(idle=LIBRARY), "library and module are of two versions", "Reboot"),
    ("GPU driver", "h200", put(idle="<nvidia_smi_log>\nUnknown Error\n"), "Unknown Error", "reboot"),
    ("GPU driver", "h200", put(idle="No devices were found\n"), "nvidia-smi says: No devices", "reboot"),
    ("GPU kernel module", "v100s", put(files={"/proc/driver/nvidia/version": OPEN.format("460.73.01")}),
     "the open module runs, and Tesla V100S", "nvidia_driver_kernel_module to auto"),
    ("GPU kernel module", "h200", old_module_on_blackwell, "(Blackwell) needs the open one",
     "nvidia_driver_kernel_module to auto"),
    ("GPU next kernel", "h200", put(answers={"dkms status": (0, "nvidia/550.90.12: added\n")}),
     "takes kernel 6.1.0-45-amd64, for which no module is built", "playbooks/gpu.yml"),
    ("GPU next kernel", "h200",
     put(answers={"dkms status": (0, "nvidia, 535.247.01, 6.1.0-45-amd64, x86_64: installed\n")}),
     "for which only version 535.247.01 of the module is built", "playbooks/gpu.yml"),
    ("GPU errors (XID)", "h200", xid(79), "XID 79; the last on 0000:01:00: pid=1122, GPU has fallen", "off and on"),
    ("GPU errors (XID)", "h200", xid(63), "XID 63", "Reset the device or reboot"),
    ("GPU errors (XID)", "h200", xid(69), "XID 69", "Look up XID 69"),
    ("GPU errors (XID)", "h200", xid(120), "XID 120", "later version of the driver's branch"),
    ("GPU errors (XID)", "h200", put(log=""), "log cannot be read", "Restart systemd-journald"),
    ("GPU memory", "h200", reading("<dram_uncorrectable>0<", "<dram_uncorrectable>2<"), "2 uncorrected", "Reset"),
    ("GPU memory", "h200", reading("_secded>0<", "_secded>1<"), "1 uncorrected", "Reset"),
    ("GPU memory", "h200", reading("row_pending>No<", "row_pending>Yes<"), "waits to be replaced", "Reset"),
    ("GPU memory", "h200", reading("row_failure>No<", "row_failure>Yes<"), "could not remap", "replaced"),
    ("GPU memory", "h200", reading("exceeded>No<", "exceeded>Yes<"), "too many errors in its SRAM", "replaced"),
    ("GPU memory", "v100s", reading("pending_blacklist>No<", "pending_blacklist>Yes<"), "waits to be", "Reset"),
    ("GPU memory", "v100s", reading("<double_bit>", "<double_bit><total>3</total>"), "3 uncorrected", "Reset"),
    ("GPU persistence", "h200", reading("persistence_mode>Enabled", "persistence_mode>Disabled"), "is off",
     "nvidia-persistenced"),
    ("GPU computation", "h200", put(computed={"devices": [DEVICE | {"wrong": {"floats": 3}}]}),
     "3 elements in floats wrong", "replaced"),
    ("GPU computation", "h200", put(computed={"error": "cuInit: CUDA_ERROR_NO_DEVICE", "code": 100}),
     "CUDA_ERROR_NO_DEVICE", "reboot"),
    ("GPU computation", "h200", put(computed={"error": "cuInit: CUDA_ERROR_SYSTEM_NOT_READY", "code": 802}),
     "NVSwitch, which is not ready", "nvidia-fabricmanager"),
    ("GPU computation", "h200", put(computed={"devices": []}), "programs see 0 of 1 devices", "reboot"),
    ("GPU computation", "h200", put(computed={"devices": [DEVICE | {"rounds": 0}]}), "computed nothing", "again"),
    ("GPU PCIe link", "h200", reading("current_link_width>16x", "current_link_width>8x"), "8 of 16", "Seat the card"),
    ("GPU PCIe link", "h200", reading("<current_link_gen>5", "<current_link_gen>3"), "PCIe 3, and could as PCIe 5",
     "firmware"),
    ("GPU clocks", "h200", slowed("hw_thermal_slowdown"), "too hot", "airflow"),
    ("GPU clocks", "h200", slowed("sw_thermal_slowdown"), "does not become too hot", "airflow"),
    ("GPU clocks", "h200", slowed("hw_power_brake_slowdown"), "power supply", "power cables"),
    ("GPU clocks", "v100s", slowed("reason_hw_slowdown"), "slowed by its hardware", "cooling"),
    ("GPU in containers", "h200", put(in_container=["Failed to initialize NVML: Unknown Error"]),
     "sees 0 of 1 devices at its start", "nvidia-cdi-refresh"),
    ("GPU in containers", "h200", put(after_reload=["Failed to initialize NVML: Unknown Error"]),
     "0 of 1 devices after `systemctl daemon-reload`", "from version 25 on"),
    ("GPU in containers", "h200", put(answers={"docker run": (125, "unresolvable CDI devices nvidia.com/gpu=all")}),
     "starts no container with a GPU: unresolvable CDI devices", "nvidia-cdi-refresh"),
    ("GPU in workers", "h200", put(seen_in_worker="error 100\n"), "prefect-worker-gpu.service sees no GPU: error 100",
     "playbooks/workers.yml"),
    ("GPU in workers", "h200", put(files={"/proc/4242/environ": "A=1\0"}), "set up without a GPU",
     "playbooks/workers.yml"),
    ("GPU in workers", "h200", put(torch=(1, "PyTorch 2.9.0+cpu, built for CUDA None, finds no GPU\n")),
     "built for CUDA None, finds no GPU", "Lock a build of PyTorch"),
    ("GPU in inference", "h200", put(files={"/proc/777/cgroup": "0::/user.slice\n"}), "delay answers on the CPU",
     "models-delay"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "device", "spoil", "wrong", "mend"), SPOILT, ids=[f"{s[0]}: {s[3]}" for s in SPOILT])
def test_one_spoilt_reading_fails_one_check(
    name: str, device: str, spoil: Callable[[Recorded], None], wrong: str, mend: str
) -> None:
    host = Recorded(device, form=PROPRIETARY if device == "v100s" else OPEN).with_process()
    if device == "v100s":
        reading("persistence_mode>Disabled", "persistence_mode>Enabled")(host)
    assert failed(judged(host)) == []
    host.calls.clear()
    spoil(host)
    found = judged(host)
    assert failed(found) == [name]
    detail = found[name]["detail"]
    assert wrong in detail
    assert mend in detail[detail.index(wrong) + len(wrong) :]
    assert detail.endswith(".")
    assert "the check itself failed" not in detail


def test_every_check_is_spoilt() -> None:
    assert {spoilt[0] for spoilt in SPOILT} == {*validate.CHECKS}


@pytest.mark.parametrize(
    ("want", "name", "words"),
    [
        ({"gpus": 8}, "GPU devices", "1 of 8 devices are on the PCI bus"),
        ({"driver_versions": ["580.173.02", "595.91.07"]}, "GPU driver", "580.173.02 or 595.91.07 is pinned"),
        ({"inference": ["delay", "price"]}, "GPU in inference", "price answers on the CPU"),
    ],
)
def test_what_the_site_asks_for_is_checked(want: dict[str, Any], name: str, words: str) -> None:
    found = judged(Recorded("h200").with_process(), **want)
    assert failed(found) == [name]
    assert words in found[name]["detail"]


def test_what_depends_on_a_held_package_need_not_be_held() -> None:
    """In NVIDIA's repository for Debian, libcuda1 and nvidia-smi come with nvidia-driver-cuda, which the role holds."""
    host = Recorded("h200").with_process()
    host.held["nvidia-driver-cuda"] = f"{host.version}-1"
    host.states |= {"nvidia-driver-cuda": "hi ", "libcuda1": "ii ", "nvidia-smi": "ii "}
    assert failed(judged(host)) == []


def test_a_driver_of_nobody_is_named() -> None:
    host = Recorded("h200").with_process()
    host.held = {}
    assert "no package of it is installed. Remove it with `nvidia-uninstall`" in judged(host)["GPU driver"]["detail"]
    host = Recorded("h200").with_process()
    host.held = dict.fromkeys(host.held, "550.163.01-2")
    assert "550.90.12 is in the kernel, and 550.163.01 is installed. Reboot" in judged(host)["GPU driver"]["detail"]


@pytest.mark.parametrize("name", ["gpus", "log", "idle", "computed"])
def test_no_reading_is_no_pass(name: str) -> None:
    """Whatever is lacking, some check fails: a host without readings must not count as one without faults."""
    host = Recorded("h200").with_process()
    empty = {"gpus": ("idle", "<nvidia_smi_log></nvidia_smi_log>"), "log": ("log", ""), "idle": ("idle", "")}
    attribute, text = empty.get(name, (name, {"error": "crashed", "code": -1, "devices": []}))
    setattr(host, attribute, text)
    assert failed(judged(host)) != []


ALL_OF_LOAD = ["GPU computation", "GPU PCIe link", "GPU clocks"]


def test_a_device_in_use_by_one_program_alone_is_not_judged() -> None:
    host = Recorded("h200").with_process()
    reading("<compute_mode>Default<", "<compute_mode>Exclusive_Process<")(host)
    host.busy, host.computed = "", {"error": "CUDA_ERROR_DEVICE_UNAVAILABLE", "code": cuda.IN_USE, "devices": []}
    found = judged(host)
    assert failed(found) == []
    skipped = [name for name, each in found.items() if each["skipped"]]
    assert skipped == ALL_OF_LOAD


def test_a_device_whose_memory_others_have_taken_is_not_judged() -> None:
    host = Recorded("h200").with_process()
    host.busy, host.computed = "", {"error": "CUDA_ERROR_OUT_OF_MEMORY", "code": cuda.FULL, "devices": []}
    found = judged(host)
    assert failed(found) == []
    assert [name for name, each in found.items() if each["skipped"]][:3] == ALL_OF_LOAD
    # Nobody has taken it: then the device, or its driver, is at fault.
    host.idle = READINGS["h200"]
    assert failed(judged(host, inference=[])) == ["GPU computation"]


def test_what_is_not_there_is_skipped_with_a_reason() -> None:
    host = Recorded("h200")
    host.answers["nvidia-ctk --version"] = (127, "nvidia-ctk: No such file or directory")
    host.answers["systemctl list-units"] = (0, "")
    found = judged(host, inference=[])
    assert failed(found) == []
    assert {name: each["detail"] for name, each in found.items() if each["skipped"]} == {
        "GPU in containers": "the container toolkit is not installed",
        "GPU in workers": "no worker of this host has a GPU of its own",
        "GPU in inference": "no service has to run on a GPU: nvidia_inference_services is empty",
    }
    host.answers |= {"nvidia-ctk --version": (0, ""), "docker info": (1, "Cannot connect")}
    assert judged(host)["GPU in containers"]["detail"] == "no container engine runs"


# -- A host without a device


@pytest.mark.parametrize("container", [True, False])
def test_a_host_without_a_device_is_skipped_only_where_it_may_lack_one(container: bool) -> None:
    host = Recorded("h200")
    host.pci = []
    host.container = lambda: container  # type: ignore[method-assign]
    assert [*validate.verdicts(host, wanted(host, require_device=False))] == [
        {
            "name": "GPU",
            "ok": True,
            "skipped": True,
            "seconds": 0.0,
            "detail": f"skipped: no device ({'it is a container' if container else 'none is on the PCI bus'}), "
            "and nvidia_require_device is false",
        }
    ]
    assert failed(judged(host)) == ["GPU devices"]


# -- Containers


def test_the_container_is_removed_whatever_happens() -> None:
    for spoil in (put(), put(in_container=[]), put(answers={"docker run": (125, "no")})):
        host = Recorded("h200").with_process()
        spoil(host)
        judged(host)
        made = [call for call in host.calls if call.startswith(("docker import", "docker r"))]
        removed = [f"docker rm --force {containers.PLACE}", f"docker rmi {containers.PLACE}"]
        assert made[:2] == made[-2:] == removed  # also what a killed check left
        assert [call.split()[1] for call in made[2:-2]] == ["import", "run"]


def test_other_peoples_containers_do_not_lose_their_gpu() -> None:
    host = Recorded("h200").with_process()
    host.answers["docker ps"] = (0, "12ab\n")
    host.answers["docker inspect"] = (0, '/train runc [{"Driver":"","Count":-1,"Capabilities":[["gpu"]]}]\n')
    detail = judged(host)["GPU in containers"]["detail"]
    assert "train would lose its GPU" in detail
    assert "systemctl daemon-reload" not in host.calls
    # By CDI, they keep it.
    host.answers["docker inspect"] = (0, '/train runc [{"Driver":"cdi","DeviceIDs":["nvidia.com/gpu=0"]}]\n')
    assert judged(host)["GPU in containers"]["detail"] == "docker's see 1, also after daemon-reload"
    assert "systemctl daemon-reload" in host.calls


def test_the_image_holds_what_a_program_of_the_host_needs() -> None:
    with tarfile.open(fileobj=io.BytesIO(containers.image(hosts.Host()))) as tar:
        names = tar.getnames()
    assert "usr/bin/sleep" in names
    assert [name for name in names if "/libc.so" in name]
    assert [name for name in names if "ld-linux" in name]


# -- The work: the driver's library is replaced by one that multiplies as it should, or not


class Library:
    """A library with the functions of the driver's, for devices that are only numbers."""

    def __init__(self, count: int = 1, *, spoil: bool = False, fail: str = "", die: str = "") -> None:
        self.count, self.spoil, self.fail, self.die = count, spoil, fail, die
        self.memory: dict[int, bytes] = {}
        self.right = {
            kind: [products.whole(part, code) for part in products.factors()] for kind, code in products.CODES.items()
        }
        self.names: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            if name == self.die:
                os.kill(os.getpid(), signal.SIGKILL)
            if name == self.fail:
                return cuda.IN_USE
            if do := getattr(type(self), f"do_{name}", None):
                do(self, *arguments)
            return 0

        return call

    def do_cuDeviceGetCount(self, count: Any) -> None:
        count._obj.value = self.count

    def do_cuGetErrorName(self, code: int, name: Any) -> None:
        name._obj.value = b"CUDA_ERROR_DEVICE_UNAVAILABLE"

    def do_cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> None:
        self.names.append(name.decode())
        function._obj.value = len(self.names)

    def do_cuMemAlloc_v2(self, pointer: Any, size: Any) -> None:
        assert size.value == 4 * products.SIDE**2
        pointer._obj.value = 4096 * (len(self.memory) + 1)
        self.memory[pointer._obj.value] = b""

    def do_cuMemcpyHtoD_v2(self, pointer: Any, data: bytes, size: Any) -> None:
        self.memory[pointer.value] = data[: size.value]

    def do_cuMemcpyDtoH_v2(self, buffer: Any, pointer: Any, size: Any) -> None:
        ctypes.memmove(buffer, self.memory[pointer.value], size.value)

    def do_cuLaunchKernel(self, function: Any, *rest: Any) -> None:
        kind = self.names[function.value - 1]
        left, right, product = (ctypes.c_uint64.from_address(address).value for address in rest[8])
        assert (rest[0] * rest[3], rest[1] * rest[4]) == (products.SIDE, products.SIDE)
        assert [self.memory[left], self.memory[right]] == self.right[kind][:2]
        result = bytearray(self.right[kind][2])
        if self.spoil and kind == "floats":
            result[4000] ^= 1
        self.memory[product] = bytes(result)


def worked(library: Any) -> dict[str, Any]:
    rounds = iter([False, False, True])
    found: dict[str, Any] = products.load(library, lambda: None, lambda: next(rounds))
    return found


def test_right_products_of_all_devices() -> None:
    found = worked(Library(2))
    assert found["error"] == ""
    assert [(each["rounds"], each["wrong"]) for each in found["devices"]] == [(4, {})] * 2


def test_the_product_is_that_of_the_matrices() -> None:
    left, right, product = products.factors()
    for row, column in ((0, 0), (5, 9), (1023, 1022)):
        expected = sum(
            left[row % products.PERIOD][k % products.PERIOD] * right[k % products.PERIOD][column % products.PERIOD]
            for k in range(products.SIDE)
        )
        assert product[row % products.PERIOD][column % products.PERIOD] == expected
        for code in ("i", "f"):
            whole = memoryview(products.whole(product, code)).cast(code)
            assert whole[row * products.SIDE + column] == expected
    assert max(abs(number) for line in product for number in line) < 2**24  # exact in 32-bit floats


def test_one_wrong_element_is_found() -> None:
    assert worked(Library(spoil=True))["devices"][0]["wrong"] == {"floats": 2}  # one in each of two rounds


def test_an_error_of_the_library_is_named() -> None:
    found = worked(Library(fail="cuDevicePrimaryCtxRetain"))
    assert found == {
        "error": "cuDevicePrimaryCtxRetain: CUDA_ERROR_DEVICE_UNAVAILABLE",
        "code": cuda.IN_USE,
        "devices": [],
    }


class Loaded(hosts.Host):
    def run(self, *command: str, seconds: float = 30, text: str | None = None) -> tuple[int, str]:
        assert command == ("nvidia-smi", "-q", "-x")
        return 0, READINGS["h200"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(products, "WARM_SECONDS", 0)
    return monkeypatch


def test_readings_are_taken_while_the_devices_work(quick: pytest.MonkeyPatch) -> None:
    quick.setattr(ctypes, "CDLL", lambda name: Library())
    text, computed = Loaded().loaded()
    assert text == READINGS["h200"]
    assert computed["error"] == ""
    assert computed["devices"][0]["rounds"] >= 2


@pytest.mark.parametrize(
    ("library", "words"),
    [
        (lambda name: Library(die="cuModuleLoadData"), "the computation crashed or did not end"),
        (lambda name: Library(fail="cuInit"), "cuInit: CUDA_ERROR_DEVICE_UNAVAILABLE"),
    ],
)
def test_a_crash_of_the_library_ends_only_the_child(
    quick: pytest.MonkeyPatch, library: Callable[[str], Any], words: str
) -> None:
    quick.setattr(ctypes, "CDLL", library)
    text, computed = Loaded().loaded()
    assert (text, computed["error"]) == ("", words)


def test_a_missing_library_is_named() -> None:
    host = Loaded()
    host.library = "libmetalworks-none.so.1"
    assert "libmetalworks-none.so.1" in host.loaded()[1]["error"]


# -- The host itself


def test_a_program_that_hangs_or_lacks_is_an_answer() -> None:
    assert hosts.Host().run("metalworks-none") == (127, "metalworks-none: No such file or directory")
    assert hosts.Host().run("sleep", "60", seconds=0.1) == (124, "sleep 60 does not answer within 0 s")


def test_environments_with_pytorch_are_found(tmp_path: Path) -> None:
    for number, name in enumerate(("old", "new")):
        place = tmp_path / ".cache/environments" / name / "lib/python3.11/site-packages/torch"
        place.mkdir(parents=True)
        (place / "version.py").touch()
        os.utime(place / "version.py", (number, number))
    found = hosts.Host().environments(str(tmp_path))
    assert found == [str(tmp_path / f".cache/environments/{name}/bin/python") for name in ("new", "old")]


def test_the_output_is_a_line_for_each_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host = Recorded("h200").with_process()
    monkeypatch.setattr(validate, "Host", lambda: host)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    validate.main([{"name": "GPU", "arguments": wanted(host)}])
    lines = [json.loads(line.removeprefix(verdict.MARK)) for line in capsys.readouterr().out.splitlines()]
    assert [line["name"] for line in lines] == [*validate.CHECKS]


def test_checks_without_time_fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    host = Recorded("h200").with_process()
    monkeypatch.setattr(validate, "Host", lambda: host)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(host, "loaded", lambda: exec("raise SystemExit('out of time')"))
    validate.main([{"name": "GPU", "arguments": wanted(host)}])
    lines = [json.loads(line.removeprefix(verdict.MARK)) for line in capsys.readouterr().out.splitlines()]
    assert [line["name"] for line in lines] == [*validate.CHECKS]
    late = [line["name"] for line in lines if not line["ok"]]
    assert late == [*validate.CHECKS][list(validate.CHECKS).index("GPU computation") :]
    assert "out of time. Raise smoke_timeout." in lines[-1]["detail"]


# -- The table of generations


def test_rows_of_the_table_are_complete() -> None:
    for row in GENERATIONS:
        assert set(row) <= {"name", "module", "devices", "first_branch", "last_branch"}
        assert row["module"] in ("open", "proprietary", "either", "none")
        assert all(int(first, 16) <= int(last, 16) for first, last in row["devices"])


# Devices with the names that NVIDIA gives them, from pci.ids and the list of NVIDIA/open-gpu-kernel-modules.
@pytest.mark.parametrize(
    ("device", "name", "module"),
    [
        ("102d", "before Maxwell", "none"),  # K80
        ("13f2", "Maxwell", "proprietary"),  # M60
        ("15f8", "Pascal", "proprietary"),  # P100
        ("1c30", "Pascal", "proprietary"),  # Quadro P2000
        ("1df6", "Volta", "proprietary"),  # V100S
        ("1eb8", "Turing", "either"),  # T4
        ("2191", "Turing", "either"),  # GTX 1660 Ti
        ("20b2", "Ampere", "either"),  # A100
        ("2216", "Ampere", "either"),  # RTX 3080
        ("2330", "Hopper", "either"),  # H100
        ("2335", "Hopper", "either"),  # H200
        ("2342", "Grace Hopper", "open"),  # GH200
        ("27b8", "Ada Lovelace", "either"),  # L4
        ("2684", "Ada Lovelace", "either"),  # RTX 4090
        ("2901", "Blackwell", "open"),  # B200
        ("2b85", "Blackwell", "open"),  # RTX 5090
        ("31c2", "Blackwell", "open"),  # GB300
    ],
)
def test_devices_are_found_in_the_table(device: str, name: str, module: str) -> None:
    element = readings.ElementTree.fromstring(
        f"<gpu><pci><pci_device_id>{device.upper()}10DE</pci_device_id></pci></gpu>"
    )
    row = driver.generation_of(readings.Gpu(element), GENERATIONS)
    assert (row["name"], driver.needs(row)) == (name, module)


def test_a_device_newer_than_the_table_needs_open_modules() -> None:
    element = readings.ElementTree.fromstring("<gpu><pci><pci_device_id>300010DE</pci_device_id></pci></gpu>")
    assert driver.generation_of(readings.Gpu(element), GENERATIONS) is None
    assert driver.needs(None) == "open"


def test_the_session_gives_what_the_program_reads() -> None:
    """The role's session and the program agree on the arguments' names."""
    sessions = yaml.safe_load((ROOT / "roles/smoke/vars/main.yml").read_text())["__smoke_gpu_sessions"]
    assert {*sessions[0]["checks"][0]["arguments"]} == {*wanted(Recorded("h200"))}
