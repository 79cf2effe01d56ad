"""Destroy all of the lab's platform hosts and restore them from one backup set.

Called by `make test-restore` while a lab is up. A developer works on it for a while, and a ledger on this machine has
every write that was acknowledged. Then a flow run begins that does not end, a set is taken, and the hosts are removed.
New ones get the platform and the set; the restore is killed in each of its own tasks and run again. After that every
write in the ledger must be there, every row and object as before, the flow run must end, a flow must run, the service
must answer a request as it did before, and another developer must reproduce a run on a new dev host.
build/test-restore.json has the result; the exit code is 0 if all is well.
"""

from __future__ import annotations

import json
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from scripts.common import BUILD, ROOT, ProblemError, end, logged, machine_lock, wait_until, write_json
from scripts.lab import hosts as lab_hosts
from scripts.run_playbook import play
from scripts.tests.age import site as age_site
from scripts.tests.faults import client, project, site
from scripts.tests.faults.ledger import Ledger, lost
from scripts.tests.faults.load import BUCKET, PREDICTIONS, Attempt, Load, as_developer
from scripts.tests.kills import Play, end_orphans, sweep

VERDICT, LEDGER = BUILD / "test-restore.json", BUILD / "test-restore.ledger.jsonl"
WORK_SECONDS = 60
"""How long the developer works."""
FLOW_SECONDS = 300
"""How long after the restore a flow run may go on: a lost one is ended after two minutes of silence."""
MODEL = "models:/flight-delay/1"
LOG = BUILD / "test-restore.log"
KILLED_IN = ("Stop everything that writes > ", "Restore the database, then the objects > ")
"""The plays of restore.yml that are its own: in each of their tasks, it is killed once."""
VERSION_ID = re.compile(r" \S+ (Versions|DeleteMarkers)$")


def playbook(path: Path, *options: str) -> None:
    """Run a playbook on the lab."""
    if play(path, [lab_hosts.INVENTORY], console=Console(), extra=options).code:
        raise ProblemError(f"{path.relative_to(ROOT)} failed: the log is build/lab.log")


def rows() -> set[str]:
    """Return a line for each row of MLflow's databases, and for each of Prefect's, by its id.

    Services write into tags of a model's versions since when they serve it.
    """
    found = set().union(*(age_site.rows(database) for database in (*age_site.WHOLE, "prefect")))
    return {line for line in found if "(metalworks.inference." not in line}


def objects() -> set[str]:
    """Return a line for each object that exists, or did: a restore brings no old versions."""
    return {VERSION_ID.sub("", line) for line in age_site.objects() if line.endswith("Versions")}


def newest_set() -> str:
    """Return the name of the newest set."""
    listed = age_site.over_ssh(age_site.SERVER, "cd / && sudo -u postgres metalworks-backup list --json")
    return str(json.loads(listed)[-1]["name"])


def restore(name: str) -> dict[str, float]:
    """Restore a set, killed once in each task on the way; return how often, and the seconds of the run that ended."""
    LOG.write_text("")
    restoring = Play(ROOT / "playbooks/restore.yml", lab_hosts.INVENTORY, LOG, ["-e", f"restore_set={name}"])
    kills, began = 0, time.monotonic()
    for task in sweep(restoring, lambda task: task.startswith(KILLED_IN), random.Random(name)):  # noqa: S311 - moments
        print(f"killed in: {task}")
        kills, began = kills + 1, time.monotonic()
    end_orphans()
    return {"kills": kills, "restore_seconds": round(time.monotonic() - began, 1)}


def durations(attempts: Iterable[Attempt]) -> dict[str, float]:
    """Return the median seconds of each kind of work that succeeded."""
    found: dict[str, list[float]] = {}
    for one in attempts:
        if not one.error:
            found.setdefault(one.kind, []).append(one.ended - one.began)
    return {kind: statistics.median(seconds) for kind, seconds in found.items()}


def start(deployment: str, seconds: float) -> str:
    """Start a flow run; return its id."""
    body = {"parameters": {"seconds": seconds}}
    return str(as_developer(f"prefect('/deployments/{deployment}/create_flow_run', 'POST', {body!r})")["id"])


