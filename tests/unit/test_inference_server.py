"""The inference server answers as `mlflow models serve` does, and as the model itself does."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import mlflow
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from mlflow.models import ModelSignature, infer_signature
from mlflow.pyfunc import scoring_server
from mlflow.types import ParamSchema, ParamSpec
from pydantic import ValidationError
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import Ridge

from metalworks.inference import Settings, create_app, from_environment
from metalworks.inference.scoring import ServedModel
from metalworks.models import ModelCard

CARD = ModelCard("delay", "3", "champion", "models:/m-1", 1, run_id="abc", git_commit="0123abc")
REQUIREMENTS = ["scikit-learn"]  # what is recorded plays no part here; inferring it would take seconds
FRAME = pd.DataFrame(
    {"distance": [187.0, 2475.5, 1065.25, 733.0], "wind": [0.1, 12.7, 3.3, 8.0], "hour": [5, 23, 11, 17]}
)
TARGET = pd.Series([-3.0, 41.5, 7.25, 12.0])


class Scaler(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        return (model_input["distance"] * (params or {})["factor"]).to_numpy()


def save_frame(path: Path) -> None:
    model = RandomForestRegressor(n_estimators=5, random_state=1).fit(FRAME, TARGET)
    mlflow.sklearn.save_model(
        model,
        path,
        signature=infer_signature(FRAME, TARGET),
        pip_requirements=REQUIREMENTS,
        skops_trusted_types=["sklearn.tree._tree.Tree"],
    )


def save_tensor(path: Path) -> None:
    rows = FRAME.to_numpy()
    model = Ridge().fit(rows, TARGET)
    mlflow.sklearn.save_model(
        model, path, signature=infer_signature(rows, model.predict(rows)), pip_requirements=REQUIREMENTS
    )


def save_unsigned(path: Path) -> None:
    mlflow.sklearn.save_model(Ridge().fit(FRAME, TARGET), path, pip_requirements=REQUIREMENTS)


def save_params(path: Path) -> None:
    inputs = infer_signature(FRAME).inputs
    params = ParamSchema([ParamSpec("factor", "double", 2.0)])
    mlflow.pyfunc.save_model(
        path,
        python_model=Scaler(),
        signature=ModelSignature(inputs=inputs, params=params),
        pip_requirements=REQUIREMENTS,
    )


SAVED = {"frame": save_frame, "tensor": save_tensor, "unsigned": save_unsigned, "params": save_params}


class Servers(NamedTuple):
    ours: TestClient
    theirs: TestClient
    version_dir: Path


@pytest.fixture(scope="module", params=SAVED)
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Serve one model twice: by our server, and by MLflow's own."""
    version_dir = tmp_path_factory.mktemp(request.param)
    SAVED[request.param](version_dir / "model")
    CARD.write(version_dir)
    theirs = TestClient(scoring_server.init(mlflow.pyfunc.load_model(str(version_dir / "model"))))
    with TestClient(create_app(Settings(service="delay", model_dir=version_dir))) as ours:
        yield Servers(ours, theirs, version_dir)


