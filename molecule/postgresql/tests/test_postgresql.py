"""PostgreSQL on a host: owners reach their own, settings are in force, and what is wrong never stops the server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

TRUSTED = "/etc/metalworks/tls/ca.crt"
PLACE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
KEEPER = {"name": "shop", "owner": "keeper", "password": "keeper's password"}
READER = {"name": "library", "owner": "reader", "password": "reader-password"}
drifts = pytest.mark.drifts


def ask(host, user: str, password: str, database: str, sql: str = "select 1", at: str = "127.0.0.1", **tls: str):
    """Run SQL over TCP, as a service would."""
    target = {"host": at, "user": user, "dbname": database, "sslmode": "verify-full", "sslrootcert": TRUSTED}
    conninfo = " ".join(f"{name}={value}" for name, value in (target | tls).items())
    command = "PGPASSWORD=%s psql --no-align --tuples-only --command %s %s"
    return host.run(command, password, sql, conninfo)


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


def library(host, **tls: str):
    return ask(host, "reader", "reader-password", "library", **tls)


def test_the_server_proves_itself_and_speaks_nothing_but_tls(host):
    sql = "select ssl, version, cipher from pg_stat_ssl where pid = pg_backend_pid()"
    assert ask(host, "reader", "reader-password", "library", sql).stdout.strip() == "t|TLSv1.3|TLS_AES_256_GCM_SHA384"
    assert library(host, ssl_max_protocol_version="TLSv1.2").rc == 0
    assert 'does not match host name "localhost"' in library(host, at="localhost").stderr
    refused = library(host, sslmode="disable")
    assert refused.rc != 0
    assert "no pg_hba.conf entry for host" in refused.stderr
    assert "no encryption" in refused.stderr
    too_old = library(host, ssl_min_protocol_version="TLSv1", ssl_max_protocol_version="TLSv1.1")
    assert too_old.rc != 0


def test_a_client_that_trusts_another_ca_refuses_the_server(host):
    host.check_output("printf '%%s' %s > /tmp/other.crt", (PLACE / "other.crt").read_text())
    refused = library(host, sslrootcert="/tmp/other.crt")
    assert refused.rc != 0
    assert "certificate verify failed" in refused.stderr


@drifts
def test_a_new_certificate_is_shown_without_a_restart(host, converged, play):
    result = play(ca="other")
    assert result.returncode == 0, result.stdout
    assert library(host).rc == 0
    assert started(host) == converged


def test_a_reload_owed_by_a_killed_play_is_made_up_for(host, converged, play):
    # What a play leaves that was killed after it renewed the certificate: the server still shows the old one.
    tls = "/etc/metalworks/tls"
    host.check_output(f"mkdir /tmp/old; cp -a {tls}/* /tmp/old")
    result = play(ca="other")
    assert result.returncode == 0, result.stdout
    host.check_output(f"cp -a {tls} /tmp/new; cp -a /tmp/old/* {tls}")
    host.check_output("runuser -u postgres -- psql --command 'select pg_reload_conf()'")
    host.check_output(f"cp -a /tmp/new/* {tls}; rm -r /tmp/new /tmp/old")
    assert library(host).rc != 0
    result = play(ca="other")
    assert result.returncode == 0, result.stdout
    assert library(host).rc == 0
    assert started(host) == converged
    result = play()
    assert result.returncode == 0, result.stdout


@drifts
def test_a_server_that_may_not_read_the_key_is_put_right(host, converged, play):
    host.check_output("gpasswd --delete postgres metalworks-tls; systemctl stop postgresql@15-main")
    result = play()
    assert result.returncode == 0, result.stdout
    assert library(host).rc == 0


def test_a_certificate_that_the_key_does_not_fit_is_refused_while_the_server_serves(host, converged, play):
    host.check_output(f"cp {TRUSTED} /etc/wrong.crt")
    result = play(certificate="/etc/wrong.crt")
    assert result.returncode != 0
    assert "the server keeps the certificate it has" in result.stdout
    assert started(host) == converged
    assert library(host).rc == 0


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
