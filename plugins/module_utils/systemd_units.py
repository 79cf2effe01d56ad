"""Write systemd services, and restart those whose process was started from something else.

A unit with a schedule is a service that a timer starts: it runs to its end, so nothing restarts it or waits for it.
"""

from __future__ import annotations

import grp
import hashlib
import json
import tempfile
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import container
from .replace_file import differs, read, replace
from .system_user import ensure_system_user
from .systemctl import MANAGED, show
from .unix_http import SocketHandler

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

TEXT, REQUIRED, OPTIONAL = {"type": "str"}, {"type": "str", "required": True}, {"type": "str", "default": ""}
TEXTS = {"type": "list", "elements": "str", "default": []}
SPEC: dict[str, Any] = {
    "units": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": REQUIRED,
            "description": TEXT,
            "user": REQUIRED,
            "group": TEXT,
            "command": REQUIRED,
            "prestart": TEXTS,
            "environment": {"type": "str", "default": "{}", "no_log": True},  # the action plugin makes it JSON
            "after": {**TEXTS, "default": ["network-online.target"]},
            "service": {"type": "dict", "default": {}},
            "health_url": OPTIONAL,
            "health_socket": OPTIONAL,
            "health_timeout": {"type": "int", "default": 120},
            "restart_on": {"type": "list", "elements": "path", "default": []},
            "schedule": {
                "type": "dict",
                "options": {
                    "calendar": REQUIRED,
                    "random_delay": {"type": "str", "default": "0"},
                    "persistent": {"type": "bool", "default": True},
                    "then": OPTIONAL,
                },
            },
        },
    },
    "family": OPTIONAL,
}
"""The argument spec of module systemd_units, shared with modules that also run services."""

POLL_SECONDS = 0.25
STEADY_SECONDS = 2.0
"""Without a health URL, a service counts as up when its process has run this long."""
CRASHES_TO_GIVE_UP = 5
HEALTH_SECONDS = 5.0
UNITS, SETTINGS, RUNNING = Path("/etc/systemd/system"), Path("/etc/metalworks"), Path("/run/metalworks")
# A compromised program can reach its own state and the network, and nothing else on the host. The last line for a
# setting counts, so a unit's own `service` can override it.
SANDBOX = """\
NoNewPrivileges=true
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=true
PrivateTmp=true
PrivateDevices=true
PrivateMounts=true
ProtectClock=true
ProtectControlGroups=true
ProtectHostname=true
ProtectKernelLogs=true
ProtectKernelModules=true
ProtectKernelTunables=true
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=true
RestrictRealtime=true
RestrictSUIDSGID=true
RemoveIPC=true
LockPersonality=true
UMask=0077
MemoryMax=90%
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM"""


def native_lines(wants: dict[str, Any]) -> dict[str, list[str]]:
    """Return the lines of a unit file that differ from those of a container: start, confinement, own."""
    own = wants["service"].items()
    return {
        "start": [*(f"ExecStartPre={command}" for command in wants["prestart"]), f"ExecStart={wants['command']}"],
        "confinement": [SANDBOX],
        "own": [
            f"{key}={line}" for key, value in sorted(own) for line in (value if isinstance(value, list) else [value])
        ],
    }