@pytest.fixture(scope="module")
def version_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save one model with a signature."""
    path = tmp_path_factory.mktemp("version")
    save_frame(path / "model")
    CARD.write(path)
    return path


JSON = "application/json"
RECORDS = FRAME.to_dict(orient="records")
SPLIT = FRAME.to_dict(orient="split")
ROWS = FRAME.to_numpy().tolist()
GOOD: dict[str, tuple[str, bytes | str]] = {
    "split": (JSON, json.dumps({"dataframe_split": SPLIT})),
    "split, reordered": (JSON, json.dumps({"dataframe_split": FRAME[["hour", "wind", "distance"]].to_dict("split")})),
    "split, one column more": (JSON, json.dumps({"dataframe_split": FRAME.assign(more=1).to_dict("split")})),
    "records": (JSON, json.dumps({"dataframe_records": RECORDS})),
    "records, with charset": (JSON + "; charset=utf-8", json.dumps({"dataframe_records": RECORDS})),
    "instances of records": (JSON, json.dumps({"instances": RECORDS})),
    "instances of rows": (JSON, json.dumps({"instances": ROWS})),
    "inputs by column": (JSON, json.dumps({"inputs": FRAME.to_dict(orient="list")})),
    "inputs of records": (JSON, json.dumps({"inputs": RECORDS})),
    "inputs of rows": (JSON, json.dumps({"inputs": ROWS})),
    "params": (JSON, json.dumps({"dataframe_split": SPLIT, "params": {"factor": 3.5}})),
    "csv": ("text/csv", FRAME.to_csv(index=False)),
    "csv, with charset": ("text/csv; charset=utf-8", FRAME.to_csv(index=False)),
}
BAD: dict[str, tuple[str, bytes | str]] = {
    "empty": (JSON, ""),
    "cut off": (JSON, '{"dataframe_split"'),
    "not UTF-8": (JSON, b"\xff\xfe{"),
    "list": (JSON, "[]"),
    "number": (JSON, "5"),
    "no known field": (JSON, '{"rows": []}'),
    "two fields": (JSON, '{"inputs": [], "instances": []}'),
    "split not a dictionary": (JSON, '{"dataframe_split": 5}'),
    "split without data": (JSON, '{"dataframe_split": {"columns": ["wind"]}}'),
    "split ragged": (JSON, '{"dataframe_split": {"columns": ["wind"], "data": [[1, 2], [3]]}}'),
    "records not a list": (JSON, '{"dataframe_records": {}}'),
    "no rows": (JSON, '{"dataframe_records": []}'),
    "column missing": (JSON, json.dumps({"dataframe_split": FRAME[["wind", "hour"]].to_dict("split")})),
    "wrong type": (JSON, json.dumps({"dataframe_split": FRAME.assign(hour="late").to_dict("split")})),
    "null integer": (JSON, json.dumps({"dataframe_records": [{**RECORDS[0], "hour": None}]})),
    "inputs null": (JSON, '{"inputs": null}'),
    "inputs too narrow": (JSON, '{"inputs": [[1.0]]}'),
    "csv empty": ("text/csv", ""),
    "csv not UTF-8": ("text/csv", b"\xff\xfe\xfd"),
    "csv column missing": ("text/csv", FRAME[["wind"]].to_csv(index=False)),
    "csv wrong type": ("text/csv", FRAME.assign(hour="late").to_csv(index=False)),
    "parquet that is none": ("application/vnd.apache.parquet", b"junk"),
    "unknown type": ("text/plain", "x"),
    "other charset": ("text/csv; charset=latin-1", "x"),
    "unknown parameter of the type": (JSON + "; version=1", "{}"),
}
DEPENDS_ON_MODEL: dict[str, tuple[str, bytes | str]] = {
    "fraction for an integer": (JSON, json.dumps({"dataframe_split": FRAME.assign(hour=0.5).to_dict("split")})),
    "null": (JSON, json.dumps({"dataframe_records": [{**RECORDS[0], "wind": None}]})),
    "params not a dictionary": (JSON, json.dumps({"dataframe_split": SPLIT, "params": 5})),
    "param of wrong type": (JSON, json.dumps({"dataframe_split": SPLIT, "params": {"factor": "x"}})),
    "unknown param": (JSON, json.dumps({"dataframe_split": SPLIT, "params": {"speed": 1}})),
}


def post(client: TestClient, content_type: str, body: bytes | str) -> httpx.Response:
    return client.post("/invocations", content=body, headers={"content-type": content_type})


@pytest.mark.parametrize("name", [*GOOD, *BAD, *DEPENDS_ON_MODEL])
def test_answers_as_mlflow_does(servers: Servers, name: str) -> None:
    request = (GOOD | BAD | DEPENDS_ON_MODEL)[name]
    ours, theirs = post(servers.ours, *request), post(servers.theirs, *request)
    assert (ours.status_code, ours.headers["content-type"]) == (theirs.status_code, theirs.headers["content-type"])
    assert ours.text == theirs.text


@pytest.fixture(scope="module")
def client(version_dir: Path) -> Iterator[TestClient]:
    settings = Settings(service="delay", model_dir=version_dir, requirements_sha256="f00", max_body_bytes=200_000)
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.mark.parametrize("name", sorted(GOOD.keys() - {"instances of rows", "inputs of rows"}))
def test_predictions_are_the_models_own(client: TestClient, version_dir: Path, name: str) -> None:
    model = mlflow.sklearn.load_model(str(version_dir / "model"))
    assert post(client, *GOOD[name]).json() == {"predictions": model.predict(FRAME).tolist()}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_answered_with_a_reason(client: TestClient, name: str) -> None:
    answer = post(client, *BAD[name])
    if answer.status_code == 400:
        assert answer.json()["error_code"] in {"BAD_REQUEST", "INVALID_PARAMETER_VALUE"}
        assert answer.json()["message"]
    else:
        assert (answer.status_code, bool(answer.text)) == (415, True)


def test_request_without_content_type_gets_a_reason(client: TestClient) -> None:
    answer = client.post("/invocations")
    assert (answer.status_code, "only supports the following content types" in answer.text) == (415, True)


def test_input_nested_too_deeply_is_bad_input(client: TestClient) -> None:
    answer = post(client, JSON, "[" * 150_000)
    assert (answer.status_code, answer.json()["message"]) == (400, "Invalid input. It is nested too deeply.")


def test_number_that_python_refuses_to_read_is_bad_input(client: TestClient) -> None:
    answer = post(client, JSON, '{"inputs": ' + "1" * 5000 + "}")
    assert (answer.status_code, answer.json()["error_code"]) == (400, "BAD_REQUEST")
    assert "4300 digits" in answer.json()["message"]


def test_long_body_is_refused(client: TestClient) -> None:
    answer = post(client, JSON, " " * 200_001)
    assert (answer.status_code, answer.json()["message"]) == (413, "The request body is longer than 200000 bytes")


def test_long_prediction_is_given_up(version_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    monkeypatch.setattr(ServedModel, "answer", lambda *_: done.wait(30))
    settings = Settings(service="delay", model_dir=version_dir, request_timeout=0.05)
    with TestClient(create_app(settings)) as client:
        answer = post(client, *GOOD["csv"])
        done.set()
    assert (answer.status_code, answer.json()["message"]) == (504, "Request processing time exceeded limit")


def test_version_says_what_is_served(client: TestClient) -> None:
    answer = client.get("/version").json()
    assert answer.pop("metalworks")
    assert answer == {
        "service": "delay",
        "model": "delay",
        "version": "3",
        "alias": "champion",
        "run_id": "abc",
        "git_commit": "0123abc",
        "requirements_sha256": "f00",
        "mlflow": mlflow.__version__,
    }


@pytest.mark.parametrize("path", ["/ping", "/health"])
def test_ping_answers_once_the_model_is_loaded(version_dir: Path, path: str) -> None:
    app = create_app(Settings(service="delay", model_dir=version_dir))
    assert TestClient(app).get(path).status_code == 503
    with TestClient(app) as client:
        assert client.get(path).status_code == 200


def test_nothing_is_answered_before_the_model_is_loaded(version_dir: Path) -> None:
    client = TestClient(create_app(Settings(service="delay", model_dir=version_dir)))
    assert client.get("/version").status_code == 503
    assert post(client, *GOOD["csv"]).status_code == 503


def test_model_that_does_not_load_ends_the_start(tmp_path: Path) -> None:
    CARD.write(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "MLmodel").write_text("flavors: {}\n")
    with pytest.raises(mlflow.MlflowException), TestClient(create_app(Settings(service="x", model_dir=tmp_path))):
        pass


def test_requests_at_the_same_time_get_their_own_answers(version_dir: Path) -> None:
    app = create_app(Settings(service="delay", model_dir=version_dir))
    model = mlflow.sklearn.load_model(str(version_dir / "model"))

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as http,
        ):
            return await asyncio.gather(
                *(http.post("/invocations", json={"dataframe_records": [RECORDS[i % 4]]}) for i in range(40))
            )

    expected = model.predict(FRAME).tolist()
    assert [answer.json()["predictions"] for answer in asyncio.run(ask())] == [[expected[i % 4]] for i in range(40)]


def test_settings_come_from_the_environment(version_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALWORKS_INFERENCE_SERVICE", "delay")
    with pytest.raises(ValidationError, match="model_dir"):
        from_environment()
    monkeypatch.setenv("METALWORKS_INFERENCE_MODEL_DIR", str(version_dir))
    monkeypatch.setenv("METALWORKS_INFERENCE_REQUEST_TIMEOUT", "1.5")
    assert from_environment().state.settings == Settings(service="delay", model_dir=version_dir, request_timeout=1.5)


def test_callers_show_a_token(version_dir: Path) -> None:
    digests = frozenset({hashlib.sha256(b"s3cret").hexdigest()})
    settings = Settings(service="delay", model_dir=version_dir, tokens_sha256=digests)
    with TestClient(create_app(settings)) as client:
        assert client.get("/ping").status_code == 200
        for path in ("/version", "/docs", "/openapi.json", "/ping/", "/nothing"):
            refused = client.get(path, follow_redirects=False)
            assert refused.status_code == 401, path
            assert refused.json()["error_code"] == "UNAUTHENTICATED"
        for header in ("Bearer wrong", "Basic s3cret", "s3cret", "Bearer", ""):
            assert client.get("/version", headers={"Authorization": header}).status_code == 401
        assert client.get("/version", headers={"Authorization": "bearer s3cret"}).status_code == 200
