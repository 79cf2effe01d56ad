"""Use the platform as programs do: by its names, over TLS. Runs in MLflow's environment on a host.

Input: orders as JSON. Output: JSON.
  {"do": "fill"}   write objects with old versions, deleted ones and a large one
  {"do": "state"}  all versions of all objects, with SHA-256
  {"do": "watch", "until": PATH}  write and read until that file exists; which writes were acknowledged, and how others
                   were refused
"""

from __future__ import annotations

import collections
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import requests
from botocore.config import Config

ORDERS = json.load(sys.stdin)
CA = "/etc/metalworks/tls/ca.crt"
MLFLOW = "https://mlflow.metalworks.internal/api/2.0/mlflow"
BUCKET = "training-data"


def store() -> Any:
    """Return a client that asks once."""
    config = Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10)
    return boto3.client(
        "s3",
        endpoint_url="https://s3.metalworks.internal",
        region_name="us-east-1",
        aws_access_key_id=ORDERS["access_key"],
        aws_secret_access_key=ORDERS["secret_key"],
        verify=CA,
        config=config,
    )


def fill() -> None:
    """Write objects."""
    s3 = store()
    for number in range(60):
        s3.put_object(
            Bucket=BUCKET, Key=f"files/é {number}", Body=f"{number}".encode() * 999, Metadata={"n": str(number)}
        )
    for text in (b"first", b"second", b"third"):
        s3.put_object(Bucket=BUCKET, Key="over", Body=text, ContentType="text/plain")
    s3.put_object(Bucket=BUCKET, Key="gone", Body=b"gone")
    s3.delete_object(Bucket=BUCKET, Key="gone")
    s3.put_object(Bucket="predictions", Key="log/1", Body=b"prediction")
    upload = {"Bucket": BUCKET, "Key": "large"}
    upload["UploadId"] = s3.create_multipart_upload(**upload)["UploadId"]
    parts = [bytes(5 << 20), b"the end"]
    sent = [
        {"PartNumber": number, "ETag": s3.upload_part(**upload, PartNumber=number, Body=body)["ETag"]}
        for number, body in enumerate(parts, 1)
    ]
    s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": sent})


def state() -> dict[str, Any]:
    """Return all versions."""
    s3, found = store(), {}
    for bucket in ("training-data", "mlflow-artifacts", "flow-code", "flow-results", "predictions"):
        for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
            for one in page.get("Versions", []):
                where = {"Bucket": bucket, "Key": one["Key"], "VersionId": one["VersionId"]}
                got = s3.get_object(**where)
                digest = hashlib.sha256(got["Body"].read()).hexdigest()
                told = [
                    one["LastModified"],
                    one["ETag"],
                    one["Size"],
                    one["IsLatest"],
                    got["Metadata"],
                    got["ContentType"],
                ]
                found[" ".join(where.values())] = [str(value) for value in told] + [digest]
            for one in page.get("DeleteMarkers", []):
                found[f"{bucket} {one['Key']} {one['VersionId']}"] = ["deleted", str(one["LastModified"])]
    return found


def create_run(name: str) -> str:
    """Create a run in MLflow; return how it was answered."""
    url, body = f"{MLFLOW}/runs/create", {"experiment_id": "0", "run_name": name, "start_time": 1}
    try:
        answer = requests.post(url, json=body, auth=("ada", ORDERS["password"]), verify=CA, timeout=10)
    except requests.RequestException as error:
        return type(error).__name__
    return str(answer.status_code)


def put(s3: Any, key: str) -> str:
    """Write an object; return how it was answered."""
    try:
        s3.put_object(Bucket=BUCKET, Key=key, Body=key.encode())
    except botocore.exceptions.ClientError as error:
        return str(error.response["ResponseMetadata"]["HTTPStatusCode"])
    except botocore.exceptions.BotoCoreError as error:
        return type(error).__name__
    return "200"


def get(s3: Any, key: str) -> str:
    """Read an object; return how that was answered."""
    try:
        s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    except botocore.exceptions.ClientError as error:
        return str(error.response["ResponseMetadata"]["HTTPStatusCode"])
    except botocore.exceptions.BotoCoreError as error:
        return type(error).__name__
    return "200"


def watch(until: Path) -> dict[str, Any]:
    """Write and read until the file exists."""
    tag, number = ORDERS["tag"], 0
    answers = collections.Counter[str]()
    objects, runs = [], []
    while not until.exists():
        number += 1
        s3, name = store(), f"watch-{tag}-{number}"
        for kind, answer in (("put", put(s3, name)), ("run", create_run(name)), ("get", get(store(), "over"))):
            answers[f"{kind} {answer}"] += 1
            if answer == "200" and kind != "get":
                (objects if kind == "put" else runs).append(name)
        time.sleep(0.2)
    return {"objects": objects, "runs": runs, "answers": answers}


match ORDERS["do"]:
    case "fill":
        print(json.dumps(fill()))
    case "state":
        print(json.dumps(state(), sort_keys=True))
    case "watch":
        print(json.dumps(watch(Path(ORDERS["until"]))))
