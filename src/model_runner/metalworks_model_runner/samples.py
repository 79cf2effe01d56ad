"""Sample rows to compare executors: the recorded example, and random rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from metalworks_model_runner.signature import NUMPY

ROWS = 256
SEED = 20130101

WIDE, WITHIN, EXAMPLE = "wide", "within", "example"
LEVELS = (WIDE, WITHIN, EXAMPLE)
"""Where random values come from: the whole type, the range of the example, or the values of the example."""


def rows(signature: dict[str, Any], example: list[np.ndarray] | None, level: str) -> list[np.ndarray] | None:
    """Return columns (or the tensor) with the example's rows and `ROWS` more; None if the level needs an example.

    They are the same every time, so a check can be repeated.
    """
    random = np.random.default_rng(SEED)
    if example is None and level != WIDE:
        return None
    if signature["tensor"]:
        shape = (ROWS, *signature["tensor"]["shape"][1:])
        dtype = np.dtype(signature["tensor"]["dtype"])
        known = [] if example is None else [example[0]]
        return [np.concatenate([*known, _column(random, dtype, shape, known[0] if known else None, level)])]
    result = []
    for i, column in enumerate(signature["columns"]):
        known = [] if example is None else [example[i]]
        dtype = np.dtype(NUMPY[column["type"]])
        drawn = _column(random, dtype, (ROWS,), known[0] if known else None, level)
        result.append(np.concatenate([*known, drawn]).astype(dtype))
    return result


def _column(
    random: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...], example: np.ndarray | None, level: str
) -> np.ndarray:
    if level == EXAMPLE and example is not None:
        if len(shape) == 1:
            return random.choice(example, shape)
        return example[random.integers(0, len(example), shape[0])]
    if dtype.kind == "O":
        words = ["", "a", "Z9", "an unknown value", "ü"]
        known = [] if example is None else list(example)
        return random.choice(np.array(known if level == WITHIN else known * 5 + words, dtype=object), shape)
    if dtype.kind == "b":
        return random.integers(0, 2, shape).astype(bool)
    low, high = (-1.0, 1.0) if example is None or not example.size else (float(example.min()), float(example.max()))
    spread = max(high - low, abs(high), 1.0)
    if level == WITHIN:
        values = random.uniform(low, high, shape)
    else:
        # Most are near the example, some far from it, and some exactly in its middle.
        scale = random.choice([0.0, 0.1, 1.0, 1.0, 10.0], shape) * spread
        values = (low + high) / 2 + scale * random.standard_normal(shape)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
    return values.astype(dtype)
