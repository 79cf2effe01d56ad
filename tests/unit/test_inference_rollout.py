"""What is said to serve is what the worker processes serve; and what could not be checked is said."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from metalworks_model_runner.inspection import InspectionError, inspect_model
from metalworks_model_runner.json_equality import alike, same
from mlflow.models import infer_signature

from metalworks.contracts import DesiredVersion
from metalworks.model_python import difference
from metalworks.model_sync.report import LONGEST, wanted_tags
from metalworks.serving.http.worker import WorkerProcess
from metalworks.serving.rollout import supervisor as module
from metalworks.serving.rollout.equivalence import check_equivalence
from metalworks.serving.rollout.supervisor import Supervisor
from metalworks.serving.settings import Settings
from scripts.processes import free_port
from tests.unit.inference_models import FRAME, REQUIREMENTS, save, save_odd

ALL = ("onnx", "native", "pyfunc", "mlflow")


# -- What serves


class Ready:
    """A version that is ready."""

    preparing, refused, refused_at, executor, stopped = False, "", 0.0, "onnx", False

    def __init__(self, number: str) -> None:
        self.id, self.ready = f"{number}-x", True
        self.desired = DesiredVersion(number, "/nowhere", "python", "")

    def summarize(self, since: float) -> dict[str, Any]:
        return {"version": self.desired.version, "since": since}

    def describe_route(self) -> dict[str, Any]:
        return {"id": self.id}

    def refuse(self, reason: str) -> None:
        self.ready, self.refused = False, reason

    async def stop(self) -> None:
        self.stopped = True


class Workers:
    """A supervisor with worker processes that do what a test says."""

    def __init__(self, folder: Path, count: int = 2) -> None:
        settings = Settings(
            service="m", desired=folder, runtime=folder, state=folder, port=free_port(), workers=count, load_timeout=0.4
        )
        self.folder, self.supervisor = folder, Supervisor(settings)

    def routes(self, number: str, role: str = "champion") -> tuple[Ready, asyncio.Task[None]]:
        """Put a version into the route, as `_reconcile` does."""
        version: Any = Ready(number)
        self.supervisor.releases[version.id] = version
        self.supervisor.desired[role] = version.desired
        self.supervisor._set(role, version)
        return version, asyncio.create_task(self.supervisor._route())

    def say(self, slot: int, routed: int, unloadable: dict[str, str] | None = None) -> None:
        counts = {"routed": routed, "unloadable": unloadable or {}}
        (self.folder / f"stats-{slot}.json").write_text(json.dumps(counts))

    def follow(self) -> None:
        """Let all worker processes follow the route as it is now."""
        for slot in range(2):
            self.say(slot, self.route["revision"])

    @property
    def route(self) -> dict[str, Any]:
        route: dict[str, Any] = json.loads((self.folder / "route.json").read_text())
        return route

    @property
    def state(self) -> dict[str, Any]:
        self.supervisor._publish_state()
        state: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return state

    @property
    def champion(self) -> str | None:
        champion = self.state["champion"]
        return champion and champion["version"]


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    monkeypatch.setattr(module, "FOLLOW_SECONDS", 0.1)
    workers = Workers(tmp_path)
    yield workers
    workers.supervisor.socket.close()


def test_version_serves_once_every_worker_process_has_confirmed_it(workers: Workers) -> None:
    async def run() -> None:
        _, first = workers.routes("1")
        await asyncio.sleep(0.06)
        assert (workers.champion, workers.state["preparing"]) == (None, ["1"])
        workers.say(0, 1)
        await asyncio.sleep(0.06)
        assert workers.champion is None
        assert not (workers.folder / "serving.json").exists()
        workers.say(1, 1)
        await first
        assert (workers.champion, workers.state["preparing"]) == ("1", [])
        assert json.loads((workers.folder / "serving.json").read_text())["champion"]["version"] == "1"
        _, second = workers.routes("2")
        await asyncio.sleep(0.06)
        assert workers.champion == "1"
        workers.follow()
        await second
        assert workers.champion == "2"

    asyncio.run(run())


def test_version_that_a_worker_process_cannot_load_is_withdrawn(workers: Workers) -> None:
    async def run() -> None:
        first, confirmed = workers.routes("1")
        await asyncio.sleep(0)
        workers.follow()
        await confirmed
        second, withdrawn = workers.routes("2")
        await asyncio.sleep(0)
        workers.say(0, 2)  # one can load it
        workers.say(1, 1, {"2-x": "ValueError: a name", "0-x": "long gone"})
        while workers.route["revision"] == 2:
            assert workers.champion == "1"
            await asyncio.sleep(0.01)
        assert workers.route["champion"]["id"] == "1-x"
        assert not second.stopped  # a worker process may still use it
        workers.follow()
        await withdrawn
        assert second.stopped
        assert first.ready
        assert workers.champion == "1"
        reason = workers.state["refused"]["2"]["reason"]
        assert reason == "a worker process cannot load it: ValueError: a name"

    asyncio.run(run())


def test_first_version_that_no_worker_process_can_load_is_refused(workers: Workers) -> None:
    async def run() -> None:
        _, withdrawn = workers.routes("1")
        await asyncio.sleep(0)
        for slot in range(2):
            workers.say(slot, 0, {"1-x": "ValueError: a name"})
        while workers.route["champion"]:
            await asyncio.sleep(0.01)
        workers.follow()
        await withdrawn
        assert workers.champion is None
        assert list(workers.state["refused"]) == ["1"]

    asyncio.run(run())


def test_version_under_which_worker_processes_end_is_refused(workers: Workers) -> None:
    """They say nothing, but never follow the route."""

    async def run() -> None:
        _, withdrawn = workers.routes("1")
        await asyncio.sleep(0)
        while workers.route["champion"]:
            await asyncio.sleep(0.01)
        workers.follow()
        await withdrawn
        assert workers.state["refused"]["1"]["reason"] == (
            "not every worker process loaded it within 0.4 s; see the journal"
        )

    asyncio.run(run())


def test_shadow_that_cannot_be_loaded_does_not_hold_back_the_champion(workers: Workers) -> None:
    async def run() -> None:
        _, superseded = workers.routes("1")
        await asyncio.sleep(0)
        shadow, withdrawn = workers.routes("2", "shadow")
        await asyncio.sleep(0)
        for slot in range(2):
            workers.say(slot, 0, {"2-x": "ValueError: a name"})
        while workers.route["shadow"]:
            await asyncio.sleep(0.01)
        workers.follow()
        await asyncio.gather(superseded, withdrawn)
        assert (workers.champion, workers.state["shadow"]) == ("1", None)
        assert list(workers.state["refused"]) == ["2"]
        assert shadow.stopped

    asyncio.run(run())


def test_worker_process_says_what_it_cannot_load(tmp_path: Path) -> None:
    settings = Settings(service="m", desired=tmp_path, runtime=tmp_path, state=tmp_path)
    card = {"name": "m", "version": "1", "alias": "champion"}
    entry = {"id": "1-x", "card": card, "environment": "", "evidence": str(tmp_path / "gone"), "socket": "/nowhere"}

    def counts() -> Any:
        return json.loads((tmp_path / "stats-0.json").read_text())

    async def run() -> None:
        worker = WorkerProcess(settings, 0, 0)
        (tmp_path / "route.json").write_text(json.dumps({"champion": entry, "revision": 3}))
        await worker.follow_route()
        assert counts()["routed"] == 0
        assert counts()["unloadable"]["1-x"].startswith("FileNotFoundError: ")
        (tmp_path / "route.new").write_text(json.dumps({"champion": None, "revision": 4}))
        (tmp_path / "route.new").replace(tmp_path / "route.json")
        await worker.follow_route()
        assert (counts()["routed"], counts()["unloadable"]) == (4, {})

    asyncio.run(run())


# -- What could not be checked

SAMPLED = {"predictions": [{"id": "9f", "text": "a b", "score": 0.5, "stop": None}]}


@pytest.mark.parametrize(
    ("ours", "is_alike"),
    [
        ({"predictions": [{"id": "c0", "text": "", "score": 1, "stop": "length"}]}, True),
        ({"predictions": [{"id": "c0", "text": "", "score": True, "stop": None}]}, False),
        ({"predictions": [{"id": 7, "text": "", "score": 1.0, "stop": None}]}, False),
        ({"predictions": [{"id": "c0", "text": "", "score": 1.0}]}, False),
        ({"predictions": [*SAMPLED["predictions"], *SAMPLED["predictions"]]}, False),
        ({"predictions": "a b"}, False),
        ({}, False),
    ],
)
def test_form_of_answers_is_compared(ours: Any, is_alike: bool) -> None:
    assert not same(ours, SAMPLED)
    assert alike(ours, SAMPLED) is is_alike


def test_generated_lists_may_have_any_length() -> None:
    assert alike({"predictions": [["a"], ["b", "c"]]}, {"predictions": [["a", "b"], []]})
    assert not alike({"predictions": [["a"], [1]]}, {"predictions": [["a", "b"], ["c"]]})


class Draws(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Answers otherwise each time: with another number, or also in another form."""

    def __init__(self, form: bool) -> None:
        self.form, self.count = form, 0

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        self.count += 1
        answer: Any = str(self.count) if self.form and self.count % 2 else self.count
        return [answer] * len(model_input)


