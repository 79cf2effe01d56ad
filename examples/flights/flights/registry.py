"""What MLflow knows of this project: runs, registered versions, and which of them is the champion."""

from __future__ import annotations

from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from flights import rules
from flights import versions as made_with

EXPERIMENT = "flight-delay"
MODEL = "flight-delay"
CHAMPION = "champion"
# What a version says of its run, for those who look at the registry alone.
KEPT = ["mlflow.source.git.commit", "data.version", "data.months", "data.newest_month", "prepared_on", "trained_on"]


def runs() -> list[dict[str, Any]]:
    """Finished runs with this commit and data, best first."""
    wanted = {
        "tags.`mlflow.source.git.commit`": made_with.commit(),
        "tags.`data.version`": made_with.data(),
        "attributes.status": "FINISHED",
    }
    found = mlflow.search_runs(
        experiment_names=[EXPERIMENT],
        filter_string=" and ".join(f"{field} = '{value}'" for field, value in wanted.items()),
        order_by=["metrics.rmse ASC"],
        output_format="list",
    )
    return [
        {"name": run.data.params["model"], "run_id": run.info.run_id, **_rounded(run.data.metrics)} for run in found
    ]


def champion() -> ModelVersion | None:
    """The version in service, if there is one."""
    model = next(iter(MlflowClient().search_registered_models(f"name = '{MODEL}'")), None)
    return MlflowClient().get_model_version_by_alias(MODEL, CHAMPION) if model and CHAMPION in model.aliases else None


def versions() -> list[dict[str, Any]]:
    """Registered versions, oldest first."""
    # A search leaves the aliases out; asked for by its alias, a version has them.
    present = champion()
    found = [present if present and present.version == known.version else known for known in _registered()]
    return sorted((described(version) for version in found), key=lambda version: version["version"])


def in_service() -> int | None:
    """Number of the champion's version."""
    present = champion()
    return int(present.version) if present else None


def learnt() -> str | None:
    """The newest month that any registered version was made with."""
    return max((version.tags.get("data.newest_month", "") for version in _registered()), default=None)


def promote() -> dict[str, Any]:
    """Register the best run of this commit and data; make it champion if it beats the present one."""
    client = MlflowClient()
    best = mlflow.get_run(runs()[0]["run_id"])
    version = next((known for known in _registered() if known.run_id == best.info.run_id), None) or _register(best)
    present = champion()
    if present and present.version == version.version:
        return described(present)
    challenger = rules.Contender(best.data.tags["data.newest_month"], best.data.metrics["rmse"])
    better, reason = rules.verdict(challenger, present and _contender(present, challenger.newest_month))
    client.set_model_version_tag(MODEL, version.version, "verdict", reason)
    if better:
        client.set_registered_model_alias(MODEL, CHAMPION, version.version)
    return described(client.get_model_version(MODEL, version.version))


def described(version: ModelVersion) -> dict[str, Any]:
    """A registered version as the commands print it."""
    return {
        "version": int(version.version),
        "champion": CHAMPION in version.aliases,
        "run_id": version.run_id,
        **version.tags,
    }


def _registered() -> list[ModelVersion]:
    return list(MlflowClient().search_model_versions(f"name = '{MODEL}'"))


def _register(run: Run) -> ModelVersion:
    tags = {key: run.data.tags[key] for key in KEPT if key in run.data.tags}
    tags |= {"model": run.data.params["model"], **{key: str(value) for key, value in run.data.metrics.items()}}
    return mlflow.register_model(f"models:/{run.outputs.model_outputs[0].model_id}", MODEL, tags=tags)


def _contender(present: ModelVersion, month: str) -> rules.Contender:
    """The champion on the newest month: as recorded where that was its own, else scored on the prepared data."""
    learnt_until = present.tags.get("data.newest_month", "")
    if learnt_until >= month:
        return rules.Contender(learnt_until, float(present.tags["rmse"]))
    from flights import prepare, scores  # with them come pandas and scikit-learn, which a look-up does without

    model = mlflow.pyfunc.load_model(f"models:/{MODEL}@{CHAMPION}")
    held_out = prepare.load()[month]
    if not set(model.metadata.get_input_schema().input_names()) <= set(held_out.columns):
        return rules.Contender(learnt_until, float("inf"))
    return rules.Contender(learnt_until, scores.score(model, held_out)["rmse"])


def _rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 4) for key, value in metrics.items()}
