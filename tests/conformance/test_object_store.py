"""The platform's requirements on any S3 store, tested with a consumer's key and the requests of its tools.

Settings, all required: METALWORKS_S3_ENDPOINT, METALWORKS_S3_REGION, METALWORKS_S3_ACCESS_KEY,
METALWORKS_S3_SECRET_KEY, METALWORKS_S3_BUCKET (keeps versions; the key may write there) and
METALWORKS_S3_FOREIGN_BUCKET (exists; the key may not reach it).

    pytest tests/conformance/test_object_store.py
"""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

MIB = 1024 * 1024
BUCKET = os.environ["METALWORKS_S3_BUCKET"]
FOREIGN_BUCKET = os.environ["METALWORKS_S3_FOREIGN_BUCKET"]


def client(**options: Any) -> Any:
    """Return a client of the store; it uses path-style addresses, which need no wildcard DNS."""
    return boto3.client(
        "s3",
        endpoint_url=os.environ["METALWORKS_S3_ENDPOINT"],
        region_name=os.environ["METALWORKS_S3_REGION"],
        aws_access_key_id=os.environ["METALWORKS_S3_ACCESS_KEY"],
        aws_secret_access_key=options.pop("secret_key", os.environ["METALWORKS_S3_SECRET_KEY"]),
        config=Config(
            signature_version="s3v4", s3={"addressing_style": "path"}, retries={"total_max_attempts": 2}, **options
        ),
    )


@pytest.fixture(scope="module")
def s3() -> Any:
    return client()


@pytest.fixture
def prefix(s3: Any) -> Iterator[str]:
    """Return a prefix in the bucket for one test, emptied afterwards."""
    place = f"conformance/{uuid.uuid4()}/"
    yield place
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=place)
    for found in (one for page in pages for one in page.get("Contents", [])):
        s3.delete_object(Bucket=BUCKET, Key=found["Key"])


def code(error: pytest.ExceptionInfo[ClientError]) -> str:
    return str(error.value.response["Error"]["Code"])


def test_put_and_get(s3: Any, prefix: str) -> None:
    put = s3.put_object(
        Bucket=BUCKET, Key=prefix + "a", Body=b"hello", Metadata={"origin": "test"}, ContentType="text/x"
    )
    got = s3.get_object(Bucket=BUCKET, Key=prefix + "a")
    assert got["Body"].read() == b"hello"
    assert (got["ContentLength"], got["ContentType"], got["Metadata"]) == (5, "text/x", {"origin": "test"})
    assert got["ETag"] == put["ETag"] == f'"{hashlib.md5(b"hello").hexdigest()}"'


def test_empty_object_and_unusual_names(s3: Any, prefix: str) -> None:
    names = ["empty", "with space", "plus+and=eq", "ümlaut", "~tilde%41", "deep/er/still.txt"]
    for name in names:
        s3.put_object(Bucket=BUCKET, Key=prefix + name, Body=b"")
    listed = s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
    assert sorted(one["Key"] for one in listed) == sorted(prefix + name for name in names)
    for name in names:
        assert s3.head_object(Bucket=BUCKET, Key=prefix + name)["ContentLength"] == 0


def test_missing_objects_give_not_found(s3: Any, prefix: str) -> None:
    with pytest.raises(ClientError) as error:
        s3.get_object(Bucket=BUCKET, Key=prefix + "absent")
    assert code(error) == "NoSuchKey"
    with pytest.raises(ClientError) as error:
        s3.head_object(Bucket=BUCKET, Key=prefix + "absent")
    assert code(error) == "404"


def test_list_pages_and_directories(s3: Any, prefix: str) -> None:
    for number in range(7):
        s3.put_object(Bucket=BUCKET, Key=f"{prefix}d{number % 2}/{number}", Body=b"x")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix, PaginationConfig={"PageSize": 3})
    keys = [[one["Key"] for one in page["Contents"]] for page in pages]
    assert [len(page) for page in keys] == [3, 3, 1]
    assert [key for page in keys for key in page] == sorted(f"{prefix}d{number % 2}/{number}" for number in range(7))
    level = s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix, Delimiter="/")
    assert [one["Prefix"] for one in level["CommonPrefixes"]] == [f"{prefix}d0/", f"{prefix}d1/"]
    assert "Contents" not in level


