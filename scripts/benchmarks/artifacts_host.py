"""Measure on a dev host how fast MLflow's client moves artifacts, beside the object store alone.

Runs as a developer, in a login shell, with the Python of the platform's clients; prints JSON. Everything is put where
the smoke checks put theirs, so that the next `make smoke` deletes for good what MLflow's client can only hide.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEGABYTE = 1_000_000
SIZES = {"20_files": [5 * MEGABYTE] * 20, "one_file": [5 * MEGABYTE], "large_file": [100 * MEGABYTE]}
PLACE, TAG = "metalworks-smoke", "metalworks.smoke"


def store() -> Any:
    """Return a client of the object store. Not boto3: dev hosts have what DVC needs."""
    from botocore.session import get_session

    return get_session().create_client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"])


class Direct:
    """The object store alone: one file after the other, each in one request."""

    def __init__(self, bucket: str, prefix: str) -> None:
        """Keep where to put files."""
        self.client, self.bucket, self.prefix = store(), bucket, prefix

    def up(self, folder: Path) -> None:
        """Upload the files of a folder."""
        for file in folder.iterdir():
            with file.open("rb") as body:
                self.client.put_object(Bucket=self.bucket, Key=f"{self.prefix}/{file.name}", Body=body)

    def down(self, names: list[str], folder: Path) -> None:
        """Download files into a folder."""
        for name in names:
            body = self.client.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{name}")["Body"]
            with (folder / name).open("wb") as file:
                for chunk in body.iter_chunks(MEGABYTE):
                    file.write(chunk)

    def remove(self) -> None:
        """Delete everything that was uploaded, with old versions."""
        for page in self.client.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=self.prefix):
            for kept in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
                self.client.delete_object(Bucket=self.bucket, Key=kept["Key"], VersionId=kept["VersionId"])


def timed(work: Callable[..., object], *arguments: Any) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


def measure(direct: Direct, client: Any, run: str, times: int) -> dict[str, list[float]]:
    """Return the seconds of every transfer, by what and in which way; the first round warms up and does not count."""
    seen: dict[str, list[float]] = {}
    for turn in range(times + 1):
        for what, sizes in SIZES.items():
            with tempfile.TemporaryDirectory() as home:
                source, ours, theirs = (Path(home) / name for name in ("source", "ours", "theirs"))
                for folder in (source, ours, theirs):
                    folder.mkdir()
                for number, size in enumerate(sizes):
                    (source / f"file-{number}").write_bytes(os.urandom(size))
                names, place = sorted(file.name for file in source.iterdir()), f"{what}-{turn}"
                asked = place if len(names) > 1 else f"{place}/{names[0]}"
                took = {
                    f"{what}_up direct": timed(direct.up, source),
                    f"{what}_up mlflow": timed(client.log_artifacts, run, str(source), place),
                    f"{what}_down direct": timed(direct.down, names, theirs),
                    f"{what}_down mlflow": timed(client.download_artifacts, run, asked, str(ours)),
                }
                for name in names:
                    wanted = (source / name).read_bytes()
                    if [got.read_bytes() for got in Path(home).rglob(name)] != [wanted] * 3:
                        raise SystemExit(f"{name} of {what} came back changed")
            if turn:
                for each, seconds in took.items():
                    seen.setdefault(each, []).append(seconds)
    return seen


def main() -> None:
    """Measure, and print all measurements."""
    bucket, times = sys.argv[1], int(sys.argv[2])
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    from mlflow import MlflowClient

    tag, client = os.urandom(6).hex(), MlflowClient()
    direct = Direct(bucket, f"{PLACE}/{tag}")
    experiment = client.create_experiment(f"{PLACE}-{tag}", artifact_location=f"mlflow-artifacts:/0/{PLACE}/{tag}")
    try:
        run = client.create_run(experiment, tags={TAG: "1"}).info.run_id
        print(json.dumps(measure(direct, client, run, times)))
    finally:
        client.delete_experiment(experiment)
        direct.remove()


if __name__ == "__main__":
    main()
