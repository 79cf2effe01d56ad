"""The candidate models: each is a pipeline from the columns of a prepared month to minutes of delay.

The same data and seed give the same model to the last digit: columns are dense, so that linear models are solved
exactly and not iteratively, and trees sum in a fixed order.
"""

from __future__ import annotations

from typing import Any

from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from flights.features import CATEGORIES, NUMBERS

# Types in the files of these models that skops does not trust by default.
TRUSTED = [
    "functools.partial",
    "numpy.dtype",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
    "sklearn.utils.validation.check_array",
]


def carrier_mean() -> Pipeline:
    """Baseline: the mean delay of the flight's carrier."""
    return make_pipeline(
        make_column_transformer((OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["carrier"])),
        LinearRegression(),
    )


def ridge(**options: Any) -> Pipeline:
    """Linear model on scaled numbers and one column per carrier, origin and (frequent) destination."""
    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), NUMBERS),
        (OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=50, sparse_output=False), CATEGORIES),
    )
    return make_pipeline(columns, Ridge(**options))


def forest(**options: Any) -> Pipeline:
    """Random forest; trees handle missing numbers."""
    return make_pipeline(_codes(), RandomForestRegressor(**options))


def boosting(**options: Any) -> Pipeline:
    """Gradient boosting that splits on sets of categories."""
    return make_pipeline(
        _codes(), HistGradientBoostingRegressor(categorical_features=list(range(len(CATEGORIES))), **options)
    )


def build(name: str, options: dict[str, Any], seed: int) -> Pipeline:
    """Return the untrained model with this name in params.yaml."""
    seeded = {"random_state": seed} if name in {"forest", "boosting"} else {}
    return {"carrier_mean": carrier_mean, "ridge": ridge, "forest": forest, "boosting": boosting}[name](
        **options, **seeded
    )


def _codes() -> ColumnTransformer:
    return make_column_transformer(
        (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), CATEGORIES),
        ("passthrough", NUMBERS),
    )
