"""Train every model in params.yaml on the older months, score it on the newest, and record it in MLflow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import dvc.api
import mlflow
import pandas as pd
import yaml
from mlflow.models import infer_signature
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from flights import models, prepare, registry, scores, versions
from flights.features import FEATURES, TARGET

EXPECTED = "metalworks.example_predictions"


def train(extra_tags: dict[str, str] | None = None) -> None:
    """Record one MLflow run per model; skip models that are recorded already for this commit and data.

    A reproduction trains all models, to see whether the results are the same.
    """
    versions.require_plugin()
    params = yaml.safe_load(Path("params.yaml").read_text())
    months = prepare.load()
    newest = max(months)
    older = pd.concat([frame for month, frame in months.items() if month != newest])
    seed = params["train"]["seed"]
    sample = older.sample(min(params["train"]["rows"], len(older)), random_state=seed)
    tags = {"data.months": " ".join(months), "data.newest_month": newest, **(extra_tags or {})}
    mlflow.set_experiment(registry.EXPERIMENT)
    again = registry.REPRODUCTION in os.environ or versions.dirty()
    recorded = set() if again else {run["name"] for run in registry.runs()}
    for name, options in params["models"].items():
        if name in recorded:
            print(f"{name}: recorded already")
            continue
        with mlflow.start_run(run_name=name, tags=tags):
            with threadpool_limits(params["train"]["threads"]):
                model = models.build(name, options, seed).fit(sample[FEATURES], sample[TARGET])
            record(model, {"model": name, "seed": seed, "rows": len(sample), **options}, sample, months[newest])


def record(model: Pipeline, params: dict[str, Any], sample: pd.DataFrame, held_out: pd.DataFrame) -> None:
    """Record parameters, scores, data and the model in the active run."""
    mlflow.log_params(params)
    source, digest = dvc.api.get_url(str(versions.DATA)), versions.data()
    for frame, context in ((sample, "training"), (held_out, "validation")):
        mlflow.log_input(mlflow.data.from_pandas(frame, source, TARGET, "features", digest), context)
    result = scores.score(model, held_out)
    mlflow.log_metrics(result)
    example = held_out[FEATURES].head(5)
    mlflow.sklearn.log_model(
        model,
        name="model",
        signature=infer_signature(sample[FEATURES], sample[TARGET]),
        input_example=example,
        # The service checks that the model predicts the same for its example as here.
        metadata={EXPECTED: model.predict(example).tolist()},
        pip_requirements=versions.model_requirements(),
        skops_trusted_types=models.TRUSTED,
    )
    print(f"{params['model']}: " + ", ".join(f"{key} {value:.3f}" for key, value in result.items()))
