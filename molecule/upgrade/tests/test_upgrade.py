"""upgrade.yml over real migrations, and releases that fail on the way: what was written before is there after."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conftest
import pytest
import sabotage

from scripts.common import BUILD
from scripts.tests.kills import Play, end_orphans, sweep

SCENARIO = Path(__file__).resolve().parent.parent
ROOT = SCENARIO.parent.parent
FILES = SCENARIO / "files"
PLACE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
GOOD = ROOT / "roles/mlflow/files/requirements.txt"
NEW = {"mlflow_requirements": str(GOOD), "prefect_server_requirements": str(FILES / "prefect-3.9.1.txt")}
OLD = {"mlflow_requirements": str(FILES / "mlflow-3.16.1.txt"), "prefect_server_requirements": "requirements.txt"}
WHEEL = "/opt/sabotage-1.0-py3-none-any.whl"
APPS = ("mlflow", "prefect-server")


def options(variables: dict[str, Any]) -> list[str]:
    return ["--skip-tags", "rest", "--extra-vars", json.dumps(variables)]


def run(playbook: str, **variables: Any) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "--inventory", str(SCENARIO / "inventory")]
    command += [*options(variables), str(ROOT / "playbooks" / playbook)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def play(playbook: str, **variables: Any) -> Play:
    """Return a playbook that can be killed."""
    BUILD.mkdir(exist_ok=True)
    log = BUILD / "test-upgrade-kills.log"
    return Play(ROOT / "playbooks" / playbook, SCENARIO / "inventory", log, options(variables))


def kill(playbook: str, wanted: Callable[[str], bool], **variables: Any) -> list[str]:
    """Run a playbook until it ends, killed once in each wanted task on the way; return these."""
    try:
        return [*sweep(play(playbook, **variables), wanted, random.Random(1))]
    finally:
        end_orphans()


def own(task: str) -> str:
    """Return a task's name without its play and role."""
    return task.rpartition(" > ")[2].rpartition(" : ")[2]


def ledger(host, write: int = 0, tag: str = "") -> dict[str, Any]:
    """Write, and return all that is there."""
    return conftest.ledger("upgrade", write, tag)


def runs(host) -> dict[str, str]:
    """Return what is installed and running, and the databases' revisions."""
    found = {app: host.check_output(f"readlink /opt/metalworks/{app}/current") for app in APPS}
    for database in ("mlflow", "prefect"):
        query = f"runuser -u postgres -- psql -Atc 'select version_num from alembic_version' {database}"
        found[f"schema of {database}"] = host.check_output(query)
    return found


def kept(host) -> list[str]:
    query = "select datname from pg_database where datname ~ '_(before|after)_' order by 1"
    return str(host.check_output("runuser -u postgres -- psql -Atc %s", query)).split()


def note(host) -> dict[str, Any]:
    """Return what is noted about the last upgrade."""
    found: dict[str, Any] = json.loads(host.check_output("cat /var/lib/metalworks/upgrade/note.json"))
    return found


def releases(host) -> list[str]:
    """Return MLflow's releases, the one that was in use least recently first: it is tidied away first."""
    return str(host.check_output("ls -tr /opt/metalworks/mlflow/releases/*/.complete")).split()


def gateway(host, path: str = "/api/ready", name: str = "prefect") -> tuple[int, dict[str, str]]:
    """Return the gateway's status and headers."""
    url = f"https://{name}.metalworks.internal{path}"
    ask = "curl --silent --show-error --output /dev/null --dump-header - --cacert /etc/metalworks/tls/ca.crt"
    text = host.check_output(f"{ask} {url}")
    first, *lines = text.splitlines()
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines if ": " in line)


@pytest.fixture(scope="module")
def written(host):
    """Return the ledger of the old releases. All tests end with these, so you can run one again by itself."""
    found = ledger(host)
    return found if "before" in found["experiments"] else ledger(host, write=20, tag="before")


