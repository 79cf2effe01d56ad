"""Each key and login of machines and users can reach only its own data. Secrets are passed only by stdin."""

from __future__ import annotations

import pytest
from clients import as_person, run, secrets

BUCKETS = {"training-data", "mlflow-artifacts", "flow-code", "flow-results", "predictions"}
PEOPLES = {"training-data", "flow-code"}
REACHES = {
    "inference": {"predictions"},
    "mlflow": {"mlflow-artifacts"},
    "worker-cpu": {*PEOPLES, "flow-results"},
    "worker-gpu": {*PEOPLES, "flow-results"},
    "boss": PEOPLES,
    "ml1": PEOPLES,
    "ml2": PEOPLES,
}
"""Holder of an object store key → its buckets. `backup` reads everything."""
READS = {holder: {"predictions"} for holder in ("worker-cpu", "worker-gpu", "boss", "ml1", "ml2")}
"""Holder → buckets that it can only read."""
OWNERS = {"mlflow", "mlflow_auth", "prefect"}
"""Logins of PostgreSQL with a database of the same name. `backup` reads all of them."""
ABSENT = "least-privilege-test"
"""An object that does not exist, to test permission to delete without deleting anything."""

ASK_STORE = """
import json, sys, urllib3
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.session import Session
asked = json.load(sys.stdin)
found = {}
def ask(call, **arguments):
    try:
        return "", getattr(store, call)(**arguments)
    except ClientError as error:
        return error.response["Error"]["Code"], {}
for holder, secret in asked["keys"].items():
    store = Session().create_client("s3", "us-east-1", endpoint_url="https://s3.metalworks.internal",
        verify="/etc/metalworks/tls/ca.crt", aws_access_key_id=holder, aws_secret_access_key=secret,
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}))
    for bucket in asked["buckets"]:
        refused, listed = ask("list_objects_v2", Bucket=bucket, MaxKeys=1)
        name = ([one["Key"] for one in listed.get("Contents", [])] or [asked["absent"]])[0]
        found[f"{holder} {bucket}"] = codes = {"list": refused}
        codes["versions"] = ask("list_object_versions", Bucket=bucket, MaxKeys=1)[0]
        codes["read"] = ask("get_object", Bucket=bucket, Key=name)[0]
        codes["state"] = ask("get_bucket_versioning", Bucket=bucket)[0]
        codes["place"] = ask("get_bucket_location", Bucket=bucket)[0]
        if bucket in asked["reaches"].get(holder, []):
            continue
        codes["write"] = ask("put_object", Bucket=bucket, Key=asked["absent"], Body=b"")[0]
        codes["delete"] = ask("delete_object", Bucket=bucket, Key=asked["absent"])[0]
        # As it is already, should it be allowed.
        same = {"Status": "Suspended" if bucket == "predictions" else "Enabled"}
        codes["set"] = ask("put_bucket_versioning", Bucket=bucket, VersioningConfiguration=same)[0]
    found[f"{holder} everything"] = {"make": ask("create_bucket", Bucket=asked["absent"])[0],
        "name": ask("list_buckets")[0]}
print(json.dumps(found))
"""
LOOKS = ("list", "versions", "read", "state", "place")
CHANGES = ("write", "delete", "set")

ASK_DATABASES = """
import json, os, subprocess, sys
asked = json.load(sys.stdin)
here = {"tcp": "host=services-1 hostaddr=127.0.0.1 sslmode=verify-full sslrootcert=/etc/metalworks/tls/ca.crt",
        "clear": "host=services-1 hostaddr=127.0.0.1 sslmode=disable",
        "socket": "host=/run/postgresql"}
def ask(way, login, database, *statements):
    command = ["psql", "--no-psqlrc", "--tuples-only", "--no-align"]
    command += [part for statement in statements for part in ("--command", statement)]
    done = subprocess.run([*command, f"{here[way]} user={login} dbname={database} connect_timeout=5"],
        env=os.environ | {"PGPASSWORD": asked["logins"][login]}, capture_output=True, text=True)
    return done.stdout.strip(), done.stderr.strip()
print(json.dumps([[*one, *ask(*one)] for one in asked["questions"]]))
"""
WRITE = """do $$
declare mine regclass := (select oid from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace
  order by oid limit 1);
begin execute format('{}', mine); end $$"""
WRITES = [
    WRITE.format("insert into %1$s select * from %1$s where false"),
    WRITE.format("delete from %1$s where false"),
    WRITE.format("lock table %1$s in row exclusive mode"),
    "create table public.least_privilege_test (a int)",
    "create temp table least_privilege_test (a int)",
    "create schema least_privilege_test",
    "set role pg_write_all_data",
]
READS_ALL = """select bool_and(has_table_privilege(oid, 'select')),
  bool_or(has_table_privilege(oid, 'insert') or has_table_privilege(oid, 'update') or has_table_privilege(oid, 'delete')
    or has_table_privilege(oid, 'truncate')) from pg_class
  where relkind in ('r', 'p') and relnamespace = 'public'::regnamespace"""

