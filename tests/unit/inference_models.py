"""Models for testing the inference server: every flavor, and every kind of signature."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import Array, Map, Object, Property
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, PolynomialFeatures, StandardScaler

from tests.unit.repository import ROOT, load

# The classes below do not exist where a model is loaded.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
REQUIREMENTS = ["scikit-learn"]  # the requirements do not matter here, and inferring them takes seconds
FRAME = pd.DataFrame(
    {"distance": [187.0, 2475.5, 1065.25, 733.0], "wind": [0.1, 12.7, 3.3, 8.0], "hour": [5.0, 23.0, 11.0, 17.0]}
)
WHOLE = FRAME.astype({"hour": "int64"})
TARGET = np.array([-3.0, 41.5, 7.25, 12.0])
LATE = np.array([0, 1, 0, 1])
TYPES = pd.DataFrame(
    {
        "boolean": [True, False, True],
        "integer": np.array([1, -2, 3], dtype=np.int32),
        "long": np.array([4, 5, -(2**40)], dtype=np.int64),
        "float": np.array([0.5, 1.25, -3.0], dtype=np.float32),
        "double": [0.1, -2.5, 1e10],
        "string": ["a", "ü", 'say "b"'],
    }
)


def random_rows(count: int = 300) -> pd.DataFrame:
    random = np.random.default_rng(7)
    return pd.DataFrame(random.uniform((50, 0, 0), (2600, 15, 23), (count, 3)), columns=FRAME.columns)


def target_of(frame: pd.DataFrame) -> np.ndarray:
    result: np.ndarray = (
        frame["distance"] / 100 + 3 * np.sin(frame["wind"]) - (frame["hour"] - 12) ** 2 / 9
    ).to_numpy()
    return result


class Answers(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Predicts the same numbers in one of MLflow's output types."""

    def __init__(self, form: str) -> None:
        self.form = form

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        sums = model_input["distance"] + model_input["hour"]
        return {
            "frame": lambda: pd.DataFrame({"sum": sums, "far": sums > 1000, "name": sums.map(str)}),
            "series": lambda: sums,
            "list": sums.tolist,
            "words": lambda: [f"{each:.1f}" for each in sums],
            "dict": lambda: {"sum": sums.to_numpy(), "half": sums.to_numpy() / 2},
            "nested": lambda: [{"sum": each, "of": [0.5, None]} for each in sums],
            "one": lambda: [float(len(sums))],
        }[self.form]()


