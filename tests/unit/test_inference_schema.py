"""The inference server responds to any request as its own schema says, and only to clients with a token."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urljoin

import httpx
import mlflow
import numpy as np
import pytest
import schemathesis
from fastapi.testclient import TestClient
from metalworks_model_runner.inspection import inspect_model
from metalworks_model_runner.model import Model
from schemathesis.checks import ignored_auth, negative_data_rejection
from schemathesis.config import SchemathesisConfig

from metalworks.serving.http import schema
from metalworks.serving.http.app import create_api, create_app
from metalworks.serving.predict.batching import QueueFullError
from metalworks.serving.predict.data_plane import DataPlane
from metalworks.serving.predict.variants import Route
from metalworks.serving.settings import Settings
from metalworks.serving.telemetry.metrics import Stats
from tests.unit.inference_models import FRAME, save
from tests.unit.inference_service import DIGEST, JSON, TOKEN, Service, assembled, service

ASKS = {"Authorization": f"Bearer {TOKEN}"}
KINDS = ("frame", "any")
"""A model with its own columns, and one that accepts anything that MLflow can parse."""
FACTS = {"columns": None, "tensor": None, "example": None, "example_answer": None}
# The schema gives the types to send; MLflow also converts true to a number, and fractions to integers.
SERVICES: dict[str, Service] = {}


@pytest.fixture(scope="module", autouse=True)
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Save and serve both models."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("MLFLOW_UV_AUTO_DETECT", "false")
        folder = tmp_path_factory.mktemp("models")
        save("counts", folder / "any")
        save("ridge", folder / "frame")
        for kind in KINDS:
            settings = {"tokens_sha256": json.dumps([DIGEST]), "max_body_bytes": 200_000}
            SERVICES[kind] = stack.enter_context(service(folder / f"{kind} served", folder / kind, **settings))
        for each in SERVICES.values():
            each.serves("1")
        yield


@schemathesis.serializer("application/vnd.apache.parquet")
def parquet(context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


def described(*tokens: str) -> dict[str, Any]:
    settings = Settings(service="model", desired=Path(), runtime=Path(), state=Path(), tokens_sha256=frozenset(tokens))
    route: Any = Route()
    card = {"name": "delay", "version": "7"}
    route.champion = SimpleNamespace(version=SimpleNamespace(facts=FACTS, card=card, verdict={}))
    said: dict[str, Any] = create_api(DataPlane(settings, route, Stats()), lambda: None).openapi()
    return said


def api(kind: str) -> Any:
    """Return the schema, which is needed at collection; the model is started for the first test."""
    config = {
        "generation": {"deterministic": True, "max-examples": 30, "database": "none"},
        # The model decides, too: one refuses requests that the schema allows, the other accepts more.
        "checks": {
            "positive_data_acceptance": {"expected-statuses": ["2xx", 400, 404]},
            "negative_data_rejection": {"enabled": kind == "frame"},
        },
    }
    return schemathesis.openapi.from_dict(described(DIGEST), config=SchemathesisConfig.from_dict(config))


SCHEMA = api("frame")


def url(kind: str) -> str:
    return f"http://127.0.0.1:{SERVICES[kind].port}"


def test_schema_is_what_the_service_says() -> None:
    with httpx.Client(base_url=url("frame"), headers=ASKS) as client:
        said = client.get("/openapi.json").json()
    assert said["paths"].keys() == SCHEMA.raw_schema["paths"].keys()
    payload = said["paths"]["/invocations"]["post"]["requestBody"]["content"][JSON]
    records = payload["schema"]["properties"]["dataframe_records"]
    assert records["items"]["properties"] == {name: {"type": "number"} for name in FRAME.columns}
    assert payload["example"]["dataframe_split"]["data"] == FRAME[:2].to_numpy().tolist()
    answer = said["paths"]["/invocations"]["post"]["responses"]["200"]["content"][JSON]["example"]
    assert len(answer["predictions"]) == 2


def validate(kind: str, case: Any) -> None:
    # Any text is a valid table to a CSV parser.
    excluded = [negative_data_rejection] if case.media_type == "text/csv" else []
    case.call_and_validate(base_url=url(kind), headers=ASKS, excluded_checks=excluded)


@schemathesis.pytest.parametrize(frame=SCHEMA, any=api("any"))
def test_answers_as_the_schema_says(case: Any, request: pytest.FixtureRequest) -> None:
    """No server errors; statuses, types and bodies as documented; 405 for other methods; 401 without a token."""
    validate("any" if "any" in request.node.name else "frame", case)


@pytest.mark.parametrize(
    ("path", "method", "sent"),
    [
        ("/version", "GET", {}),
        ("/metrics", "GET", {}),
        ("/v2", "GET", {}),
        ("/v2/models/{model}", "GET", {"path_parameters": {"model": "model"}}),
        (
            "/invocations",
            "POST",
            {"body": {"dataframe_records": FRAME.to_dict("records")}, "media_type": "application/json"},
        ),
    ],
)
def test_what_is_answered_to_a_token_is_refused_without(path: str, method: str, sent: dict[str, Any]) -> None:
    # The check above does not notice an operation that never returned 200.
    case = SCHEMA[path][method].Case(**sent)
    answer = case.call_and_validate(base_url=url("frame"), headers=ASKS, checks=[ignored_auth])
    assert answer.status_code == 200


def conforms(answer: httpx.Response, path: str, method: str) -> bool:
    operation = SCHEMA[path][method]
    documented = operation.definition.raw["responses"][str(answer.status_code)]["content"]
    operation.validate_response(answer)
    return answer.headers["content-type"].partition(";")[0] in documented


def test_refusals_that_nothing_generated_asks_for_are_as_documented() -> None:
    infer = "/v2/models/{model}/infer"
    ask = {**ASKS, "Content-Type": "application/json"}
    with httpx.Client(base_url=url("frame")) as client:
        answers = [
            client.post("/invocations", headers=ASKS | {"Content-Type": "text/plain"}),
            client.post("/invocations", headers=ask, content=" " * 200_001),
            client.post("/invocations", content=b"{}"),
        ]
        assert [answer.status_code for answer in answers] == [415, 413, 401]
        assert all(conforms(answer, "/invocations", "POST") for answer in answers)
        answers = [
            client.post("/v2/models/model/infer", headers=ask, content=" " * 200_001),
            client.post("/v2/models/other/infer", headers=ask, content=b'{"inputs": []}'),
            client.post("/v2/models/model/infer", headers=ask, content=b'{"inputs": []}'),
            client.post("/v2/models/model/infer", headers=ask, content=b"{}"),
            client.post("/v2/models/model/infer", headers=ask, content=b"[" * 150_000),
        ]
        assert [answer.status_code for answer in answers] == [413, 404, 400, 400, 413]
        assert all(conforms(answer, infer, "POST") for answer in answers)
        assert all(answer.json()["error"] == answer.json()["message"] for answer in answers[1:])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/invocations", 405), ("DELETE", "/version", 405), ("GET", "/version/", 404),
     ("GET", "/redoc", 404), ("GET", "/docs/files/nothing", 404), ("GET", "/docs/files/..%2f..%2fx", 404)],
)  # fmt: skip
def test_what_is_no_operation_is_refused_in_the_form_of_all_errors(method: str, path: str, status: int) -> None:
    answer = httpx.request(method, url("any") + path, headers=ASKS)
    assert answer.status_code == status
    assert {"error_code", "message"} == set(answer.json())
    if status == 405:
        assert answer.headers["allow"]


def test_schema_of_a_model_whose_example_has_gaps_is_json() -> None:
    split = {"columns": ["late", "carrier"], "data": [[math.nan, "UA"], [3.5, None]]}
    facts = {"columns": None, "tensor": None, "example": {"dataframe_split": split}}
    facts["example_answer"] = {"predictions": [{"least": -math.inf, "most": 2.0}]}
    said = schema.invocations(SimpleNamespace(facts=facts))  # type: ignore[arg-type]
    payload = json.loads(json.dumps(said, allow_nan=False))["requestBody"]["content"][JSON]
    assert payload["example"]["dataframe_split"]["data"] == [[None, "UA"], [3.5, None]]


def test_without_tokens_the_schema_asks_for_none() -> None:
    said = described()
    assert "securitySchemes" not in said["components"]
    assert "401" not in json.dumps(said)
    closed = SCHEMA.raw_schema["paths"]
    assert [path for path in closed for operation in closed[path].values() if "security" not in operation] == [
        "/ping",
        "/v2/health/live",
        "/v2/health/ready",
    ]


def test_callers_show_a_token() -> None:
    with httpx.Client(base_url=url("any")) as client:
        for path in ("/ping", "/health", "/docs", "/v2/health/ready", "/v2/health/live"):
            assert client.get(path).status_code == 200, path
        for path in (
            "/version",
            "/metrics",
            "/openapi.json",
            "/ping/",
            "/nothing",
            "/v2",
            "/v2/models/model",
            "/docs"[:-1],
        ):
            refused = client.get(path)
            assert refused.status_code == 401, path
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.json()["error_code"] == "UNAUTHENTICATED"
        for header in ("Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer", ""):
            assert client.get("/version", headers={"Authorization": header}).status_code == 401
        assert client.get("/version", headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200
        metrics = client.get("/metrics", headers=ASKS).text
    refusals = [line for line in metrics.splitlines() if 'kind="unauthenticated"' in line]
    assert float(refusals[0].split()[-1]) >= 13


def test_page_of_the_api_loads_its_files_from_the_service_itself() -> None:
    with httpx.Client(base_url=url("any")) as client:
        page = client.get("/docs").text
        assert "//" not in page.replace("${", "").split("<script>")[0].removeprefix("<!doctype html>")
        loaded = [part.split('"')[0] for mark in ('href="', 'src="') for part in page.split(mark)[1:]]
        assert len(loaded) == 2
        for path in loaded:
            answer = client.get(urljoin("/docs", path))
            assert (answer.status_code, len(answer.content) > 10_000) == (200, True), path


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Serve a model without processes."""
    folder = tmp_path_factory.mktemp("alone")
    save("ridge", folder / "model")
    inspect_model(folder / "model", folder / "evidence")
    tokens = frozenset({DIGEST})
    with assembled(folder / "evidence", Model(folder / "model"), "onnx", tokens_sha256=tokens) as ours:
        yield ours.client


