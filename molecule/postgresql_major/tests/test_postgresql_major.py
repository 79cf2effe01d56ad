"""upgrade_postgresql.yml: refused by accident, wanted with a net, and nothing that was acknowledged is lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import conftest
import pytest
from conftest import said

from scripts.common import wait_until

SCENARIO = Path(__file__).resolve().parent.parent
ROOT = SCENARIO.parent.parent
PLACE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
HOST = "postgresql-major"
VERB = "upgrade_postgresql.yml"
NEW: dict[str, Any] = {"postgresql_version": "17"}
NOTE = "/var/lib/metalworks/upgrade/postgresql.json"
PATIENCE = 300
ledger = partial(conftest.ledger, HOST)

# What an upgrade has to bring, besides rows: owners, grants, logins with their verifiers, extensions, what the planner
# knows; and an index that sorts by the rules of a language.
PREPARED = """
create role auditor nologin;
create extension pg_trgm;
create table odd (word text, at timestamptz default now());
insert into odd (word) values ('zebra'), ('Äpfel'), ('apple');
create index odd_words on odd (word collate "de-x-icu");
grant select on odd to auditor;
create sequence numbers start 41;
select nextval('numbers');
"""
KNOWN = """
select json_build_object(
  'databases', (select json_agg(json_build_array(datname, pg_get_userbyid(datdba),
    (select array_agg(one::text order by one::text) from unnest(datacl) as one), datcollate,
    pg_encoding_to_char(encoding)) order by datname) from pg_database),
  'logins', (select json_agg(json_build_array(rolname, rolpassword, rolcanlogin, rolsuper) order by rolname)
    from pg_authid where rolname !~ '^pg_'),
  'grants', (select json_agg(json_build_array(relname, pg_get_userbyid(relowner),
    (select array_agg(format('%s %s', grantee::regrole, privilege_type) order by grantee, privilege_type)
      from aclexplode(relacl) where privilege_type <> 'MAINTAIN')) -- which 17 gives to owners, and 15 does not know
    order by relname)
    from pg_class where relnamespace = 'public'::regnamespace),
  'extensions', (select json_agg(extname order by extname) from pg_extension),
  'number', (select last_value from numbers),
  'words', (select json_agg(word order by word collate "de-x-icu") from odd));
