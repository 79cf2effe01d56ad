"""Check a site's platform by using it; exit with 0, 1 (a check failed) or 2 (could not check).

Prints a line for each check. build/smoke.json has the same and more, as JSON; with --gpu, build/gpu-validate.json, and
with --burnin, build/gpu-burnin.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from scripts.common import BUILD, ROOT, environment, failure, write_json

VERDICT = BUILD / "smoke.json"
MOST_MINUTES = 60 * 24 * 7
OK, FAILED, UNKNOWN = 0, 1, 2
STATES = {OK: "ok", FAILED: "FAILED", UNKNOWN: "COULD NOT CHECK"}


def play(inventory: str, limit: str | None, playbook: str, given: dict[str, Any]) -> str:
    """Run the playbook and return its output. Its exit status does not matter: the verdict file says more."""
    command = ["ansible-playbook", "-i", inventory, f"playbooks/{playbook}.yml"]
    command += ["--extra-vars", json.dumps(given)] if given else []
    command += ["--limit", limit] if limit else []
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    return failure(command, done.returncode, done.stderr + done.stdout, lines=20)


def exit_status(verdict: dict[str, Any] | None) -> int:
    """Return the exit status for a verdict: a failed check outweighs a host that could not be checked."""
    if verdict is None or not (verdict["checks"] or verdict["unchecked"]):
        return UNKNOWN
    if verdict["failures"]:
        return FAILED
    return OK if verdict["ok"] else UNKNOWN


def table(verdict: dict[str, Any]) -> str:
    """Return one line for each check, failures last, where people see them."""
    rank = [(check["ok"], check) for check in verdict["checks"]]
    lines = []
    for ok, check in sorted(rank, key=lambda pair: not pair[0]):
        state = ("none" if check["skipped"] else "ok") if ok else "FAILED"
        lines.append(f"{state:<7}{check['host']:<14}{check['seconds']:>6.1f} s  {check['name']}: {check['detail']}")
    lines += [f"{'?':<7}{host:<24}could not be checked: {reason}" for host, reason in verdict["unchecked"].items()]
    return "\n".join(lines)


def minutes(text: str) -> int:
    """Return a number of minutes."""
    if not text.isdecimal() or not 0 < int(text) <= MOST_MINUTES:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes: use a whole one from 1 to {MOST_MINUTES}")
    return int(text)


def main() -> int:
    """Run the checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inventory", "-i", default="inventory/lab", help="inventory of the site (default: the lab's)")
    parser.add_argument("--limit", help="hosts or groups to check, as Ansible's --limit")
    parser.add_argument("--gpu", action="store_true", help="check only the GPUs")
    parser.add_argument("--burnin", type=minutes, metavar="MINUTES", help="work the GPUs for so long instead")
    parser.add_argument("--force", action="store_true", help="with --burnin, also GPUs that have passed")
    options = parser.parse_args()
    name = "gpu-burnin" if options.burnin else "gpu-validate" if options.gpu else "smoke"
    given = {"burnin_minutes": options.burnin, "burnin_force": options.force} if options.burnin else {}
    place = VERDICT.with_stem(name)
    if not (ROOT / options.inventory).exists():
        print(f"no inventory {options.inventory}: name another with -i\n{name}: {STATES[UNKNOWN]}", file=sys.stderr)
        return UNKNOWN
    place.unlink(missing_ok=True)
    start = time.monotonic()
    if options.burnin:
        print(f"{options.burnin} minutes; on a host, `journalctl -u metalworks-gpu-burnin` tells of errors", flush=True)
    words = play(options.inventory, options.limit, name.replace("-", "_"), given)
    verdict = read(place)
    status = exit_status(verdict)
    if verdict is None:
        print(words, file=sys.stderr)
    else:
        verdict["figures"]["seconds"] = round(time.monotonic() - start, 1)
        write_json(place, verdict)
        print(table(verdict))
    print(f"{name}: {STATES[status]} ({time.monotonic() - start:.0f} s)")
    return status


def read(path: Path) -> dict[str, Any] | None:
    """Return the verdict, or None if the playbook did not get as far as writing one."""
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


if __name__ == "__main__":
    raise SystemExit(main())
