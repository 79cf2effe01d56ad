"""The inference server answers as its own schema says, whatever it is sent, and only to those with a token."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import mlflow
import pandas as pd
import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from mlflow.models import infer_signature
from schemathesis.checks import ignored_auth, negative_data_rejection
from schemathesis.config import SchemathesisConfig
from sklearn.linear_model import Ridge

from metalworks.inference import Settings, create_app
from metalworks.inference.scoring import ServedModel
from metalworks.models import ModelCard

TOKEN = "s3cret"
ASKS = {"Authorization": f"Bearer {TOKEN}"}
TOKENS = frozenset({hashlib.sha256(TOKEN.encode()).hexdigest()})
CARD = ModelCard("delay", "3", "champion", "models:/m-1", 1, run_id="abc", git_commit="0123abc")
FRAME = pd.DataFrame({"distance": [187.0, 2475.5, 1065.25], "hour": [5.0, 23.0, 11.0]})
SERVERS: dict[str, FastAPI] = {}
"""A server of a model that takes whatever the schema allows, and of one that wants its own columns."""


class Count(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        return [len(model_input)]


@pytest.fixture(scope="module", autouse=True)
def version_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Save and serve both models."""
    paths = {kind: tmp_path_factory.mktemp(kind) for kind in ("any", "frame")}
    requirements = ["scikit-learn"]  # what is recorded plays no part here; inferring it would take seconds
    mlflow.pyfunc.save_model(paths["any"] / "model", python_model=Count(), pip_requirements=requirements)
    model = Ridge().fit(FRAME, [-3.0, 41.5, 7.25])
    signature = infer_signature(FRAME, model.predict(FRAME))
    mlflow.sklearn.save_model(model, paths["frame"] / "model", signature=signature, pip_requirements=requirements)
    for kind, path in paths.items():
        CARD.write(path)
        SERVERS[kind] = create_app(settings(path))
    return paths


@schemathesis.serializer("application/vnd.apache.parquet")
def parquet(context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


def settings(version_dir: Path, **others: Any) -> Settings:
    return Settings(service="delay", model_dir=version_dir, tokens_sha256=TOKENS, **others)


def api(kind: str) -> Any:
    """Return the schema, which is needed when tests are collected; the model is loaded when the first one asks."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await SERVERS[kind](scope, receive, send)

    config = {
        "generation": {"deterministic": True, "max-examples": 50, "database": "none"},
        # The model has a say, too: one refuses what the schema allows, the other takes what it does not.
        "checks": {
            "positive_data_acceptance": {"expected-statuses": ["2xx", 400]},
            "negative_data_rejection": {"enabled": kind == "frame"},
        },
    }
    described = create_app(settings(Path("none"))).openapi()
    schema = schemathesis.openapi.from_dict(described, config=SchemathesisConfig.from_dict(config))
    schema.app = app
    return schema


SCHEMA = api("any")


@schemathesis.pytest.parametrize(any=SCHEMA, frame=api("frame"))
def test_answers_as_the_schema_says(case: Any) -> None:
    """No error of the server, statuses, types and bodies as documented, 405 for other methods, 401 for strangers."""
    # To a parser of CSV, every text is some table.
    excluded = [negative_data_rejection] if case.media_type == "text/csv" else []
    case.call_and_validate(headers=ASKS, excluded_checks=excluded)


@pytest.mark.parametrize(
    ("path", "method", "sent"),
    [("/version", "GET", {}), ("/invocations", "POST", {"body": {"inputs": [1]}, "media_type": "application/json"})],
)
def test_what_is_answered_to_a_token_is_refused_without(path: str, method: str, sent: dict[str, Any]) -> None:
    # The check above says nothing about an operation that never answered 200.
    case = SCHEMA[path][method].Case(**sent)
    assert case.call_and_validate(headers=ASKS, checks=[ignored_auth]).status_code == 200


def conforms(answer: httpx.Response, path: str, method: str) -> bool:
    operation = SCHEMA[path][method]
    documented = operation.definition.raw["responses"][str(answer.status_code)]["content"]
    operation.validate_response(answer)
    return answer.headers["content-type"].partition(";")[0] in documented


def test_refusals_that_nothing_generated_asks_for_are_as_documented(
    version_dirs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    body, ask = json.dumps({"inputs": [1]}), {**ASKS, "Content-Type": "application/json"}
    client = TestClient(create_app(settings(version_dirs["any"], max_body_bytes=100, request_timeout=0.05)))
    for path, method in (("/ping", "GET"), ("/version", "GET"), ("/invocations", "POST")):
        early = client.request(method, path, headers=ask)
        assert early.status_code == 503
        assert early.json()["error_code"] == "TEMPORARILY_UNAVAILABLE"
        assert conforms(early, path, method)
    done = threading.Event()
    with client:
        answers = [
            client.post("/invocations", headers=ASKS | {"Content-Type": "text/plain"}),
            client.post("/invocations", headers=ask, content=" " * 101),
            client.post("/invocations", content=body),
        ]
        monkeypatch.setattr(ServedModel, "answer", lambda *_: done.wait(30))
        answers.append(client.post("/invocations", headers=ask, content=body))
        done.set()
    assert [answer.status_code for answer in answers] == [415, 413, 401, 504]
    assert all(conforms(answer, "/invocations", "POST") for answer in answers)


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("GET", "/invocations", 405)])
def test_what_is_no_operation_is_refused_in_the_form_of_all_errors(method: str, path: str, status: int) -> None:
    answer = TestClient(SERVERS["any"]).request(method, path, headers=ASKS)
    assert answer.status_code == status
    assert set(answer.json()) == {"error_code", "message"}


@pytest.mark.parametrize("prefix", ["", "/delay"])
def test_the_schema_leads_to_the_service_behind_a_gateway_too(prefix: str) -> None:
    """A gateway takes its prefix off the path; the schema's server is relative to where the schema was found."""

    async def gateway(scope: Any, receive: Any, send: Any) -> None:
        assert scope["path"].startswith(prefix)
        await SERVERS["any"](scope | {"path": scope["path"].removeprefix(prefix)}, receive, send)

    with TestClient(SERVERS["any"]):
        client = TestClient(gateway, base_url="https://inference.example")
        where = f"https://inference.example{prefix}/openapi.json"
        assert client.get(where).status_code == 401
        described = client.get(where, headers=ASKS).json()
        (server,) = described["servers"]
        for path in described["paths"]:
            url = urljoin(where, server["url"]).rstrip("/") + path
            assert url == f"https://inference.example{prefix}{path}"
            answer = client.get(url, headers=ASKS)
            assert answer.status_code == (405 if path == "/invocations" else 200)
        # No redirect, which would lead past the prefix, and no pages that load programs from elsewhere.
        for path in ("/version/", "/docs", "/redoc"):
            assert client.get(prefix + path, headers=ASKS, follow_redirects=False).status_code == 404


def test_without_tokens_the_schema_asks_for_none(version_dirs: dict[str, Path]) -> None:
    described = create_app(Settings(service="delay", model_dir=version_dirs["any"])).openapi()
    assert "securitySchemes" not in described["components"]
    assert "401" not in json.dumps(described)
    closed = SCHEMA.raw_schema["paths"]
    assert [path for path in closed for operation in closed[path].values() if "security" not in operation] == ["/ping"]