ASK_MLFLOW = """
import base64, json, ssl, sys, urllib.error, urllib.request
asked = json.load(sys.stdin)
context = ssl.create_default_context(cafile="/etc/metalworks/tls/ca.crt")
def ask(path, body, method=None):
    login = base64.b64encode(f"{asked['user']}:{asked['password']}".encode()).decode()
    request = urllib.request.Request(f"https://mlflow.metalworks.internal/api/2.0/mlflow/{path}", headers={
        "Authorization": f"Basic {login}", "Content-Type": "application/json"},
        data=None if body is None else json.dumps(body).encode(), method=method)
    try:
        return 200, json.load(urllib.request.urlopen(request, context=context))
    except urllib.error.HTTPError as error:
        return error.code, {}
status, found = ask("model-versions/search", None)
model = found.get("model_versions", [{}])[0]
codes = {"look": status}
for path, body in asked["changes"].items():
    filled = {key: model.get(value[1:], "") if value.startswith("=") else value for key, value in body.items()}
    codes[path] = ask(path, filled, "DELETE" if path.endswith("/delete") else "POST")[0]
print(json.dumps(codes))
"""

UNDO = """
for path, body in asked["undo"].items():
    filled = {key: model.get(value[1:], "") if value.startswith("=") else value for key, value in body.items()}
    assert ask(path, filled, "DELETE")[0] == 200, path
"""


def undo(deletions: dict[str, dict[str, str]]) -> None:
    """Delete what a test created in MLflow, as an administrator."""
    password = secrets()["vault_user_passwords"]["boss"]
    run("dev-1", "python3", ASK_MLFLOW + UNDO, {"user": "boss", "password": password, "changes": {}, "undo": deletions})


# -- Object store


@pytest.fixture(scope="module")
def store() -> dict[str, dict[str, str]]:
    """Return holder and bucket → request → error code, or nothing if it was allowed."""
    asked = {
        "keys": secrets()["vault_object_store_secret_keys"],
        "buckets": sorted(BUCKETS),
        "reaches": {holder: sorted(buckets) for holder, buckets in REACHES.items()},
        "absent": ABSENT,
    }
    found: dict[str, dict[str, str]] = run("dev-1", "/opt/metalworks/workstation/current/bin/python", ASK_STORE, asked)
    return found


def test_every_key_is_covered_by_these_tests() -> None:
    holders = set(secrets()["vault_object_store_secret_keys"])
    assert holders == {*REACHES, "backup"}


@pytest.mark.parametrize("holder", REACHES)
def test_a_key_opens_only_its_buckets(store: dict[str, dict[str, str]], holder: str) -> None:
    for bucket in BUCKETS:
        codes = store[f"{holder} {bucket}"]
        if bucket in REACHES[holder]:
            assert {codes[look] for look in LOOKS} <= {"", "NoSuchKey"}, bucket
        elif bucket in READS.get(holder, ()):
            assert {codes[look] for look in LOOKS} <= {"", "NoSuchKey"}, bucket
            assert {codes[change] for change in CHANGES} == {"AccessDenied"}, (bucket, codes)
        else:
            assert {codes[each] for each in (*LOOKS, *CHANGES)} == {"AccessDenied"}, (bucket, codes)
    assert store[f"{holder} everything"]["make"] == "AccessDenied"


def test_the_backup_key_can_read_everything_and_change_nothing(store: dict[str, dict[str, str]]) -> None:
    for bucket in BUCKETS:
        codes = store[f"backup {bucket}"]
        assert {codes[look] for look in LOOKS} <= {"", "NoSuchKey"}, (bucket, codes)
        assert {codes[change] for change in CHANGES} == {"AccessDenied"}, (bucket, codes)
    assert store["backup everything"]["make"] == "AccessDenied"


# -- PostgreSQL