def unit_text(wants: dict[str, Any]) -> str:
    """Return the unit file of a service."""
    name, after = wants["name"], " ".join(wants["after"])
    form = container.lines(wants, json.loads(wants["environment"])) if wants.get("container") else native_lines(wants)
    then: list[str] = []
    if wants["schedule"] is None:
        kind: list[str] = []
        revision = [
            "# What this process was started from; Ansible compares it with what is wanted.",
            f"ExecStartPre=+/usr/bin/install -D -m 0644 {SETTINGS}/{name}.revision {RUNNING}/{name}.revision",
        ]
        restart = ["Restart=always", "RestartSec=3", f"TimeoutStartSec={wants['health_timeout']}"]
        install = ["", "[Install]", "WantedBy=multi-user.target"]
    else:
        kind, revision, restart, install = ["Type=oneshot"], [], [], []
        if wants["schedule"]["then"]:
            then = [f"{result}={wants['schedule']['then']}.service" for result in ("OnSuccess", "OnFailure")]
    lines = [
        MANAGED,
        "[Unit]",
        f"Description={wants['description'] or name}",
        f"After={after}",
        f"Wants={after}",
        "# A dependency that is down for long must not end the retries.",
        "StartLimitIntervalSec=0",
        *then,
        "",
        "[Service]",
        *kind,
        f"User={wants['user']}",
        f"Group={wants['group'] or wants['user']}",
        f"EnvironmentFile={SETTINGS}/{name}.env",
        *revision,
        *form["start"],
        *restart,
        *form["confinement"],
        f"StateDirectory={name}",
        "StateDirectoryMode=0750",
        f"WorkingDirectory=/var/lib/{name}",
        *form["own"],
        *install,
    ]
    return "\n".join(lines) + "\n"


def timer_text(wants: dict[str, Any]) -> str:
    """Return the unit file of the timer that starts a service with a schedule."""
    schedule = wants["schedule"]
    lines = [
        MANAGED,
        "[Unit]",
        f"Description=Schedule of: {wants['description'] or wants['name']}",
        "",
        "[Timer]",
        f"OnCalendar={schedule['calendar']}",
        f"RandomizedDelaySec={schedule['random_delay']}",
        "# Catch up on a host that was off at that time.",
        f"Persistent={'true' if schedule['persistent'] else 'false'}",
        "",
        "[Install]",
        "WantedBy=timers.target",
    ]
    return "\n".join(lines) + "\n"


def environment_text(environment: dict[str, Any]) -> str:
    """Return the environment file of a service, quoted as systemd reads it."""
    lines = [MANAGED]
    for name, value in sorted(environment.items()):
        quoted = str(value)
        for character in ("\\", '"', "`", "$"):
            quoted = quoted.replace(character, f"\\{character}")
        lines.append(f'{name}="{quoted}"')
    return "\n".join(lines) + "\n"


def digest(paths: list[Path]) -> str:
    """Return a digest of these paths: links by target, files by content, folders by all files in them."""
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


def answers(url: str, path: str) -> bool:
    """Tell whether a GET of the URL returns 200; with a path, on that Unix socket. Uses no proxy."""
    handlers = [SocketHandler(path)] if path else []
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), *handlers)
    try:
        with opener.open(url, timeout=HEALTH_SECONDS) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, HTTPException, OSError):
        return False