class Scaler(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        return (model_input["distance"] * (params or {})["factor"]).to_numpy()


class Centred(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Its prediction for a row depends on the other rows of the batch."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        return (model_input["distance"] - model_input["distance"].mean()).to_numpy()


class Describes(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Returns its input: values and their types."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        return model_input.map(lambda value: f"{type(value).__name__} {value}").agg("|".join, axis=1).tolist()


class Counts(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Accepts any input."""

    def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        return [len(model_input)]


class Hinted(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    def predict(self, model_input: list[str]) -> list[str]:
        return [each.upper() for each in model_input]


def _sklearn(model: Any, frame: Any, path: Path, example: bool = True, **more: Any) -> None:
    function = getattr(model, more.get("pyfunc_predict_fn", "predict"))
    mlflow.sklearn.save_model(
        model,
        path,
        signature=infer_signature(frame, function(frame)),
        input_example=frame[:2] if example else None,
        pip_requirements=REQUIREMENTS,
        serialization_format="cloudpickle",
        **more,
    )


def _pyfunc(
    model: Any, frame: pd.DataFrame, path: Path, signature: ModelSignature | None = None, **options: Any
) -> None:
    mlflow.pyfunc.save_model(
        path,
        python_model=model,
        signature=signature or infer_signature(frame),
        pip_requirements=REQUIREMENTS,
        **options,
    )


def _ridge(path: Path) -> None:
    _sklearn(Ridge().fit(FRAME, TARGET), FRAME, path)


NAMES = FRAME.set_axis(['say "hi"', "a\\b", "two\nlines"], axis=1)


def _odd_names(path: Path) -> None:
    _sklearn(Ridge().fit(NAMES, TARGET), NAMES, path)


def _forest(path: Path) -> None:
    rows = random_rows()
    _sklearn(RandomForestRegressor(20, random_state=1, n_jobs=1).fit(rows, target_of(rows)), FRAME, path)


def _wider(path: Path) -> None:
    # The trees' columns are not the model's.
    rows = random_rows()
    trees = RandomForestRegressor(5, random_state=1, n_jobs=1)
    _sklearn(make_pipeline(PolynomialFeatures(2), trees).fit(rows, target_of(rows)), FRAME, path)


def _mixed(path: Path) -> None:
    rows = random_rows().astype({"hour": "int64"})
    _sklearn(RandomForestRegressor(5, random_state=1).fit(rows, target_of(rows)), WHOLE, path)


def _boosted(path: Path) -> None:
    rows = random_rows()
    # Native handling of missing values and categories, which converters do not support.
    model = HistGradientBoostingRegressor(max_iter=10, categorical_features=[2], random_state=1)
    rows["hour"] = rows["hour"].round()
    _sklearn(model.fit(rows, target_of(rows)), FRAME, path)


def _classes(path: Path) -> None:
    _sklearn(LogisticRegression().fit(FRAME, LATE), FRAME, path)


def _probabilities(path: Path) -> None:
    _sklearn(LogisticRegression().fit(FRAME, LATE), FRAME, path, pyfunc_predict_fn="predict_proba")


def _labels(path: Path) -> None:
    _sklearn(LogisticRegression().fit(FRAME, np.array(["früh", "late"])[LATE]), FRAME, path)


TEXT = pd.DataFrame({"origin": ["JFK", "EWR", "LGA", "JFK"], "distance": FRAME["distance"], "hour": WHOLE["hour"]})


def _text(path: Path) -> None:
    encode = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["origin"]), (StandardScaler(), ["distance", "hour"])
    )
    _sklearn(make_pipeline(encode, Ridge()).fit(TEXT, TARGET), TEXT, path)


GAPS = TEXT.assign(distance=[187.0, None, 1065.25, None], origin=["JFK", "EWR", "LGA", "nowhere"])
"""With nulls, and a category that the model was not trained with."""


def _gaps(path: Path) -> None:
    rows = pd.concat([TEXT, TEXT[:3], GAPS[:3]], ignore_index=True)
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    words = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=3, sparse_output=False)
    encode = make_column_transformer((numbers, ["distance", "hour"]), (words, ["origin"]))
    _sklearn(make_pipeline(encode, Ridge()).fit(rows, np.arange(len(rows)) ** 2), GAPS, path)


TENSOR = FRAME.to_numpy()


def _tensor(path: Path) -> None:
    _sklearn(Ridge().fit(TENSOR, TARGET), TENSOR, path)


def _unsigned(path: Path) -> None:
    mlflow.sklearn.save_model(Ridge().fit(FRAME, TARGET), path, pip_requirements=REQUIREMENTS)


def _without_example(path: Path) -> None:
    _sklearn(Ridge().fit(FRAME, TARGET), FRAME, path, example=False)


INTEGERS = pd.DataFrame({"a": np.array([1, 2, 3], dtype=np.int32), "b": np.array([9, 5, 4], dtype=np.int32)})


def _integers(path: Path) -> None:
    _sklearn(Ridge().fit(INTEGERS, TARGET[:3]), INTEGERS, path)


def _params(path: Path) -> None:
    signature = ModelSignature(infer_signature(FRAME).inputs, params=ParamSchema([ParamSpec("factor", "double", 2.0)]))
    _pyfunc(Scaler(), FRAME, path, signature)


def _optional(path: Path) -> None:
    columns = [ColSpec("double", "distance"), ColSpec("double", "wind", required=False), ColSpec("double", "hour")]
    _pyfunc(Answers("list"), FRAME, path, ModelSignature(Schema(columns)))


# Times as people write them: in the hours that summer time leaves out and repeats, with a zone, as a day alone.
TIMES = pd.DataFrame({"at": ["2026-03-29T02:30:00", "2026-10-25T02:30:00+02:00", "2026-01-01"], "n": [7, 2**53 + 1, 0]})


def _times(path: Path) -> None:
    columns = [ColSpec("datetime", "at"), ColSpec("long", "n", required=False)]
    _pyfunc(Describes(), TIMES, path, ModelSignature(Schema(columns)))


DEEP = pd.DataFrame(
    {
        "list": [[1.0, 2.5], [3.0], [0.0]],
        "object": [{"word": "x", "count": 3}, {"word": "ü"}, {"word": ""}],
        "map": [{"ü": 1}, {"a": 2}, {"a": 3}],
    }
)


def _deep(path: Path) -> None:
    properties = [Property("word", DataType.string), Property("count", DataType.long, required=False)]
    columns = [
        ColSpec(Array(DataType.double), "list"),
        ColSpec(Object(properties), "object"),
        ColSpec(Map(DataType.long), "map", required=False),
    ]
    _pyfunc(Describes(), DEEP, path, ModelSignature(Schema(columns)))


WIDE = np.array([[1, 2, 3], [4, 5, 6.5]], dtype=np.float32)


class Sums(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> Any:
        return model_input.sum(axis=1)


def _any_width(path: Path) -> None:
    signature = ModelSignature(Schema([TensorSpec(np.dtype("float32"), (-1, -1))]))
    mlflow.pyfunc.save_model(path, python_model=Sums(), signature=signature, pip_requirements=REQUIREMENTS)


def _hinted(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(path, python_model=Hinted(), pip_requirements=REQUIREMENTS)


def _counts(path: Path) -> None:
    mlflow.pyfunc.save_model(path, python_model=Counts(), pip_requirements=REQUIREMENTS)


def _answers(form: str) -> Callable[[Path], None]:
    return lambda path: _pyfunc(Answers(form), FRAME, path)


def _xgboost(path: Path) -> None:
    import xgboost

    rows = random_rows()
    model = xgboost.XGBRegressor(n_estimators=10, max_depth=3, n_jobs=1).fit(rows, target_of(rows))
    signature = infer_signature(FRAME, model.predict(FRAME))
    mlflow.xgboost.save_model(model, path, signature=signature, input_example=FRAME[:2], pip_requirements=["xgboost"])


def _booster(path: Path) -> None:
    import xgboost

    rows = random_rows()
    model = xgboost.train({"max_depth": 3, "nthread": 1}, xgboost.DMatrix(rows, target_of(rows)), 10)
    mlflow.xgboost.save_model(model, path, signature=infer_signature(FRAME), pip_requirements=["xgboost"])


def _lightgbm(path: Path) -> None:
    import lightgbm

    rows = random_rows()
    model = lightgbm.LGBMRegressor(n_estimators=10, n_jobs=1, verbose=-1).fit(rows, target_of(rows))
    signature = infer_signature(FRAME, model.predict(FRAME))
    mlflow.lightgbm.save_model(model, path, signature=signature, input_example=FRAME[:2], pip_requirements=["lightgbm"])


def _onnx(path: Path) -> None:
    import skl2onnx
    from skl2onnx.common.data_types import DoubleTensorType

    converted = skl2onnx.to_onnx(
        Ridge().fit(TENSOR, TARGET), initial_types=[("input", DoubleTensorType([None, 3]))], target_opset=17
    )
    signature = infer_signature(TENSOR)
    mlflow.onnx.save_model(converted, path, signature=signature, input_example=TENSOR[:2], pip_requirements=["onnx"])


def _torch(rows: Any, pickled: bool) -> Callable[[Path], None]:
    def to(path: Path) -> None:
        import torch

        torch.manual_seed(1)
        network = torch.nn.Sequential(
            torch.nn.Linear(3, 8), torch.nn.Dropout(0.5), torch.nn.ReLU(), torch.nn.Linear(8, 1)
        )
        signature = infer_signature(rows)
        mlflow.pytorch.save_model(
            network.eval(),
            path,
            signature=signature,
            input_example=rows[:2] if pickled else np.asarray(rows[:2], dtype="float32"),
            pip_requirements=["torch"],
            serialization_format="pickle" if pickled else "pt2",
        )

    return to


class Saved(NamedTuple):
    save: Callable[[Path], None]
    rows: pd.DataFrame | np.ndarray | list[str]
    """Its requests."""
    executors: str
    """The executors that pass the equivalence check, the preferred one first; and `mlflow`."""


MODELS: dict[str, Saved] = {
    "ridge": Saved(_ridge, FRAME, "onnx native pyfunc"),
    "ridge without example": Saved(_without_example, FRAME, "onnx native pyfunc"),
    "odd names": Saved(_odd_names, NAMES, "onnx native pyfunc"),
    "forest": Saved(_forest, FRAME, "onnx native pyfunc"),
    "forest of more columns": Saved(_wider, FRAME, "onnx native pyfunc"),
    "forest of mixed columns": Saved(_mixed, WHOLE, "native pyfunc"),
    "boosted": Saved(_boosted, FRAME, "native pyfunc"),
    "classes": Saved(_classes, FRAME, "onnx native pyfunc"),
    "probabilities": Saved(_probabilities, FRAME, "onnx native pyfunc"),
    "text labels": Saved(_labels, FRAME, "onnx native pyfunc"),
    "text columns": Saved(_text, TEXT, "onnx native pyfunc"),
    "gaps": Saved(_gaps, GAPS, "onnx native pyfunc"),
    "tensor": Saved(_tensor, TENSOR, "onnx native pyfunc"),
    "integers": Saved(_integers, INTEGERS, "onnx native pyfunc"),
    "unsigned": Saved(_unsigned, FRAME, ""),
    "counts": Saved(_counts, FRAME, ""),
    "params": Saved(_params, FRAME, "pyfunc"),
    "optional column": Saved(_optional, FRAME, "pyfunc"),
    "type hints": Saved(_hinted, ["a", "ß"], ""),
    "all types": Saved(lambda path: _pyfunc(Describes(), TYPES, path), TYPES, "pyfunc"),
    "answers a frame": Saved(_answers("frame"), FRAME, "pyfunc"),
    "answers a series": Saved(_answers("series"), FRAME, "pyfunc"),
    "answers a list": Saved(_answers("list"), FRAME, "pyfunc"),
    "answers words": Saved(_answers("words"), FRAME, "pyfunc"),
    "answers a dict": Saved(_answers("dict"), FRAME, "pyfunc"),
    "answers objects": Saved(_answers("nested"), FRAME, ""),
    "answers one number": Saved(_answers("one"), FRAME, ""),
    "times": Saved(_times, TIMES, ""),
    "lists, objects and maps": Saved(_deep, DEEP, ""),
    "tensor of any width": Saved(_any_width, WIDE, ""),
    "rows that depend": Saved(lambda path: _pyfunc(Centred(), FRAME, path), FRAME, ""),
    "xgboost": Saved(_xgboost, FRAME, "onnx native pyfunc"),
    "xgboost booster": Saved(_booster, FRAME, "onnx native pyfunc"),
    "lightgbm": Saved(_lightgbm, FRAME, "native pyfunc"),
    "onnx": Saved(_onnx, TENSOR, "onnx pyfunc"),
}


NUMBERS = (FRAME / 1000).astype("float32")
TORCH: dict[str, Saved] = {
    "torch, tensor": Saved(_torch(NUMBERS.to_numpy(), True), NUMBERS.to_numpy(), "native pyfunc"),
    "torch, traced": Saved(_torch(NUMBERS.to_numpy(), False), NUMBERS.to_numpy(), "native pyfunc"),
    "torch, columns": Saved(_torch(NUMBERS, True), NUMBERS, "native pyfunc"),
    "torch, double columns": Saved(_torch(FRAME / 1000, True), FRAME / 1000, "native pyfunc"),
}
"""Models whose library is in a separate environment: see `make test-flavours`."""


def save(name: str, path: Path) -> Path:
    """Save a model; return its folder."""
    (MODELS | TORCH)[name].save(path)
    return path


def save_constant(path: Path, value: float, metadata: dict[str, Any] | None = None) -> None:
    """Save a model that quickly predicts one number."""
    model = Ridge(fit_intercept=True).fit(FRAME, np.full(len(FRAME), value))
    _sklearn(model, FRAME, path, metadata=metadata)


class Odd(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Behaves as its name says."""

    def __init__(self, what: str) -> None:
        self.what = what

    def load_context(self, context: Any) -> None:
        import os
        import random
        import signal
        import time

        if self.what == "drawn":
            self.number = random.random()
        if self.what == "hangs":
            time.sleep(600)
        if self.what == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "kills":
            os.kill(os.getppid(), signal.SIGKILL)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        import random
        import time

        if self.what == "slow":
            first = model_input.iloc[0].tolist()
            if first[0] == -1:
                raise SystemExit("not an exception that MLflow catches")
            if first[0] == -2:
                raise ValueError("as models fail")
            seconds = first[1] if first[0] == 1 else 1.0 if 1 < len(model_input) < 40 else 0.02
            time.sleep(seconds)
        if self.what == "fails":
            raise ValueError("not today")
        number = {"random": random.random(), "drawn": getattr(self, "number", 0.0)}.get(self.what, 9.0)
        return [number] * len(model_input)


def save_odd(path: Path, what: str) -> None:
    """Save a model that is slow, hangs, fails, dies, or predicts at random, each time or once per process."""
    _pyfunc(Odd(what), FRAME, path)
    if what != "slow":
        (path / "serving_input_example.json").write_text(json.dumps({"dataframe_split": FRAME[:2].to_dict("split")}))


SPY = "molecule/cluster/files/spy.py"
spy = sys.modules["spy"] = load(SPY)
"""The module name by which the model's file finds its class, in the folder that is saved with it."""


def save_spy(path: Path) -> None:
    """Save a model that tries to access what it must not."""
    _pyfunc(spy.Spy(), FRAME, path, code_paths=[str(ROOT / SPY)])
