"""samples.bin: sample rows with MLflow's predictions for them, for the equivalence check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from metalworks_model_runner import frames, packing

FILE = "samples.bin"


def write(folder: Path, groups: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Write named groups of arrays."""
    header, buffers = {}, []
    for name, arrays in groups.items():
        header[name], more = packing.pack(arrays)
        buffers += more
    (folder / FILE).write_bytes(frames.frame(0, frames.ARRAYS, header, buffers))


def read(folder: Path) -> dict[str, list[np.ndarray]]:
    """Return the groups; empty if only MLflow's own functions can ask the model."""
    if not (folder / FILE).exists():
        return {}
    ((_, _, payload),) = frames.Buffer().feed((folder / FILE).read_bytes())
    header, data = frames.body_of(payload)
    result, start = {}, 0
    for name, about in header.items():
        size = sum(each[2] for each in about)
        result[name] = packing.unpack(about, data[start : start + size])
        start += size
    return result
