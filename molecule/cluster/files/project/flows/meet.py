"""A flow whose runs wait for each other, each in its own project's environment."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import boto3
import sklearn
from prefect import flow
from prefect.states import Completed, State

PATIENCE = 180


@flow(retries=1, retry_delay_seconds=1)
def meet(place: str, me: str, other: str) -> State[Any]:
    """Announce this run, wait for the other one, so that both run at once, and return scikit-learn's version."""
    store, bucket = boto3.client("s3"), os.environ["METALWORKS_FLOW_RESULTS_BUCKET"]
    store.put_object(Bucket=bucket, Key=f"{place}/{me}", Body=b"")
    deadline = time.monotonic() + PATIENCE
    while not store.list_objects_v2(Bucket=bucket, Prefix=f"{place}/{other}").get("KeyCount"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{other} did not come")
        time.sleep(0.5)
    return Completed(message=f"scikit-learn {sklearn.__version__} on {socket.gethostname()}")
