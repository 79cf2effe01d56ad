"""Backup sets: what they hold, what is said about broken ones, and what becomes of old ones."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import boto3
import pytest
from botocore.config import Config

from scripts.tests.kills import Play, end_orphans, sweep
from scripts.tests.warm_ansible import ansible_playbook

SCENARIO = Path(__file__).resolve().parent.parent
TARGET = "/mnt/backup"
PROGRAM = "/usr/local/bin/metalworks-backup"
SETTINGS = "/etc/metalworks/backup.json"
VERDICT = "/var/lib/metalworks-backup-watch/status.json"
LONG = "n" * 240


class Ran(NamedTuple):
    """How the program ended."""

    code: int
    said: str


@pytest.fixture(scope="module")
def store(host) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=f"http://{host.check_output('hostname --ip-address')}:9000",
        region_name="us-east-1",
        aws_access_key_id="worker",
        aws_secret_access_key="worker-secret",
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


def sql(host, text: str, database: str = "shop") -> str:
    done = host.run(f"cd / && runuser -u postgres -- psql -XAtq -d {database} -c %s", text)
    assert done.rc == 0, done.stderr
    return str(done.stdout).strip()


def backup(host, *words: str, settings: str = SETTINGS) -> Ran:
    done = host.run(f"cd / && runuser -u postgres -- {PROGRAM} --settings {settings} {' '.join(words)}")
    return Ran(done.rc, done.stdout + done.stderr)


def good(host, *words: str) -> str:
    code, said = backup(host, *words)
    assert code == 0, said
    return said


def sets(host) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(good(host, "list", "--json"))
    return listed


def start(host, unit: str) -> Ran:
    """Start a unit as its timer does, and return its journal."""
    done = host.run(f"systemctl start {unit}")
    invocation = host.check_output(f"systemctl show {unit} --property InvocationID --value")
    return Ran(done.rc, host.check_output(f"journalctl --output cat _SYSTEMD_INVOCATION_ID={invocation}"))


def server(host) -> str:
    return str(host.check_output("systemctl show 'postgresql@*-main' --property MainPID --value"))


def files(host, pattern: str) -> list[str]:
    return sorted(host.check_output(f"find {TARGET} -path '{pattern}' -type f").splitlines())


@pytest.fixture(scope="module")
def two(host, store) -> list[str]:
    """Take two sets, between which rows and objects came, changed and went; return their names."""
    sql(host, "create table alembic_version(version_num text)")
    sql(host, "insert into alembic_version values ('abc123')")
    sql(host, "create table runs as select g as id, md5(g::text) from generate_series(1, 5000) g")
    for number in range(40):
        store.put_object(Bucket="data", Key=f"files/md5/{number:02x}/é {number} (1).bin", Body=b"x" * 2000)
    for key in ("over.txt", "gone.txt"):
        store.put_object(Bucket="data", Key=key, Body=b"first")
    store.put_object(Bucket="plain", Key="empty", Body=b"")
    store.put_object(Bucket="plain", Key=f"a/{LONG}", Body=b"long")
    before = server(host)
    code, said = start(host, "metalworks-backup")
    assert code == 0, said
    store.put_object(Bucket="data", Key="over.txt", Body=b"second")
    store.delete_object(Bucket="data", Key="gone.txt")
    store.put_object(Bucket="plain", Key="new", Body=b"new")
    sql(host, "insert into runs select g, 'x' from generate_series(5001, 5100) g")
    code, said = start(host, "metalworks-backup")
    assert code == 0, said
    # The unit has the server's user; it may not take the server's shared memory along.
    assert server(host) == before
    assert sql(host, "select count(*) from runs") == "5100"
    return [one["name"] for one in sets(host)]


def test_a_set_names_everything_and_stores_only_what_is_new(host, two):
    first, second = sets(host)
    assert (first["objects"], second["objects"]) == (44, 44)
    assert second["rows"] - first["rows"] == 100
    held = {PurePosixPath(path).relative_to(f"{TARGET}/objects/{two[1]}") for path in files(host, f"*/{two[1]}/*/*")}
    assert {str(one) for one in held} == {"data/over.txt.bin", "plain/new.bin"}


def test_the_start_page_knows_of_a_set_at_once(host, two):
    assert host.run(f"timeout 30 sh -c 'until grep --quiet {two[1]} {VERDICT}; do sleep 0.2; done'").rc == 0


def test_both_sets_are_whole(host, two):
    for name in two:
        assert f"set {name} is whole" in good(host, "check", name, "--everything")


def test_each_set_can_be_restored_beside_the_living(host, two):
    code, said = start(host, "metalworks-backup-rehearse")
    assert code == 0, said
    assert f"set {two[1]} was restored beside the living, and is equal" in said
    good(host, "rehearse", two[0])
    assert sql(host, "select count(*) from runs") == "5100"
    assert "last rehearsal 0 h ago" in good(host, "status")
    assert not host.file("/var/lib/metalworks-backup/rehearsal").exists


def test_a_rehearsal_notices_what_a_set_does_not_say(host, two, store):
    # The database of the second set is not what the first one's manifest says.
    program = (
        "import dataclasses, sys; from pathlib import Path; from metalworks.backup import check, objects, settings;"
        "s = settings.load(); real = objects.read;"
        f"old = lambda remote, name: dataclasses.replace(real(remote, '{two[0]}'), databases=real(remote, "
        f"'{two[1]}').databases);"
        "check.objects.read = old; check.rehearse(s)"
    )
    python = "/opt/metalworks/backup/current/bin/python"
    done = host.run(f"cd / && runuser -u postgres -- {python} -c %s", program)
    assert done.rc != 0
    assert "table public.runs has 5000 rows, the set says 5100 to 5100" in done.stderr
    code, said = backup(host, "status")
    assert code == 1
    assert "the last rehearsal failed" in said
    good(host, "rehearse")
    good(host, "status")


@pytest.fixture
def flipped(host):
    """Return a function that flips a byte of a file; afterwards the file is as it was."""
    done = []

    def flip(path: str) -> None:
        host.check_output(f"cp --preserve=all '{path}' /root/kept")
        done.append(path)
        flip = "import sys; f = open(sys.argv[1], 'r+b'); n = f.seek(0, 2) // 2; f.seek(n); b = f.read(1)[0] ^ 255; "
        host.check_output(f"python3 -c \"{flip} f.seek(n); f.write(bytes([b]))\" '{path}'")

    yield flip
    for path in done:
        host.check_output(f"cp --preserve=all /root/kept '{path}'")


def test_a_flipped_byte_is_found_wherever_it_is(host, two, flipped):
    flipped(files(host, f"*/objects/{two[1]}/data/over.txt.bin")[0])
    code, said = backup(host, "check", two[1], "--everything")
    assert (code, "objects of bucket data cannot be read" in said) == (1, True), said
    # The first set has this object from elsewhere.
    good(host, "check", two[0], "--everything")


def test_a_flipped_byte_in_the_manifest_is_found(host, two, flipped):
    flipped(f"{TARGET}/sets/{two[1]}.json.gz.bin")
    code, said = backup(host, "check")
    assert (code, f"the manifest of set {two[1]} is damaged" in said) == (1, True), said


def test_a_flipped_byte_in_the_database_is_found(host, two, flipped):
    large = f"find {TARGET}/pgbackrest/backup -type f -size +200k -path '*F/bundle/*' | head -n 1"
    flipped(host.check_output(large))
    code, said = backup(host, "check")
    assert code == 1, said
    assert "the database's backup" in said
    assert "checksum invalid: 1" in said


def test_a_missing_object_is_found(host, two):
    gone = files(host, f"*/objects/{two[0]}/plain/empty.bin")[0]
    host.check_output(f"mv {gone} /root/away")
    code, said = backup(host, "check", two[1])
    host.check_output(f"mv /root/away {gone}")
    assert code == 1
    assert f"object plain/empty is missing on the target (objects/{two[0]})" in said


def test_another_passphrase_reads_nothing_and_begins_nothing(host, two):
    changed = "import json,sys; s=json.load(sys.stdin); s['passphrase']='wrong'; print(json.dumps(s))"
    host.check_output(f'python3 -c "{changed}" < {SETTINGS} > /root/wrong.json')
    host.check_output("install -o postgres -m 0600 /root/wrong.json /tmp/wrong.json")
    state = host.check_output("cat /var/lib/metalworks-backup/taken.json")
    for words in (["check"], ["take"], ["rehearse"]):
        code, said = backup(host, *words, settings="/tmp/wrong.json")
        assert code == 1
        assert "vault_backup_passphrase is not the one of this set" in said
    host.check_output("rm /tmp/wrong.json /root/wrong.json")
    assert [one["name"] for one in sets(host)] == two
    assert state != host.check_output("cat /var/lib/metalworks-backup/taken.json")
    code, said = backup(host, "status")
    assert (code, "the last backup failed" in said) == (1, True)
    good(host, "rehearse")


def test_a_bucket_that_the_store_lacks_makes_no_set(host, two):
    changed = "import json,sys; s=json.load(sys.stdin); s['buckets']=['data', 'nowhere']; print(json.dumps(s))"
    host.check_output(f'python3 -c "{changed}" < {SETTINGS} > /root/more.json')
    host.check_output("install -o postgres -m 0600 /root/more.json /tmp/more.json")
    code, said = backup(host, "take", settings="/tmp/more.json")
    host.check_output("rm /tmp/more.json /root/more.json")
    assert code == 1
    assert "listing bucket nowhere: " in said  # a key that may list it hears that there is none; ours, AccessDenied
    assert [one["name"] for one in sets(host)] == two


def test_an_unknown_set_is_refused(host, two):
    code, said = backup(host, "check", "20200101T000000Z")
    assert code == 1
    assert f"there is no set 20200101T000000Z: the newest are {', '.join(two)}" in said


def test_a_full_target_fails_loudly_and_the_next_set_is_whole(host, two, store):
    store.put_object(Bucket="data", Key="large", Body=bytes(8_000_000))
    free = int(host.check_output(f"df --output=avail --block-size=1 {TARGET} | tail -n 1"))
    host.check_output(f"fallocate --length {free - 4_000_000} {TARGET}/filler")
    code, said = start(host, "metalworks-backup")
    assert code != 0
    assert "full" in said or "No space left" in said
    code, said = backup(host, "status")
    assert code == 1
    assert "the last backup failed" in said
    assert "the target is nearly full" in said
    host.check_output(f"rm {TARGET}/filler")
    assert [one["name"] for one in sets(host)] == two
    good(host, "take")
    good(host, "check", "--everything")
    good(host, "status")


def test_old_sets_go_and_what_others_name_stays(host, two):
    """Two sets are kept; the last test took a third, and crashed sets leave nothing for good."""
    kept = [one["name"] for one in sets(host)]
    assert len(kept) == 2
    assert two[0] not in kept
    held = {path.rpartition("/")[2] for path in files(host, f"*/objects/{two[0]}/*")}
    assert {"over.txt.bin", "gone.txt.bin"} & held == set()
    assert f"{LONG}.bin" in held
    good(host, "check", kept[0], "--everything")
    assert {path.split("/")[4] for path in files(host, "*/objects/*")} <= {*two, *kept}


def test_what_is_overdue_is_told(host, two):
    changed = "import json,sys; s=json.load(sys.stdin); s['max_age_hours']=s['rehearse_max_age_days']=0"
    host.check_output(f'python3 -c "{changed}; print(json.dumps(s))" < {SETTINGS} > /root/late.json')
    host.check_output("install -o postgres -m 0600 /root/late.json /tmp/late.json")
    code, said = backup(host, "status", settings="/tmp/late.json")
    host.check_output("rm /tmp/late.json /root/late.json")
    assert code == 1
    assert "a backup is overdue: the last good one is 0 h old" in said
    assert "a rehearsal is overdue" in said


def test_wal_that_is_not_archived_is_told(host, two):
    host.check_output(f"mv {TARGET}/pgbackrest {TARGET}/away")
    failed = "select failed_count > 0 and last_failed_time > last_archived_time from pg_stat_archiver"
    # A switch alone does nothing if nothing has been written since the last one.
    sql(host, "select pg_create_restore_point('not archived'); select pg_switch_wal()")
    ask = f'runuser -u postgres -- psql -XAtqc "{failed}"'
    waited = host.run(f"cd / && timeout 90 sh -c 'until {ask} | grep -q t; do sleep 0.5; done'")
    code, said = start(host, "metalworks-backup-watch")
    host.check_output(f"mv {TARGET}/away {TARGET}/pgbackrest")
    assert waited.rc == 0
    assert code != 0
    assert "WAL is not archived" in said
    # The start page's service reads it, and it tells no more than everyone may know.
    told = json.loads(host.check_output(f"runuser -u nobody -- cat {VERDICT}"))
    assert told["problems"] == {"WAL is not archived": "WAL is not archived"}


def restore(**variables: Any) -> Any:
    inventory, playbook = os.environ["MOLECULE_INVENTORY_FILE"], SCENARIO / "restore.yml"
    return ansible_playbook("--inventory", inventory, playbook, "--extra-vars", json.dumps(variables))


def empty(host, store) -> None:
    """Take away all that a restore has to bring back."""
    sql(host, "drop table runs")
    for bucket in ("data", "plain"):
        for one in store.list_objects_v2(Bucket=bucket).get("Contents", ()):
            store.delete_object(Bucket=bucket, Key=one["Key"])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"backup_restore_set": "20200101T000000Z"}, "there is no set 20200101T000000Z"),
        ({"backup_restore_to": "2020-01-01T00:00"}, "there is no set from before 2020-01-01T00:00"),
        ({"backup_restore_to": "yesterday"}, "yesterday is no moment"),
        ({}, "s name or a moment: `metalworks-backup list` shows the sets"),
        ({"backup_restore_set": "newest"}, "the hosts are not empty"),
    ],
)
def test_a_restore_that_cannot_be_meant_changes_nothing(host, two, asked, said):
    if asked.get("backup_restore_set") == "newest":
        asked = {"backup_restore_set": sets(host)[-1]["name"]}
    before = server(host)
    result = restore(**asked)
    assert result.returncode != 0
    assert said in " ".join(result.stdout.split())  # Ansible folds long lines
    assert server(host) == before
    assert sql(host, "select count(*) from runs") == "5100"


def test_a_set_with_a_missing_piece_is_not_restored(host, two):
    newest = sets(host)[-1]["name"]
    gone = files(host, f"*/objects/{two[0]}/plain/empty.bin")[0]
    host.check_output(f"mv {gone} /root/away")
    before = server(host)
    result = restore(backup_restore_set=newest, backup_restore_replace=True)
    host.check_output(f"mv /root/away {gone}")
    assert result.returncode != 0
    assert "object plain/empty is missing" in result.stdout
    assert server(host) == before


def test_a_set_comes_back_and_then_a_moment(host, two, store):
    good(host, "take")
    newest = sets(host)[-1]["name"]
    sql(host, "insert into runs select g, 'later' from generate_series(1, 7) g")
    moment = host.check_output("date --utc +%Y-%m-%dT%H:%M:%S.%6N")
    store.put_object(Bucket="data", Key="later.txt", Body=b"later")
    sql(host, "delete from runs where id < 100")
    good(host, "take")
    empty(host, store)
    result = restore(backup_restore_to=moment)
    assert result.returncode == 0, result.stdout
    assert sql(host, "select count(*) from runs") == "5107"
    assert store.get_object(Bucket="data", Key="over.txt")["Body"].read() == b"second"
    assert "later.txt" not in {one["Key"] for one in store.list_objects_v2(Bucket="data")["Contents"]}
    empty(host, store)
    result = restore(backup_restore_set=newest)
    assert result.returncode == 0, result.stdout
    assert sql(host, "select count(*) from runs") == "5100"
    assert len(store.list_objects_v2(Bucket="data")["Contents"]) == 42
    assert store.get_object(Bucket="plain", Key=f"a/{LONG}")["Body"].read() == b"long"
    # Not over what is written now: the same command again has nothing left to bring back.
    sql(host, "insert into runs select g, 'now' from generate_series(1, 3) g")
    before = server(host)
    result = restore(backup_restore_set=newest)
    assert result.returncode == 0, result.stdout
    assert server(host) == before
    assert sql(host, "select count(*) from runs") == "5103"
    result = restore(backup_restore_set=sets(host)[-1]["name"])
    assert result.returncode != 0
    assert "the hosts are not empty" in " ".join(result.stdout.split())
    sql(host, "delete from runs where md5 = 'now'")
    # The next set is of the restored database.
    good(host, "take")
    good(host, "rehearse")
    good(host, "status")


def test_a_restore_killed_in_any_task_is_completed_by_the_next_run(host, two, store, tmp_path):
    newest = sets(host)[-1]["name"]
    empty(host, store)
    inventory = Path(os.environ["MOLECULE_INVENTORY_FILE"])
    options = ["--extra-vars", json.dumps({"backup_restore_set": newest})]
    log = tmp_path / "restore.log"
    killed = []
    for task in sweep(Play(SCENARIO / "restore.yml", inventory, log, options), lambda _: True, random.Random(1)):
        killed.append(task.rpartition(" : ")[2])
        if killed[-1] == "Find PostgreSQL's unit":  # the server runs, and no command of the restore does
            code, said = backup(host, "take")
            assert (code, f"the restore of {newest} has not ended" in said) == (1, True), said
    end_orphans()
    assert {"Stop PostgreSQL", "Restore the database", "Copy the objects into the store"} <= set(killed), (
        log.read_text()
    )
    assert sql(host, "select count(*) from runs") == "5100"
    assert len(store.list_objects_v2(Bucket="data")["Contents"]) == 42
    good(host, "take")
    good(host, "status")


def test_secrets_are_for_the_server_s_user_alone(host):
    for path in (SETTINGS, "/etc/metalworks/pgbackrest.conf"):
        file = host.file(path)
        assert (file.user, file.group, file.mode) == ("root", "postgres", 0o640)
    assert host.run(f"runuser -u nobody -- {PROGRAM} status").rc != 0
    assert "molecule's passphrase" not in host.check_output("journalctl --no-pager")


def test_a_folder_on_the_host_itself_is_refused_unless_named(play):
    result = play(same_host=False)
    assert result.returncode != 0
    assert "is on this host itself (tmpfs)" in result.stdout
    assert play().returncode == 0
    result = play()
    assert (result.returncode, "changed=0" in result.stdout) == (0, True), result.stdout


def test_without_a_target_nothing_is_left_to_fail(host, play):
    result = play(target={})
    assert result.returncode == 0, result.stdout
    assert host.run("systemctl list-unit-files --no-legend 'metalworks-backup*'").stdout == ""
    assert sql(host, "show archive_mode", "postgres") == "off"
    assert files(host, "*/sets/*")