"""


def command(playbook: str, **variables: Any) -> list[str]:
    line = [str(Path(sys.executable).with_name("ansible-playbook")), "--inventory", str(SCENARIO / "inventory")]
    return [*line, "--skip-tags", "rest", "--extra-vars", json.dumps(variables), str(ROOT / "playbooks" / playbook)]


def run(playbook: str = VERB, **variables: Any) -> subprocess.CompletedProcess[str]:
    argv = command(playbook, **variables)
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    with (PLACE / "runs.log").open("a") as log:
        log.write(f"{' '.join(argv)}\n{done.stdout}{done.stderr}\n")
    return done


def psql(host, text: str, database: str = "mlflow") -> str:
    return str(
        host.check_output("cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 %s -c %s", database, text)
    )


def known(host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(psql(host, KNOWN))
    return found


def version(host) -> str:
    return psql(host, "show server_version_num")[:2]


def clusters(host) -> list[list[str]]:
    """Return version, name and state of each cluster."""
    rows = [line.split() for line in host.check_output("pg_lsclusters --no-header").splitlines()]
    return [[row[0], row[1], row[3]] for row in rows]


def serves(host) -> bool:
    """Tell whether a client is answered by the gateway, and an upgrade lets nobody wait."""
    assert not host.file("/etc/nginx/metalworks/paused").exists
    url = "https://prefect.metalworks.internal/api/ready"
    ask = "curl --silent --output /dev/null --write-out '%{http_code}' --cacert /etc/metalworks/tls/ca.crt"
    return str(host.check_output(f"{ask} {url}")) == "200"


@pytest.fixture(scope="module")
def written(host) -> dict[str, Any]:
    """Return what is there before the upgrade."""
    if version(host) == "15" and not psql(host, "select to_regclass('odd')"):
        ledger(write=20, tag="before")
        psql(host, PREPARED)
    return {"ledger": ledger(), "known": known(host)}


def as_before(host, written: dict[str, Any]) -> bool:
    assert clusters(host) == [["15", "main", "online"]]
    assert ledger() == written["ledger"]
    assert known(host) == written["known"]
    return serves(host)


def test_another_major_version_by_accident_is_refused(host, written):
    done = run("../site.yml", **NEW)
    assert done.returncode != 0
    assert "has PostgreSQL data of another version (15/main); the platform would install 17" in said(done)
    assert "Run playbooks/upgrade_postgresql.yml" in said(done)
    done = run("services.yml", **NEW)
    assert done.returncode != 0
    assert "is configured for 17. Run playbooks/upgrade_postgresql.yml" in said(done)
    assert as_before(host, written)


def test_what_cannot_end_well_changes_nothing(host, written):
    done = run(**NEW, upgrade_reserve_mb=100_000_000)
    assert "MB free for PostgreSQL, and the copy needs" in said(done)
    done = run(postgresql_version="13")
    assert "there is no way down: set postgresql_version to" in said(done)
    done = run(**NEW, go_back=True)
    assert "No upgrade to PostgreSQL 17 is known" in said(done)
    assert not host.file("/var/lib/metalworks/upgrade").exists
    assert as_before(host, written)


@pytest.mark.parametrize(
    ("spoil", "mend", "variables", "why"),
    [
        # pg_upgrade has copied a part of the files when the place is full.
        (
            "install -d -o postgres -g postgres /var/lib/postgresql/17"
            " && mount -t tmpfs -o size=80m,uid=$(id -u postgres),gid=$(id -g postgres) small /var/lib/postgresql/17",
            "umount /var/lib/postgresql/17",
            {},
            "Failure, exiting",
        ),
        # The data is of 17 already, and its server refuses what it shall run with.
        ("true", "true", {"postgresql_settings": {"work_mem": "much"}}, "the server rejects the new settings"),
    ],
)
def test_an_upgrade_that_fails_half_way_goes_back(host, written, spoil, mend, variables, why):
    host.check_output(spoil)
    done = run(**NEW, **variables)
    host.check_output(mend)
    assert done.returncode != 0
    assert "The upgrade failed and PostgreSQL 15 serves as before" in said(done)
    assert why in said(done)
    assert as_before(host, written)


def test_a_killed_upgrade_is_completed_by_the_next_run(host, written):
    process = subprocess.Popen(
        command(VERB, **NEW), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_until(lambda: host.run("pgrep -x pg_upgrade").rc == 0, "pg_upgrade does not run", PATIENCE, 0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert host.file("/etc/nginx/metalworks/paused").exists
    done = run(**NEW)
    assert done.returncode == 0, done.stdout
    assert "as an interrupted run began" in said(done)
    assert version(host) == "17"
    assert clusters(host) == [["15", "before_17", "down"], ["17", "main", "online"]]
    assert ledger() == written["ledger"]
    assert known(host) == written["known"]
    assert serves(host)


def test_the_new_cluster_runs_as_the_role_wants_it(host):
    assert psql(host, "show ssl") == "on"
    ledger()
    assert int(psql(host, "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) where ssl")) > 0
    assert psql(host, "show port") == "5432"
    assert psql(host, "show data_checksums") == "on"
    unit = host.check_output("systemctl show postgresql@17-main --property ProtectSystem --value")
    assert unit == "strict"
    # Rebuilt by this version's library, and counted for the planner.
    odd = "select collversion = pg_collation_actual_version(oid) from pg_collation where collname = 'de-x-icu'"
    assert psql(host, odd) == "t"
    assert psql(host, "select count(*) > 0 from pg_stats where tablename = 'runs'") == "t"
    assert host.check_output("systemctl list-units --all --plain --no-legend 'postgresql@*' | cut -d ' ' -f 1") == (
        "postgresql@17-main.service"
    )


def test_backups_go_on_with_the_new_version(host):
    backup = "cd / && runuser -u postgres -- metalworks-backup"
    sets = json.loads(host.check_output(f"{backup} list --json"))
    assert len(sets) >= 2
    host.check_output(f"{backup} check")
    host.check_output(f"{backup} rehearse")
    old = host.run(f"{backup} restore-check {sets[0]['name']} --replace")
    assert old.rc != 0
    assert "is of PostgreSQL 15, and this host has 17" in old.stderr


def test_a_second_run_does_nothing(host):
    started = "systemctl show postgresql@17-main mlflow prefect-server --property MainPID --value"
    before = (host.check_output(started), clusters(host), host.check_output("ls -l /mnt/backup"))
    done = run(**NEW)
    assert done.returncode == 0, done.stdout
    assert "nothing to upgrade" in said(done)
    assert re.search(rf"^{HOST} .* changed=0 ", done.stdout, re.MULTILINE)
    assert (host.check_output(started), clusters(host), host.check_output("ls -l /mnt/backup")) == before
    done = run("services.yml", **NEW)
    assert done.returncode == 0, done.stdout
    assert clusters(host) == before[1]


def test_going_back_by_hand_names_what_is_lost_and_asks_first(host, written):
    later = ledger(write=3, tag="after")
    done = run(**NEW, go_back=True)
    assert done.returncode != 0
    assert "3 flow runs" in said(done)
    assert "No service was changed" in said(done)
    assert ledger() == later
    number = json.loads(host.check_output(f"cat {NOTE}"))["id"]
    done = run(**NEW, go_back=number)
    assert done.returncode == 0, done.stdout
    assert clusters(host) == [["15", "main", "online"], ["17", "undone", "down"]]
    assert ledger() == written["ledger"]
    assert known(host) == written["known"]
    assert serves(host)
    host.check_output("cd / && runuser -u postgres -- metalworks-backup check")


def test_a_kill_while_a_cluster_gets_its_other_name_is_mended(host, written):
    """As a power cut leaves it: settings and data have the new name, and the settings still name the data's old one."""
    host.check_output("systemctl stop postgresql@15-main")
    host.check_output(f"sed -i 's/went back/under way/' {NOTE}")
    for place in ("/etc/postgresql/15", "/var/lib/postgresql/15"):
        host.check_output(f"mv {place}/main {place}/before_17")
    assert host.run("pg_ctlcluster 15 before_17 start").rc != 0
    done = run(**NEW)
    assert done.returncode == 0, done.stdout
    assert "as an interrupted run began" in said(done)
    assert clusters(host) == [["15", "before_17", "down"], ["17", "main", "online"], ["17", "undone", "down"]]
    assert ledger() == written["ledger"]
    assert known(host) == written["known"]
    assert serves(host)


def test_what_was_kept_goes_after_its_days(host, written):
    host.check_output(f'sed -i \'s/"since": "20../"since": "2001/\' {NOTE}')
    done = run(**NEW)
    assert done.returncode == 0, done.stdout
    assert clusters(host) == [["17", "main", "online"]]
    assert not host.file("/etc/postgresql/15").exists
    assert "has been removed" in said(run(**NEW, go_back=True))