@pytest.mark.parametrize("prefix", ["", "/delay"])
def test_schema_leads_to_the_service_behind_a_gateway_too(client: TestClient, prefix: str) -> None:
    """A gateway strips its prefix from the path; the schema's server URL is relative to the schema's own URL."""

    async def gateway(scope: Any, receive: Any, send: Any) -> None:
        assert scope["path"].startswith(prefix)
        await client.app(scope | {"path": scope["path"].removeprefix(prefix)}, receive, send)  # type: ignore[arg-type]

    behind = TestClient(gateway, base_url="https://inference.example")
    where = f"https://inference.example{prefix}/openapi.json"
    assert behind.get(where).status_code == 401
    said = behind.get(where, headers=ASKS).json()
    (server,) = said["servers"]
    for path, operations in said["paths"].items():
        found = urljoin(where, server["url"]).rstrip("/") + path
        assert found == f"https://inference.example{prefix}{path}"
        answer = behind.get(found.replace("{model}", "model").replace("{version}", "1"), headers=ASKS)
        assert answer.status_code == (200 if "get" in operations else 405), path


def test_version_says_what_is_served(client: TestClient) -> None:
    said = client.get("/version", headers=ASKS).json()
    assert said.pop("metalworks")
    assert said.pop("warnings") == []
    assert said.pop("executor_reason").startswith("ONNX Runtime's answers are equal to MLflow's on ")
    assert said == {
        "service": "model",
        "model": "model",
        "version": "1",
        "alias": "champion",
        "run_id": None,
        "git_commit": None,
        "requirements_sha256": None,
        "executor": "onnx",
        "canary": None,
        "shadow": None,
        "mlflow": mlflow.__version__,
    }


