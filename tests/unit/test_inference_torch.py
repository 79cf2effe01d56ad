"""Responses for PyTorch models equal those of MLflow's server; run by `make test-flavours`, which installs PyTorch."""

from __future__ import annotations

import json

import pytest

from metalworks.serving.rollout.equivalence import check_equivalence
from tests.unit.inference_models import TORCH
from tests.unit.inference_service import assembled, invocations, service
from tests.unit.test_inference_golden import Lab, differences, lab, requests

pytest.importorskip("torch", reason="PyTorch is in the environment of `make test-flavours`")
__all__ = ["lab"]


@pytest.mark.parametrize("executor", ["native", "pyfunc", "mlflow"])
@pytest.mark.parametrize("name", TORCH)
def test_answers_as_mlflow_does(lab: Lab, name: str, executor: str) -> None:
    with assembled(lab.evidence(name), lab.model(name), executor) as ours:
        answers = invocations(ours.client, requests(name).values())
        # The order of single-precision additions depends on the number of rows.
        if found := differences(answers, name, lab, 1e-5 if executor == "native" else 0.0):
            pytest.fail(found)
        used = {each.executor for each in ours.stats.series if each.statuses}
    assert executor in used


@pytest.mark.parametrize("name", TORCH)
def test_network_itself_is_asked(lab: Lab, name: str) -> None:
    said = check_equivalence(lab.evidence(name), ("onnx", "native", "pyfunc", "mlflow"))
    assert (said["executor"], said["function"]) in {("native", "arrays"), ("native", "cuda")}


def test_processes_answer_as_mlflow_does(lab: Lab) -> None:
    name = "torch, double columns"
    with service(lab.folder / "served", lab.saved(name), executors=json.dumps(["native"])) as served:
        assert served.serves("1")["executor"] == "native"
        answers = [served.post(*each) for each in requests(name).values()]
        if found := differences(answers, name, lab, 1e-5):
            pytest.fail(found)
