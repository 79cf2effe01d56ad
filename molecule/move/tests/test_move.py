"""move_role.yml: what cannot work changes nothing, a failure goes back, and nothing that was acknowledged is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import conftest
import pytest
import yaml
from conftest import said

from scripts.tests.kills import Play, end_orphans

SCENARIO = Path(__file__).resolve().parent.parent
ROOT = SCENARIO.parent.parent
PLACE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
CLIENT = (SCENARIO / "files/client.py").read_text()
MLFLOW = "/opt/metalworks/mlflow/current/bin/python"
OLD, NEW = "move-old", "move-new"
STOP = "/run/stop-watching"
NEW_LINES = f"store:\n  hosts:\n    {NEW}: {{platform_address: 198.18.12.12}}\nall:"
GROUPS = ("platform", "gateway")
ledger = partial(conftest.ledger, OLD)


@pytest.fixture(scope="module")
def site() -> Path:
    """Return a copy of the inventory, to which a person has added the new host as docs/move-a-role.md says."""
    place = PLACE / "site"
    if place.exists():
        shutil.rmtree(place)
    shutil.copytree(SCENARIO / "inventory", place, ignore=shutil.ignore_patterns("00-product"))
    (place / "group_vars/all/00-product").symlink_to(ROOT / "group_vars/all")
    hosts, groups = place / "hosts.yml", place / "groups.yml"
    hosts.write_text(hosts.read_text().replace("all:", NEW_LINES))
    for group in GROUPS:
        head, tail = groups.read_text().split(f"{group}: #", 1)
        before, after = tail.split("    services:", 1)
        line, rest = after.split("\n", 1)
        groups.write_text(f"{head}{group}: #{before}    services:{line}\n    store:\n{rest}")
    return place


def run(
    site: Path, playbook: str = "move_role.yml", *options: str, **variables: Any
) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "--inventory", str(site), *options]
    command += ["--extra-vars", json.dumps(variables), str(ROOT / "playbooks" / playbook)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    with (PLACE / "runs.log").open("a") as log:
        log.write(f"{' '.join(command)}\n{done.stdout}{done.stderr}\n")
    return done


def kill(site: Path, task: str, **variables: Any) -> None:
    """Move, and kill the run in the first task whose name has this beginning, a second after its start."""
    options = ["--skip-tags", "rest", "--extra-vars", json.dumps(variables)]
    play = Play(ROOT / "playbooks/move_role.yml", site, PLACE / "kills.log", options)
    try:
        assert play.kill_in(lambda name: name.startswith(task), lambda _: 1)
    finally:
        end_orphans()


def shell(host: str, command: str) -> str:
    done = subprocess.run(["docker", "exec", host, "sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def start(orders: dict[str, Any]) -> subprocess.Popen[str]:
    """Start the client on the old host, where MLflow and Prefect stay."""
    vault = yaml.safe_load((SCENARIO / "inventory/group_vars/all/vault.yml").read_text())
    keys = {"access_key": "metalworks-root", "secret_key": vault["vault_object_store_root_password"]}
    argv = ["docker", "exec", "--interactive", OLD, MLFLOW, "-c", CLIENT]
    client = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert client.stdin
    client.stdin.write(json.dumps({**orders, **keys, "password": vault["vault_user_passwords"]["ada"]}))
    client.stdin.close()
    client.stdin = None
    return client


def client(**orders: Any) -> Any:
    process = start(orders)
    out, _ = process.communicate()
    assert process.returncode == 0
    return json.loads(out)


@contextmanager
def load(tag: str) -> Iterator[dict[str, Any]]:
    """Write and read all the time; what became of it is known at the end."""
    shell(OLD, f"rm -f {STOP}")
    process, found = start({"do": "watch", "until": STOP, "tag": tag}), dict[str, Any]()
    try:
        yield found
    finally:
        shell(OLD, f"touch {STOP}")
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    found |= json.loads(out)
    (PLACE / f"watched-{tag}.json").write_text(out)


def database(host: str, query: str, name: str = "mlflow") -> str:
    return shell(host, f'cd / && runuser -u postgres -- psql -Atqc "{query}" {name}')


def run_names(host: str) -> set[str]:
    return set(database(host, "select name from runs").splitlines())


def keys(state: dict[str, Any]) -> set[str]:
    return {name.split(" ")[1] for name in state}


def active(host: str, unit: str) -> bool:
    done = subprocess.run(["docker", "exec", host, "systemctl", "is-active", "--quiet", unit], check=False)
    return done.returncode == 0


def nothing_waits() -> bool:
    return shell(OLD, "ls /etc/nginx/metalworks | grep paused; true") == ""


def texts(site: Path) -> dict[str, str]:
    return {name: (site / name).read_text() for name in ("hosts.yml", "groups.yml")}


@contextmanager
def cannot_be_written(site: Path) -> Iterator[None]:
    """Let the inventory fail to be written, which is the last step before it names the new host."""
    (site / ".groups.yml.new").mkdir()
    try:
        yield
    finally:
        (site / ".groups.yml.new").rmdir()


@pytest.fixture(scope="module", autouse=True)
def written(site: Path) -> dict[str, Any]:
    """Fill the platform, and take a backup set."""
    client(do="fill")
    ledger(write=10, tag=f"before-{time.time_ns()}")
    done = run(site, "backup.yml")
    assert done.returncode == 0, done.stdout
    return ledger()


def newest_set(host: str) -> str:
    return str(json.loads(shell(host, "cd / && runuser -u postgres -- metalworks-backup list --json"))[-1]["name"])


def test_a_host_that_has_the_role_is_refused(site):
    before = texts(site)
    done = run(site, role="object_store", to=OLD)
    assert done.returncode != 0
    assert f"Nothing was changed. {OLD} has the role object_store already" in said(done)
    assert "changed=0" in done.stdout
    assert texts(site) == before


def test_a_host_that_does_not_fit_changes_nothing(site):
    before = texts(site)
    shell(NEW, "mkdir /var/lib/minio && mount -t tmpfs -o size=50m small /var/lib/minio")
    done = run(site, role="object_store", to=NEW)
    assert "MB free for /var/lib/minio and needs" in said(done)
    shell(NEW, "mkdir /var/lib/minio/.minio.sys")
    done = run(site, role="object_store", to=NEW)
    shell(NEW, "umount /var/lib/minio && rmdir /var/lib/minio")
    assert "holds data of its own or of an earlier time" in said(done)
    hosts = site / "hosts.yml"
    hosts.write_text(hosts.read_text().replace("198.18.12.12}", '198.18.12.12, postgresql_version: "14"}'))
    done = run(site, role="postgresql", to=NEW)
    hosts.write_text(before["hosts.yml"])
    assert f"has PostgreSQL 15, and {NEW} would get 14" in said(done)
    assert texts(site) == before
    assert shell(NEW, "ls /etc/metalworks 2>/dev/null; true") == ""


def test_a_move_of_objects_that_fails_at_its_last_step_goes_back(site):
    before, objects = texts(site), client(do="state")
    with cannot_be_written(site):
        done = run(site, role="object_store", to=NEW)
    assert done.returncode != 0
    assert f"{OLD} serves as before" in said(done)
    assert "Name the new host in the inventory" in said(done)
    assert texts(site) == before
    assert nothing_waits()
    assert active(OLD, "minio")
    assert not active(NEW, "minio")
    assert client(do="state") == objects


def test_a_killed_move_of_objects_is_given_up(site):
    before, objects = texts(site), client(do="state")
    kill(site, "Move the data > Copy the last objects", role="object_store", to=NEW)
    assert not nothing_waits()
    done = run(site, "move_role.yml", "--skip-tags", "rest", role="object_store", to=NEW, give_up=True)
    assert done.returncode == 0, done.stdout
    assert texts(site) == before
    assert nothing_waits()
    assert active(OLD, "minio")
    assert not active(NEW, "minio")
    assert client(do="state") == objects


def test_no_object_is_lost(site, written):
    """The first run is killed while writers wait, and the second one completes the move."""
    before = client(do="state")
    with load("objects") as watched:
        kill(site, "Move the data > End the transfers", role="object_store", to=NEW)
        done = run(site, "move_role.yml", "--skip-tags", "rest", role="object_store", to=NEW)
    assert done.returncode == 0, done.stdout
    assert (
        "object_store: # training data, model files, flow code\n  hosts:\n    move-new:\n" in texts(site)["groups.yml"]
    )
    after = client(do="state")
    # All versions, with their times, marks and metadata; and the writes that were acknowledged meanwhile.
    assert {name: after[name] for name in before} == before
    assert set(watched["objects"]) <= keys(after)
    assert watched["answers"]["put 503"] > 0
    # Reading goes on; while names and firewalls change, single requests may fail.
    reads = {answer: count for answer, count in watched["answers"].items() if answer.startswith("get ")}
    assert reads["get 200"] > 0.95 * sum(reads.values()), reads
    assert shell(NEW, "systemctl is-active minio") == "active"
    assert shell(OLD, "systemctl is-active minio; systemctl is-enabled minio; true").split() == ["inactive", "disabled"]
    assert shell(OLD, "ls /var/lib/minio") != ""
    assert shell(NEW, "ls /var/lib/metalworks/move") == ""
    assert nothing_waits()


def test_the_next_backup_stores_only_what_is_new(site):
    before = newest_set(OLD)
    done = run(site, "backup.yml")
    assert done.returncode == 0, done.stdout
    newest = newest_set(OLD)
    assert newest != before
    stored = shell(OLD, f"find /mnt/backup/objects/{newest} -type f -printf '%f\\n'").splitlines()
    assert stored
    assert {name for name in stored if not name.startswith("watch-objects-")} == set()
    assert "is whole" in shell(OLD, "cd / && runuser -u postgres -- metalworks-backup check --everything")


def test_a_role_that_has_moved_is_refused(site):
    done = run(site, role="object_store", to=NEW)
    assert f"{NEW} has the role object_store already" in said(done)
    done = run(site, role="object_store", to=OLD)
    assert "holds data of its own or of an earlier time" in said(done)


def the_database_stayed(site, before, rows) -> None:
    """Check that the inventory and the rows are as before, and that the old host serves and is backed up."""
    assert texts(site) == before
    assert nothing_waits()
    assert ledger() == rows
    assert database(OLD, "select pg_is_in_recovery()") == "f"
    assert not active(NEW, "postgresql@15-main")
    shell(OLD, "cd / && runuser -u postgres -- metalworks-backup take")


def test_a_move_of_the_database_that_fails_at_its_last_step_goes_back(site):
    before, rows = texts(site), ledger()
    with cannot_be_written(site):
        done = run(site, role="postgresql", to=NEW)
    assert done.returncode != 0
    assert f"{OLD} serves as before" in said(done)
    assert "Name the new host in the inventory" in said(done)
    the_database_stayed(site, before, rows)


def test_a_killed_move_of_the_database_is_given_up(site):
    before, rows = texts(site), ledger()
    kill(site, "Move the data > backup : Restore the database", role="postgresql", to=NEW)
    assert not nothing_waits()
    assert not active(OLD, "postgresql@15-main")
    done = run(site, "move_role.yml", "--skip-tags", "rest", role="postgresql", to=NEW, give_up=True)
    assert done.returncode == 0, done.stdout
    the_database_stayed(site, before, rows)


def test_no_row_is_lost(site, written):
    """Runs are killed before and after the inventory names the new host, and the last one completes the move."""
    before = ledger()
    with load("rows") as watched:
        kill(site, "Move the data > backup : Start PostgreSQL, which recovers", role="postgresql", to=NEW)
        kill(site, "Set up experiment tracking", role="postgresql", to=NEW)
        assert "postgresql: # facts of MLflow and Prefect\n  hosts:\n    move-new:" in texts(site)["groups.yml"]
        done = run(site, role="postgresql", to=NEW)
    assert done.returncode == 0, done.stdout
    after = ledger()
    assert {name: [one for one in after[name] if one in before[name]] for name in before} == before
    assert set(watched["runs"]) <= run_names(NEW)
    assert watched["answers"]["run 503"] > 0
    assert set(watched["objects"]) <= keys(client(do="state"))
    assert not active(OLD, "postgresql@15-main")
    shell(OLD, "test -e /var/lib/postgresql/15/main/PG_VERSION")
    assert shell(OLD, "systemctl list-timers --all --no-legend 'metalworks-backup*'") == ""
    assert nothing_waits()


def test_backups_go_on_from_the_new_host(site):
    done = run(site, "backup.yml")
    assert done.returncode == 0, done.stdout
    shell(NEW, "cd / && runuser -u postgres -- metalworks-backup rehearse")
    shell(NEW, "cd / && runuser -u postgres -- metalworks-backup status")
