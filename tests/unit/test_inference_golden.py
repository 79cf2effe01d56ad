"""The inference server responds like MLflow's own server to any request: every flavor, with every executor."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import mlflow
import pytest
from fastapi.testclient import TestClient
from metalworks_model_runner.inspection import inspect_model
from metalworks_model_runner.model import Model
from mlflow.pyfunc import scoring_server

from metalworks.serving.rollout.equivalence import check_equivalence
from tests.unit.inference_models import MODELS, TORCH, save
from tests.unit.inference_payloads import Request, requests_to
from tests.unit.inference_service import JSON, Answer, Service, assembled, invocations, service

IN_PROCESSES = {"onnx": "forest", "native": "boosted", "pyfunc": "all types", "mlflow": "params"}
"""Executor → model that is also served by processes, as on a host."""


# Models that also get odd values: all kinds of columns and executors.
ODD = {"ridge", "boosted", "text columns", "gaps", "all types", "optional column", "tensor"}


@cache
def requests(name: str) -> dict[str, Request]:
    """Return a model's requests, by what is special about them."""
    return requests_to((MODELS | TORCH)[name].rows, name in ODD)


class Lab:
    """Models that are saved, checked, and served by MLflow's own server when first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stack = folder, ExitStack()
        self.saved: Callable[[str], Path] = cache(self._saved)
        self.evidence: Callable[[str], Path] = cache(self._evidence)
        self.model: Callable[[str], Model] = cache(lambda name: Model(self.saved(name)))
        self.golden: Callable[[str], dict[str, Answer]] = cache(self._golden)

    def _saved(self, name: str) -> Path:
        (self.folder / name).mkdir(exist_ok=True)
        return save(name, self.folder / name / "model")

    def _evidence(self, name: str) -> Path:
        inspect_model(self.saved(name), self.folder / name / "evidence")
        return self.folder / name / "evidence"

    def _golden(self, name: str) -> dict[str, Answer]:
        server = scoring_server.init(mlflow.pyfunc.load_model(str(self.saved(name))))
        with TestClient(server) as client:
            return dict(zip(requests(name), invocations(client, requests(name).values()), strict=True))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    # scoring_server.init sets it for good
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
        patch.setenv("MLFLOW_UV_AUTO_DETECT", "false")
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)
        yield Lab(tmp_path_factory.mktemp("models"))
        logging.getLogger("mlflow").setLevel(logging.INFO)


def same(ours: Any, theirs: Any, tolerance: float) -> bool:
    """Tell whether two responses are equal: types exactly, numbers within the tolerance."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(same(a, b, tolerance) for a, b in zip(ours, theirs, strict=True))
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key], tolerance) for key in theirs)
    if isinstance(theirs, float) and math.isnan(theirs):
        return math.isnan(ours)
    if isinstance(theirs, float) and tolerance:
        return math.isclose(ours, theirs, rel_tol=tolerance, abs_tol=tolerance / 10)
    return bool(ours == theirs)


def difference(ours: Answer, theirs: Answer, tolerance: float) -> str:
    """Return how a response differs from MLflow's, or nothing."""
    if theirs.status == 500 and not theirs.body.startswith(b"{"):
        # Unexpected errors in MLflow's server are answered by its framework, without a message.
        return "" if ours.status in (400, 500) and set(ours.json) >= {"error_code", "message"} else f"{ours} for a 500"
    if (ours.status, ours.media_type) != (theirs.status, theirs.media_type):
        return f"{ours.status} {ours.media_type} {ours.body[:300]!r} instead of {theirs}"
    if theirs.status == 200:
        return (
            "" if same(ours.json, theirs.json, tolerance) else f"{ours.body[:300]!r} instead of {theirs.body[:300]!r}"
        )
    if theirs.media_type != JSON:
        return "" if ours.body == theirs.body else f"{ours.body!r} instead of {theirs.body!r}"
    mine, golden = ours.json, theirs.json
    if mine["error_code"] != golden["error_code"] or said(mine["message"]) != said(golden["message"]):
        return f"{mine['error_code']} {mine['message']} instead of {golden['error_code']} {golden['message']}"
    return ""


def said(message: str) -> list[str]:
    """Return a message without what differs between processes: addresses and the order of sets."""
    return sorted(re.findall(r"\w+|[^\w\s]", re.sub("0x[0-9a-f]{6,}", "0x", message)))


