#!/usr/bin/python
"""Make the running process of a systemd service the one that its files describe, in one call."""

from __future__ import annotations

import grp
import hashlib
import os
import socket
import tempfile
import time
import urllib.error
import urllib.request
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: systemd_unit_state
short_description: A systemd service is what its unit and environment say, and is healthy
description:
  - Writes C(/etc/metalworks/<name>.env) and C(/etc/systemd/system/<name>.service), enables and starts the service,
    and restarts it when what it was started from differs from what stands on disk.
  - The unit stamps C(/etc/metalworks/<name>.revision) into C(/run/metalworks/<name>.revision) when it starts, so the
    decision needs no memory of earlier plays and survives one that was killed.
  - A unit that systemd would refuse is reported before anything is written.
options:
  name: {type: str, required: true, description: Unit without C(.service).}
  unit: {type: str, required: true, description: Content of the unit file.}
  environment: {type: str, required: true, description: Content of the environment file; may hold secrets.}
  group: {type: str, required: true, description: Group that may read the environment file.}
  restart_on: {type: list, elements: path, default: [], description: Files and folders the process depends on.}
  health_url: {type: str, default: "", description: URL that answers 200 when the service works.}
  health_socket: {type: str, default: "", description: Unix socket that the URL is asked on instead of its host.}
  health_timeout: {type: int, default: 120, description: Seconds to become healthy.}
"""

RETURN = """
action: {type: str, returned: always, description: none, started or restarted.}
seconds: {type: float, returned: success, description: Time until the service was healthy.}
"""

POLL_SECONDS = 0.25
STEADY_SECONDS = 2.0
"""Without a health URL, a service counts as up when one process has lived this long."""
CRASHES_TO_GIVE_UP = 5
HEALTH_SECONDS = 5.0


def digest(paths: list[Path]) -> str:
    """Return the revision of these files: links by target, files by content, folders by all files in them."""
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{path}\0".encode())
        if path.is_symlink():
            total.update(str(path.resolve()).encode())
        elif path.is_dir():
            for inner in sorted(p for p in path.rglob("*") if p.is_file()):
                total.update(f"{inner}\0".encode() + hashlib.sha256(inner.read_bytes()).digest())
        elif path.exists():
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


class SocketConnection(HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, host: str, path: str, timeout: float) -> None:
        """Remember the socket."""
        super().__init__(host, timeout=timeout)
        self.path = path

    def connect(self) -> None:
        """Connect to the socket, whatever the URL's host is."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class SocketHandler(urllib.request.HTTPHandler):
    """Opens http: URLs on one Unix socket."""

    def __init__(self, path: str) -> None:
        """Remember the socket."""
        super().__init__()
        self.path = path

    def http_open(self, request: urllib.request.Request) -> HTTPResponse:
        """Ask on the socket."""

        def connection(host: str, *, timeout: float = HEALTH_SECONDS, **_: object) -> HTTPConnection:
            return SocketConnection(host, self.path, timeout)

        return self.do_open(connection, request)


def answers(url: str, path: str) -> bool:
    """Tell whether a GET of the URL (on a Unix socket if there is a path) is answered with 200, without any proxy."""
    handlers = [SocketHandler(path)] if path else []
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), *handlers)
    try:
        with opener.open(url, timeout=HEALTH_SECONDS) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, HTTPException, OSError):
        return False


class Unit:
    """One service as systemd sees it."""

    def __init__(self, module: AnsibleModule, name: str) -> None:
        """Remember whose commands run and which unit is meant."""
        self.module = module
        self.service = f"{name}.service"

    def systemctl(self, *arguments: str) -> None:
        """Run a systemctl verb on the unit; fail the task with its error."""
        self.module.run_command(["systemctl", *arguments], check_rc=True)

    def show(self) -> dict[str, str]:
        """Return the unit's properties that decisions rest on."""
        names = "ActiveState,SubState,MainPID,NRestarts,UnitFileState,NeedDaemonReload,Result"
        _, out, _ = self.module.run_command(["systemctl", "show", self.service, "--property", names], check_rc=True)
        return dict(line.split("=", 1) for line in out.splitlines())

    def journal(self) -> str:
        """Return the last lines the unit wrote."""
        command = ["journalctl", "--unit", self.service, "--lines", "30", "--no-pager", "--output", "cat"]
        return str(self.module.run_command(command)[1])

    def fail(self, why: str) -> None:
        """End the task with the reason, and the journal for the person who reads it."""
        self.module.fail_json(
            msg=f"{self.service} {why}\nLast lines of `journalctl -u {self.service}`:\n{self.journal()}"
        )


