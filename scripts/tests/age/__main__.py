"""Age the lab: run site.yml and the smoke checks many times, with a team's data in every database, bucket and list.

Called by `make test-age` while a lab is up. After the last round, every row, object, version and file must be as before
the first one; runs must change nothing on hosts and not become slower, and the databases must not grow. The verdict is
in build/test-age.json; the exit code is 0 on success.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

from scripts.common import BUILD, ROOT, ProblemError, end, environment, failure, write_json
from scripts.lab import hosts as lab_hosts
from scripts.run_playbook import CHANGES
from scripts.tests.age import site

VERDICT = BUILD / "test-age.json"
ROUNDS = 30
SLOWER, LARGER = 1.2, 1.02
"""Maximum growth, in time and in bytes, from the second third of the rounds to the last."""
SHOWN = 20


def run(argv: list[str]) -> tuple[str, float]:
    """Run a command that must succeed; return its output and the seconds it took."""
    began = time.monotonic()
    done = subprocess.run(argv, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProblemError(failure(argv, done.returncode, done.stdout + done.stderr, lines=30))
    return done.stdout, time.monotonic() - began


def once() -> dict[str, Any]:
    """Run one round; return its seconds and changes, and the sizes afterwards."""
    printed, converged = run(["ansible-playbook", "-i", str(lab_hosts.INVENTORY), "site.yml"])
    _, checked = run([sys.executable, "-m", "scripts.site.smoke"])
    changes = sum(map(int, CHANGES.findall(printed)))
    return {"site": round(converged, 1), "smoke": round(checked, 1), "changes": changes} | site.sizes()


def growth(rounds: list[dict[str, Any]], what: str) -> float:
    """Return the ratio of the last third of the rounds to the third before it."""
    third = max(1, len(rounds) // 3)
    later, earlier = rounds[-third:], rounds[-2 * third : -third] or rounds[-third:]
    return float(statistics.median(one[what] for one in later) / statistics.median(one[what] for one in earlier))


def judge(rounds: list[dict[str, Any]], different: list[str]) -> dict[str, Any]:
    """Return the verdict."""
    grown = {what: round(growth(rounds, what), 3) for what in rounds[0] if what != "changes"}
    changes = sum(one["changes"] for one in rounds)
    # Prefect keeps all events for some days.
    judged = {what: by for what, by in grown.items() if what != "database prefect"}
    slow = [what for what, by in judged.items() if by > (SLOWER if what in ("site", "smoke") else LARGER)]
    figures = {f"{what.replace(' ', '_')}_growth": by for what, by in grown.items()}
    return {
        "ok": not (different or changes or slow),
        "figures": {"rounds": len(rounds), "changes": changes, "different": len(different), **figures},
        "grown": slow,
        "different": different,
        "rounds": rounds,
    }


def main() -> int:
    """Age the lab, print the verdict and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often (default: %(default)s)")
    options = parser.parse_args()
    if not lab_hosts.containers():
        raise ProblemError("no lab is up: `make lab` first")
    rounds: list[dict[str, Any]] = []
    once()  # the first round may differ from what was before; measure from here on
    with site.quiet(), site.others():
        before = site.standing()
        site.leave()
        for number in range(1, options.rounds + 1):
            rounds.append(once())
            print(f"{number:>3}: {json.dumps(rounds[-1])}", flush=True)
        verdict = judge(rounds, site.left(before))
    write_json(VERDICT, verdict)
    print(*verdict["different"][:SHOWN], sep="\n")
    print(f"test-age: {'ok' if verdict['ok'] else 'FAILED'} {json.dumps(verdict['figures'])}")
    return 0 if verdict["ok"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ProblemError as error:
        end(error)