class Unit:
    """One service, as it is and as wanted."""

    def __init__(self, module: AnsibleModule, wants: dict[str, Any]) -> None:
        """Keep the module and the wanted unit."""
        self.module, self.wants = module, wants
        self.name = wants["name"]
        self.service = f"{self.name}.service"
        self.timer, self.scheduled = f"{self.name}.timer", wants["schedule"] is not None
        self.unit_file, self.environment_file = UNITS / self.service, SETTINGS / f"{self.name}.env"
        self.timer_file = UNITS / self.timer
        self.revision_file, self.running = SETTINGS / f"{self.name}.revision", RUNNING / f"{self.name}.revision"
        self.wanted = ""
        self.began = time.monotonic()

    def systemctl(self, *arguments: str) -> None:
        """Run a systemctl verb; fail the task with its error."""
        self.module.run_command(["systemctl", *arguments], check_rc=True)

    def show(self) -> dict[str, str]:
        """Return the unit's properties that decisions depend on."""
        names = ("ActiveState", "SubState", "NRestarts", "UnitFileState", "NeedDaemonReload", "Result")
        return show(self.module, self.service, *names, "ActiveEnterTimestampMonotonic")

    def journal(self) -> str:
        """Return the last lines of the unit's journal."""
        command = ["journalctl", "--unit", self.service, "--lines", "30", "--no-pager", "--output", "cat"]
        return str(self.module.run_command(command)[1])

    def fail(self, reason: str) -> None:
        """End the task with the reason and the journal."""
        self.module.fail_json(
            msg=f"{self.service} {reason}\nLast lines of `journalctl -u {self.service}`:\n{self.journal()}"
        )

    def group(self) -> int | None:
        """Return the id of the group that may read the environment; None if check mode did not create it."""
        name = self.wants["group"] or self.wants["user"]
        try:
            return grp.getgrnam(name).gr_gid
        except KeyError:
            if not self.module.check_mode:  # in check mode, the task before did not create the group
                self.fail(f"needs the group {name}, which does not exist on this host.")
            return None

    def verify(self, files: dict[str, str]) -> None:
        """Let systemd verify the unit files before they are installed; fail the task with its output."""
        if self.scheduled:
            self.verify_schedule()
        with tempfile.TemporaryDirectory() as scratch:
            candidates = [Path(scratch) / name for name in files]
            for candidate in candidates:
                candidate.write_text(files[candidate.name])
            code, out, err = self.module.run_command(["systemd-analyze", "verify", *map(str, candidates)])
        if code:
            self.module.fail_json(msg=f"systemd rejects {self.service}; nothing was changed:\n{out}{err}")

    def verify_schedule(self) -> None:
        """Fail the task with systemd's reason if it cannot read the schedule, or would never start the service."""
        schedule = self.wants["schedule"]
        for kind, option in (("calendar", "calendar"), ("timespan", "random_delay")):
            command = ["systemd-analyze", kind, schedule[option]]
            code, out, err = self.module.run_command(command, environ_update={"LC_ALL": "C"})
            if code or "Next elapse: never" in out:
                reason = err if code else "This time never comes again.\n"
                self.module.fail_json(
                    msg=f"{self.service} has an invalid schedule: {option} is {schedule[option]!r}; nothing was "
                    f"changed:\n{reason}`{' '.join(command[:2])} '{schedule[option]}'` tells what systemd reads.",
                )

    def converge(self) -> str:
        """Bring files and process to the wanted state without waiting for health; return what was done."""
        made = ensure_system_user(self.module, self.wants["user"])
        group = self.group()
        if group is None:
            return "scheduled" if self.scheduled else "started"
        units = {self.service: unit_text(self.wants)}
        engine = self.wants.get("container", {}).get("engine", "")
        if self.scheduled:
            units[self.timer] = timer_text(self.wants)
        environment = environment_text(json.loads(self.wants["environment"]))
        files = [(UNITS / name, text, 0o644, 0) for name, text in units.items()]
        stale = [file for file in (*files, (self.environment_file, environment, 0o640, group)) if differs(*file)]
        unwanted = not self.scheduled and self.timer_file.exists()
        state = self.show()
        if not self.module.check_mode and (stale or unwanted):
            if engine:  # in a container, systemd cannot look for the command
                self.verify({self.service: unit_text({**self.wants, "container": None})})
            self.verify(units)
            if container.engine_of(read(self.unit_file)) not in (engine, ""):
                self.systemctl("stop", self.service)  # by the old unit, which removes the container
            if unwanted:
                remove_timer(self.module, self.name)
            if self.scheduled and state["UnitFileState"] == "enabled":  # it ran all the time, without a schedule
                self.systemctl("--quiet", "disable", "--now", self.service)
            for file in stale:
                replace(*file)
        changed = bool(stale or unwanted)
        return self.set_timer(changed, made) if self.scheduled else self.start(changed, made)

    def set_timer(self, changed: bool, made: bool) -> str:
        """Enable and start the timer; return what was done. A service that is running goes on undisturbed."""
        state = show(self.module, self.timer, "ActiveState", "UnitFileState", "NeedDaemonReload")
        runs = (state["ActiveState"], state["UnitFileState"]) == ("active", "enabled")
        reload = changed or "yes" in (state["NeedDaemonReload"], self.show()["NeedDaemonReload"])
        if not self.module.check_mode:
            if reload:
                self.systemctl("daemon-reload")
            if reload or not runs:
                self.systemctl("--quiet", "enable", self.timer)
                self.systemctl("restart", self.timer)
        return "scheduled" if changed or made or not runs else "none"

    def start(self, changed: bool, made: bool) -> str:
        """Enable the service, and start it unless it runs from what is wanted; return what was done."""
        self.wanted = digest([self.unit_file, self.environment_file, *map(Path, self.wants["restart_on"])])
        state = self.show()
        active = state["ActiveState"] in ("active", "activating", "reloading")
        current = read(self.running).strip()
        same = active and current == self.wanted and not changed
        action = "none" if same else "restarted" if active else "started"
        enable = state["UnitFileState"] != "enabled"
        if not self.module.check_mode:
            if state["NeedDaemonReload"] == "yes" or changed:
                self.systemctl("daemon-reload")
            if enable:
                self.systemctl("--quiet", "enable", self.service)
            if differs(self.revision_file, f"{self.wanted}\n", 0o644, 0):
                replace(self.revision_file, f"{self.wanted}\n", 0o644, 0)
            if action != "none":
                self.began = time.monotonic()
                self.systemctl("--no-block", "restart", self.service)
        return "enabled" if action == "none" and (made or enable) else action

    def wait(self) -> None:
        """Wait until the wanted revision runs and is healthy, or fail the task."""
        if self.scheduled:
            return
        url, timeout = self.wants["health_url"], self.wants["health_timeout"]
        crashes = int(self.show()["NRestarts"])
        while time.monotonic() - self.began < timeout:
            state = self.show()
            started = read(self.running).strip() == self.wanted
            if started and (state["ActiveState"], state["SubState"]) == ("active", "running"):
                since = time.monotonic() - int(state["ActiveEnterTimestampMonotonic"]) / 1e6
                if answers(url, self.wants["health_socket"]) if url else since >= STEADY_SECONDS:
                    return
            if int(state["NRestarts"]) - crashes >= CRASHES_TO_GIVE_UP:
                took = time.monotonic() - self.began
                self.fail(f"keeps exiting ({state['Result']}): {CRASHES_TO_GIVE_UP} times within {took:.0f} s.")
            time.sleep(POLL_SECONDS)
        asked = f"answer 200 at {url}" if url else "keep running"
        self.fail(f"is {state['ActiveState']}/{state['SubState']} and did not {asked} within {timeout} s.")