def differences(answers: list[Answer], name: str, lab: Lab, tolerance: float) -> str:
    """Return how responses to all requests differ from MLflow's, or nothing."""
    found = []
    for ours, (what, theirs) in zip(answers, lab.golden(name).items(), strict=True):
        if reason := difference(ours, theirs, tolerance):
            found.append(f"{what}: {reason}")
    return "\n".join(found)


# Numbers may differ by the order in which they are added: of a table and of a plain array it is not the same.
TOLERANCE = {"onnx": 1e-5, "native": 1e-12}
# By MLflow's own functions only those that are not asked otherwise, and two more.
CASES = [(name, each) for name, model in MODELS.items() for each in model.executors.split() or ["mlflow"]]
CASES += [("ridge", "mlflow"), ("all types", "mlflow")]


@pytest.mark.parametrize(("name", "executor"), CASES)
def test_answers_as_mlflow_does(lab: Lab, name: str, executor: str) -> None:
    with assembled(lab.evidence(name), lab.model(name), executor) as ours:
        answers = invocations(ours.client, requests(name).values())
        if found := differences(answers, name, lab, TOLERANCE.get(executor, 0.0)):
            pytest.fail(found)
        used = {each.executor for each in ours.stats.series if each.statuses}
    assert executor in used


@pytest.mark.parametrize("name", MODELS)
def test_the_fastest_equivalent_executor_serves(lab: Lab, name: str) -> None:
    wanted = MODELS[name].executors.split()
    assert (
        check_equivalence(lab.evidence(name), ("onnx", "native", "pyfunc", "mlflow"))["executor"]
        == [*wanted, "mlflow"][0]
    )
    for executor in {"onnx", "native", "pyfunc"} - set(wanted):
        with pytest.raises(ValueError, match=f"not {executor}: "):
            check_equivalence(lab.evidence(name), (executor,))


@pytest.mark.parametrize("name", MODELS)
def test_requests_are_good_and_bad_ones(lab: Lab, name: str) -> None:
    statuses = [answer.status for answer in lab.golden(name).values()]
    assert statuses.count(200) >= (2 if name == "type hints" else 8)
    assert statuses.count(400) > 30


def test_everybody_is_told_what_cannot_be_checked(lab: Lab) -> None:
    for name, said in {"unsigned": ["it has no signature, so"], "params": []}.items():
        with assembled(lab.evidence(name), lab.model(name), "mlflow") as ours:
            warnings = ours.client.get("/ping").json()["warnings"]
        assert [warning[: len(start)] for warning, start in zip(warnings, said, strict=True)] == said


class Running:
    """Services as processes, one per executor, started in parallel."""

    def __init__(self, lab: Lab, stack: ExitStack) -> None:
        self.services: dict[str, Service] = {}
        for executor, name in IN_PROCESSES.items():
            folder = lab.folder / f"served {executor}"
            started = service(folder, lab.saved(name), executors=json.dumps([executor]))
            self.services[executor] = stack.enter_context(started)


@pytest.fixture(scope="module")
def running(lab: Lab) -> Iterator[Running]:
    with ExitStack() as stack:
        yield Running(lab, stack)


@pytest.mark.parametrize("executor", IN_PROCESSES)
def test_processes_answer_as_mlflow_does(lab: Lab, running: Running, executor: str) -> None:
    served, name = running.services[executor], IN_PROCESSES[executor]
    assert served.serves("1")["executor"] == executor
    answers = [served.post(*each) for each in requests(name).values()]
    if found := differences(answers, name, lab, TOLERANCE.get(executor, 0.0)):
        pytest.fail(found)


@pytest.mark.parametrize("executor", IN_PROCESSES)
def test_requests_at_the_same_time_get_their_own_answers(lab: Lab, running: Running, executor: str) -> None:
    served, name = running.services[executor], IN_PROCESSES[executor]
    served.serves("1")
    rows = (MODELS | TORCH)[name].rows
    bodies = [json.dumps({"dataframe_records": rows[i : i + 1].to_dict("records")}) for i in range(len(rows))]
    expected = [served.post(JSON, body).json for body in bodies]
    assert len({json.dumps(each) for each in expected}) == len(bodies)

    def ask(first: int) -> list[Any]:
        connection = served.connect()
        answers = []
        for i in range(25):
            connection.request("POST", "/invocations", bodies[(first + i) % len(bodies)], {"content-type": JSON})
            answers.append(json.loads(connection.getresponse().read()))
        connection.close()
        return answers

    with ThreadPoolExecutor(16) as pool:
        for first, answers in enumerate(pool.map(ask, range(16))):
            assert all(same(a, expected[(first + i) % len(bodies)], 1e-12) for i, a in enumerate(answers))
