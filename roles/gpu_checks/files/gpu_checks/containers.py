"""Containers with a GPU."""

from __future__ import annotations

import io
import re
import tarfile
import tempfile

from .host import Host
from .readings import Seen
from .verdict import Fault, NotApplicable

PLACE = "metalworks-smoke-gpu"  # name of the container and the image that the check makes


KEEP_SECONDS = "300"


def libraries(host: Host, *programs: str) -> list[str]:
    """Return the system's libraries that programs need; those of the driver come with the device."""
    found = set()
    for program in programs:
        found |= set(re.findall(r"(/\S+) \(0x", host.run("ldd", program)[1]))
    return sorted(path for path in found if "nvidia" not in path)


def image(host: Host) -> bytes:
    """Return the files of a container as a tar archive: enough of this host to run nvidia-smi, without any registry."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", dereference=True) as tar:
        for name in ("dev", "etc", "proc", "run", "sys", "tmp", "usr", "usr/bin", "usr/lib", "usr/sbin"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        for path in ("/usr/bin/sleep", *libraries(host, "/usr/bin/sleep", "/usr/bin/nvidia-smi")):
            tar.add(path, path.lstrip("/"))
    return held.getvalue()


def legacy_containers(host: Host, engine: str) -> list[str]:
    """Return running containers that got a GPU otherwise than by CDI, and lose it when systemd reloads its units."""
    if engine != "docker":
        return []
    names = host.run("docker", "ps", "--quiet")[1].split()
    form = "{{.Name}} {{.HostConfig.Runtime}} {{json .HostConfig.DeviceRequests}}"
    shown = host.run("docker", "inspect", f"--format={form}", *names)[1] if names else ""
    return [
        line.split()[0].lstrip("/")
        for line in shown.splitlines()
        if " nvidia " in line or ('"Capabilities":[[' in line and '"Driver":"cdi"' not in line)
    ]


def check_container(seen: Seen) -> str:
    """A container sees the devices, and keeps them when systemd reloads its units."""
    host = seen.host
    if host.run("nvidia-ctk", "--version")[0]:
        raise NotApplicable("the container toolkit is not installed")
    asked = {"docker": "{{.ServerVersion}} {{json .CDISpecDirs}}", "podman": "{{.Version.Version}}"}
    answers = {name: host.run(name, "info", f"--format={form}") for name, form in asked.items()}
    engines = {name: answer for name, (code, answer) in answers.items() if not code}
    if not engines:
        raise NotApplicable("no container engine runs")
    # Docker's answer names the folders of CDI where it can do that.
    told = [in_container(seen, name, name == "podman" or "/" in answer) for name, answer in engines.items()]
    return "; ".join(told)


def clear(host: Host, engine: str) -> None:
    """Remove the container and the image of this or a killed check, by their names."""
    host.run(engine, "rm", "--force", PLACE)
    host.run(engine, "rmi", PLACE)


def in_container(seen: Seen, engine: str, by_name: bool) -> str:
    """Check one engine, with an image and a container that are removed at once."""
    host, expected = seen.host, len(seen.gpus)
    given = ["--device=nvidia.com/gpu=all"] if by_name else ["--runtime=nvidia", "--env=NVIDIA_VISIBLE_DEVICES=all"]
    where = "LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu:/usr/lib/aarch64-linux-gnu"
    refresh = "Run `systemctl restart nvidia-cdi-refresh`; `nvidia-ctk cdi list` shows the devices"

    def shown(when: str, mend: str) -> None:
        code, out = host.run(engine, "exec", f"--env={where}", PLACE, "/usr/bin/nvidia-smi", "--list-gpus")
        count = len(re.findall(r"^GPU \d+:", out, re.MULTILINE))
        if code or count != expected:
            words = " ".join(out.split())[:200]
            raise Fault(f"a container of {engine} sees {count} of {expected} devices {when}: {words}", mend)

    clear(host, engine)
    with tempfile.NamedTemporaryFile(prefix=f"{PLACE}-", suffix=".tar") as file:
        file.write(image(host))
        file.flush()
        code, out = host.run(engine, "import", file.name, PLACE, seconds=60)
    if code:
        raise Fault(f"{engine} takes no image: {out.strip()[:200]}", f"Look at `{engine} info`")
    try:
        code, out = host.run(engine, "run", "--detach", "--rm", f"--name={PLACE}", "--network=none", *given, PLACE,
                             "/usr/bin/sleep", KEEP_SECONDS, seconds=60)  # fmt: skip
        if code:
            raise Fault(f"{engine} starts no container with a GPU: {out.strip()[-200:]}", refresh)
        shown("at its start", refresh)
        others = [name for name in legacy_containers(host, engine) if name != PLACE]
        if others:
            return (
                f"{engine}'s see {expected}; not tried after daemon-reload, at which {', '.join(others)} would lose "
                "its GPU: start it with --device nvidia.com/gpu=…"
            )
        host.run("systemctl", "daemon-reload", seconds=60)
        shown(
            "after `systemctl daemon-reload`",
            "Give containers their GPU by CDI (`--device nvidia.com/gpu=all`), which Docker can from version 25 on",
        )
    finally:
        clear(host, engine)
    return f"{engine}'s see {expected}, also after daemon-reload"
