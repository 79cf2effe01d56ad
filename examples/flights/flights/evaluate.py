"""Evaluate champion and challenger on the same flights: those of the newest month."""

from __future__ import annotations

from dataclasses import dataclass

import mlflow
import pandas as pd
from mlflow.entities.model_registry import ModelVersion

from flights import prepare, rules, scores
from flights.features import FEATURES, TARGET


@dataclass(frozen=True)
class Answers:
    """Input for the rules and the model card."""

    # The champion as the rules see it; None if there is none.
    contender: rules.Contender | None
    # One row per flight: hour, carrier, and the error in minutes of `challenger` and, if possible, `champion`.
    table: pd.DataFrame


def answers(version: ModelVersion, present: ModelVersion | None, month: str) -> Answers:
    """Evaluate the version, and the champion if there is one."""
    held_out = prepare.load()[month]
    table = pd.DataFrame({"hour": held_out["departure_hour"].astype(int), "carrier": held_out["carrier"]})
    table["challenger"] = _errors(_model(version), held_out)
    if present is None:
        return Answers(None, table)
    learnt_until = present.tags.get("data.newest_month", "")
    if learnt_until > month:  # it was trained on these flights, so the comparison would mean nothing
        return Answers(rules.Contender(learnt_until, float(present.tags["rmse"])), table)
    champion = _model(present)
    if not set(champion.metadata.get_input_schema().input_names()) <= set(held_out.columns):
        return Answers(rules.Contender(learnt_until, float("inf")), table)
    table["champion"] = _errors(champion, held_out)
    return Answers(rules.Contender(learnt_until, scores.rmse(table["champion"])), table)


def _model(version: ModelVersion) -> mlflow.pyfunc.PyFuncModel:
    return mlflow.pyfunc.load_model(f"models:/{version.name}/{version.version}")


def _errors(model: mlflow.pyfunc.PyFuncModel, held_out: pd.DataFrame) -> pd.Series:
    return pd.Series(model.predict(held_out[FEATURES]), index=held_out.index) - held_out[TARGET]
