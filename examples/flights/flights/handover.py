"""Hand results from one flow run to another on any host: as a small JSON object in the object store."""

from __future__ import annotations

import json
import os
from typing import Any

import boto3


def put(flow_run: str, document: dict[str, Any]) -> None:
    """Store a document under the id of the flow run that created it."""
    boto3.client("s3").put_object(**_address(flow_run), Body=json.dumps(document).encode())


def get(flow_run: str) -> dict[str, Any]:
    """Return the document of a flow run."""
    body = boto3.client("s3").get_object(**_address(flow_run))["Body"]
    document: dict[str, Any] = json.load(body)
    return document


def _address(flow_run: str) -> dict[str, str]:
    return {"Bucket": os.environ["METALWORKS_FLOW_RESULTS_BUCKET"], "Key": f"flights/{flow_run}.json"}