def test_before_a_model_is_there_everybody_is_told(tmp_path: Path) -> None:
    settings = Settings(service="model", desired=tmp_path, runtime=tmp_path, state=tmp_path)
    client = TestClient(create_app(DataPlane(settings, Route(), Stats()), lambda: None))
    asked = [("GET", path) for path in ("/ping", "/version", "/v2/health/ready", "/v2/models/{model}")]
    for method, path in [*asked, ("POST", "/invocations"), ("POST", "/v2/models/{model}/infer")]:
        early = client.request(
            method, path.replace("{model}", "model"), json={"inputs": []} if method == "POST" else None
        )
        assert (early.status_code, early.json()["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE"), path
        assert early.headers["retry-after"] == "5"
        assert conforms(early, path, method)
    assert client.get("/health").status_code == 503
    assert client.get("/v2/health/live").status_code == client.get("/metrics").status_code == 200


# -- The Open Inference Protocol


def tensor(name: str, values: list[Any], datatype: str = "FP64", **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": [len(values)], "datatype": datatype, "data": values, **more}


INPUTS = [tensor(name, FRAME[name].tolist()) for name in FRAME.columns]


def infer(client: TestClient, body: Any, where: str = "model") -> httpx.Response:
    return client.post(f"/v2/models/{where}/infer", json=body, headers=ASKS)


def test_open_inference_protocol_answers_as_invocations_do(client: TestClient) -> None:
    records = client.post("/invocations", json={"dataframe_records": FRAME.to_dict("records")}, headers=ASKS).json()
    for inputs in (
        INPUTS,
        INPUTS[::-1],
        [{**each, "shape": [4, 1], "data": [[x] for x in each["data"]]} for each in INPUTS],
    ):
        said = infer(client, {"id": "a", "inputs": inputs}).json()
        assert (said["model_name"], said["model_version"], said["id"]) == ("model", "1", "a")
        (output,) = said["outputs"]
        assert np.allclose(output.pop("data"), records["predictions"], rtol=1e-9)
        assert output == {"name": "predictions", "datatype": "FP64", "shape": [4]}
    assert infer(client, {"inputs": INPUTS}, "model/versions/1").status_code == 200
    said = client.get("/v2/models/model", headers=ASKS).json()
    assert [each["name"] for each in said["inputs"]] == list(FRAME.columns)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (INPUTS[:2], "Inputs are missing: hour"),
        ([*INPUTS, tensor("more", [1.0] * 4)], "no inputs more"),
        ([*INPUTS, INPUTS[0]], "comes twice"),
        (
            [tensor(each["name"], [1.0, 2.0][: 1 + i]) for i, each in enumerate(INPUTS[:2])] + INPUTS[2:],
            "numbers of rows",
        ),
        ([tensor(each["name"], []) for each in INPUTS], "no rows"),
        ([INPUTS[0] | {"datatype": "FP32"}, *INPUTS[1:]], "its datatype is FP64, not FP32"),
        ([INPUTS[0] | {"shape": [2, 2]}, *INPUTS[1:]], "its shape is"),
        ([INPUTS[0] | {"shape": [5]}, *INPUTS[1:]], "4 values, not the 5"),
        ([INPUTS[0] | {"shape": [-4]}, *INPUTS[1:]], "its shape is"),
        ([INPUTS[0] | {"shape": [10**30]}, *INPUTS[1:]], "not the 1000"),
        ([INPUTS[0] | {"data": [1.0, 2.0, None, 4.0]}, *INPUTS[1:]], "'None' is no value of type FP64"),
        ([INPUTS[0] | {"data": [1.0, 2.0, "x", 4.0]}, *INPUTS[1:]], "'x' is no value of type FP64"),
        ([INPUTS[0] | {"data": [1.0, 2.0, True, 4.0]}, *INPUTS[1:]], "'True' is no value"),
        ([INPUTS[0] | {"data": [1.0, 2.0, 1e39, 4.0]}, *INPUTS[1:]], "finite and below"),
        ([INPUTS[0] | {"data": [1.0, 2.0, 10**400, 4.0]}, *INPUTS[1:]], "too large"),
    ],
)
def test_open_inference_protocol_says_what_is_wrong(client: TestClient, inputs: list[Any], reason: str) -> None:
    answer = infer(client, {"inputs": inputs})
    assert answer.status_code == 400
    assert reason in answer.json()["error"]