def wait(unit: Unit, wanted: str, url: str, path: str, timeout: int) -> float:
    """Block until the wanted revision runs and is healthy; return the seconds it took, or fail the task."""
    stamp = Path(f"/run/metalworks/{unit.service.removesuffix('.service')}.revision")
    began = time.monotonic()
    crashes = int(unit.show()["NRestarts"])
    steady_pid, steady_since = "0", began
    while (now := time.monotonic()) - began < timeout:
        state = unit.show()
        if state["MainPID"] != steady_pid:
            steady_pid, steady_since = state["MainPID"], now
        started = stamp.exists() and stamp.read_text().strip() == wanted
        running = started and state["ActiveState"] == "active" and state["SubState"] == "running"
        if running and (answers(url, path) if url else now - steady_since >= STEADY_SECONDS):
            return now - began
        if int(state["NRestarts"]) - crashes >= CRASHES_TO_GIVE_UP:
            unit.fail(f"keeps ending ({state['Result']}): {CRASHES_TO_GIVE_UP} times in {now - began:.0f} s.")
        time.sleep(POLL_SECONDS)
    asked = f"answer 200 at {url}" if url else "keep running"
    unit.fail(f"is {state['ActiveState']}/{state['SubState']} and did not {asked} within {timeout} s.")
    raise AssertionError("fail_json does not return")


def differs(path: Path, content: str, mode: int, group: int) -> bool:
    """Tell whether the file is missing or has another content, mode or group."""
    if not path.exists() or path.read_text() != content:
        return True
    status = path.stat()
    return (status.st_mode & 0o777, status.st_uid, status.st_gid) != (mode, 0, group)


def write(path: Path, content: str, mode: int, group: int) -> None:
    """Replace the file in one step, never readable by more than its mode allows."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(content)
    os.chown(fresh, 0, group)
    fresh.chmod(mode)
    fresh.replace(path)


def verify(unit: Unit, content: str) -> None:
    """Let systemd judge the unit file before it is put in place; fail the task with its words."""
    with tempfile.TemporaryDirectory() as scratch:
        candidate = Path(scratch) / unit.service
        candidate.write_text(content)
        code, out, err = unit.module.run_command(["systemd-analyze", "verify", str(candidate)])
    if code:
        unit.module.fail_json(msg=f"systemd refuses {unit.service}; nothing was changed. It says:\n{out}{err}")


def converge(module: AnsibleModule) -> dict[str, object]:
    """Bring the service to what is asked for; return what was done."""
    wants = module.params
    unit = Unit(module, wants["name"])
    unit_file = Path("/etc/systemd/system") / unit.service
    environment_file, revision_file = (Path(f"/etc/metalworks/{wants['name']}.{kind}") for kind in ("env", "revision"))
    running = Path(f"/run/metalworks/{wants['name']}.revision")
    try:
        group = grp.getgrnam(wants["group"]).gr_gid
    except KeyError:
        if module.check_mode:  # the role that makes the group only said so
            return {"changed": True, "action": "started"}
        module.fail_json(msg=f"{unit.service} is to run as group {wants['group']}, which does not exist on this host.")
    files = [(unit_file, wants["unit"], 0o644, 0), (environment_file, wants["environment"], 0o640, group)]
    stale = [file for file in files if differs(*file)]
    if stale and not module.check_mode:
        verify(unit, wants["unit"])
        for file in stale:
            write(*file)

    wanted = digest([unit_file, environment_file, *map(Path, wants["restart_on"])])
    state = unit.show()
    active = state["ActiveState"] in ("active", "activating", "reloading")
    current = running.read_text().strip() if running.exists() else ""
    same = active and current == wanted and not stale
    action = "none" if same else ("restarted" if active else "started")
    enable = state["UnitFileState"] != "enabled"
    result = {"changed": bool(stale) or action != "none" or enable, "action": action}
    if module.check_mode:
        return result

    if state["NeedDaemonReload"] == "yes" or stale:
        unit.systemctl("daemon-reload")
    if enable:
        unit.systemctl("--quiet", "enable", unit.service)
    if differs(revision_file, f"{wanted}\n", 0o644, 0):
        write(revision_file, f"{wanted}\n", 0o644, 0)
    if action != "none":
        unit.systemctl("--no-block", "restart", unit.service)
    seconds = wait(unit, wanted, wants["health_url"], wants["health_socket"], wants["health_timeout"])
    result["seconds"] = round(seconds, 2)
    return result


def main() -> None:
    """Read the arguments and converge."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "unit": {"type": "str", "required": True},
            "environment": {"type": "str", "required": True, "no_log": True},
            "group": {"type": "str", "required": True},
            "restart_on": {"type": "list", "elements": "path", "default": []},
            "health_url": {"type": "str", "default": ""},
            "health_socket": {"type": "str", "default": ""},
            "health_timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    module.exit_json(**converge(module))


if __name__ == "__main__":
    main()