def save_draws(path: Path, form: bool = False, example: bool = True, **options: Any) -> Path:
    mlflow.pyfunc.save_model(
        path, python_model=Draws(form), signature=infer_signature(FRAME), pip_requirements=REQUIREMENTS, **options
    )
    if example:
        body = json.dumps({"dataframe_split": FRAME[:2].to_dict("split")})
        (path / "serving_input_example.json").write_text(body)
    return path


VALUES = "its answers vary, so only their form was checked: number of rows, names and types"
FORM = "its answers vary, also in their form, so nothing about them was checked"


@pytest.mark.parametrize(("form", "example", "warning"), [(0, 1, VALUES), (0, 0, VALUES), (1, 1, FORM)])
def test_model_whose_answers_vary_is_served_by_mlflow(tmp_path: Path, form: bool, example: bool, warning: str) -> None:
    facts = inspect_model(save_draws(tmp_path / "model", form, example), tmp_path / "evidence")
    assert facts["varies"] == {VALUES: "values", FORM: "form"}[warning]
    verdict = check_equivalence(tmp_path / "evidence", ALL)
    assert (verdict["executor"], verdict["warnings"]) == ("mlflow", [warning])
    assert "its answers to the same request vary" in verdict["reason"]
    with pytest.raises(ValueError, match="its answers to the same request vary"):
        check_equivalence(tmp_path / "evidence", ("onnx", "native", "pyfunc"))


