"""Backup sets: manifests, what is new, what is kept, and what is said about wrong ones."""

from __future__ import annotations

import configparser
import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from metalworks.backup import check, cli, database, objects, programs, sets, settings, status, take
from metalworks.errors import CommandError

NOW = datetime(2026, 11, 27, 9, 0, tzinfo=UTC)
FIRST, SECOND = "20261126T013000Z", "20261127T013000Z"
OBJECTS = {
    "a": sets.Object(3, "2026-11-25T00:00:00Z", "aa", FIRST),
    "b/c d": sets.Object(5, "2026-11-26T20:00:00Z", "bb", SECOND),
}
SHOP = sets.Database({"public.alembic_version": "abc"}, {"public.runs": [5000, 5000], "public.events": [100, 300]})
SET = sets.BackupSet(SECOND, "2026-11-27T01:30:09+00:00", "20261126-013001F", {"shop": SHOP}, {"data": OBJECTS})


def configured(tmp_path: Path, **more: Any) -> settings.BackupSettings:
    """Return settings as the role writes them."""
    given = {
        "passphrase": "secret",
        "target": {"path": str(tmp_path / "target")},
        "store": {"endpoint": "http://127.0.0.1:9000", "access_key": "backup", "secret_key": "key"},
        "buckets": ["data"],
        "databases": ["shop"],
        "postgresql_bin": "/usr/lib/postgresql/15/bin",
        "postgresql_port": 5432,
        "state": str(tmp_path / "state"),
    }
    (tmp_path / "state").mkdir(exist_ok=True)
    (tmp_path / "backup.json").write_text(json.dumps(given | more))
    return settings.load(tmp_path / "backup.json")


# -- Manifests


def test_a_manifest_reads_back_as_it_was_written() -> None:
    assert sets.unpack(sets.pack(SET), SECOND) == SET
    assert sets.pack(SET) == sets.pack(SET)
    assert (SET.objects, SET.bytes) == (2, 8)


@pytest.mark.parametrize("broken", [b"", b"{}", sets.pack(SET)[:-9], sets.pack(SET)[:40] + b"?" + sets.pack(SET)[41:]])
def test_a_damaged_manifest_is_refused(broken: bytes) -> None:
    with pytest.raises(CommandError, match=f"the manifest of set {SECOND} is damaged"):
        sets.unpack(broken, SECOND)


def test_a_manifest_of_another_set_or_a_newer_release_is_refused() -> None:
    with pytest.raises(CommandError, match=f"set {FIRST} is that of {SECOND}"):
        sets.unpack(sets.pack(SET), FIRST)
    with pytest.raises(CommandError, match="newer release"):
        sets.unpack(sets.pack(dataclasses.replace(SET, format=sets.FORMAT + 1)), SECOND)


def test_names_are_times_that_sort() -> None:
    name = sets.name_at(NOW.astimezone())
    assert name == "20261127T090000Z"
    assert sets.SHAPE.fullmatch(name)
    assert sets.moment_of(name) == NOW


# -- What is copied, and what is kept


def test_only_new_and_changed_objects_are_copied() -> None:
    now = {"a": OBJECTS["a"][:2], "b/c d": (5, "2026-11-27T00:00:00Z"), "new": (0, "2026-11-27T00:00:00Z")}
    assert sets.changed(now, OBJECTS) == ["b/c d", "new"]
    assert sets.changed(now, {}) == ["a", "b/c d", "new"]


def test_objects_stay_as_long_as_a_set_names_them() -> None:
    assert sets.unneeded(["a", "gone"], FIRST, "data", [SET]) == ["gone"]
    assert sets.unneeded(["b/c d"], FIRST, "data", [SET]) == ["b/c d"]  # this one is held by the second set
    assert sets.unneeded(["a"], FIRST, "other", [SET]) == ["a"]


def test_the_newest_sets_are_kept() -> None:
    assert sets.kept([SECOND, FIRST], 1) == [SECOND]
    assert sets.kept([SECOND, FIRST], 5) == [FIRST, SECOND]


def test_full_backups_that_others_depend_on_count_once() -> None:
    assert sets.fulls(["20261126-013001F", "20261126-013001F_20261127-013000D", "20261203-013001F"]) == 2


# -- What a restored database must be


def test_equal_databases_have_no_differences() -> None:
    found = sets.Database(SHOP.revisions, {"public.runs": [5000], "public.events": [310]})
    assert sets.differences("shop", SHOP, found) == []


