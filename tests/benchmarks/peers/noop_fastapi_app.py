"""A FastAPI application that does no work, to measure the cost of the framework."""

from __future__ import annotations

from fastapi import FastAPI

app = FastAPI()


@app.post("/predict")
async def predict() -> dict[str, list[float]]:
    return {"predictions": [0.0]}
