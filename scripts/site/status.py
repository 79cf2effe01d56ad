"""Show whether a site's platform is well, and what ran in the last 24 hours: the start page, in a terminal.

Exit with 0 (all is well), 1 (something is ill) or 2 (the platform cannot be asked). The host with the start page is
asked over SSH, so neither its names nor a password are needed here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from metalworks.status import show
from scripts.common import BUILD, ROOT, environment, failure

ANSWERS = BUILD / "status.json"


def ask(inventory: str) -> str:
    """Run the playbook and return what to say if it fails."""
    command = ["ansible-playbook", "-i", inventory, "playbooks/status.yml"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    return failure(command, done.returncode, done.stderr + done.stdout, lines=20) if done.returncode else ""


def night(answer: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """Return what ran, or why nobody knows."""
    content = answer["content"]
    found = show.parsed(content) if isinstance(content, str) else content  # Ansible reads text that looks like JSON
    if int(answer["status"]) == 200 and found:
        return found, ""
    return None, "platform-status does not answer: `journalctl -u platform-status` on the host of the start page"


def told(answers: dict[str, Any]) -> tuple[str, int]:
    """Return the text and the exit status for what the play noted."""
    parts = []
    for one in answers["parts"]:
        content = one["content"] if isinstance(one["content"], str) else json.dumps(one["content"])
        parts.append(show.judged(one["title"], int(one["status"]), one["type"], content))
    ran, why = night(answers["night"])
    return show.text(parts, ran, answers["prefect"], why), show.exit_status(parts)


def main() -> int:
    """Ask and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inventory", "-i", default="inventory/lab", help="inventory of the site (default: the lab's)")
    options = parser.parse_args()
    if not (ROOT / options.inventory).exists():
        print(f"no inventory {options.inventory}: name another with -i", file=sys.stderr)
        return show.UNKNOWN
    ANSWERS.parent.mkdir(exist_ok=True)
    ANSWERS.unlink(missing_ok=True)  # it names flows, and an old one tells of another night
    problem = ask(options.inventory)
    if problem or not ANSWERS.exists():
        print(problem or "the inventory has no host in group gateway", file=sys.stderr)
        return show.UNKNOWN
    text, status = told(json.loads(ANSWERS.read_text()))
    print(text)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
