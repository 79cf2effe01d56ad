"""MinIO on a host: consumers' permissions, invalid variables, and recovery after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from attacks import ALLOWED, ATTACKS, Key, Owner, assumed, outcome, temporary
from botocore.config import Config
from botocore.exceptions import ClientError

SCENARIO = Path(__file__).resolve().parent.parent
REPOSITORY = SCENARIO.parent.parent
ROOT_PASSWORD = 'molecule $root "password"'
WORKER = {"name": "worker", "access_key": "worker", "secret_key": "worker-secret", "buckets": ["data", "results"]}
OTHER = {"name": "other", "access_key": "other", "secret_key": "other-secret", "buckets": ["foreign"]}
"""As in converge.yml, but without additional read access."""
drifts = pytest.mark.drifts


def pid(host) -> str:
    return str(host.check_output("systemctl show minio --property MainPID --value"))


@pytest.fixture(scope="module")
def endpoint(host) -> str:
    return f"http://{host.check_output('hostname --ip-address')}:9000"


@pytest.fixture
def converged(host, request, play):
    """Return the server's process; after a test marked `drifts`, a play must repair the host."""
    yield pid(host)
    if request.node.get_closest_marker("drifts"):
        result = play()
        assert result.returncode == 0, result.stdout


def client(endpoint: str, key: str, secret: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


def refusal(call: Any, **arguments: Any) -> str:
    """Return the store's error code for a call."""
    with pytest.raises(ClientError) as error:
        call(**arguments)
    return str(error.value.response["Error"]["Code"])


def test_the_store_passes_the_conformance_checks(endpoint):
    settings = {
        "METALWORKS_S3_ENDPOINT": endpoint,
        "METALWORKS_S3_REGION": "us-east-1",
        "METALWORKS_S3_ACCESS_KEY": "worker",
        "METALWORKS_S3_SECRET_KEY": "worker-secret",
        "METALWORKS_S3_BUCKET": "data",
        "METALWORKS_S3_FOREIGN_BUCKET": "foreign",
    }
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/conformance/test_object_store.py"]
    done = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_reader_can_only_read(endpoint):
    client(endpoint, "worker", "worker-secret").put_object(Bucket="data", Key="read-me", Body=b"x")
    reader = client(endpoint, "reader", "reader-secret")
    assert reader.get_object(Bucket="data", Key="read-me")["Body"].read() == b"x"
    version = reader.list_object_versions(Bucket="data", Prefix="read-me")["Versions"][0]["VersionId"]
    assert reader.get_object(Bucket="data", Key="read-me", VersionId=version)["Body"].read() == b"x"
    assert reader.get_bucket_versioning(Bucket="data")["Status"] == "Enabled"
    reader.get_bucket_location(Bucket="data")
    this = {"Bucket": "data", "Key": "read-me"}
    policy = {"Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::data/*"}]}
    for call, arguments in (
        (reader.put_object, this | {"Body": b"y"}),
        (reader.copy_object, this | {"CopySource": this}),
        (reader.create_multipart_upload, this),
        (reader.put_object_tagging, this | {"Tagging": {"TagSet": []}}),
        (reader.delete_object, this),
        (reader.delete_object, this | {"VersionId": version}),
        (reader.put_bucket_versioning, {"Bucket": "data", "VersioningConfiguration": {"Status": "Suspended"}}),
        (reader.put_bucket_policy, {"Bucket": "data", "Policy": json.dumps({"Version": "2012-10-17"} | policy)}),
        (reader.create_bucket, {"Bucket": "readers-own"}),
        (reader.delete_bucket, {"Bucket": "data"}),
        (reader.list_objects_v2, {"Bucket": "results"}),
        (reader.get_object, this | {"Bucket": "results"}),
    ):
        assert refusal(call, **arguments) == "AccessDenied", arguments


def test_an_additional_reader_can_only_read(endpoint):
    client(endpoint, "worker", "worker-secret").put_object(Bucket="results", Key="read-me", Body=b"x")
    other = client(endpoint, "other", "other-secret")
    this = {"Bucket": "results", "Key": "read-me"}
    assert other.get_object(**this)["Body"].read() == b"x"
    other.put_object(Bucket="foreign", Key="mine", Body=b"x")
    for call, arguments in ((other.put_object, this | {"Body": b"y"}), (other.delete_object, this)):
        assert refusal(call, **arguments) == "AccessDenied"