def test_writers_are_told_when_to_ask_again(host):
    # A gateway that has not been upgraded yet would not know how.
    host.check_output("touch /etc/nginx/metalworks/paused")
    status, headers = gateway(host)
    assert (status, headers["retry-after"]) == (503, "30")
    assert gateway(host, "/health", "mlflow")[0] == 503
    host.check_output("rm /etc/nginx/metalworks/paused")
    assert gateway(host)[0] == 200


def test_site_yml_refuses_to_migrate_without_copies(host, written):
    before = runs(host)
    done = run("services.yml", **NEW)
    assert done.returncode != 0
    assert "Run playbooks/upgrade.yml" in done.stdout
    assert runs(host) == before
    assert ledger(host) == written


HEAD = """
from alembic.script import ScriptDirectory
from pathlib import Path
import sysconfig
print(ScriptDirectory(str(Path(sysconfig.get_path("purelib"), "mlflow/store/db_migrations"))).get_current_head())
"""


def spoil(spoils: dict[str, str]) -> dict[str, str]:
    """Make a release of MLflow with these files; return the variables that choose it."""
    lock = sabotage.lock(PLACE / "sabotage", GOOD, WHEEL, spoils)
    subprocess.run(["docker", "cp", str(PLACE / "sabotage" / Path(WHEEL).name), f"upgrade:{WHEEL}"], check=True)
    return {"mlflow_requirements": str(lock)}