@pytest.mark.parametrize(
    ("revision", "rows", "said"),
    [
        ("abd", {"public.runs": [5000], "public.events": [200]}, "alembic_version is at abd, the set says abc"),
        ("abc", {"public.runs": [4999], "public.events": [200]}, "runs has 4999 rows, the set says 5000 to 5000"),
        ("abc", {"public.runs": [5000], "public.events": [321]}, "events has 321 rows, the set says 100 to 300"),
        ("abc", {"public.runs": [5000]}, "table public.events is missing"),
    ],
)
def test_differences_are_named(revision: str, rows: dict[str, list[int]], said: str) -> None:
    found = sets.differences("shop", SHOP, sets.Database({"public.alembic_version": revision}, rows))
    assert len(found) == 1
    assert said in found[0]


def test_a_database_that_is_not_there_is_named() -> None:
    assert check.compared("shop", SHOP, {}) == ["database shop is missing"]


def test_rows_are_known_from_before_and_after_the_moment() -> None:
    before, after = sets.Database({}, {"t": [5], "gone": [1]}), sets.Database({"v": "1"}, {"t": [3], "new": [1]})
    assert sets.around(before, after) == sets.Database({"v": "1"}, {"t": [3, 5]})


# -- pgBackRest and rclone

VERIFIED = """stanza: metalworks
status: {status}
  archiveId: 15-1, total WAL checked: 5, total valid WAL: {valid}
    missing: {missing}, checksum invalid: 0, size invalid: 0, other: 0
  backup: 20261129-071438F, status: {backup}, total files checked: 1269, total valid files: 1268
    missing: 0, checksum invalid: {bad}, size invalid: 0, other: 0
"""


def test_a_verified_repository_has_no_complaints() -> None:
    assert check.complaints(VERIFIED.format(status="ok", valid=5, missing=0, backup="valid", bad=0)) == []


def test_complaints_of_the_verification_are_named() -> None:
    said = VERIFIED.format(status="error", valid=4, missing=1, backup="invalid", bad=2)
    wal, backup = check.complaints(said)
    assert wal == "the database's archiveId: 15-1: missing: 1"
    assert backup == "the database's backup: 20261129-071438F: checksum invalid: 2"


def test_an_answer_that_is_not_understood_is_a_complaint() -> None:
    assert check.complaints("stanza: metalworks\nstatus: error\n") == [
        "the database's backups: stanza: metalworks | status: error"
    ]


def test_rclone_encrypts_what_goes_to_a_folder_or_an_s3(tmp_path: Path) -> None:
    def remotes(**more: Any) -> configparser.ConfigParser:
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_string(objects.configuration(configured(tmp_path, **more), "obscured", "2026-11-27T09:00:00Z"))
        return parser

    folder = remotes()
    assert folder["sets"]["remote"] == f"target:{tmp_path}/target"
    assert folder["sets"]["password"] == "obscured"
    assert folder["store"]["version_at"] == "2026-11-27T09:00:00Z"
    place = {"endpoint": "https://s3.example.org", "bucket": "backups", "access_key": "a", "secret_key": "b"}
    s3 = remotes(target=place)
    assert s3["sets"]["remote"] == "target:backups"
    assert s3["target"]["endpoint"] == "https://s3.example.org"
    assert "version_at" not in s3["target"]  # the copies are younger than the moment


def test_a_key_with_a_line_break_is_refused() -> None:
    assert objects.lines(["a", "b c"]) == "a\nb c\n"
    with pytest.raises(CommandError, match="has a line break"):
        objects.lines(["a\nb"])


def test_programs_get_no_foreign_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """rclone 1.60 speaks no S3 while AWS_CA_BUNDLE is set."""
    monkeypatch.setenv("AWS_CA_BUNDLE", "/etc/ssl/certs/ca-certificates.crt")
    monkeypatch.setenv("PGHOST", "elsewhere")
    monkeypatch.setenv("TZ", "Europe/Berlin")
    assert {"AWS_CA_BUNDLE", "PGHOST"} & programs.environment().keys() == set()
    assert programs.environment()["TZ"] == "UTC"


def test_a_failed_program_is_quoted() -> None:
    with pytest.raises(CommandError, match="copying: no room"):
        programs.run(["sh", "-c", "echo no room >&2; exit 3"], "copying")
    with pytest.raises(CommandError, match="not-there is not installed"):
        programs.run(["not-there"], "copying")


@pytest.mark.parametrize(
    ("upgraded", "called"), [(False, ["stanza-create"]), (True, ["stanza-create", "stanza-upgrade"])]
)
def test_the_repository_takes_another_database_only_after_an_upgrade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upgraded: bool, called: list[str]
) -> None:
    commands = []

    def pgbackrest(_: settings.BackupSettings, doing: str, command: str) -> bytes:
        commands.append(command)
        if command == "stanza-create":
            raise CommandError(f"{doing}: backup and archive info files exist but do not match the database")
        return b""

    monkeypatch.setattr(database, "pgbackrest", pgbackrest)
    if upgraded:
        database.prepare(configured(tmp_path), upgraded=True)
    else:
        with pytest.raises(database.ForeignError, match="the sets of another database"):
            database.prepare(configured(tmp_path))
    assert commands == called


