"""Requests reach the prediction log in the object store, where developers can read and nobody can change them."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from clients import ask, over_ssh, secrets
from flows import done

pytestmark = pytest.mark.usefixtures("authority")

FLIGHT = {
    "dep_delay": 30.0, "departure_hour": 17.5, "weekday": 2.0, "holiday": 0.0, "distance": 1400.0, "seats": 180.0,
    "scheduled_minutes": 200.0, "temp": 40.0, "wind_speed": 5.0, "precip": 0.0, "visib": 10.0,
    "carrier": "UA", "origin": "EWR", "dest": "IAH",
}  # fmt: skip
PYTHON = "/opt/metalworks/workstation/current/bin/python"
READ = """
import json, os
import pandas as pd
log = pd.read_parquet(f"s3://{os.environ['METALWORKS_PREDICTIONS_BUCKET']}/delay")
mine = log[log["input_distance"].eq(DISTANCE) & log["role"].ne("shadow")].sort_values(["time", "row"])
print(json.dumps(mine.drop(columns=["time", "date"]).to_dict("records")))
"""
WRITE = """
import os
import botocore.session
from botocore.exceptions import ClientError
store, bucket = botocore.session.get_session().create_client("s3"), os.environ["METALWORKS_PREDICTIONS_BUCKET"]
(known, *_) = [one["Key"] for one in store.list_objects_v2(Bucket=bucket, Prefix="delay/", MaxKeys=1)["Contents"]]
for call, how in ((store.put_object, {"Body": b""}), (store.delete_object, {})):
    try:
        call(Bucket=bucket, Key=known, **how)
    except ClientError as error:
        print(error.response["Error"]["Code"])
"""


def read(distance: float) -> list[dict[str, Any]]:
    """Return the rows of the log with this distance, read as a developer."""
    program = READ.replace("DISTANCE", repr(distance))
    found: list[dict[str, Any]] = json.loads(done("dev-1", "ml1", f"{PYTHON} - <<'END'\n{program}\nEND\n"))
    return found


def test_requests_are_in_the_object_store_and_cannot_be_changed() -> None:
    token = secrets()["vault_inference_tokens"]["ml1"]
    distance = 1000.0 + time.time() % 1000  # nobody else's
    flights = [FLIGHT | {"distance": distance, "dep_delay": float(delay)} for delay in range(2)]
    answers = []
    for _ in range(3):
        status, said = ask("inference", "/delay/invocations", token=token, body={"dataframe_records": flights})
        assert status == 200, said
        answers += said["predictions"]
    deadline = time.monotonic() + 180
    while len(rows := read(distance)) < len(answers):
        assert time.monotonic() < deadline, rows
        time.sleep(1)
    assert [row["prediction"] for row in rows] == answers
    assert [row["input_dep_delay"] for row in rows if row["row"] == 1] == [1.0] * 3
    assert {(row["status"], row["input_carrier"]) for row in rows} == {(200, "UA")}
    assert done("dev-1", "ml1", f"{PYTHON} - <<'END'\n{WRITE}\nEND\n").split() == ["AccessDenied"] * 2
    # The process that sends the log has the key in its environment, not in its command line.
    assert secrets()["vault_object_store_secret_keys"]["inference"] not in over_ssh("gpu-1", "ps axww", "")
