"""Kill site.yml in every task that changes something, and check that the next run recovers.

A first run on new hosts notes which tasks change something and how long each takes. Then, on new hosts again, the
play is killed at a random moment within the first of these tasks, started anew and killed within the next, and so on.
What is left at the end must converge, and one more run must change nothing.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from rich.console import Console

from scripts.common import BUILD, ROOT, ProblemError, end, machine_lock, write_json
from scripts.lab import hosts as lab_hosts
from scripts.site import build_go
from scripts.tests import scenarios
from scripts.tests.kills import Play, end_orphans, sweep

LOG = BUILD / "test-kills.log"
VERDICT = BUILD / "test-kills.json"


def main() -> None:
    """Find the tasks that change something, then kill the play in each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seed",
        type=int,
        default=int(time.time()),
        help="use the seed of an earlier sweep to kill at the same moments",
    )
    seed = parser.parse_args().seed
    chance = random.Random(seed)  # noqa: S311 - moments, not secrets
    console = Console()
    console.print(f"seed {seed}; the log is {LOG.relative_to(ROOT)}", highlight=False)
    BUILD.mkdir(exist_ok=True)
    LOG.write_text("")
    play = Play(ROOT / "site.yml", lab_hosts.INVENTORY, LOG)
    with machine_lock("lab"):
        scenarios.prepare()
        try:
            with build_go.in_background():
                lab_hosts.up()
                first = play.converge()
            console.print(f"{len(first.changing)} of {len(first.tasks)} tasks change something", highlight=False)
            lab_hosts.remove()
            lab_hosts.up()
            killed = []
            for task in sweep(play, first.changing.__contains__, chance, first.seconds):
                killed.append(task)
                console.print(f"killed in: {task}", markup=False, highlight=False)
            again = play.converge()
        finally:
            end_orphans()
            lab_hosts.remove()
            lab_hosts.MADE_BY_TESTS.unlink(missing_ok=True)
    # Some tasks change something only if nothing interrupted the run before; the sweep must have met nearly all.
    ok = again.changes == 0 and len(killed) >= 0.9 * len(first.changing)
    figures = {
        "tasks": len(first.tasks),
        "changing": len(first.changing),
        "kills": len(killed),
        "changes": again.changes,
    }
    write_json(VERDICT, {"ok": ok, "figures": figures, "seed": seed})
    console.print(f"{'ok' if ok else 'FAILED'}: {figures}", markup=False, highlight=False)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    try:
        main()
    except ProblemError as error:
        end(error)
