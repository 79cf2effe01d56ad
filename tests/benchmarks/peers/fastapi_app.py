"""A scikit-learn model behind a typical FastAPI application: a typed row, a frame, predict."""

from __future__ import annotations

import os

import joblib
import pandas
from fastapi import FastAPI
from pydantic import BaseModel, create_model

app = FastAPI()
model = joblib.load(os.environ["BENCH_MODEL"])
Row = create_model("Row", **dict.fromkeys(model.feature_names_in_, (float, ...)))


class Request(BaseModel):
    rows: list[Row]  # type: ignore[valid-type]


@app.post("/predict")
def predict(request: Request) -> dict[str, list[float]]:
    frame = pandas.DataFrame([row.model_dump() for row in request.rows])
    return {"predictions": model.predict(frame).tolist()}