def unlisted(family: str, listed: set[str]) -> list[str]:
    """Return the names of a family's services that this module wrote and that are no longer listed."""
    return [
        path.stem
        for path in sorted(UNITS.glob(f"{family}.service"))
        if path.stem not in listed and path.read_text().startswith(MANAGED)
    ]


def remove_timer(module: AnsibleModule, name: str) -> None:
    """Stop a service's timer and remove its file."""
    module.run_command(["systemctl", "--quiet", "disable", "--now", f"{name}.timer"], check_rc=True)
    (UNITS / f"{name}.timer").unlink()


def remove(module: AnsibleModule, name: str) -> None:
    """Stop a service, and the timer that would start it again, and remove their files."""
    if (UNITS / f"{name}.timer").exists():
        remove_timer(module, name)
    module.run_command(["systemctl", "--quiet", "disable", "--now", f"{name}.service"], check_rc=True)
    for path in (SETTINGS / f"{name}.env", SETTINGS / f"{name}.revision"):
        path.unlink(missing_ok=True)
    # Last, so that the run after a killed one still finds the service.
    (UNITS / f"{name}.service").unlink()


def converge(module: AnsibleModule, wants: list[dict[str, Any]], family: str) -> dict[str, str]:
    """Bring all services to the wanted state and wait until they are healthy; return what was done to each."""
    for each in wants:
        why = container.refusal(each, json.loads(each["environment"])) if each.get("container") else ""
        if why:
            module.fail_json(msg=why)
    units = [Unit(module, each) for each in wants]
    actions = {unit.name: unit.converge() for unit in units}
    for name in unlisted(family, set(actions)) if family else []:
        actions[name] = "removed"
        if not module.check_mode:
            remove(module, name)
    if not module.check_mode:
        for unit in units:
            unit.wait()
    return actions