@pytest.mark.parametrize(("recorded", "fits"), [([7, 8], True), ([7, 8, 9], False), (["7", "8"], False)])
def test_recorded_answers_of_a_model_that_varies_are_compared_by_form(
    tmp_path: Path, recorded: list[Any], fits: bool
) -> None:
    model = save_draws(tmp_path / "model", metadata={"metalworks.example_predictions": recorded})
    if fits:
        assert inspect_model(model, tmp_path / "evidence")["varies"] == "values"
    else:
        with pytest.raises(InspectionError, match=r"when it was made"):
            inspect_model(model, tmp_path / "evidence")


def test_models_that_can_be_checked_have_no_warnings(tmp_path: Path) -> None:
    assert inspect_model(save("ridge", tmp_path / "model"), tmp_path / "evidence")["varies"] == ""
    assert check_equivalence(tmp_path / "evidence", ALL)["warnings"] == []


def test_model_without_signature_is_served_with_a_warning(tmp_path: Path) -> None:
    inspect_model(save("unsigned", tmp_path / "model"), tmp_path / "evidence")
    verdict = check_equivalence(tmp_path / "evidence", ALL)
    warning = "it has no signature, so the columns and types of requests are not checked: log the model with one"
    assert (verdict["executor"], verdict["warnings"]) == ("mlflow", [warning])


def test_warnings_are_in_the_tag_of_the_version() -> None:
    serving = {"version": "3", "since": 0.0, "executor": "mlflow", "warnings": ["it has no signature, …", VALUES]}
    (tag,) = wanted_tags({"champion": serving}, {}).values()
    assert tag.startswith("serving since 1970-01-01 00:00:00 UTC as mlflow; warning: it has no signature, …; warning: ")
    assert len(tag) <= LONGEST
    serving["warnings"] = [*itertools.repeat(VALUES, 9)]
    assert len(wanted_tags({"champion": serving}, {})["3"]) == LONGEST
    del serving["warnings"]  # a state of the previous release
    assert wanted_tags({"champion": serving}, {}) == {"3": "serving since 1970-01-01 00:00:00 UTC as mlflow"}


def test_a_long_refusal_keeps_its_cure() -> None:
    reason = f"its process was ended by SIGSEGV; {'a warning of a library. ' * 50}{difference('3.11', '3.13')}"
    tag = wanted_tags({"refused": {"3": {"reason": reason}}}, {})["3"]
    assert tag.startswith("refused: its process was ended by SIGSEGV; ")
    assert tag.endswith(difference("3.11", "3.13"))
    assert len(tag) == len("refused: ") + LONGEST


def test_odd_models_are_still_refused(tmp_path: Path) -> None:
    save_odd(tmp_path / "model", "fails")
    with pytest.raises(InspectionError, match=r"it does not answer its own example"):
        inspect_model(tmp_path / "model", tmp_path / "evidence")