def logins() -> dict[str, str]:
    """Return login → password of all logins in the vault."""
    prefix, suffix = "vault_postgresql_", "_password"
    found = {name: value for name, value in secrets().items() if name.startswith(prefix)}
    return {name.removeprefix(prefix).removesuffix(suffix): value for name, value in found.items()}


def ask(questions: list[tuple[str, ...]]) -> list[tuple[str, str, str, str]]:
    """Return connection, login, database, output and errors for each query."""
    answers = run("services-1", "python3", ASK_DATABASES, {"logins": logins(), "questions": questions})
    return [(way, login, database, *rest[-2:]) for way, login, database, *rest in answers]


def test_every_login_is_covered_by_these_tests() -> None:
    names = set(logins())
    assert names == {*OWNERS, "backup"}


def test_an_owner_can_open_only_its_database() -> None:
    foreign = [(owner, name) for owner in OWNERS for name in (*OWNERS, "postgres", "template1") if owner != name]
    own = [("tcp", owner, owner, "select current_user") for owner in sorted(OWNERS)]
    assert [said for *_, said, _ in ask(own)] == sorted(OWNERS)
    asked = [(way, *pair, "select 1") for pair in foreign for way in ("tcp", "socket")]
    for way, login, database, said, complaint in ask(asked):
        # Over the network, pg_hba.conf decides; on the host itself, the database's own privileges.
        expected = "no pg_hba.conf entry for host" if way == "tcp" else f'permission denied for database "{database}"'
        assert (said, expected in complaint) == ("", True), (way, login, database, complaint)


def test_unencrypted_connections_are_refused() -> None:
    for *_, said, complaint in ask([("clear", owner, owner, "select 1") for owner in OWNERS]):
        assert (said, "no encryption" in complaint) == ("", True), complaint


def test_backup_can_read_every_database_and_write_none() -> None:
    names = sorted(OWNERS)
    for _, _, database, said, complaint in ask([("tcp", "backup", name, READS_ALL) for name in names]):
        assert said == "t|f", (database, complaint)
    for _, _, database, said, complaint in ask([("tcp", "backup", name, write) for name in names for write in WRITES]):
        assert (said, "permission denied" in complaint) == ("", True), (database, complaint)
    for name in ("postgres", "template1"):
        assert "permission denied for database" in ask([("socket", "backup", name, "select 1")])[0][-1]


# -- MLflow


def test_an_inference_host_can_only_tag_and_alias_the_models_it_serves() -> None:
    served = {"name": "flight-delay", "version": "=version"}
    allowed = {
        "model-versions/set-tag": {**served, "key": ABSENT, "value": "x"},
        "registered-models/alias": {**served, "alias": ABSENT},
    }
    others = {
        "experiments/create": {"name": ABSENT},
        "registered-models/create": {"name": ABSENT},
        "registered-models/delete": {"name": "flight-delay"},
        "model-versions/create": {"name": "flight-delay", "source": "=source", "run_id": "=run_id"},
        "model-versions/delete": served,
        "runs/set-tag": {"run_id": "=run_id", "key": ABSENT, "value": "x"},
        "runs/create": {"experiment_id": "0"},
        "users/create": {"username": ABSENT, "password": "let-me-in-as-well"},
    }
    password = secrets()["vault_machine_passwords"]["inference"]
    asked = {"user": "inference", "password": password, "changes": allowed | others}
    codes = run("dev-1", "python3", ASK_MLFLOW, asked)
    try:
        assert codes.pop("look") == 200
        assert codes == dict.fromkeys(allowed, 200) | dict.fromkeys(others, 403)
    finally:
        undo({
            "registered-models/alias": {"name": "flight-delay", "alias": ABSENT},
            "model-versions/delete-tag": {**served, "key": ABSENT},
        })  # fmt: skip


@pytest.mark.usefixtures("authority")
def test_an_inference_host_cannot_change_other_models() -> None:
    """A developer's model that no service uses."""
    other = {"name": f"other-{ABSENT}"}
    assert as_person("ml1", "mlflow", "/api/2.0/mlflow/registered-models/create", other)[0] == 200
    try:
        changes = {
            "model-versions/set-tag": {**other, "version": "1", "key": ABSENT, "value": "x"},
            "registered-models/alias": {**other, "alias": ABSENT, "version": "1"},
        }
        password = secrets()["vault_machine_passwords"]["inference"]
        codes = run("dev-1", "python3", ASK_MLFLOW, {"user": "inference", "password": password, "changes": changes})
        assert codes == {"look": 200} | dict.fromkeys(changes, 403)
    finally:
        undo({"registered-models/delete": other})
