"""Models that recorded an old MLflow, from 2.6 on, are served by their own environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from metalworks_model_runner import model
from metalworks_model_runner.inspection import InspectionError, inspect_model
from metalworks_model_runner.signature import describe
from mlflow.pyfunc import load_model
from mlflow.types import ColSpec, DataType, Schema

from tests.unit import inference_old_models as old
from tests.unit.inference_models import save
from tests.unit.inference_service import JSON, service

UV = Path(sys.executable).with_name("uv")
MINORS = [f"2.{minor}" for minor in range(6, 23)] + [f"3.{minor}" for minor in range(17)]
LIBRARIES = ["numpy<2", "pandas<2.3", "scikit-learn<1.6", "skl2onnx>=1.17", "onnx>=1.16", "setuptools<81", "flask"]
REQUEST = json.dumps({"dataframe_split": old.TABLE.to_dict("split")})


# -- Simulated: what later versions of MLflow added is not there


class Old:
    """An object without what later versions of MLflow gave it; MLflow's own functions still have that."""

    LATER = ("_is_signature_from_type_hint", "get_raw_model")

    def __init__(self, new: Any) -> None:
        self._new = new

    def __getattr__(self, name: str) -> Any:
        if name in self.LATER:
            raise AttributeError(name)
        return getattr(self._new, name)

    def load_input_example(self, path: str) -> Any:
        return self._new.load_input_example(path)


class OldModel(Old):
    @property
    def metadata(self) -> Any:
        return Old(self._new.metadata)


@pytest.fixture
def oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load models as MLflow 2.6 does."""
    monkeypatch.setattr(model, "load_model", lambda folder: OldModel(load_model(folder)))


def as_of_old(folder: Path) -> Path:
    """Record the example as MLflow did before 2.15."""
    request, about = folder / "serving_input_example.json", folder / "MLmodel"
    if "type: ndarray" in about.read_text():
        about.write_text(about.read_text().replace("type: ndarray", "type: ndarray\n  format: tf-serving"))
        request.replace(folder / "input_example.json")
    else:
        request.unlink()
    return folder


@pytest.mark.usefixtures("oldest")
@pytest.mark.parametrize("name", ["ridge", "tensor", "xgboost", "lightgbm"])
def test_old_mlflow_is_asked_only_for_what_it_offers(tmp_path: Path, name: str) -> None:
    facts = inspect_model(as_of_old(save(name, tmp_path / "model")), tmp_path / "evidence")
    assert facts["example_answer"]["predictions"]
    assert {name: each["ok"] for name, each in facts["executors"].items()} == {"native": True, "pyfunc": True}
    assert facts["onnx"]["candidates"], facts["onnx"]["reason"]


def test_optional_columns_of_old_mlflow_are_known() -> None:
    """Before 2.10, a column knew only whether it is optional."""
    columns = [SimpleNamespace(name=name, type=DataType.double, optional=name == "b") for name in "abc"]
    schema = SimpleNamespace(inputs=columns, is_tensor_spec=lambda: False, has_input_names=lambda: True)
    described = describe(schema)["columns"]
    assert [each["required"] for each in described] == [True, False, True]
    assert describe(Schema([ColSpec("double", "a", required=False)]))["columns"][0]["required"] is False


def test_example_of_old_mlflow_that_its_signature_refuses_is_left_out(tmp_path: Path) -> None:
    folder = as_of_old(save("ridge", tmp_path / "model"))
    example = next(folder.glob("input_example.json"))
    example.write_text(example.read_text().replace('"wind"', '"other"'))
    facts = inspect_model(folder, tmp_path / "evidence")
    assert facts["example"] is None
    assert facts["executors"]["native"]["ok"]


def test_model_of_old_mlflow_that_fails_on_its_example_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise ValueError("a library has changed")

    folder = as_of_old(save("ridge", tmp_path / "model"))
    monkeypatch.setattr("sklearn.linear_model.Ridge.predict", fails)
    with pytest.raises(InspectionError, match=r"it does not answer its own example: .*a library has changed"):
        inspect_model(folder, tmp_path / "evidence")


# -- Real


@pytest.mark.slow
@pytest.mark.parametrize("minor", MINORS)
def test_model_of_each_minor_version_is_served(tmp_path: Path, minor: str) -> None:
    python = _environment(tmp_path / "environment", minor)
    (tmp_path / "models").mkdir()
    subprocess.run([python, old.__file__, tmp_path / "models"], check=True)
    for name, executor in {"columns": "onnx", "tensor": "onnx", "python": "pyfunc"}.items():
        with service(tmp_path / name, tmp_path / "models" / name, python=python) as served:
            state = served.serves("1")
            assert state["executor"] == executor, state
            facts = json.loads(next(served.folder.glob("state/evidence/*/facts.json")).read_text())
            assert facts["mlflow"].startswith(f"{minor}.")
            assert facts["example_answer"] is not None
            body = json.dumps({"inputs": old.TABLE.to_numpy().tolist()}) if name == "tensor" else REQUEST
            for content_type in (JSON, f"{JSON}; charset=utf-8"):
                answer = served.post(content_type, body)
                assert (answer.status, len(answer.json["predictions"])) == (200, 3)
            if name != "tensor":  # by MLflow's own functions
                assert served.post("text/csv", old.TABLE.to_csv(index=False)).json == answer.json


def _environment(folder: Path, minor: str) -> Path:
    """Install a minor version of MLflow with what serving a model needs; return the interpreter."""
    python = folder / "bin" / "python"
    install = [UV, "pip", "install", "--quiet", "--python", python]
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    subprocess.run([*install, f"mlflow-skinny=={minor}.*", *LIBRARIES], check=True)
    # The other wheel of the same version has the missing files, and requirements that serving does not need.
    found = subprocess.run(
        [python, "-c", "from importlib.metadata import version; print(version('mlflow-skinny'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    subprocess.run([*install, "--no-deps", f"mlflow=={found.stdout.strip()}"], check=True)
    return python
