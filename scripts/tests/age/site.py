"""List every row, object and file on the lab, and put a team's data there, which must be left alone."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from scripts.common import ROOT, ProblemError
from scripts.lab import hosts as lab_hosts

HERE = Path(__file__).parent
SERVER, DEVELOPERS, DEVELOPER, OTHER = "services-1", "dev-1", "ml1", "ml2"
PLATFORM = ("services-1", "gpu-1", "cpu-1", "dev-1", "dev-2")
SMOKE = ROOT / "roles/smoke/files/client.py"

WHOLE = ("mlflow", "mlflow_auth")
"""Databases in which nothing changes by itself: compare whole rows. In Prefect's database, compare the rows' ids."""
PASSING = {"events", "event_resources", "worker"}
"""Tables that Prefect empties by itself: events of the last days, and workers seen."""
LOGGED = "predictions"
"""The bucket of the prediction log, which is filled with a delay."""
ROWS = """
select format('copy (select %L || chr(9) || {what} from %I t) to stdout;', tablename, tablename)
from pg_tables where schemaname = 'public' and not tablename = any('{{{but}}}') order by tablename
\\gexec
"""
PLACES = "/etc /home /opt /root /srv /tmp /usr/local /var /dev/shm /run"
PASSING_FILES = re.compile(
    r"/var/lib/(postgresql|systemd|private|chrony|apt|dpkg|sudo)/|/var/lib/minio/\.minio\.sys/|/var/(log|cache/apt)/"
    r"|/run/(systemd|user|sudo|log|lock|udev|dbus|utmp|motd|sshd|prefect-server|postgresql|nginx)|/run/[^/]+\.(pid|lock)"
    r"|/opt/metalworks/[^/]+/releases/[^/]+/lib/|/var/lib/minio/predictions/|/var/lib/inference-[^/]+/spool/"
    r"|/var/lib/(inference|models)-[^/]+/evidence/|/var/lib/metalworks-(disk-space|backup(-watch)?)/"
    r"|\.sock(et)?$|/var/lib/model-follower/|/tmp/systemd-private-|/var/tmp/systemd-private-[^/]+$"
)
"""Files that the distribution and the services write and remove by themselves."""


def over_ssh(host: str, command: str, text: str = "") -> str:
    """Return the output of a command on a host of the lab; `text` goes to its standard input."""
    argv = ["ssh", "-F", str(lab_hosts.SSH_CONFIG), host, command]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise ProblemError(f"{host}: {command[:80]}: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout


def as_developer(call: str) -> Any:
    """Return the result of a function of client.py, called on a dev host."""
    program = f"{(HERE / 'client.py').read_text()}\nprint(json.dumps({call}))\n"
    python = "/opt/metalworks/workstation/current/bin/python -"
    return json.loads(over_ssh(DEVELOPERS, f"sudo su - {DEVELOPER} -c '{python}'", program).splitlines()[-1])


def at_the_store(call: str) -> Any:
    """Return the result of a function of store.py, called on the store's host as the store's root user."""
    program = f"{(HERE / 'store.py').read_text().partition('if __name__')[0]}\nprint(json.dumps({call}))\n"
    python = "set -a; . /etc/metalworks/minio.env; exec /opt/metalworks/mlflow/current/bin/python -"
    return json.loads(over_ssh(SERVER, f"sudo bash -c '{python}'", program))


def sql(database: str, text: str, **variables: str) -> str:
    """Return the output of psql, run as the database server's owner."""
    options = ["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1"]
    options += [option for name, value in variables.items() for option in ("--set", f"{name}={value}")]
    return over_ssh(SERVER, f"cd / && {shlex.join(['sudo', '-u', 'postgres', 'psql', *options, database])}", text)


def rows(database: str) -> set[str]:
    """Return a line for each row of a database, except in tables that change by themselves."""
    whole = database in WHOLE
    text = sql(database, ROWS.format(what="t::text" if whole else "(to_jsonb(t)->>''id'')", but=",".join(PASSING)))
    return {f"{database}: {line}" for line in text.splitlines()}


def files(host: str) -> set[str]:
    """Return a line for each file and folder on a host, except those that change by themselves.

    Python environments and uv's cache have a line each, but none for their content.
    """
    inside = "'(' -path '*/site-packages/*' -o -path '*/archive-v0/*/*' ')' -prune"
    found = over_ssh(host, f"sudo find {PLACES} -xdev {inside} -o -print").splitlines()
    return {f"{host}: {path}" for path in found if not PASSING_FILES.search(path)}


def objects() -> set[str]:
    """Return a line for each version and delete marker of each object."""
    return {f"object: {line}" for line in at_the_store(f"everything(['{LOGGED}'])")}


