"""Copies what the models' user recorded about a model into a folder of the service.

A model's code ran in the process that wrote these files, so they may contain anything and change at any time. They are
copied once: plain files with known names and bounded sizes. The server reads only the copy, which has JSON, arrays and
ONNX models, and no code. Imports the standard library alone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from metalworks import plain_files
from metalworks.contracts import FACTS, SAMPLES

FACTS_BYTES, SAMPLES_BYTES, ONNX_BYTES = 64 * 2**20, 2**30, 2**31
"""Largest sizes; an ONNX file cannot be longer."""
CANDIDATES = ("model.onnx", "model-single.onnx", "model-double.onnx")


def adopt(root: Path, path: tuple[str, ...], into: Path) -> None:
    """Copy the folder of evidence at `path` below `root`, completely or not at all.

    Raises OSError or ValueError if it is malformed.
    """
    new = into.with_name(f"{into.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(into, ignore_errors=True)  # without facts
    new.mkdir(parents=True)
    try:
        with plain_files.folder(root, *path) as source:
            with plain_files.open_in(source, FACTS, FACTS_BYTES) as stream:
                text = plain_files.content(stream, FACTS_BYTES)
            for name, most in _others(json.loads(text)).items():
                _copy(source, name, most, new)
        (new / FACTS).write_bytes(text)
        new.replace(into)
    except BaseException as error:
        shutil.rmtree(new)
        if isinstance(error, RecursionError):
            raise ValueError(f"{FACTS} is nested too deeply") from error
        raise


def _others(facts: Any) -> dict[str, int]:
    """Return the files that belong to these facts, with their largest sizes."""
    try:
        candidates = {each["file"] for each in facts["onnx"]["candidates"]}
        has_executor = any(each["ok"] for each in facts["executors"].values())
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{FACTS} is malformed: {error!r}") from error
    if not candidates <= set(CANDIDATES):
        raise ValueError(f"{FACTS} names files that are none of {', '.join(CANDIDATES)}")
    return dict.fromkeys(candidates, ONNX_BYTES) | ({SAMPLES: SAMPLES_BYTES} if has_executor or candidates else {})


def _copy(source: int, name: str, most: int, into: Path) -> None:
    left = most
    with plain_files.open_in(source, name, most) as stream, (into / name).open("xb") as copy:
        while data := stream.read(min(left + 1, 2**20)):
            left -= len(data)
            if left < 0:  # it grew
                raise plain_files.NotPlainError(f"{name} is longer than {most} bytes")
            copy.write(data)