def test_ranges(s3: Any, prefix: str) -> None:
    s3.put_object(Bucket=BUCKET, Key=prefix + "r", Body=bytes(range(256)))

    def read(span: str) -> bytes:
        return bytes(s3.get_object(Bucket=BUCKET, Key=prefix + "r", Range=f"bytes={span}")["Body"].read())

    assert read("0-9") == bytes(range(10))
    assert read("250-") == bytes(range(250, 256))
    assert read("-4") == bytes(range(252, 256))
    with pytest.raises(ClientError) as error:
        read("256-300")
    assert code(error) == "InvalidRange"


def test_delete_one_and_many(s3: Any, prefix: str) -> None:
    for name in "abc":
        s3.put_object(Bucket=BUCKET, Key=prefix + name, Body=b"x")
    s3.delete_object(Bucket=BUCKET, Key=prefix + "a")
    done = s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": prefix + "b"}, {"Key": prefix + "c"}]})
    assert sorted(one["Key"] for one in done["Deleted"]) == [prefix + "b", prefix + "c"]
    assert s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["KeyCount"] == 0


def test_copy(s3: Any, prefix: str) -> None:
    s3.put_object(Bucket=BUCKET, Key=prefix + "from", Body=b"copied")
    s3.copy_object(Bucket=BUCKET, Key=prefix + "to", CopySource={"Bucket": BUCKET, "Key": prefix + "from"})
    assert s3.get_object(Bucket=BUCKET, Key=prefix + "to")["Body"].read() == b"copied"


def test_multipart_of_more_than_16_mib(s3: Any, prefix: str, tmp_path: Any) -> None:
    source, target = tmp_path / "up", tmp_path / "down"
    source.write_bytes(os.urandom(21 * MIB + 12345))
    config = TransferConfig(multipart_threshold=8 * MIB, multipart_chunksize=8 * MIB, max_concurrency=4)
    s3.upload_file(str(source), BUCKET, prefix + "big", Config=config)
    head = s3.head_object(Bucket=BUCKET, Key=prefix + "big")
    assert head["ContentLength"] == source.stat().st_size
    assert head["ETag"].strip('"').endswith("-3"), "three parts"
    s3.download_file(BUCKET, prefix + "big", str(target), Config=config)
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(source.read_bytes()).digest()


def test_an_aborted_multipart_upload_leaves_nothing(s3: Any, prefix: str) -> None:
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key=prefix + "given-up")["UploadId"]
    where = {"Bucket": BUCKET, "Key": prefix + "given-up", "UploadId": upload}
    s3.upload_part(**where, PartNumber=1, Body=b"x" * 5 * MIB)
    assert [part["PartNumber"] for part in s3.list_parts(**where)["Parts"]] == [1]
    s3.abort_multipart_upload(**where)
    with pytest.raises(ClientError) as error:
        s3.list_parts(**where)
    assert code(error) == "NoSuchUpload"


def fetch(url: str, method: str = "GET", data: bytes | None = None) -> bytes:
    """Request a URL as a browser or curl does, without a key."""
    with urllib.request.urlopen(urllib.request.Request(url, data=data, method=method), timeout=30) as reply:
        return bytes(reply.read())


def test_presigned_links(s3: Any, prefix: str) -> None:
    where = {"Bucket": BUCKET, "Key": prefix + "linked"}
    fetch(s3.generate_presigned_url("put_object", where, ExpiresIn=60), "PUT", b"by link")
    link = s3.generate_presigned_url("get_object", where, ExpiresIn=60)
    assert fetch(link) == b"by link"
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(link.replace("linked", "other"))
    assert refused.value.code == 403


def test_presigned_multipart(s3: Any, prefix: str) -> None:
    """Large files bypass the tracking server this way."""
    where = {"Bucket": BUCKET, "Key": prefix + "parts"}
    upload = s3.create_multipart_upload(**where)["UploadId"]
    for number, body in ((1, b"a" * 5 * MIB), (2, b"end")):
        part = {**where, "UploadId": upload, "PartNumber": number}
        fetch(s3.generate_presigned_url("upload_part", part, ExpiresIn=60), "PUT", body)
    parts = s3.list_parts(**where, UploadId=upload)["Parts"]
    done = {"Parts": [{"PartNumber": one["PartNumber"], "ETag": one["ETag"]} for one in parts]}
    s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload=done)
    assert s3.get_object(**where, Range="bytes=-4")["Body"].read() == b"aend"