def logged() -> set[str]:
    """Return the number of rows in the prediction log, a line for each service and outcome."""
    asked = 'https://gpu-1:8000/metrics --header "Authorization: Bearer $(cat ~ml1/.config/metalworks/inference_token)"'
    curl = f"curl --silent --show-error --fail --cacert /etc/metalworks/tls/ca.crt {asked}"
    told = over_ssh(DEVELOPERS, f"sudo bash -c {shlex.quote(curl)}")
    return {f"log: {line}" for line in told.splitlines() if "log_rows_total{" in line}


def standing() -> set[str]:
    """Return a line for everything on the lab."""
    looks: list[Callable[[], set[str]]] = [partial(rows, database) for database in (*WHOLE, "prefect")]
    looks += [*(partial(files, host) for host in PLATFORM), objects, logged]
    with ThreadPoolExecutor() as pool:
        return set().union(*pool.map(lambda look: look(), looks))


def differences(before: set[str], after: set[str]) -> list[str]:
    """Return what is gone and what is new."""
    return [f"gone: {line}" for line in sorted(before - after)] + [f"new: {line}" for line in sorted(after - before)]


def left(before: set[str], seconds: float = 60) -> list[str]:
    """Return how the lab differs from its earlier state; wait up to `seconds` until it does not.

    The server removes a run's log in the background, and a worker may write to it a little later.
    """
    deadline = time.monotonic() + seconds
    while (different := differences(before, standing())) and time.monotonic() < deadline:
        time.sleep(5)
    return different


def sizes() -> dict[str, int]:
    """Return the bytes of each database, and of all buckets including old versions."""
    listed = sql(
        "postgres", "select datname || ' ' || pg_database_size(datname) from pg_database where not datistemplate"
    )
    found = {f"database {line.split()[0]}": int(line.split()[1]) for line in listed.splitlines()}
    told = over_ssh(SERVER, "sudo du --bytes --summarize --exclude .minio.sys --exclude predictions /var/lib/minio")
    return found | {"objects": int(told.split()[0])}


@contextmanager
def quiet() -> Iterator[None]:
    """Pause all schedules."""
    paused = as_developer("pause()")
    try:
        yield
    finally:
        as_developer(f"switch({paused!r}, active=True)")


def look_old(experiments: Iterable[str], flows: Iterable[str]) -> None:
    """Make experiments and flows look two days old."""
    sql(
        "mlflow",
        "update experiments set last_update_time = last_update_time - 172800000\n"
        "where experiment_id = any(string_to_array(:'ids', ',')::int[])",
        ids=",".join(experiments),
    )
    sql(
        "prefect",
        "update flow set created = created - interval '2 days' where id = any(string_to_array(:'ids', ',')::uuid[])",
        ids=",".join(flows),
    )


def leave() -> None:
    """Create the leftovers of killed checks and of earlier versions of the checks."""
    look_old(*as_developer("[left_in_mlflow(), left_in_prefect(), left_folder()]")[:2])


def remove_experiments(ids: list[str]) -> None:
    """Remove experiments permanently, as the smoke checks remove their own."""
    call = f"""
psycopg2, url = importlib.import_module("psycopg2"), os.environ["MLFLOW_BACKEND_STORE_URI"].replace("+psycopg2", "")
with contextlib.closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
    cursor.execute(INSIDE, {{"ids": {[int(each) for each in ids]!r}}})
    inside = [row[0] for row in cursor.fetchall()]
    delete_rows(cursor, "inputs", "source_id", inside)
    delete_rows(cursor, "experiments", "experiment_id", {[int(each) for each in ids]!r})
"""
    python = "set -a; . /etc/metalworks/mlflow.env; exec runuser -u mlflow /opt/metalworks/mlflow/current/bin/python -"
    over_ssh(SERVER, f"cd / && sudo bash -c '{python}'", SMOKE.read_text() + call)
    sql(
        "mlflow_auth",
        "delete from role_permissions where resource_type = 'experiment'\n"
        "and resource_pattern = any(string_to_array(:'ids', ','))",
        ids=",".join(ids),
    )


@contextmanager
def others(word: str = "age-theirs") -> Iterator[None]:
    """Put a team's data into every database, bucket and list, and remove it at the end."""
    with ExitStack() as stack:
        mlflow, prefect = as_developer(f"[theirs_in_mlflow({word!r}), theirs_in_prefect({word!r})]")
        stack.callback(remove_experiments, mlflow["all"])
        stack.callback(as_developer, f"remove_theirs({word!r}, {prefect['all']!r})")
        look_old(mlflow["old"], prefect["old"])
        places = [("", f"{word}/"), ("", f"metalworks-smoke-{word}/")]
        places += [("mlflow-artifacts", f"{each}/") for each in mlflow["all"]]
        stack.callback(at_the_store, f"remove({places!r})")
        at_the_store(f"put_theirs({word!r})")
        folder = f"/tmp/metalworks-smoke-{word}"  # noqa: S108 - named almost like that of a check
        over_ssh(DEVELOPERS, f"sudo -u {OTHER} sh -c 'mkdir {folder} && touch --date=@0 {folder}'")
        stack.callback(over_ssh, DEVELOPERS, f"sudo rmdir {folder}")
        yield
