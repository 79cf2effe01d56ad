"""A scikit-learn model behind BentoML, with its batching, which makes it faster."""

from __future__ import annotations

import os

import bentoml
import joblib
import numpy


@bentoml.service
class Model:
    def __init__(self) -> None:
        self.model = joblib.load(os.environ["BENCH_MODEL"])
        del self.model.feature_names_in_  # otherwise it warns about rows without names on every request

    @bentoml.api(batchable=True, max_batch_size=64)
    def predict(self, rows: numpy.ndarray) -> list[float]:
        return self.model.predict(rows).tolist()
