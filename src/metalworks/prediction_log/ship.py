"""Send finished segments to the object store: `metalworks-model ship`."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from metalworks import plain_files
from metalworks.prediction_log.spool import LARGEST_BYTES, Batch, Spool, here

ASIDE = "not-logged.jsonl"
"""File beside the models with the last lines that could not be written to the object store."""
ASIDE_BYTES = 4 * 2**20
Put = Callable[[str, bytes], None]
"""Writes an object atomically."""


class ShipError(Exception):
    """Writing to the object store failed; the message says why. All segments are kept."""


def ship(spool: Spool, service: str, host: str, models: Path, put: Put) -> dict[str, Any]:
    """Send all segments and remove them; return a summary for people.

    Lines that cannot be read or written are set aside in `models`, up to ASIDE_BYTES, and do not hold up the others.
    A lock keeps two processes from sending the same segments: the second does nothing.
    """
    done: dict[str, Any] = {"service": service, "files": 0, "rows": 0, "set_aside": 0}
    with plain_files.folder(spool.folder) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return done
        for batch in Spool(here(descriptor)).batches():
            if not batch.sent:
                _send(batch, service, host, models, put, done)
                batch = batch.is_sent()
            batch.remove()
    return done


def _send(batch: Batch, service: str, host: str, models: Path, put: Put, done: dict[str, Any]) -> None:
    """Write one file per day; repeating it with the same batch writes the same files."""
    from metalworks.prediction_log.table import files

    days, aside = files(_lines(batch), host, kinds(models))
    for day, file in sorted(days.items()):
        put(f"{service}/date={day}/{host}-{batch.name}.parquet", file.content)
        done["files"] += 1
        done["rows"] += file.rows
    if aside:
        done["set_aside"] += len(aside)
        _keep(models / ASIDE, aside)


def _keep(file: Path, lines: list[bytes]) -> None:
    """Keep lines for people to look at; the newest replace the oldest once the file is full."""
    before = file.read_bytes() if file.exists() else b""
    kept = before + b"".join(line.removesuffix(b"\n") + b"\n" for line in lines)
    new = file.with_suffix(".new")
    new.write_bytes(kept[-ASIDE_BYTES:])
    new.replace(file)


def _lines(batch: Batch) -> Iterator[bytes]:
    for segment in batch.segments:
        with plain_files.open_at(segment, LARGEST_BYTES) as stream:
            yield from stream


def kinds(models: Path) -> dict[str, str]:
    """Return column → its MLflow type, or "" if the signatures of the versions on this host disagree."""
    import yaml

    found: dict[str, str] = {}
    for file in models.glob("versions/*/model/MLmodel"):
        try:
            signature = yaml.safe_load(file.read_text()).get("signature") or {}
            inputs, outputs = (json.loads(signature.get(side) or "[]") for side in ("inputs", "outputs"))
            plain = {f"input_{each['name']}": str(each["type"]) for each in inputs if "name" in each}
            for each in outputs:
                # Integers in this version's predictions may become fractions in the next.
                kind = "string" if each["type"] == "string" else "double"
                plain[f"prediction_{each['name']}" if len(outputs) > 1 else "prediction"] = kind
        except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
            continue  # removed meanwhile, or without a signature by columns
        found |= {name: kind if found.get(name, kind) == kind else "" for name, kind in plain.items()}
    return found


def bucket(name: str) -> Put:
    """Return a function that writes to a bucket of the store that the AWS_* variables name."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client("s3", config=Config(connect_timeout=5, read_timeout=60, retries={"total_max_attempts": 3}))

    def put(key: str, content: bytes) -> None:
        try:
            client.put_object(Bucket=name, Key=key, Body=content, ContentType="application/vnd.apache.parquet")
        except (BotoCoreError, ClientError) as error:
            raise ShipError(f"cannot write s3://{name}/{key}: {error}") from error

    return put
