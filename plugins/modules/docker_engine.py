#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Bring the settings and the unit of a host's Docker engine to the wanted state, and disturb nothing that runs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_engine
short_description: Set up a host's Docker engine, and disturb nothing that runs
description:
  - Merges the platform's settings into C(/etc/docker/daemon.json) key by key. What others have set there, or on the
    daemon's command line, stays.
  - Refuses, before it changes anything, an engine that listens on TCP, a data root that would hide data, networks of
    containers that hide others, and a Docker from a snap or of podman.
  - Reloads the daemon for settings that a running one reads again. For others, restarts an engine that the platform
    installed, if its containers survive that. Any other engine gets them with its next start.
  - On a host without an engine, writes the settings and returns C(install), so that packages can follow. Call it again
    after that.
options:
  data_root: {type: str, default: '', description: 'Folder of images, containers and volumes. Empty: as it is.'}
  address_pools:
    description: Networks from which the engine takes those of containers, each with C(base) and C(size).
    type: list
    elements: dict
    default: []
  addresses:
    description: Addresses and networks that containers' networks must not hide. Names are left out.
    type: list
    elements: str
    default: []
  log_max_size: {type: str, default: 10m, description: Size of a file of a container's log.}
  log_max_files: {type: int, default: 3, description: Number of files of a container's log.}
  settings: {type: dict, default: {}, description: More keys of daemon.json.}
  users: {type: list, elements: str, default: [], description: Accounts in group docker; missing ones are left out.}
  only_users: {type: bool, default: false, description: Whether to look at the group alone.}
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Set up the engine
  metalworks.platform.docker_engine:
    address_pools: [{base: 172.29.0.0/16, size: 24}]
    addresses: [192.0.2.11, 192.0.2.21]
"""

RETURN = r"""
actions: {type: list, elements: str, returned: always, description: What was (or in check mode would be) done.}
install: {type: bool, returned: success, description: Whether the host has no engine yet.}
waits:
  description: Settings that take effect when docker.service is started next.
  type: list
  elements: str
  returned: success
"""

import grp
import json
from pathlib import Path
from typing import Any

from ..module_utils.before import keep, load, made
from ..module_utils.docker_settings import (
    CONFIGURATION,
    OURS,
    RELOADED,
    STARTED,
    UNIT,
    changes,
    data_root,
    faults,
    has_data,
    info,
    look,
    merged,
    parsed,
    wanted,
)
from ..module_utils.host_module import HostModule
from ..module_utils.replace_file import diff, read, replace
from ..module_utils.system_user import account
from ..module_utils.systemctl import show

GROUP = "docker"
OWED = Path("/run/metalworks/docker-engine-owes")
"""The keys that a daemon, named by the time of its start, does not know yet: from before its settings change."""
PRIVATE = 0o600
"""Settings may hold passwords, such as a proxy's."""
KEY = CONFIGURATION.with_name("key.json")
"""Written by the daemon itself, up to version 24."""
CONTAINERD = "/var/lib/containerd"
ENGINE = ("engine", "docker")


def text_of(settings: dict[str, Any]) -> str:
    """Return a daemon.json with these settings."""
    return json.dumps(settings, indent=4) + "\n"


class Engine:
    """The engine, and the module that acts on it."""

    def __init__(self, module: HostModule) -> None:
        """Keep the module."""
        self.module, self.wants = module, module.params
        self.actions, self.diff, self.waits = list[str](), list[dict[str, str]](), list[str]()

    def act(self, action: str) -> bool:
        """Record an action; tell whether to carry it out."""
        self.actions.append(action)
        return not self.module.check_mode

    def run(self, *command: str) -> None:
        """Run a command; a failure ends the task."""
        self.module.run_command(list(command), check_rc=True)

    def own(self) -> bool:
        """Tell whether the platform installed the engine."""
        return " ".join(ENGINE) in load()[1]

    def install(self, root: str) -> None:
        """Note that the engine is the platform's, and what it brings along."""
        if self.module.check_mode:
            return
        made(*ENGINE)
        keep(KEY)
        if not has_data(Path(root)):
            made("data", root)
        if not Path(CONTAINERD).exists():
            made("data", CONTAINERD)
        try:
            grp.getgrnam(GROUP)
        except KeyError:
            made("group", GROUP)

    def store(self, now: dict[str, Any], new: dict[str, Any], mine: dict[str, Any], started: str) -> None:
        """Write the settings, and note which are the platform's."""
        if changed := changes(now, new):
            shown = [text_of({key: one[key] for key in sorted(changed) if key in one}) for one in (now, new)]
            self.diff.append(diff(CONFIGURATION, *shown))
            if self.act(f"set {', '.join(sorted(changed))} in {CONFIGURATION}"):
                self.judge(new)
                self.owe(started, changed | self.owed(started))
                path = CONFIGURATION.resolve()  # a link of others stays one
                status = path.stat() if path.exists() else None
                kept = (status.st_mode & 0o777, status.st_gid, status.st_uid) if status else (PRIVATE, 0, 0)
                replace(path, text_of(new), *kept)
        if text_of(mine) != read(OURS) and not self.module.check_mode:
            replace(OURS, text_of(mine), PRIVATE)

    def owed(self, started: str) -> set[str]:
        """Return the keys that the daemon that was started then does not know yet; one started later knows all."""
        owes = json.loads(read(OWED) or "{}")
        return {*owes["keys"]} if owes.get("started") == started else set()

    def owe(self, started: str, keys: set[str]) -> None:
        """Note the keys that the daemon does not know yet."""
        replace(OWED, json.dumps({"started": started, "keys": sorted(keys)}))

    def judge(self, new: dict[str, Any]) -> None:
        """Have the daemon check the settings, if it can: from version 23 on."""
        daemon = self.module.get_bin_path("dockerd", opt_dirs=["/usr/sbin"])
        if daemon is None or "--validate" not in self.module.run_command([daemon, "--help"])[1]:
            return
        draft = Path(self.module.tmpdir, "daemon.json")
        draft.write_text(text_of(new))
        code, out, err = self.module.run_command([daemon, "--validate", "--config-file", str(draft)])
        if code:
            self.module.fail_json(
                msg=f"dockerd refuses the settings, which were not changed: {(err or out).strip()}. Correct "
                f"docker_settings, or what {CONFIGURATION} has besides",
                actions=[],
            )

    def serve(self, unit: dict[str, str]) -> None:
        """Enable and start the unit."""
        if unit["UnitFileState"] != "enabled" and self.act(f"enable {UNIT}"):
            self.run("systemctl", "--quiet", "enable", UNIT)
        if unit["ActiveState"] != "active" and self.act(f"start {UNIT}"):
            self.control("start")

    def control(self, verb: str) -> None:
        """Start, reload or restart the engine; a failure ends the task with where to look."""
        code, out, err = self.module.run_command(["systemctl", verb, UNIT])
        if code:
            said = self.module.run_command(["journalctl", "--unit", UNIT, "--lines", "5", "--output", "cat"])[1]
            self.module.fail_json(
                msg=f"docker.service does not {verb}: {(err or out).strip()}\nIts journal ends:\n{said.strip()}",
                actions=self.actions,
            )

    def follow(self) -> None:
        """Let the running daemon know its settings, if a change has not reached it."""
        started = show(self.module, UNIT, STARTED)[STARTED]
        owed = self.owed(started)
        if owed & RELOADED and self.act(f"reload {UNIT}"):
            self.control("reload")
            self.owe(started, owed - RELOADED)
        rest = sorted(owed - RELOADED)
        if rest and self.own() and self.survives():
            if self.act(f"restart {UNIT}"):
                self.control("restart")
        else:
            self.waits = rest

    def survives(self) -> bool:
        """Tell whether all containers survive a restart of the daemon."""
        state = info()
        return bool(state) and (state["LiveRestoreEnabled"] or not state["ContainersRunning"])

    def members(self) -> None:
        """Bring the group to the wanted members; those whom others put there stay."""
        try:
            there = {*grp.getgrnam(GROUP).gr_mem}
        except KeyError:
            return
        for name in sorted({*self.wants["users"]} - there):
            if account(name) and self.act(f"put {name} into group {GROUP}"):
                made("member", f"{GROUP} {name}")
                self.run("gpasswd", "--add", name, GROUP)
        noted = {key.split()[2] for key in load()[1] if key.startswith(f"member {GROUP} ")}
        for name in sorted(noted & there - {*self.wants["users"]}):
            if self.act(f"take {name} out of group {GROUP}"):
                self.run("gpasswd", "--delete", name, GROUP)

    def converge(self) -> bool:
        """Set everything up; tell whether there is no engine yet."""
        seen = look(self.module)
        if wrong := faults(self.wants, seen):
            told = "\n".join(f"This host {what}. {cure}." for what, cure in wrong)
            self.module.fail_json(msg=f"{told}\nNothing was changed.", actions=[])
        now = parsed(seen["text"])
        new, mine = merged(now, seen["ours"], wanted(self.wants, seen), seen["flags"])
        unit = seen["unit"]
        if not unit:
            self.install(data_root(new, {}))
        self.store(now, new, mine, unit.get(STARTED, ""))
        if unit:
            self.serve(unit)
            self.follow()
            self.members()
        return not unit


def main() -> None:
    """Read the arguments and converge."""
    module = HostModule(
        argument_spec={
            "data_root": {"type": "str", "default": ""},
            "address_pools": {"type": "list", "elements": "dict", "default": []},
            "addresses": {"type": "list", "elements": "str", "default": []},
            "log_max_size": {"type": "str", "default": "10m"},
            "log_max_files": {"type": "int", "default": 3},
            "settings": {"type": "dict", "default": {}, "no_log": True},
            "users": {"type": "list", "elements": "str", "default": []},
            "only_users": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    engine, absent = Engine(module), False
    if module.params["only_users"]:
        engine.members()
    else:
        absent = engine.converge()
    if engine.waits and engine.actions:
        module.warn(
            f"{', '.join(engine.waits)} of Docker take effect when {UNIT} starts next. The platform does not restart "
            "an engine that was there before it, nor one whose containers would end"
        )
    module.exit_json(
        changed=bool(engine.actions), actions=engine.actions, diff=engine.diff, install=absent, waits=engine.waits
    )


if __name__ == "__main__":
    main()