def test_open_inference_protocol_knows_no_other_model(client: TestClient) -> None:
    for where in ("other", "model/versions/2"):
        assert infer(client, {"inputs": INPUTS}, where).status_code == 404
        assert client.get(f"/v2/models/{where}/ready", headers=ASKS).status_code == 404


def test_errors_of_either_protocol_are_counted_by_kind(tmp_path: Path) -> None:
    """One for each request without a prediction; requests for other things do not count."""
    save("ridge", tmp_path / "model")
    inspect_model(tmp_path / "model", tmp_path / "evidence")
    with assembled(tmp_path / "evidence", Model(tmp_path / "model"), "onnx", max_body_bytes=10_000) as served:

        def kinds(*asked: tuple[str, Any]) -> dict[str, int]:
            served.stats.kinds.clear()
            for path, body in asked:
                sent = {"content": body} if isinstance(body, bytes) else {"json": body}
                served.client.post(path, headers={"content-type": JSON}, **sent)
            return served.stats.kinds

        right, wrong, malformed = {"inputs": INPUTS}, {"inputs": INPUTS[:1]}, {"inputs": 1}
        v2, hot = "/v2/models/model/infer", "/invocations"
        assert kinds((v2, right), (v2.replace("infer", "ready"), right)) == {}
        assert kinds((v2, wrong), (v2, malformed), (v2.replace("/model/", "/other/"), right)) == {"refused": 3}
        (series,) = (each for each in served.stats.series if each.executor == "onnx")
        assert series.statuses == {"200": 1, "400": 1}  # the other two concern no version
        assert kinds((v2, b" " * 10_001), (hot, b" " * 10_001)) == {"too_long": 2}
        assert kinds((hot, b"{}")) == {"refused": 1}
        route: Any = served.route
        champion = route.champion

        async def full(_: Any) -> None:
            raise QueueFullError

        champion.version.outputs = full
        assert kinds((v2, right)) == {"queue_full": 1}
        route.champion = None
        assert kinds((v2, right), (hot, b"{}")) == {"no_model": 2}
        route.champion = champion