# -- The target

MOUNTS = """/dev/vda / ext4 rw 0 0
nas:/backup /mnt/nas nfs4 rw 0 0
/dev/vdb /mnt/two\\040words xfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/var/backup", "ext4"), ("/mnt/nas", "nfs4"), ("/mnt/nas/deep/er", "nfs4"), ("/mnt/two words/x", "xfs")],
)
def test_file_systems_are_known_by_their_mount_point(path: str, kind: str) -> None:
    assert take.file_system(Path(path), MOUNTS) == kind


def test_a_folder_of_this_host_has_to_be_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="is no folder on this host: mount it"):
        take.check_target(configured(tmp_path))
    (tmp_path / "target").mkdir()
    with pytest.raises(CommandError, match="backup_on_the_same_host: true"):
        take.check_target(configured(tmp_path))
    take.check_target(configured(tmp_path, same_host=True))


def test_what_does_not_fit_is_not_begun(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    take.check_space(configured(tmp_path), 1)
    with pytest.raises(CommandError, match="is full: 1073741824 MB to copy"):
        take.check_space(configured(tmp_path), 1 << 50)


def test_no_set_is_taken_until_the_vault_has_a_copy(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="say where in backup_vault_copy"):
        take.take(configured(tmp_path, same_host=True))


def test_only_one_command_works_at_a_time(tmp_path: Path) -> None:
    known = configured(tmp_path)
    with take.alone(known), pytest.raises(CommandError, match="wait for its end"), take.alone(known):
        pass


# -- Status


def test_a_failure_is_remembered_beside_the_last_good_end(tmp_path: Path) -> None:
    known = configured(tmp_path)
    with take.noting(known, take.TAKEN) as facts:
        facts["set"] = FIRST
    with pytest.raises(CommandError), take.noting(known, take.TAKEN):
        raise CommandError("no room")
    found = take.noted(known, take.TAKEN)
    assert found["error"] == "no room"
    assert found["good"]["set"] == FIRST
    assert any("the last backup failed" in one.what for one in status.status(known)[0])


def ago(hours: float) -> str:
    """Return a time before now."""
    return (NOW - timedelta(hours=hours)).isoformat()


@pytest.mark.parametrize(
    ("noted", "since", "said"),
    [
        ({}, ago(1), []),
        ({}, ago(31), ["a backup is overdue: no good one yet"]),
        ({"good": {"at": ago(29)}}, ago(900), []),
        ({"good": {"at": ago(40)}}, ago(900), ["a backup is overdue: the last good one is 40 h old"]),
        ({"good": {"at": ago(100)}}, ago(900), ["a backup is overdue: the last good one is 4 days old"]),
        ({"good": {"at": ago(2)}, "at": "9:00", "error": "no room"}, "", ["the last backup failed: no room (9:00)"]),
    ],
)
def test_failed_and_overdue_backups_are_told(noted: dict[str, Any], since: str, said: list[str]) -> None:
    assert [*map(str, status.of_command(noted, "backup", since, 30, NOW))] == said


def test_wal_that_waits_is_told() -> None:
    fine = {"on": "on", "failing": False, "waiting": 1, "since": "9:00"}
    assert status.of_archive(fine) == []
    assert "6 segments wait" in status.of_archive(fine | {"waiting": 6})[0].detail
    assert "WAL is not archived" in status.of_archive(fine | {"failing": True})[0].what
    assert "archives no WAL" in status.of_archive(fine | {"on": "off"})[0].what


def test_a_target_that_is_nearly_full_is_told() -> None:
    assert status.of_space(100 << 20, 10 << 20) == []
    assert status.of_space(100 << 20, 9 << 20) == [("the target is nearly full", "9 of 100 MB free")]


def test_the_start_page_is_told_no_detail(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    failed = status.Problem("the last backup failed", "https://target.example.com refused the key")
    status.record(file, [failed], "no set yet", NOW)
    assert file.stat().st_mode & 0o777 == 0o644
    told = json.loads(file.read_text())
    assert told == {"at": NOW.timestamp(), "problems": {failed.what: failed.what}, "line": "no set yet"}


def test_a_target_that_is_gone_is_told(tmp_path: Path) -> None:
    assert any("is not there" in one.what for one in status.status(configured(tmp_path))[0])


def test_sets_are_chosen_for_reading() -> None:
    assert check.chosen(SET, 5) == {"data": ["a", "b/c d"]}
    assert sum(map(len, check.chosen(SET, 1).values())) == 1


def test_the_command_says_what_to_do_without_settings(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="set backup_target in your site"):
        cli.act(cli.parsed(["--settings", str(tmp_path / "none.json"), "list"]))
