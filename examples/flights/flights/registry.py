"""This project in MLflow: runs, registered versions, and the champion."""

from __future__ import annotations

import os
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from flights import rules
from flights import versions as made_with
from flights.errors import FlightsError

EXPERIMENT = "flight-delay"
MODEL = "flight-delay"
CHAMPION = "champion"
# Set by `metalworks reproduce`; the platform's plugin turns it into a tag. Such a run is only for comparison.
REPRODUCTION = "METALWORKS_REPRODUCES"
REPRODUCES = "metalworks.reproduces"
COMMIT = "mlflow.source.git.commit"
# Tags that a version copies from its run, so that the registry shows them: tag of the run → tag of the version.
KEPT = {
    COMMIT: COMMIT,
    made_with.DATA_TAG: made_with.DATA_TAG,
    "data.months": "data.months",
    "data.newest_month": "data.newest_month",
    "prepared_on": "prepared_on",
    "metalworks.host": "trained_on",
}


def runs() -> list[dict[str, Any]]:
    """Return finished runs with this commit and data, best first, without reproductions and uncommitted code."""
    found = mlflow.search_runs(
        experiment_names=[EXPERIMENT],
        filter_string=f"tags.`{COMMIT}` = '{made_with.commit()}' and attributes.status = 'FINISHED'",
        order_by=["metrics.rmse ASC"],
        output_format="list",
    )
    return [
        {"name": run.data.params["model"], "run_id": run.info.run_id, **_rounded(run.data.metrics)}
        for run in found
        if of_this_state(run.data.tags, made_with.data())
    ]


def of_this_state(tags: dict[str, str], data: str | None) -> bool:
    """Tell whether a run of this commit used this data and a clean tree, and is not a reproduction."""
    return made_with.data_of(tags) == data and tags.get("git.dirty") != "true" and REPRODUCES not in tags


def champion() -> ModelVersion | None:
    """Return the champion's version, if there is one."""
    model = next(iter(MlflowClient().search_registered_models(f"name = '{MODEL}'")), None)
    return MlflowClient().get_model_version_by_alias(MODEL, CHAMPION) if model and CHAMPION in model.aliases else None


def versions() -> list[dict[str, Any]]:
    """Return the registered versions, oldest first."""
    # Search results have no aliases; a version fetched by its alias has them.
    present = champion()
    found = [present if present and present.version == known.version else known for known in _registered()]
    return sorted((described(version) for version in found), key=lambda version: version["version"])


def in_service() -> int | None:
    """Return the number of the champion's version."""
    present = champion()
    return int(present.version) if present else None


def learnt() -> str | None:
    """Return the newest month that any registered version was trained with."""
    return max((version.tags.get("data.newest_month", "") for version in _registered()), default=None)


def promote() -> dict[str, Any]:
    """Register the best run of this commit and data; make it champion if it beats the present one.

    Champion and challenger are evaluated on the same flights, those of the newest month. The version has the result:
    the reason in its tag `verdict`, the rest on its model card.
    """
    if REPRODUCTION in os.environ:
        raise FlightsError("A reproduction is only for comparison and registers nothing: unset METALWORKS_REPRODUCES.")
    from flights import card, evaluate, scores  # slow: they import pandas and scikit-learn

    client = MlflowClient()
    best = mlflow.get_run(runs()[0]["run_id"])
    version = next((known for known in _registered() if known.run_id == best.info.run_id), None) or _register(best)
    present = champion()
    if present and (present.version == version.version or "verdict" in version.tags):
        return described(client.get_model_version(MODEL, version.version))
    month = best.data.tags["data.newest_month"]
    answers = evaluate.answers(version, present, month)
    challenger = rules.Contender(month, scores.rmse(answers.table["challenger"]))
    better, reason = rules.verdict(challenger, answers.contender)
    outcome = {
        "month": month,
        "rmse": challenger.rmse,
        "champion": int(present.version) if present else None,
        "champion_rmse": answers.contender.rmse if answers.contender else None,
        "promoted": better,
        "verdict": reason,
    }
    page = card.page(
        described(version), outcome, best, answers.table, [*history(), _point(described(version), outcome)]
    )
    client.log_text(best.info.run_id, page, card.PATH)
    client.update_model_version(MODEL, version.version, card.summary(described(version), outcome, best))
    if better:
        client.set_registered_model_alias(MODEL, CHAMPION, version.version)
    # The verdict last: a version that has one is done.
    for key, value in {"card": card.PATH, **_tags(outcome), "verdict": reason}.items():
        client.set_model_version_tag(MODEL, version.version, key, value)
    return described(client.get_model_version(MODEL, version.version))


def history() -> list[dict[str, Any]]:
    """Return the decision about each version, oldest first."""
    return [_point(version, _outcome(version)) for version in versions() if "verdict" in version]


def described(version: ModelVersion) -> dict[str, Any]:
    """Return a registered version as the commands print it."""
    return {
        "version": int(version.version),
        "champion": CHAMPION in version.aliases,
        "run_id": version.run_id,
        **version.tags,
    }


def _registered() -> list[ModelVersion]:
    return list(MlflowClient().search_model_versions(f"name = '{MODEL}'"))


def _register(run: Run) -> ModelVersion:
    tags = {kept: run.data.tags[key] for key, kept in KEPT.items() if key in run.data.tags}
    tags |= {"model": run.data.params["model"], **{key: str(value) for key, value in run.data.metrics.items()}}
    return mlflow.register_model(f"models:/{run.outputs.model_outputs[0].model_id}", MODEL, tags=tags)


def _tags(outcome: dict[str, Any]) -> dict[str, str]:
    """Return the tags that `history` reads later."""
    found = {
        "promoted": str(outcome["promoted"]).lower(),
        "against": str(outcome["champion"] or ""),
        "against_rmse": "" if outcome["champion_rmse"] is None else str(outcome["champion_rmse"]),
    }
    return {key: value for key, value in found.items() if value}


def _outcome(version: dict[str, Any]) -> dict[str, Any]:
    return {
        "month": version["data.newest_month"],
        "rmse": float(version["rmse"]),
        "champion": int(version["against"]) if "against" in version else None,
        "champion_rmse": float(version["against_rmse"]) if "against_rmse" in version else None,
        "promoted": version.get("promoted") == "true",
        "verdict": version["verdict"],
    }


def _point(version: dict[str, Any], outcome: dict[str, Any]) -> dict[str, Any]:
    return {"version": version["version"], "model": version["model"], **outcome}


def _rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 4) for key, value in metrics.items()}