@drifts
def test_objects_expire_after_their_days(endpoint, converged, play):
    root = client(endpoint, "molecule-root", ROOT_PASSWORD)

    def days(bucket: str) -> dict[str, tuple[int, int]]:
        """Return prefix → days until objects and old versions expire."""
        rules = root.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
        old = [rule.get("NoncurrentVersionExpiration", {}).get("NoncurrentDays", 0) for rule in rules]
        soon = zip(rules, old, strict=True)
        return {rule["Filter"]["Prefix"]: (rule["Expiration"].get("Days", 0), kept) for rule, kept in soon}

    assert days("results") == {"": (7, 0), "scratch/": (1, 1)}
    assert days("data") == {"scratch/": (1, 1)}
    assert days("kept") == {"": (0, 30), "scratch/": (1, 1)}
    buckets = [{"name": "data", "versioning": True}, {"name": "results"}, {"name": "foreign"}]
    result = play(object_store_buckets=buckets, object_store_scratch=[])
    assert result.returncode == 0, result.stdout
    for bucket in ("data", "results"):
        assert refusal(root.get_bucket_lifecycle_configuration, Bucket=bucket) == "NoSuchLifecycleConfiguration"


def test_objects_can_be_deleted_permanently_only_in_scratch_places(endpoint):
    worker, reader = (client(endpoint, name, f"{name}-secret") for name in ("worker", "reader"))
    versions = {}
    for key in ("scratch/mine", "scratchy", "other/scratch/mine"):
        versions[key] = worker.put_object(Bucket="data", Key=key, Body=b"x")["VersionId"]
    this = {"Bucket": "data", "Key": "scratch/mine", "VersionId": versions["scratch/mine"]}
    assert refusal(reader.delete_object, **this) == "AccessDenied"
    for key in ("scratchy", "other/scratch/mine"):
        assert refusal(worker.delete_object, Bucket="data", Key=key, VersionId=versions[key]) == "AccessDenied"
    # As a check does: delete the object, then the version and the delete marker.
    mark = worker.delete_object(Bucket="data", Key="scratch/mine")["VersionId"]
    for version in (versions["scratch/mine"], mark):
        worker.delete_object(Bucket="data", Key="scratch/mine", VersionId=version)
    left = worker.list_object_versions(Bucket="data", Prefix="scratch/")
    assert not left.get("Versions")
    assert not left.get("DeleteMarkers")


@pytest.mark.parametrize("who", ["worker", "reader", "other"])
@pytest.mark.parametrize("name", ATTACKS)
def test_no_key_can_destroy_or_change_another_users_objects(endpoint, who, name):
    owner, attacker = Owner(endpoint, "molecule-root", ROOT_PASSWORD), Key(endpoint, who, f"{who}-secret")
    reply, whole = outcome(owner, attacker, "data", ATTACKS[name])
    assert not reply.done, (reply.status, reply.body)
    assert whole


@pytest.mark.parametrize("name", ALLOWED)
def test_permitted_requests_leave_existing_objects_unchanged(endpoint, name):
    owner, attacker = Owner(endpoint, "molecule-root", ROOT_PASSWORD), Key(endpoint, "worker", "worker-secret")
    reply, whole = outcome(owner, attacker, "data", ALLOWED[name])
    assert reply.done, (reply.status, reply.body)
    assert whole


def test_a_deleted_object_is_restored_by_a_copy(endpoint):
    worker = client(endpoint, "worker", "worker-secret")
    this = {"Bucket": "data", "Key": "brought-back"}
    version = worker.put_object(**this, Body=b"x")["VersionId"]
    worker.delete_object(**this)
    worker.copy_object(**this, CopySource=this | {"VersionId": version})
    assert worker.get_object(**this)["Body"].read() == b"x"


def listing(key: Key) -> int:
    return key.ask("GET", "/data", "list-type=2&max-keys=1").status


def test_a_temporary_key_lasts_at_most_an_hour(endpoint):
    reply = temporary(Key(endpoint, "worker", "worker-secret"), days=7)
    until = datetime.fromisoformat(reply.body.decode().partition("<Expiration>")[2].partition("<")[0])
    assert until - datetime.now(UTC) <= timedelta(hours=1, minutes=1)  # the host's clock is the controller's


def test_other_sites_pages_cannot_use_the_store(endpoint):
    stranger = Key(endpoint, "nobody", "nobody")
    asked = {"origin": "https://evil.example", "access-control-request-method": "PUT"}
    for method in ("OPTIONS", "GET"):
        assert not [name for name in stranger.send(method, "/data", asked).headers if name.startswith("access-control")]


def test_secrets_are_in_no_command_line_and_no_open_file(host):
    commands = host.check_output("cat /proc/*/cmdline | tr '\\0' ' '")
    assert "worker-secret" not in commands
    assert ROOT_PASSWORD not in commands
    environment = host.file("/etc/metalworks/minio.env")
    assert (environment.user, environment.group, environment.mode) == ("root", "minio", 0o640)


