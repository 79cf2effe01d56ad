#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Apply settings of the SSH server and verify that they take effect, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sshd_config
short_description: Apply settings of the SSH server, and prove that they are in force
description:
  - Tries the settings together with all other files of the server before it writes anything. Fails if C(sshd) refuses
    them, or if another file overrides one of them.
  - Has C(sshd_config) read its folder of additions first.
  - Reloads the server when its files are newer than what it has read.
  - Installs a drop-in for the server's unit, so that systemd always restarts it.
  - Does nothing on a host without an SSH server.
options:
  settings: {type: str, required: true, description: 'Content of the file, one keyword and its value per line.'}
  unit: {type: str, required: true, description: Content of the drop-in. It must set C(Restart=always).}
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Close the SSH server
  metalworks.platform.sshd_config:
    settings: "PermitRootLogin no"
    unit: "{{ lookup('ansible.builtin.file', 'restart.conf') }}"
"""

RETURN = r"""
reloaded: {type: bool, returned: success, description: Whether the server was reloaded.}
"""

import os
import re
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from ..module_utils.host_module import HostModule
from ..module_utils.replace_file import diff, read, replace
from ..module_utils.systemctl import show

MAIN = Path("/etc/ssh/sshd_config")
FOLDER = Path("/etc/ssh/sshd_config.d")
OURS = FOLDER / "00-metalworks.conf"
INCLUDE = f"Include {FOLDER}/*.conf\n"
UNIT = "ssh.service"
ADDITION = Path(f"/etc/systemd/system/{UNIT}.d/metalworks.conf")
SAME = {"prohibit-password": "without-password"}
"""Values that `sshd -T` prints under an older name."""


def including(text: str) -> str:
    """Return the server's main file, changed if needed so that it reads the folder first."""
    for line in text.splitlines():
        if re.match(rf"\s*include\s+\"?{re.escape(str(FOLDER))}/\*\.conf\"?\s*$", line, re.IGNORECASE):
            return text
        if line.strip() and not line.lstrip().startswith("#"):
            break
    return INCLUDE + text


def pairs(text: str) -> dict[str, str]:
    """Return keywords and values of a file or of `sshd -T`, in lower case."""
    lines = (line.strip() for line in text.splitlines())
    split = (line.lower().split(None, 1) for line in lines if line and not line.startswith("#"))
    return {one[0]: SAME.get(one[1], one[1]) for one in split if len(one) == 2}


def not_in_force(settings: str, shown: str) -> list[str]:
    """Return the wanted settings that would not take effect."""
    known = pairs(shown)
    return [
        f"{key} is {known.get(key)} instead of {value}"
        for key, value in pairs(settings).items()
        if known.get(key) != value
    ]


def changed_at(show: str) -> float:
    """Return when the unit last changed its state, which includes reloads; 0 if it never ran."""
    found = re.search(r"^StateChangeTimestamp=(?:\w+ )?([\d-]+ [\d:.]+) UTC$", show, re.MULTILINE)
    return datetime.fromisoformat(f"{found[1]}+00:00").timestamp() if found else 0.0


def came_as_root(environment: Mapping[str, str]) -> bool:
    """Tell whether this process was started by a root login over SSH."""
    return environment.get("SUDO_USER", "root" if "SSH_CONNECTION" in environment else "") == "root"


class Server:
    """The SSH server, and the module that acts on it."""

    def __init__(self, module: HostModule, program: str) -> None:
        """Keep the module and the path of sshd."""
        self.module, self.program = module, program
        self.diff = list[dict[str, str]]()

    def tried(self, main: str, settings: str) -> str:
        """Return the settings that would take effect; end the task if the server rejects them."""
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # may be missing where a socket starts the server
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / FOLDER.name
            folder.mkdir()
            for file in FOLDER.glob("*.conf"):
                (folder / file.name).write_bytes(file.read_bytes())
            (folder / OURS.name).write_text(settings)
            (Path(scratch) / MAIN.name).write_text(main.replace(f"{FOLDER}/", f"{folder}/"))
            code, out, err = self.module.run_command([self.program, "-T", "-f", str(Path(scratch) / MAIN.name)])
            if code:
                complaint = err.strip().replace(str(folder), str(FOLDER)).replace(scratch, str(MAIN.parent))
                self.module.fail_json(
                    msg=f"sshd rejects the settings; the running server keeps the old ones: {complaint}"
                )
        return str(out)

    def put(self, path: Path, text: str) -> bool:
        """Make a file hold this text; tell whether it changed."""
        old = read(path)
        if old == text:
            return False
        self.diff.append(diff(path, old, text))
        if not self.module.check_mode:
            replace(path, text)
        return True

    def reload_owed(self) -> bool:
        """Tell whether the server runs with files that are newer than its last load."""
        command = ["systemctl", "show", UNIT, "--timestamp=us+utc", "--property", "ActiveState,StateChangeTimestamp"]
        show = self.module.run_command(command, check_rc=True)[1]
        files = [MAIN, FOLDER, *FOLDER.glob("*.conf")]
        newest = max(file.stat().st_ctime for file in files if file.exists())
        return "ActiveState=active" in show and newest > changed_at(show)

    def restarts(self, unit: str) -> bool:
        """Install the drop-in of the unit; tell whether that changed anything."""
        written = self.put(ADDITION, unit)
        known = show(self.module, UNIT, "Restart", "NeedDaemonReload")
        # Check the loaded unit too: a killed play may not have reloaded, and systemd overlooks a new drop-in folder.
        owed = written or known != {"Restart": "always", "NeedDaemonReload": "no"}
        if owed and not self.module.check_mode:
            self.module.run_command(["systemctl", "daemon-reload"], check_rc=True)
        return owed


def main() -> None:
    """Read the arguments and converge."""
    given = {"type": "str", "required": True}
    module = HostModule(
        argument_spec={"settings": given, "unit": given},
        supports_check_mode=True,
    )
    settings = module.params["settings"]
    program = module.get_bin_path("sshd", opt_dirs=["/usr/sbin"])
    if program is None or not MAIN.exists():
        # No SSH server here, and installing one would only open the host.
        module.exit_json(changed=False, reloaded=False)
    if pairs(settings).get("permitrootlogin") == "no" and came_as_root(os.environ):
        module.fail_json(
            msg="PermitRootLogin no would lock Ansible out, which logs in as root; use an account with sudo instead"
        )
    server = Server(module, program)
    text = including(MAIN.read_text())
    if wrong := not_in_force(settings, server.tried(text, settings)):
        module.fail_json(msg=f"a file in {FOLDER}, or {MAIN}, overrides these settings: {'; '.join(wrong)}")
    # First the settings, then the main file that includes them.
    written = [server.put(path, content) for path, content in ((OURS, settings), (MAIN, text))]
    written.append(server.restarts(module.params["unit"]))
    owed = server.reload_owed()
    reload = owed and not module.check_mode
    if reload:
        module.run_command(["systemctl", "reload", UNIT], check_rc=True)
    module.exit_json(changed=any(written) or owed, reloaded=reload, diff=server.diff)


if __name__ == "__main__":
    main()
