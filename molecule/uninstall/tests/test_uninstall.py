"""Removal of the platform: the host is as it was, and what others did meanwhile stays."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from scripts.tests.warm_ansible import ansible_playbook

SCENARIO = Path(__file__).resolve().parent.parent


def remove(*options: str, **variables: Any) -> Any:
    more = ("--extra-vars", json.dumps(variables))
    return ansible_playbook(
        "--inventory", os.environ["MOLECULE_INVENTORY_FILE"], *options, SCENARIO / "remove.yml", *more
    )


def look(host) -> dict[str, dict[str, str]]:
    """Return what the host is like, as the scenario's first step saw it."""
    program = (SCENARIO / "snapshot.py").read_text()
    return json.loads(host.check_output("python3 -c %s", program))


def differences(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> dict[str, list[str]]:
    """Return what two snapshots differ in, by part."""
    found = {
        part: [
            f"{key}: {was.get(key)} is now {after[part].get(key)}"
            for key in sorted({*was, *after[part]})
            if was.get(key) != after[part].get(key)
        ]
        for part, was in before.items()
    }
    return {part: lines for part, lines in found.items() if lines}


def test_the_host_is_as_it_was(host) -> None:
    before = json.loads(Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "before.json").read_text())
    assert len(differences(before, look(host))) == len(before), "the snapshot sees what the platform changes"
    # What others do meanwhile stays.
    host.check_output("echo 192.0.2.9 printer >> /etc/hosts; echo '# ours' > /etc/sysctl.d/99-theirs.conf")
    host.check_output("echo kept > /var/lib/platform-status/results")
    first = remove()
    assert first.returncode == 0, first.stdout + first.stderr
    assert host.file("/var/lib/platform-status/results").content_string == "kept\n"
    assert host.user("platform-status").exists, "the data has an owner"
    assert host.file("/etc/hosts").content_string.endswith("192.0.2.9 printer\n")
    assert host.file("/etc/sysctl.d/99-theirs.conf").exists
    host.check_output("sed '/ printer$/d' /etc/hosts > /run/hosts && cat /run/hosts > /etc/hosts")
    host.check_output("rm /run/hosts /etc/sysctl.d/99-theirs.conf")
    host.check_output("rm -r /var/lib/platform-status && userdel platform-status")
    left = differences(before, look(host))
    assert not left, json.dumps(left, indent=1)
    again = remove()
    assert (again.returncode, "changed=0" in again.stdout) == (0, True), again.stdout + again.stderr