def test_a_killed_server_comes_back_with_its_data(host, endpoint, converged):
    store = client(endpoint, "worker", "worker-secret")
    store.put_object(Bucket="data", Key="survives", Body=b"x")
    worker = Key(endpoint, "worker", "worker-secret")
    short = assumed(worker, temporary(worker))
    assert listing(short) == 200
    host.check_output("kill -9 %s", converged)
    alive = "curl --silent --fail http://127.0.0.1:9000/minio/health/cluster"
    assert host.run(f"timeout 60 sh -c 'until {alive}; do sleep 0.2; done'").rc == 0
    assert pid(host) != converged
    assert store.get_object(Bucket="data", Key="survives")["Body"].read() == b"x"
    assert listing(short) == 403  # it could not be revoked before the server has looked it up


@drifts
def test_keys_follow_the_list_and_data_is_kept(host, endpoint, converged, play):
    store = client(endpoint, "worker", "worker-secret")
    store.put_object(Bucket="results", Key="kept", Body=b"x")
    worker, reader = (Key(endpoint, name, f"{name}-secret") for name in ("worker", "reader"))
    short = [assumed(key, temporary(key)) for key in (worker, reader)]
    assert [listing(key) for key in short] == [200, 200]
    result = play(
        object_store_buckets=[{"name": "data", "versioning": True}, {"name": "foreign"}],
        object_store_consumers=[WORKER | {"secret_key": "rotated-secret", "buckets": ["data"]}, OTHER],
    )
    assert result.returncode == 0, result.stdout
    assert pid(host) == converged
    assert refusal(store.list_objects_v2, Bucket="data") == "SignatureDoesNotMatch"
    assert [listing(key) for key in short] == [403, 403]
    rotated = client(endpoint, "worker", "rotated-secret")
    assert rotated.list_objects_v2(Bucket="data")["Name"] == "data"
    assert refusal(rotated.get_object, Bucket="results", Key="kept") == "AccessDenied"
    # A removed consumer loses its key, but a removed bucket keeps its data.
    assert refusal(client(endpoint, "reader", "reader-secret").list_objects_v2, Bucket="data") == "InvalidAccessKeyId"
    root = client(endpoint, "molecule-root", ROOT_PASSWORD)
    assert root.get_object(Bucket="results", Key="kept")["Body"].read() == b"x"


@drifts
def test_the_root_password_can_be_changed(host, endpoint, converged, play):
    result = play(object_store_root_password="another-password")
    assert result.returncode == 0, result.stdout
    assert pid(host) != converged
    assert client(endpoint, "worker", "worker-secret").list_objects_v2(Bucket="data")["Name"] == "data"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"object_store_root_password": "short"}, "object_store_root_password at least 8"),
        ({"object_store_minio_source": "file"}, "file needs object_store_minio_file"),
        ({"object_store_minio_source": "file", "object_store_minio_file": "/absent"}, "there is no file /absent"),
        ({"object_store_minio_source": "file", "object_store_minio_file": "/bin/false"}, "failed to validate"),
        ({"object_store_minio_source": "url", "object_store_minio_url": "http://127.0.0.1/minio"}, "64 lower-case"),
        (
            {"object_store_buckets": [{"name": name} for name in ("data", "results", "foreign")]},
            "versioning cannot be suspended",
        ),
        ({"object_store_minio_source": "ftp"}, "value of object_store_minio_source must be one of"),
        ({"object_store_consumers": [OTHER | {"buckets": ["absent"]}]}, "buckets that are not listed: absent"),
    ],
)
def test_invalid_variables_are_refused_and_the_store_keeps_running(host, endpoint, converged, variables, message, play):
    result = play(**variables)
    assert result.returncode != 0
    assert message in " ".join((result.stdout + result.stderr).split())
    assert pid(host) == converged
    assert client(endpoint, "worker", "worker-secret").list_objects_v2(Bucket="data")["Name"] == "data"


def test_an_external_store_is_checked_with_every_key(endpoint, play):
    """To the role, this store is an external one."""
    external = {"object_store_external": True, "object_store_endpoint": endpoint}
    result = play(**external)
    assert result.returncode == 0, result.stdout
    assert "changed=0" in result.stdout
    result = play(**external, object_store_consumers=[OTHER | {"buckets": ["data"]}])
    assert result.returncode != 0
    assert "other: list data: HTTP 403 AccessDenied" in result.stdout + result.stderr