def test_versions_are_kept(s3: Any, prefix: str) -> None:
    assert s3.get_bucket_versioning(Bucket=BUCKET)["Status"] == "Enabled"
    key = prefix + "versioned"
    first = s3.put_object(Bucket=BUCKET, Key=key, Body=b"one")["VersionId"]
    second = s3.put_object(Bucket=BUCKET, Key=key, Body=b"two")["VersionId"]
    assert first != second
    s3.delete_object(Bucket=BUCKET, Key=key)
    with pytest.raises(ClientError) as error:
        s3.get_object(Bucket=BUCKET, Key=key)
    assert code(error) == "NoSuchKey"
    assert s3.get_object(Bucket=BUCKET, Key=key, VersionId=first)["Body"].read() == b"one"
    listed = s3.list_object_versions(Bucket=BUCKET, Prefix=key)
    assert {one["VersionId"] for one in listed["Versions"]} == {first, second}
    assert [one["IsLatest"] for one in listed["DeleteMarkers"]] == [True]


@pytest.mark.parametrize("when", ["when_supported", "when_required"])
def test_checksums_of_newer_clients(when: str, prefix: str, tmp_path: Any) -> None:
    """boto3 sends and verifies a CRC with every request by default; the tools switch that off."""
    s3 = client(request_checksum_calculation=when, response_checksum_validation=when)
    s3.put_object(Bucket=BUCKET, Key=prefix + "small", Body=b"checked")
    assert s3.get_object(Bucket=BUCKET, Key=prefix + "small")["Body"].read() == b"checked"
    (tmp_path / "big").write_bytes(os.urandom(17 * MIB))
    s3.upload_file(str(tmp_path / "big"), BUCKET, prefix + "big")
    s3.download_file(BUCKET, prefix + "big", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == (tmp_path / "big").read_bytes()
    s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": prefix + "small"}]})


def test_default_checksum_is_stored(prefix: str) -> None:
    s3 = client(request_checksum_calculation="when_supported")
    s3.put_object(Bucket=BUCKET, Key=prefix + "crc", Body=b"hello", ChecksumAlgorithm="CRC32")
    head = s3.head_object(Bucket=BUCKET, Key=prefix + "crc", ChecksumMode="ENABLED")
    assert head["ChecksumCRC32"] == "NhCmhg=="


def test_damaged_upload_is_refused(s3: Any, prefix: str) -> None:
    with pytest.raises(ClientError) as error:
        s3.put_object(Bucket=BUCKET, Key=prefix + "bad", Body=b"hello", ChecksumCRC32="AAAAAA==")
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["KeyCount"] == 0


def test_conditional_write(s3: Any, prefix: str) -> None:
    s3.put_object(Bucket=BUCKET, Key=prefix + "once", Body=b"1", IfNoneMatch="*")
    with pytest.raises(ClientError) as error:
        s3.put_object(Bucket=BUCKET, Key=prefix + "once", Body=b"2", IfNoneMatch="*")
    assert code(error) == "PreconditionFailed"


def test_a_key_cannot_reach_other_buckets(s3: Any) -> None:
    for ask in (
        lambda: s3.list_objects_v2(Bucket=FOREIGN_BUCKET),
        lambda: s3.put_object(Bucket=FOREIGN_BUCKET, Key="intruder", Body=b"x"),
        lambda: s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Suspended"}),
        lambda: s3.create_bucket(Bucket=f"intruder-{uuid.uuid4()}"),
    ):
        with pytest.raises(ClientError) as error:
            ask()
        assert code(error) == "AccessDenied"


def test_key_cannot_destroy_a_version(s3: Any, prefix: str) -> None:
    version = s3.put_object(Bucket=BUCKET, Key=prefix + "kept", Body=b"x")["VersionId"]
    with pytest.raises(ClientError) as error:
        s3.delete_object(Bucket=BUCKET, Key=prefix + "kept", VersionId=version)
    assert code(error) == "AccessDenied"
    many = {"Objects": [{"Key": prefix + "kept", "VersionId": version}]}
    assert [one["Code"] for one in s3.delete_objects(Bucket=BUCKET, Delete=many)["Errors"]] == ["AccessDenied"]
    assert s3.get_object(Bucket=BUCKET, Key=prefix + "kept", VersionId=version)["Body"].read() == b"x"


def test_wrong_secret_is_refused() -> None:
    with pytest.raises(ClientError) as error:
        client(secret_key="not-the-secret").list_objects_v2(Bucket=BUCKET)
    assert code(error) == "SignatureDoesNotMatch"
