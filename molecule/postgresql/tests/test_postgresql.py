"""PostgreSQL on a host: owners reach their own, settings are in force, and what is wrong never stops the server."""

from __future__ import annotations

from pathlib import Path

import pytest

SCENARIO = Path(__file__).resolve().parent.parent
KEEPER = {"name": "shop", "owner": "keeper", "password": "keeper's password"}
READER = {"name": "library", "owner": "reader", "password": "reader-password"}
drifts = pytest.mark.drifts


def ask(host, user: str, password: str, database: str, sql: str = "select 1"):
    """Run SQL over TCP, as a service would."""
    command = "PGPASSWORD=%s psql --no-align --tuples-only --host 127.0.0.1 --username %s --dbname %s --command %s"
    return host.run(command, password, user, database, sql)


def admin(host, sql: str) -> str:
    return str(host.check_output("runuser -u postgres -- psql --no-align --tuples-only --command %s", sql))


def started(host) -> str:
    return admin(host, "select pg_postmaster_start_time()")


@pytest.fixture
def converged(host, request, play):
    """The server of the converged host; a test marked `drifts` is followed by a play that must mend it."""
    yield started(host)
    if request.node.get_closest_marker("drifts"):
        result = play()
        assert result.returncode == 0, result.stdout


def test_owners_reach_their_own_and_nothing_else(host):
    table = "create table if not exists t (a int); select count(*) from t"
    for user, password, own, other in (
        ("keeper", "keeper's password", "shop", "library"),
        ("reader", "reader-password", "library", "shop"),
    ):
        assert ask(host, user, password, own, table).rc == 0
        for foreign in (other, "postgres", "template1"):
            refused = ask(host, user, password, foreign)
            assert refused.rc != 0, foreign
        assert "password authentication failed" in ask(host, user, "wrong", own).stderr
    # The second lock, behind pg_hba.conf.
    for database in ("shop", "postgres", "template1"):
        assert admin(host, f"select has_database_privilege('reader', '{database}', 'connect')") == "f"


def test_cluster_is_as_the_role_wants_it(host):
    assert admin(host, "select pg_encoding_to_char(encoding) from pg_database where datname = 'shop'") == "UTF8"
    assert admin(host, "show data_checksums") == "on"
    assert admin(host, "select count(*) from pg_settings where pending_restart") == "0"
    assert admin(host, "select count(*) from pg_authid where rolpassword not like 'SCRAM-SHA-256$%'") == "0"
    assert host.service("postgresql@15-main").is_running
    memory = int(host.check_output("awk '/MemTotal/ {print $2}' /proc/meminfo")) // 1024
    buffers = int(admin(host, "select setting::bigint * 8 / 1024 from pg_settings where name = 'shared_buffers'"))
    assert 0.9 * memory / 8 < buffers < 1.1 * memory / 8, "a quarter of half the memory"


@drifts
def test_a_setting_that_needs_no_restart_gets_none(host, converged, play):
    result = play(postgresql_settings={"work_mem": "7MB"}, postgresql_hba_lines=["host all all 192.0.2.1/32 reject"])
    assert result.returncode == 0, result.stdout
    assert admin(host, "show work_mem") == "7MB"
    assert admin(host, "select count(*) from pg_hba_file_rules where address = '192.0.2.1'") == "1"
    assert started(host) == converged


@drifts
def test_a_restart_owed_by_a_killed_play_is_made_up_for(host, converged, play):
    # What a play leaves that was killed after it wrote the settings and before it acted on them.
    settings = "/etc/postgresql/15/main/conf.d/metalworks.conf"
    host.check_output(f"sed --in-place \"s/^max_connections.*/max_connections = '150'/\" {settings}")
    result = play(postgresql_max_connections=150)
    assert result.returncode == 0, result.stdout
    assert admin(host, "show max_connections") == "150"
    assert started(host) != converged


@drifts
def test_tampering_is_mended(host, converged, play):
    admin(host, "alter role keeper superuser password 'other'")
    admin(host, "grant connect on database library to public")
    result = play()
    assert result.returncode == 0, result.stdout
    assert ask(host, "keeper", "keeper's password", "shop", "show is_superuser").stdout.strip() == "off"
    assert admin(host, "select has_database_privilege('keeper', 'library', 'connect')") == "f"


def test_a_stopped_server_is_started(host, converged, play):
    host.check_output("systemctl stop postgresql@15-main")
    result = play()
    assert result.returncode == 0, result.stdout
    assert ask(host, "reader", "reader-password", "library").rc == 0


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"postgresql_settings": {"shared_bufers": "1MB"}}, 'unrecognized configuration parameter "shared_bufers"'),
        ({"postgresql_settings": {"work_mem": "lots"}}, 'invalid value for parameter "work_mem"'),
        ({"postgresql_hba_lines": ["host all all 192.0.2.0/99 trust"]}, "invalid CIDR mask"),
        ({"postgresql_clients": ["db-1"]}, "postgresql_clients: db-1 is no address or network"),
        ({"postgresql_version": "16"}, "holds PostgreSQL data of major version 15 and is asked for 16"),
        ({"postgresql_databases": [KEEPER | {"owner": "postgres"}]}, "reserved for the server itself"),
        ({"postgresql_databases": [KEEPER, READER | {"password": ""}]}, "password of reader: printable ASCII"),
    ],
)
def test_wrong_wishes_are_refused_while_the_server_serves(host, converged, variables, message, play):
    result = play(**variables)
    assert result.returncode != 0
    assert message in " ".join((result.stdout + result.stderr).replace("\\", "").split())
    assert started(host) == converged
    assert ask(host, "keeper", "keeper's password", "shop").rc == 0
    # Neither now nor at the next start does the server meet a file that it would refuse.
    assert admin(host, "select count(*) from pg_hba_file_rules where error is not null") == "0"
    check = "runuser -u postgres -- /usr/lib/postgresql/15/bin/postgres -C max_connections -D /etc/postgresql/15/main"
    assert host.run(check).rc == 0
