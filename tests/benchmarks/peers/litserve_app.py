"""A scikit-learn model behind LitServe, with its batching."""

from __future__ import annotations

import os
from typing import Any

import joblib
import litserve
import numpy


class Model(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = joblib.load(os.environ["BENCH_MODEL"])
        del self.model.feature_names_in_  # otherwise it warns about rows without names on every request

    def decode_request(self, request: dict[str, list[float]], **_: Any) -> numpy.ndarray:
        return numpy.array(request["row"])

    def predict(self, rows: numpy.ndarray, **_: Any) -> numpy.ndarray:
        return self.model.predict(rows)  # batch() of LitAPI has stacked the rows

    def encode_response(self, output: float, **_: Any) -> dict[str, list[float]]:
        return {"predictions": [float(output)]}


if __name__ == "__main__":
    api = Model(max_batch_size=64, batch_timeout=0.002)
    litserve.LitServer(api, accelerator="cpu").run(
        host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), generate_client_file=False, log_level="warning"
    )