def upgrade_spoilt(spoils: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Upgrade to a release of MLflow with these files."""
    return run("upgrade.yml", **NEW | spoil(spoils))


def head() -> str:
    """Return the newest revision of this release's MLflow."""
    command = [sys.executable, "-c", HEAD]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()


def test_a_migration_that_fails_half_way_is_undone(host, written):
    before = runs(host)
    text = sabotage.HALF_WAY.replace(sabotage.HEAD, head())
    done = upgrade_spoilt({"mlflow/store/db_migrations/versions/5ab07a6e0001_fails.py": text})
    assert done.returncode != 0
    assert "The upgrade failed and the platform is as it was before" in done.stdout
    assert "mlflow.service" in done.stdout
    assert runs(host) == before
    assert ledger(host) == written
    assert gateway(host)[0] == 200


def test_everything_is_there_after_an_upgrade(host, written):
    before = runs(host)
    done = run("upgrade.yml", **NEW)
    assert done.returncode == 0, done.stdout
    after = runs(host)
    assert all(after[name] != before[name] for name in before)
    assert ledger(host) == written
    assert gateway(host)[0] == 200
    assert len([name for name in kept(host) if "_before_" in name]) == 3


def test_a_second_run_upgrades_nothing(host):
    before = (runs(host), kept(host))
    done = run("upgrade.yml", **NEW)
    assert done.returncode == 0, done.stdout
    assert (runs(host), kept(host)) == before


def test_a_release_that_answers_500_goes_back_and_the_upgrade_before_can_still_be_undone(host, written):
    before, known = runs(host), releases(host)
    done = upgrade_spoilt({"sabotage.py": sabotage.ANSWERS_500, "sabotage.pth": "import sabotage\n"})
    assert done.returncode != 0
    assert releases(host)[0] not in known
    assert "The upgrade failed and the platform is as it was before" in done.stdout
    assert "500" in done.stdout
    assert runs(host) == before
    assert ledger(host) == written
    assert gateway(host)[0] == 200
    done = run("rollback.yml", **OLD)
    assert "To go back, run this again" in done.stdout


def test_going_back_by_hand_names_what_is_lost_and_asks_first(host, written):
    later = ledger(host, write=3, tag="after")
    assert later != written
    done = run("rollback.yml", **OLD)
    assert done.returncode != 0
    assert "Nothing was changed" in done.stdout
    assert "3 flow runs" in done.stdout
    assert ledger(host) == later
    number = note(host)["id"]
    done = run("rollback.yml", rollback_confirm=number, **OLD)
    assert done.returncode == 0, done.stdout
    assert ledger(host) == written
    assert len([name for name in kept(host) if name.endswith(f"_after_{number}")]) == 3


def test_an_upgrade_that_was_killed_before_the_copies_can_be_undone(host, written):
    before = runs(host)
    wanted = "Let the writers wait > Keep links to the releases, settings and units"
    assert play("upgrade.yml", **NEW).kill_in(lambda task: task == wanted, lambda _: 0)
    end_orphans()
    assert gateway(host)[0] == 503
    known = note(host)
    assert known["phase"] == "waiting"
    done = run("rollback.yml", **OLD)
    assert "It was interrupted before it copied the databases, so they stay as they are" in done.stdout
    done = run("rollback.yml", rollback_confirm=known["id"], **OLD)
    assert done.returncode == 0, done.stdout
    assert runs(host) == before
    assert ledger(host) == written
    assert gateway(host)[0] == 200
    assert "has been undone already" in run("rollback.yml", **OLD).stdout


def test_an_upgrade_that_is_killed_again_and_again_ends_well(host, written):
    before, chance, chosen = runs(host), random.Random(1), {}

    def wanted(task: str) -> bool:
        """Choose some of the tasks after the doctor, and all that copy, migrate or open."""
        first = task.startswith(("Validate", "Find out"))
        always = task.startswith("Go back if") or own(task).startswith(("Note the", "Copy them", "Install and run"))
        return chosen.setdefault(task, not first and (always or chance.random() < 0.15))

    killed = kill("upgrade.yml", wanted, **NEW)
    assert len(killed) >= 15, killed
    surely = {"Copy them inside the cluster", "Install and run mlflow", "Note that the new releases serve"}
    assert {own(task) for task in killed} >= surely
    after = runs(host)
    assert all(after[name] != before[name] for name in before)
    assert ledger(host) == written
    assert gateway(host)[0] == 200
    assert note(host)["phase"] == "open"
    assert len([name for name in kept(host) if "_before_" in name]) == 3


def test_a_rollback_that_is_killed_in_each_task_ends_well(host, written):
    before, number = runs(host), note(host)["id"]
    # When its end is noted, the upgrade is undone, and another run says so. A kill comes some time after a task began,
    # so this one is killed at once: it is the last before that.
    opening = "Go back > Let the writers in"
    assert play("rollback.yml", rollback_confirm=number, **OLD).kill_in(lambda task: task == opening, lambda _: 0)
    end_orphans()
    last = ("or note that this one went back", "Remove settings that were kept for earlier upgrades", "what to do next")
    killed = kill(
        "rollback.yml",
        lambda task: task.startswith("Go back > ") and task != opening and not task.endswith(last),
        rollback_confirm=number,
        **OLD,
    )
    assert "Go back > Put the databases' copies back" in killed
    after = runs(host)
    assert all(after[name] != before[name] for name in before)
    assert ledger(host) == written
    assert gateway(host)[0] == 200
    assert note(host)["phase"] == "went back"


def test_going_back_by_itself_can_be_killed_and_completed_by_hand(host, written):
    before, lock = runs(host), spoil({"sabotage.py": sabotage.ANSWERS_500, "sabotage.pth": "import sabotage\n"})
    wanted = "Put the releases, settings and units back"
    assert play("upgrade.yml", **NEW | lock).kill_in(lambda task: task.endswith(wanted), lambda _: 0)
    end_orphans()
    done = run("upgrade.yml", **NEW)
    assert done.returncode != 0
    assert "The last rollback was interrupted: run rollback.yml again first." in done.stdout
    done = run("rollback.yml", rollback_confirm=note(host)["id"], **OLD)
    assert done.returncode == 0, done.stdout
    assert runs(host) == before
    assert ledger(host) == written
    assert gateway(host)[0] == 200
