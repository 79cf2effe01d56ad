"""The platform's workers and inference services."""

from __future__ import annotations

import re
import sys

from .readings import Seen, value
from .verdict import Fault, NotApplicable

COUNT = """
import ctypes
cuda, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
code = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
print("error" if code else "count", code or count.value)
"""


TORCH = """
import torch
torch.backends.cuda.matmul.allow_tf32 = False
if not torch.cuda.is_available():
    raise SystemExit(f"PyTorch {torch.__version__}, built for CUDA {torch.version.cuda}, finds no GPU")
for number in range(torch.cuda.device_count()):
    x = torch.arange(256 * 256, device=f"cuda:{number}").reshape(256, 256) % 7
    right = (x.cpu().double() @ x.cpu().double()).float()
    if not torch.equal((x.float() @ x.float()).cpu(), right):
        raise SystemExit(f"PyTorch {torch.__version__} multiplies wrongly on GPU {number}")
print(f"PyTorch {torch.__version__} computes on {torch.cuda.device_count()}")
"""


def check_workers(seen: Seen) -> str:
    """Each worker that has a GPU of its own sees it inside its unit, and PyTorch computes in flows' environments."""
    host, told = seen.host, []
    units = host.run("systemctl", "list-units", "--plain", "--no-legend", "--no-pager", "prefect-worker-*.service")[1]
    names = [line.split()[0] for line in units.splitlines() if line.strip()]
    mend = f"Run playbooks/workers.yml on the host, or see `journalctl -u {names[0] if names else 'prefect-worker-*'}`"
    inside = []
    for name in names:
        process = host.run("systemctl", "show", "--value", "--property=MainPID", name)[1].strip()
        variables = dict(pair.partition("=")[::2] for pair in host.read(f"/proc/{process}/environ").split("\0"))
        if process in ("", "0") or "CUDA_VISIBLE_DEVICES" not in variables:
            wanted = "|".join(map(re.escape, seen.want.get("gpu_pools") or ["-"]))
            if process not in ("", "0") and re.match(rf"prefect-worker-({wanted})(-\d+)?\.service", name):
                raise Fault(f"{name} was set up without a GPU, so its flows compute on the CPU", mend)
            continue
        enter = ["nsenter", f"--target={process}", "--mount", "--", "runuser", "--user", "prefect-worker", "--", "env",
                 f"CUDA_VISIBLE_DEVICES={variables['CUDA_VISIBLE_DEVICES']}", "CUDA_DEVICE_ORDER=PCI_BUS_ID",
                 "CUDA_CACHE_DISABLE=1"]  # fmt: skip
        _, out = host.run(*enter, sys.executable, "-", text=COUNT)
        if not re.search(r"^count [1-9]", out, re.MULTILINE):
            raise Fault(f"{name} sees no GPU: {' '.join(out.split())[-200:]}", mend)
        inside.append(enter)
    if not inside:
        raise NotApplicable("no worker of this host has a GPU of its own")
    told.append(f"{len(inside)} workers see theirs")
    for python in host.environments(str(seen.want.get("worker_home") or ""))[:1]:
        code, out = host.run(*inside[0], python, "-", text=TORCH, seconds=60)
        if code:
            raise Fault(
                " ".join((out.strip().splitlines() or ["PyTorch does not start"])[-1].split())[:300],
                "Lock a build of PyTorch for a CUDA that the driver has (`nvidia-smi` shows which) in the project",
            )
        told.append(out.strip().splitlines()[-1])
    return "; ".join(told)


def check_inference(seen: Seen) -> str:
    """The models of the services that have to run on a GPU do."""
    services = seen.want.get("inference") or []
    if not services:
        raise NotApplicable("no service has to run on a GPU: nvidia_inference_services is empty")
    processes = {value(each, "pid") for gpu in seen.gpus for each in gpu.element.iter("process_info")}
    groups = "\n".join(seen.host.read(f"/proc/{process}/cgroup") for process in sorted(processes))
    for service in services:
        if f"/models-{service}.service" not in groups:
            raise Fault(
                f"no process of models-{service}.service computes on a GPU, so {service} answers on the CPU",
                "Log the model with a build of PyTorch for CUDA; `journalctl -u models-"
                f"{service}` says what became of the device",
            )
    return f"{', '.join(services)} on CUDA"
