"""The lab as the faults see it: its hosts and units, whether they are healthy, and what lies around on them."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from scripts.common import ProblemError

PLATFORM = ("services-1", "gpu-1", "cpu-1", "dev-1", "dev-2")
DOMAIN = "metalworks.internal"
ASK = "curl --silent --show-error --fail --output /dev/null --max-time 5"
UNITS = {
    "services-1": {
        "postgresql@15-main": "runuser -u postgres -- pg_isready --quiet",
        "minio": f"{ASK} http://127.0.0.1:9000/minio/health/ready",
        "mlflow": f"{ASK} --unix-socket /run/mlflow/api.sock http://localhost/health",
        "prefect-server": f"{ASK} --unix-socket /run/prefect-server/api.sock http://localhost/api/ready",
        "prefect-lost-runs": "true",
        "nginx": f"{ASK} --insecure --resolve {DOMAIN}:443:127.0.0.1 https://{DOMAIN}/",
        "platform-status": f"{ASK} --unix-socket /run/platform-status/http.sock http://localhost/",
    },
    "gpu-1": {
        "prefect-worker-gpu": f"{ASK} http://127.0.0.1:4201/health",
        "inference-delay": f"{ASK} --insecure https://127.0.0.1:8000/ping",
        "models-delay": "true",
        "model-follower": "true",
    },
    "cpu-1": {"prefect-worker-cpu": f"{ASK} http://127.0.0.1:4301/health"},
}
"""Units of the platform, their hosts, and commands that show that they work."""

# What a stranger on the host can read, and drafts that a module or program did not finish.
CLOSED = "-type d -not '(' -readable -executable ')' -prune"
READABLE = f"cd / && runuser -u nobody -- find /tmp /var/tmp /dev/shm -xdev {CLOSED} -o -type f -readable -print"
DRAFTS = "find /etc /opt/metalworks /home /var/lib -xdev -name '.*.new' -type f -not -path '*/site-packages/*'"
FIND_SECRETS = "import json, sys; from pathlib import Path\nasked = json.loads(sys.stdin.readline())\n" + (
    "print(json.dumps([p for p in asked['files'] if Path(p).is_file() and\n"
    "    any(s.encode() in Path(p).read_bytes() for s in asked['secrets'])]))"
)


def inside(host: str, script: str, text: str = "") -> str:
    """Return what a script prints on a host, run as root through the engine, which works without its network."""
    argv = ["docker", "exec", "--interactive", host, "bash", "-c", script]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise ProblemError(f"{host}: {script[:100]}: {(done.stderr or done.stdout).strip()[-1000:]}")
    return done.stdout


def process_of(host: str, unit: str) -> str:
    """Return the id of a unit's main process."""
    number = inside(host, f"systemctl show --property MainPID --value {unit}").strip()
    if number == "0":
        raise ProblemError(f"{host}: {unit} has no process: run `make smoke`")
    return number


def unwell(host: str) -> set[str]:
    """Return the units of a host that failed or wait for another start, and those of the platform that do not work."""
    lines = ["systemctl list-units --all --plain --no-legend --state=failed,auto-restart | cut -d' ' -f1"]
    for unit, ask in UNITS.get(host, {}).items():
        lines.append(f"systemctl is-active --quiet {unit} && {ask} 2>/dev/null || echo {unit}")
    try:
        return set(inside(host, "\n".join(lines)).split())
    except ProblemError:
        return {"the host itself"}


def complaints(accepted: Iterable[str] = ()) -> set[str]:
    """Return what is not well on any host, apart from what was so before."""
    with ThreadPoolExecutor() as pool:
        found = zip(PLATFORM, pool.map(unwell, PLATFORM), strict=True)
        return {f"{host}: {unit}" for host, units in found for unit in units} - {*accepted}


def lying_around(host: str) -> set[str]:
    """Return the files in temporary folders that everyone can read, and unfinished files."""
    return set(inside(host, READABLE).splitlines()) | set(inside(host, DRAFTS).splitlines())


def around() -> dict[str, set[str]]:
    """Return what lies around on each host."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(PLATFORM, pool.map(lying_around, PLATFORM), strict=True))


def left(before: dict[str, set[str]], secrets: list[str]) -> list[str]:
    """Return a line for each file that lies around now and did not before, and say which hold a secret."""
    lines = []
    for host, files in around().items():
        new = sorted(files - before[host])
        if new:
            asked = json.dumps({"files": new, "secrets": secrets}) + "\n"
            telling = json.loads(inside(host, f"python3 -c {shlex.quote(FIND_SECRETS)}", asked))
            lines += [f"{host}: {path}{' holds a secret' if path in telling else ''}" for path in new]
    return lines