def state(run: str) -> str:
    """Return a flow run's state."""
    return str(as_developer(f"prefect('/flow_runs/{run}')")["state_type"])


def asked() -> Any:
    """Return what the service answers to one request."""
    return as_developer(f"answered({PREDICTIONS!r})")


def run(result: dict[str, Any]) -> list[str]:
    """Destroy and restore; return what is wrong."""
    figures: dict[str, float] = result["figures"]

    def timed(name: str, work: Callable[..., Any], *arguments: Any) -> None:
        began = time.monotonic()
        work(*arguments)
        figures[f"{name}_seconds"] = round(time.monotonic() - began, 1)

    ledger = Ledger(LEDGER)
    with project.deployed() as deployment:
        with Load(ledger, deployment) as load:
            began = time.time()
            time.sleep(WORK_SECONDS)  # work takes time
            alone = durations(load.attempts(began))
            began = time.time()
            timed("backup", playbook, ROOT / "playbooks/backup.yml")
            beside = durations(load.attempts(began))
        figures |= {f"{kind}_beside_backup": round(beside[kind] / alone[kind], 2) for kind in alone.keys() & beside}
        wait_until(lambda: not unended(deployment), "a flow run does not end", FLOW_SECONDS)
        hold = start(deployment, 3600)
        wait_until(lambda: state(hold) == "RUNNING", "the flow run does not start", FLOW_SECONDS)
        writes, answer = ledger.writes(), asked()
        playbook(ROOT / "playbooks/backup.yml")
        before_rows, before_objects, name = rows(), objects(), newest_set()
        figures |= {"writes": len(writes), "rows": len(before_rows), "objects": len(before_objects)}
        logged(["docker", "rm", "--force", "--volumes", *site.PLATFORM])
        lab_hosts.up()
        timed("install", playbook, ROOT / "site.yml", "--skip-tags", "smoke")
        figures |= restore(name)
        wrong = [f"lost: {line}" for line in lost(writes, as_developer(f"verify({writes!r}, {BUCKET!r})"))]
        after_rows, after_objects = rows(), objects()
        wrong += [f"gone: {line}" for line in sorted((before_rows - after_rows) | (before_objects - after_objects))]
        wait_until(lambda: state(hold) in client.ENDED, "the flow run that was under way does not end", FLOW_SECONDS)
        if (ended := state(hold)) != "CRASHED":
            wrong.append(f"the flow run that was under way ended as {ended}")
        again = start(deployment, 1)
        wait_until(lambda: state(again) in client.ENDED, "a flow run does not end", FLOW_SECONDS)
        if (ended := state(again)) != "COMPLETED":
            wrong.append(f"a flow run after the restore ended as {ended}")
        if (now := asked()) != answer:
            wrong.append(f"the service answered {answer}, and now {now}")
        playbook(ROOT / "examples/flights/developers.yml")
        said = age_site.over_ssh("dev-2", f"sudo su - {age_site.OTHER} -c 'metalworks reproduce {MODEL}' 2>&1")
        if "Equal to the last digit." not in said:
            wrong.append(f"the second developer could not reproduce {MODEL}: {said[-500:]}")
    ledger.close()
    return wrong


def unended(deployment: str) -> list[str]:
    """Return the deployment's flow runs that go on."""
    states: dict[str, str] = as_developer(f"flow_states({deployment!r})")
    return [one for one, name in states.items() if name not in client.ENDED]


def main() -> int:
    """Destroy and restore, and write the verdict."""
    missing = {*site.PLATFORM, "git", "offsite"} - lab_hosts.containers().keys()
    if missing:
        raise ProblemError(f"no lab is up ({', '.join(sorted(missing))} missing): `make lab` first")
    VERDICT.unlink(missing_ok=True)
    result: dict[str, Any] = {"ok": False, "figures": {}, "wrong": []}
    with machine_lock("lab"), age_site.quiet():
        result["wrong"] = run(result)
    result["ok"] = not result["wrong"]
    write_json(VERDICT, result)
    print(json.dumps(result["figures"]), *result["wrong"][:20], sep="\n")
    print(f"test-restore: {'ok' if result['ok'] else 'FAILED'}")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ProblemError as error:
        end(error)
