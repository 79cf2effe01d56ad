"""Compares the arrays of two predictions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metalworks_model_runner.json_equality import RELATIVE

OF_SCALE = 1e-6
"""Numbers may differ by `RELATIVE` of the value, or by this share of the model's largest output."""


def difference(
    ours: Sequence[np.ndarray], expected: Sequence[np.ndarray], all_of: Sequence[np.ndarray] | None = None
) -> str:
    """Describe how two predictions differ; empty if types and shapes agree, and numbers are within the tolerance.

    `all_of`: the whole prediction that `expected` is a part of; its largest value gives the scale.
    """
    if len(ours) != len(expected):
        return f"{len(ours)} outputs instead of {len(expected)}"
    for mine, theirs, whole in zip(ours, expected, expected if all_of is None else all_of, strict=True):
        if mine.shape != theirs.shape:
            return f"of shape {list(mine.shape)} instead of {list(theirs.shape)}"
        if theirs.dtype.kind != "f":
            if not np.array_equal(mine, theirs):
                return f"{int(np.sum(mine != theirs))} of {theirs.size} values"
            continue
        if mine.dtype.kind != "f":
            return f"of type {mine.dtype} instead of {theirs.dtype}"
        a, b = mine.astype(np.float64), theirs.astype(np.float64)
        finite = whole[np.isfinite(whole)]
        scale = float(np.abs(finite).max()) if finite.size else 0.0
        same = np.isclose(a, b, rtol=RELATIVE, atol=OF_SCALE * scale, equal_nan=True)
        if not same.all():
            gaps = np.abs(a - b)[~same]
            return f"{gaps.size} of {same.size} values, by up to {float(np.max(np.nan_to_num(gaps, nan=np.inf))):.3g}"
    return ""
