"""The parts of the inference server in isolation, without processes."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import random
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import onnx
import pandas as pd
import pytest
import threadpoolctl
from metalworks_model_runner import evidence, frames, packing, samples, threads
from metalworks_model_runner.inspection import InspectionError, inspect_model
from metalworks_model_runner.json_equality import same
from metalworks_model_runner.model import UnfitError, outputs_of
from metalworks_model_runner.signature import describe
from mlflow.models import infer_signature
from mlflow.models.utils import _enforce_schema
from mlflow.pyfunc.scoring_server import infer_and_parse_data
from mlflow.types import ColSpec, Schema
from prometheus_client.parser import text_string_to_metric_families

from metalworks.contracts import DesiredVersion
from metalworks.serving.http import app
from metalworks.serving.http.asgi import BODY
from metalworks.serving.http.invocations import Invocations
from metalworks.serving.predict import variants
from metalworks.serving.predict.batching import Batcher, QueueFullError
from metalworks.serving.predict.client import ModelFailedError
from metalworks.serving.predict.codecs import mlflow_request, mlflow_response
from metalworks.serving.predict.data_plane import DataPlane
from metalworks.serving.predict.shadow import Shadow, _difference
from metalworks.serving.predict.variants import Variant
from metalworks.serving.rollout import canary
from metalworks.serving.rollout.equivalence import check_equivalence
from metalworks.serving.rollout.release import EVIDENCE_KEPT, Release, remove_old_evidence
from metalworks.serving.rollout.supervisor import Supervisor
from metalworks.serving.settings import CanaryRules, Settings, SettingsError
from metalworks.serving.telemetry import latency, metrics
from metalworks.serving.telemetry.metrics import Series, Stats
from metalworks.serving.telemetry.prediction_log import Log, LoggedRequest, PredictionSource
from scripts.common import ROOT
from scripts.processes import free_port
from tests.unit.inference_models import FRAME, REQUIREMENTS, TARGET, save

DOUBLES = [{"name": name, "type": "double", "required": True} for name in ("a", "b")]
MIXED = [{"name": kind, "type": kind, "required": True} for kind in mlflow_request._TYPES]


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


# -- Requests


def test_columns_of_one_type_are_one_matrix_in_the_models_order() -> None:
    (matrix,) = (
        mlflow_request.TableDecoder(DOUBLES, False).arrays_of(
            body(dataframe_split={"columns": ["b", "x", "a"], "data": [[1, 9, 2.5]]})
        )
        or []
    )
    assert (matrix.tolist(), matrix.dtype, matrix.flags.c_contiguous) == ([[2.5, 1.0]], np.float64, True)


def test_columns_of_many_types_are_arrays_of_these() -> None:
    record = {"boolean": True, "integer": 1, "long": 2**40, "float": 0.5, "double": 1, "string": "ü"}
    given = mlflow_request.TableDecoder(MIXED, False).arrays_of(body(dataframe_records=[record, record]))
    assert given is not None
    assert [each.tolist()[0] for each in given] == [True, 1, 2**40, 0.5, 1.0, "ü"]
    assert [each.dtype.name for each in given] == ["bool", "int32", "int64", "float32", "float64", "object"]


@pytest.mark.parametrize("text", ["null", "NaN", "1e39", "-1e400", "true", '"1"', "[1]", "{}", "1" * 400])
@pytest.mark.parametrize(
    "form",
    [
        '{"dataframe_split": {"columns": ["a", "b"], "data": [[1, %s]]}}',
        '{"inputs": {"a": [1], "b": [%s]}}',
        '{"dataframe_records": [{"a": 1, "b": %s}]}',
        '{"instances": [{"a": 1, "b": %s}]}',
    ],
)
def test_what_needs_judgement_is_left_to_mlflow(form: str, text: str) -> None:
    assert mlflow_request.TableDecoder(DOUBLES, False).arrays_of((form % text).encode()) is None
    assert mlflow_request.TableDecoder(DOUBLES, False).arrays_of((form % "2").encode()) is not None


def test_null_is_nan_where_the_model_was_seen_to_take_it() -> None:
    given = mlflow_request.TableDecoder(DOUBLES, True).arrays_of(body(dataframe_records=[{"a": None, "b": 1}]))
    assert given is not None
    assert np.array_equal(given[0], [[math.nan, 1.0]], equal_nan=True)
    text = '{"dataframe_records": [{"a": null, "b": 1e39}]}'
    assert mlflow_request.TableDecoder(DOUBLES, True).arrays_of(text.encode()) is None


def test_tensor_has_the_shape_of_the_signature() -> None:
    decode = mlflow_request.TensorDecoder("float32", [-1, 2, 2]).arrays_of
    (tensor,) = decode(body(instances=[[[1, 2], [3, 4]]])) or []
    assert (tensor.shape, tensor.dtype) == ((1, 2, 2), np.float32)
    for wrong in ([[[1, 2]]], [[1, 2], [3, 4]], [], [[[1, 2], [3]]], 5, None, [[[1, 2], [3, "x"]]]):
        assert decode(body(instances=wrong)) is None


def test_random_requests_are_decoded_as_mlflow_does_or_not_at_all() -> None:
    """The decoder's result equals that of MLflow's parser and schema enforcement."""
    values: list[Callable[[], Any]] = [
        lambda: chance.choice([True, None, "x", "", 0, -1, 2**31, 2**53 + 1, 1e39]),
        lambda: chance.randint(-100, 100),
        lambda: chance.uniform(-1e6, 1e6),
        lambda: round(chance.uniform(-9, 9), 2),
    ]
    of_type: dict[str, Callable[[], Any]] = {
        "boolean": lambda: chance.random() < 0.5,
        "integer": lambda: chance.randint(-(2**31), 2**31 - 1),
        "long": lambda: chance.randint(-(2**62), 2**62),
        "float": lambda: float(np.float32(chance.uniform(-99, 99))),
        "double": lambda: chance.choice([chance.uniform(-1e9, 1e9), chance.randint(-5, 5)]),
        "string": lambda: chance.choice(["", "ü", "5", "a b"]),
    }
    decoded = 0
    for seed in range(600):
        chance = random.Random(seed)
        kinds = chance.choices(list(of_type), k=chance.randint(1, 3))
        if chance.random() < 0.5:
            kinds = [kinds[0]] * len(kinds)
        schema = Schema([ColSpec(kind, f"c{i}") for i, kind in enumerate(kinds)])
        names = [f"c{i}" for i in range(len(kinds))]
        table = [
            {
                n: (chance.choice(values) if chance.random() < 0.08 else of_type[k])()
                for n, k in zip(names, kinds, strict=True)
            }
            for _ in range(chance.randint(1, 3))
        ]
        order = chance.sample([*names, "more"] if chance.random() < 0.3 else names, k=len(names))
        data = [[row.get(name, 7) for name in order] for row in table]
        form = chance.choice(["dataframe_split", "dataframe_records", "inputs", "instances"])
        if form == "dataframe_split":
            content: Any = {"columns": order, "data": data}
        elif form == "inputs":
            content = {name: [row.get(name, 7) for row in table] for name in order}
        else:
            content = [{name: row.get(name, 7) for name in order} for row in table]
        text = body(**{form: content})
        ours = mlflow_request.TableDecoder(describe(schema)["columns"], False).arrays_of(text)
        if ours is None:
            continue
        decoded += 1
        parsed = infer_and_parse_data(json.loads(text), schema)
        theirs = _enforce_schema(parsed, schema)
        columns = ours[0].T if ours[0].ndim == 2 else ours
        for column, name, kind in zip(columns, names, kinds, strict=True):
            golden = pd.DataFrame(theirs)[name].to_numpy()
            if kind == "string":
                assert column.tolist() == golden.tolist(), text
            else:
                assert (column.dtype, column.tolist()) == (golden.dtype, golden.tolist()), text
    assert decoded > 250


# -- Responses


def test_answers_are_written_as_mlflow_writes_them() -> None:
    values = mlflow_response.writer({"kind": "list", "names": []})
    assert json.loads(values([np.array([1.5, 2.0])])) == {"predictions": [1.5, 2.0]}
    assert values([np.array([1.0, math.nan, math.inf])]) == b'{"predictions": [1.0, NaN, Infinity]}'
    assert json.loads(values([np.array([1e308, 1e308])])) == {"predictions": [1e308, 1e308]}  # their sum is infinite
    assert json.loads(values([np.array([[1.0, math.nan]])]))["predictions"][0][0] == 1.0
    assert json.loads(values([np.array(["a", "ü"], dtype=object)])) == {"predictions": ["a", "ü"]}
    outputs = [np.array([1, 2]), np.array([True, False])]
    records = mlflow_response.writer({"kind": "records", "names": ["x", "y"]})
    assert json.loads(records(outputs)) == {"predictions": [{"x": 1, "y": True}, {"x": 2, "y": False}]}
    table = mlflow_response.writer({"kind": "dict", "names": ["x", "y"]})
    assert json.loads(table(outputs)) == {"predictions": {"x": [1, 2], "y": [True, False]}}


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (np.array(5.0), "something else than 2 values"),
        (np.zeros(3), "something else than 2 values"),
        ([1, 2.0], "list of several types"),
        ([[1], [2]], "answers with list"),
        (np.array([1 + 2j, 3]), "type complex128"),
        (np.array(["a", None], dtype=object), "type object"),
        (pd.DataFrame({0.5: [1, 2]}), "no names"),
        (pd.DataFrame({0: [1, 2], "0": [1, 2]}), "no names"),
        (pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]), "no names"),
        ("text", "answers with str"),
    ],
)
def test_answers_that_are_no_arrays_are_left_to_mlflow(result: Any, reason: str) -> None:
    with pytest.raises(UnfitError, match=reason):
        outputs_of(result, 2)


def test_frames_arrive_as_they_were_sent_however_they_are_cut() -> None:
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array(["a", None, "ü"], dtype=object), np.zeros((0, 2))]
    arrays += [np.asfortranarray(np.arange(6).reshape(2, 3)), np.array([True, False])]
    about, buffers = packing.pack(arrays)
    sent = frames.frame(7, frames.ARRAYS, about, buffers) + frames.frame(8, frames.FAILED, "why")
    for size in (1, 3, 50, len(sent)):
        buffer = frames.Buffer()
        came = [each for i in range(0, len(sent), size) for each in buffer.feed(sent[i : i + size])]
        assert [(number, kind) for number, kind, _ in came] == [(7, frames.ARRAYS), (8, frames.FAILED)]
        known = packing.unpack(*frames.body_of(came[0][2]))
        assert [each.dtype for each in known] == [each.dtype for each in arrays]
        assert [each.tolist() for each in known] == [each.tolist() for each in arrays]
        assert frames.body_of(came[1][2])[0] == "why"
    with pytest.raises(ValueError, match="a frame of"):
        list(frames.Buffer().feed(frames.PREFIX.pack(2**32 - 1, 1, 1)))


def test_example_is_the_same_but_for_last_digits() -> None:
    assert same({"predictions": [1.0, math.nan, "a"]}, {"predictions": [1.0 + 1e-7, math.nan, "a"]})
    assert same([1], [1.0])
    for ours, expected in [([1.001], [1.0]), ([1.0], [1.0, 2.0]), ({"a": 1}, {"b": 1}), ([True], [1.0]), ("1", 1.0)]:
        assert not same(ours, expected)


# -- Batches


class Model:
    """Doubles rows once it is released; records its requests."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.may = asyncio.Event()
        self.may.set()
        self.error: Exception | None = None

    async def ask(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        self.batches.append(len(arrays[0]))
        await self.may.wait()
        if self.error:
            raise self.error
        return [arrays[0] * 2]


def rows_of(*values: float) -> list[np.ndarray]:
    return [np.array(values)]


def batched(work: Callable[[Batcher, Model], Any], max_rows: int = 100, max_queue: int = 100) -> Any:
    async def run() -> Any:
        model = Model()
        return await asyncio.wait_for(work(Batcher(model.ask, max_rows, max_queue, lambda _: None), model), 30)

    return asyncio.run(run())


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_first_request_waits_for_nobody() -> None:
    async def work(batcher: Batcher, model: Model) -> None:
        future = batcher.put(rows_of(1.0))
        await turns()  # and no time
        assert future.done()
        assert future.result()[0].tolist() == [2.0]

    batched(work)


def test_requests_of_one_turn_and_those_that_wait_go_together() -> None:
    async def work(batcher: Batcher, model: Model) -> None:
        model.may.clear()
        first = [batcher.put(rows_of(1.0)), batcher.put(rows_of(2.0, 3.0))]
        await turns()
        later = [batcher.put(rows_of(float(i))) for i in range(5)]
        await turns()
        assert (model.batches, batcher.waiting) == ([3], 5)
        model.may.set()
        answers = await asyncio.gather(*first, *later)
        assert [each[0].tolist() for each in answers] == [[2.0], [4.0, 6.0], *([2.0 * i] for i in range(5))]
        assert model.batches == [3, 5]

    batched(work)


def test_batch_has_its_most_rows_but_a_request_is_never_parted() -> None:
    async def work(batcher: Batcher, model: Model) -> None:
        futures = [batcher.put(rows_of(*range(n))) for n in (3, 3, 9, 1, 1)]
        await asyncio.gather(*futures)
        assert model.batches == [3, 3, 9, 2]

    batched(work, max_rows=5)


def test_full_queue_refuses_at_once() -> None:
    async def work(batcher: Batcher, model: Model) -> None:
        model.may.clear()
        first = batcher.put(rows_of(1.0))
        await turns()
        waiting = [batcher.put(rows_of(1.0)) for _ in range(3)]
        with pytest.raises(QueueFullError):
            batcher.put(rows_of(1.0))
        model.may.set()
        await asyncio.gather(first, *waiting)
        await batcher.put(rows_of(1.0))

    batched(work, max_queue=3)


def test_error_of_the_model_is_everybodys_and_the_next_batch_works() -> None:
    async def work(batcher: Batcher, model: Model) -> None:
        model.error = ValueError("no")
        failed = await asyncio.gather(*(batcher.put(rows_of(1.0)) for _ in range(2)), return_exceptions=True)
        assert [str(each) for each in failed] == ["no", "no"]
        model.error = None
        assert (await batcher.put(rows_of(4.0)))[0].tolist() == [8.0]

    batched(work)


def test_request_that_the_model_refuses_fails_alone() -> None:
    class Picky(Model):
        async def ask(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
            if (arrays[0] < 0).any():
                raise ModelFailedError("below zero")
            return await super().ask(arrays)

    async def run() -> None:
        batcher = Batcher(Picky().ask, 100, 100, lambda _: None)
        asked = [batcher.put(rows_of(value)) for value in (1.0, 2.0, -1.0, 4.0, 5.0)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [each if isinstance(each, ModelFailedError) else each[0].tolist() for each in answers] == [
            [2.0], [4.0], answers[2], [8.0], [10.0],
        ]  # fmt: skip
        assert isinstance(answers[2], ModelFailedError)

    asyncio.run(asyncio.wait_for(run(), 30))


def test_request_that_nobody_waits_for_is_not_asked() -> None:
    async def work(batcher: Batcher, model: Model) -> None:
        model.may.clear()
        first = batcher.put(rows_of(1.0))
        await turns()
        given_up, other = batcher.put(rows_of(2.0)), batcher.put(rows_of(3.0, 4.0))
        given_up.cancel()
        model.may.set()
        await asyncio.gather(first, other)
        assert model.batches == [1, 2]

    batched(work)


def test_batch_that_nobody_waits_for_is_given_up() -> None:
    async def run() -> None:
        model = Model()
        batcher = Batcher(model.ask, 100, 100, lambda _: None, timeout=0.05)
        model.may.clear()
        with pytest.raises(TimeoutError):
            await batcher.put(rows_of(1.0))
        model.may.set()
        assert (await batcher.put(rows_of(4.0)))[0].tolist() == [8.0]

    asyncio.run(asyncio.wait_for(run(), 30))


def test_after_a_batch_the_next_waits_a_little_for_as_many() -> None:
    async def work(batcher: Batcher, model: Model) -> None:
        await asyncio.gather(*(batcher.put(rows_of(1.0)) for _ in range(4)))
        batcher._last_seconds, batcher._last_end = 1000.0, time.perf_counter()  # the last batch took long
        some = [batcher.put(rows_of(1.0)) for _ in range(3)]
        await turns()
        assert model.batches == [4]
        last = batcher.put(rows_of(1.0))  # as many as before, so they do not wait
        await asyncio.gather(*some, last)
        assert model.batches == [4, 4]

    batched(work)


def test_callers_in_two_groups_that_take_turns_become_one() -> None:
    async def work(batcher: Batcher, model: Model) -> None:
        model.may.clear()
        first = [batcher.put(rows_of(1.0)) for _ in range(4)]
        await turns()
        waiting = [batcher.put(rows_of(1.0)) for _ in range(4)]  # while the others are in the model
        batcher.PATIENCE = 1e9
        model.may.set()
        await asyncio.gather(*first)
        again = [batcher.put(rows_of(1.0)) for _ in range(4)]
        await asyncio.gather(*waiting, *again)
        assert model.batches == [4, 8]

    batched(work)


# -- Threads


class Library:
    """A fake OpenMP library that is faster with one thread up to this many rows."""

    def __init__(self, quick_alone: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_threads, self.quick_alone, self.now = 8, quick_alone, 0.0
        monkeypatch.setattr(threads.time, "perf_counter", lambda: self.now)
        controller = SimpleNamespace(select=lambda user_api: SimpleNamespace(lib_controllers=[self]))
        module = SimpleNamespace(ThreadpoolController=lambda: controller)
        monkeypatch.setitem(sys.modules, "threadpoolctl", module)

    def set_num_threads(self, number: int) -> None:
        self.num_threads = number

    def ask(self, rows: Sequence[np.ndarray]) -> None:
        self.now += 0.002 if (len(rows[0]) <= self.quick_alone) is (self.num_threads > 1) else 0.001


@pytest.mark.parametrize(("quick_alone", "few"), [(0, 0), (1, 1), (20, 8), (1000, 64)])
def test_a_few_rows_get_one_thread_where_that_is_quicker(
    quick_alone: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(quick_alone, monkeypatch)
    chosen = threads.Threads()
    chosen.measure(library.ask, [np.zeros((256, 3))])
    assert (chosen.few, library.num_threads) == (few, 8)
    for count, wanted in ((few, 1), (few + 1, 8), (few, 1)) if few else ((1, 8),):
        chosen.fit(count)
        assert library.num_threads == wanted


def test_work_that_takes_long_is_left_to_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(1000, monkeypatch)

    def slow(rows: Sequence[np.ndarray]) -> None:
        library.now += 100 * threads.SLOW_SECONDS

    chosen = threads.Threads()
    chosen.measure(slow, [np.zeros((256, 3))])
    assert (chosen.few, library.num_threads, library.now) == (0, 8, 100 * threads.SLOW_SECONDS)


def test_without_threadpoolctl_threads_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    chosen = threads.Threads()
    chosen.measure(lambda rows: pytest.fail("asked"), [np.zeros((256, 3))])
    chosen.fit(1)


def test_threads_of_this_machines_own_library_are_set() -> None:
    """scikit-learn's library; the setting applies to the calling thread."""
    controller = threadpoolctl.ThreadpoolController().select(user_api="openmp")
    before = [each.num_threads for each in controller.lib_controllers]
    assert before
    chosen = threads.Threads()
    chosen.few = 1
    chosen.fit(1)
    assert {each.num_threads for each in controller.lib_controllers} == {1}
    chosen.fit(2)
    assert [each.num_threads for each in controller.lib_controllers] == before


# -- Versions


@pytest.mark.parametrize("inline", [True, False])
def test_what_the_runtime_refuses_the_model_itself_is_asked(inline: bool, tmp_path: Path) -> None:
    inspect_model(save("ridge", tmp_path / "model"), tmp_path / "evidence")
    verdict = {**check_equivalence(tmp_path / "evidence", ("onnx",)), "inline": inline}
    (tmp_path / "evidence" / "verdict.json").write_text(json.dumps(verdict))
    card = {"name": "model", "version": "1", "alias": "champion"}
    entry = {"id": "1", "card": card, "environment": "", "evidence": str(tmp_path / "evidence"), "socket": "/nowhere"}
    settings = Settings(service="model", desired=tmp_path, runtime=tmp_path, state=tmp_path)

    async def run() -> None:
        version = variants.LoadedVersion(entry, settings, Stats())
        assert (version.inline is not None) is inline
        assert len((await version.outputs([FRAME.to_numpy()]))[0]) == len(FRAME)
        asked = []

        async def model(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
            asked.append(arrays[0].shape)
            return [np.array([7.0])]

        version.client.arrays = model  # type: ignore[method-assign]
        assert (await version.outputs([np.zeros((1, 99))]))[0].tolist() == [7.0]
        assert asked == [(1, 99)]
        version.close()

    asyncio.run(run())


# -- Routes


def test_version_that_leaves_while_another_is_read_is_not_given_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        number, executor, closed = "1", "onnx", False

        def __init__(self, entry: dict[str, Any], *_: Any) -> None:
            self.id = entry["id"]
            if self.id == "read":
                route.in_flight()  # meanwhile, counts are published

        def close(self) -> None:
            self.closed = True

    async def run() -> None:
        for revision, wanted in enumerate(({"champion": "left"}, {"champion": "next"})):
            await follow(wanted, revision)
        await follow({"champion": "read", "canary": "left"}, 3)

    def follow(wanted: dict[str, str], revision: int) -> Any:
        entries: dict[str, Any] = {role: {"id": each} for role, each in wanted.items()}
        return route.follow({**entries, "revision": revision}, None, Stats())  # type: ignore[arg-type]

    monkeypatch.setattr(variants, "LoadedVersion", Fake)
    route = variants.Route()
    asyncio.run(run())
    assert {variant.version.id: variant.version.closed for variant in route.variants} == {
        "next": False,
        "read": False,
        "left": False,
    }


# -- Releases


@pytest.mark.parametrize(
    ("hurry", "order"), [(True, ["spawn", "choose_executor", "start"]), (False, ["choose_executor", "spawn", "start"])]
)
def test_while_somebody_serves_one_step_of_a_release_follows_the_other(
    hurry: bool, order: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    settings = Settings(service="model", desired=tmp_path, runtime=tmp_path, state=tmp_path)
    (tmp_path / "model.json").write_text("{}")
    release = Release(DesiredVersion("1", str(tmp_path), "python", ""), settings)
    release.verdict = {"executor": "onnx", "reason": ""}

    def step(name: str) -> Callable[..., Any]:
        async def run(*_: Any) -> SimpleNamespace:
            done.append(name)
            return SimpleNamespace()

        return run

    for name in ("spawn", "choose_executor", "start"):
        monkeypatch.setattr(release, f"_{name}", step(name))
    asyncio.run(release.prepare(hurry=hurry))
    assert release.ready
    assert done == order


# -- Counts


def test_latencies_are_counted_by_bucket() -> None:
    series = Series("champion", "1", "onnx")
    for seconds in (0.0, 50e-6, 51e-6, 0.01, 1e9):
        series.observe(seconds, 200)
    assert (series.buckets[0], series.buckets[1], series.buckets[-1], series.count) == (2, 1, 1, 5)
    for bucket in range(latency.BUCKETS - 1):
        one = Series("champion", "1", "onnx")
        one.observe(latency.bound(bucket) * 0.999, 200)
        assert one.buckets[bucket] == 1
        assert latency.quantile(one.buckets, 0.95) == latency.bound(bucket)


def test_counts_of_all_processes_are_added_and_prometheus_reads_them(tmp_path: Path) -> None:
    for slot, statuses in enumerate([(200, 200, 500), (200, 503)]):
        one = Stats()
        for status in statuses:
            one.of("champion", "1", "onnx").observe(0.004, status)
        one.of("shadow", 'a"b\\', "mlflow").observe(1.0, 200)
        one.error("queue_full")
        one.batch(1)
        one.batch(40_000)
        one.queue, one.shadow, one.log = 2, {"compared": 3, "largest": 0.5 + slot}, {"written": 7}
        metrics.write_stats(one, tmp_path / f"stats-{slot}.json")
    whole = metrics.add_up(metrics.read_stats(tmp_path))
    assert whole.of("champion", "1", "onnx").count == 5
    assert whole.shadow["largest"] == 1.5
    info = [{"role": "champion", "model": "delay", "version": "1", "executor": "onnx"}]
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(metrics.render_metrics(whole, info, 1, 2)):
        assert family.documentation
        for sample in family.samples:
            name = sample.name.removeprefix("metalworks_inference_")
            found[(name, *(f"{k}={v}" for k, v in sample.labels.items() if k != "executor"))] = sample.value
    assert found["requests_total", "role=champion", "version=1", "status=200"] == 3
    assert found["request_seconds_count", "role=shadow", 'version=a"b\\'] == 2
    assert found["request_seconds_bucket", "role=champion", "version=1", "le=+Inf"] == 5
    assert found["batch_rows_bucket", "le=+Inf"] == found["batch_rows_count",] == 4
    assert found["batch_rows_bucket", "le=1"] == 2
    assert found["errors_total", "kind=queue_full"] == 2
    assert found["queue_requests",] == 4
    assert found["refused_versions",] == 1
    assert found["shadow_requests_total", "outcome=compared"] == 6
    assert found["shadow_difference_max",] == 1.5
    assert found["log_rows_total", "outcome=written"] == 14


def test_every_metric_is_documented() -> None:
    page = (ROOT / "docs/inference.md").read_text().partition("## Monitor it")[2].partition("\n## ")[0]
    names = re.findall(r"# TYPE metalworks_inference_(\S+)", metrics.render_metrics(Stats(), [], 0, 0))
    assert len(names) > 5
    assert [name for name in names if f"`{name}`" not in page] == []


def test_evidence_that_versions_are_served_from_stay(tmp_path: Path) -> None:
    settings = Settings(service="m", desired=tmp_path, runtime=tmp_path, state=tmp_path)
    release = Release(DesiredVersion("1", str(tmp_path), "python", ""), settings)
    others = [release.evidence.with_name(f"{number}-x") for number in range(EVIDENCE_KEPT + 2)]
    for age, folder in enumerate([release.evidence, *others]):
        folder.mkdir(parents=True)
        os.utime(folder, (age, age))
    remove_old_evidence(settings, [release])
    assert set(release.evidence.parent.iterdir()) == {release.evidence, *others[2:]}


def test_version_is_not_ended_before_every_process_has_left_it(tmp_path: Path) -> None:
    async def run() -> None:
        ended = []

        class Old:
            id, ready, preparing = "old", True, False

            async def end(self) -> None:
                ended.append(self.id)

        settings = Settings(service="m", desired=tmp_path, runtime=tmp_path, state=tmp_path, port=free_port())
        supervisor = Supervisor(settings)
        supervisor.releases["old"], supervisor.revision = Old(), 2  # type: ignore[assignment]
        for routed in (1, 2):
            (tmp_path / "stats-0.json").write_text(json.dumps({"routed": routed, "in_flight": {}}))
            supervisor._retire()
            await asyncio.sleep(0)
            assert ended == (["old"] if routed == 2 else [])
        supervisor.socket.close()

    asyncio.run(run())


def test_versions_are_refused_by_who_serves_and_by_who_fetches(tmp_path: Path) -> None:
    fetched = tmp_path / "model-follower" / "model.json"
    settings = Settings(service="m", desired=tmp_path, runtime=tmp_path, state=tmp_path, fetched=fetched)
    assert app._refused_versions(settings) == set()
    (tmp_path / "state.json").write_text(json.dumps({"refused": {"3": {"reason": "wrong", "at": 0}}}))
    roles = {"champion": {"version": "3", "state": "installed"}, "canary": {"version": "4", "state": "refused"}}
    fetched.parent.mkdir()
    fetched.write_text(json.dumps({"roles": roles}))
    assert app._refused_versions(settings) == {"3", "4"}
    fetched.write_text(json.dumps({"roles": {"canary": {"version": "4", "is": "refused"}}}))  # of an earlier release
    assert app._refused_versions(settings) == {"3"}


def test_desired_state_that_is_missing_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "desired.json"
    settings = Settings(service="m", desired=file, runtime=tmp_path, state=tmp_path, port=free_port())
    supervisor = Supervisor(settings)
    try:
        entry = {"version": "3", "path": "/v/3", "python": "/p", "environment": "e"}
        file.write_text(json.dumps({"champion": entry, "shadow": None, "canary": None}))
        supervisor._read_desired_state()
        before = dict(supervisor.desired)
        assert before["champion"] is not None
        file.rename(tmp_path / "wanted.json")
        for _ in range(3):
            supervisor._read_desired_state()
        assert supervisor.desired == before
        assert [each.message for each in caplog.records] == [
            f"{file} is missing, so nothing changes: is model-follower running?"
        ]
        file.write_text(json.dumps({"champion": entry | {"version": "4"}}))
        supervisor._read_desired_state()
        assert supervisor.desired["champion"].version == "4"  # type: ignore[union-attr]
    finally:
        supervisor.socket.close()


# -- Canary

RULES = CanaryRules(percent=10, min_requests=100, min_seconds=60, max_error_rate_increase=0.01, max_latency_ratio=1.5)


@pytest.mark.parametrize(
    ("count", "errors", "seconds_each", "served", "verdict"),
    [
        (19, 19, 0.01, 100, None),  # too few to decide
        (100, 0, 0.01, 59, None),  # too soon
        (99, 0, 0.01, 61, None),
        (100, 0, 0.01, 61, "promote"),
        (100, 0, 0.0145, 61, "promote"),
        (100, 0, 0.05, 61, "withdraw"),
        (99, 5, 0.01, 1, "withdraw"),  # errors do not wait
        (50, 4, 0.01, 1, None),
        (100, 2, 0.01, 61, "withdraw"),
        (1000, 10, 0.01, 61, "promote"),  # like the champion: 1 of 100
        (150, 50, 0.01, 61, "promote"),  # all because of full queues, which is not a version's fault
    ],
)
def test_canary_is_judged(
    tmp_path: Path, count: int, errors: int, seconds_each: float, served: float, verdict: str | None
) -> None:
    trial, counts = canary.Trial(tmp_path, "1", "2"), Stats()
    for i in range(1000):
        counts.of("champion", "1", "onnx").observe(0.01, 500 if count == 1000 and i < 10 else 200)
    for i in range(count):
        counts.of("canary", "2", "mlflow").observe(seconds_each, 200 if i >= errors else 503 if count == 150 else 500)
    metrics.write_stats(counts, tmp_path / "stats-0.json")
    said = trial.verdict(RULES, served)
    assert (said and said["verdict"]) == verdict
    assert said is None or said["reason"]


@pytest.mark.parametrize(
    ("callers", "refused", "failed", "verdict"),
    [
        (0, 0, 0, "promote"),
        (0, 20, 0, "withdraw"),  # MLflow responds with 400 to any exception of a model
        (40, 8, 0, "promote"),  # as many as the champion's, 4 of 100
        (40, 13, 0, "promote"),  # chance, and 1 more in 100 is allowed
        (40, 40, 0, "withdraw"),
        (20, 4, 6, "withdraw"),  # failures are not clients' mistakes, however many of those there are
    ],
)
def test_canary_is_judged_by_refusals_too(
    tmp_path: Path, callers: int, refused: int, failed: int, verdict: str
) -> None:
    trial, counts = canary.Trial(tmp_path, "1", "2"), Stats()
    for i in range(1000):
        counts.of("champion", "1", "onnx").observe(0.01, 400 if i < callers else 200)
    for i in range(200):
        status = 400 if i < refused else 500 if i < refused + failed else 200
        counts.of("canary", "2", "onnx").observe(0.01, status)
    metrics.write_stats(counts, tmp_path / "stats-0.json")
    said = trial.verdict(RULES, 61)
    assert said is not None
    assert said["verdict"] == verdict


@pytest.mark.parametrize("status", [200, 400])
def test_canary_alone_is_not_judged(tmp_path: Path, status: int) -> None:
    """Nor for requests that it refuses: there is no champion's rate to compare with."""
    trial, counts = canary.Trial(tmp_path, "1", "2"), Stats()
    for _ in range(500):
        counts.of("canary", "2", "onnx").observe(0.01, status)
    metrics.write_stats(counts, tmp_path / "stats-0.json")
    assert trial.verdict(RULES, 1000) is None


def test_what_versions_did_before_a_trial_is_not_compared(tmp_path: Path) -> None:
    """A champion's slow past must not make a canary look fast, nor old failures count against it."""
    counts = Stats()
    for _ in range(5000):
        counts.of("champion", "1", "onnx").observe(1.0, 200)
        counts.of("canary", "2", "onnx").observe(0.001, 500)
    metrics.write_stats(counts, tmp_path / "stats-0.json")
    trial = canary.Trial(tmp_path, "1", "2")
    assert trial.verdict(RULES, 1000) is None
    for _ in range(500):
        counts.of("champion", "1", "onnx").observe(0.001, 200)
        counts.of("canary", "2", "onnx").observe(0.1, 200)
    metrics.write_stats(counts, tmp_path / "stats-0.json")
    said = trial.verdict(RULES, 1000)
    assert said is not None
    assert said["verdict"] == "withdraw"
    assert "ms" in said["reason"]


# -- Shadow


def test_difference_is_the_largest() -> None:
    one = [np.array([1.0, 2.0])]
    assert _difference(one, [np.array([1.0, 2.5])]) == 0.5
    assert _difference(one, [np.array([1, 2])]) == 0.0
    assert _difference([np.array([math.nan])], [np.array([math.nan])]) == 0.0
    assert _difference([np.array(["a"], dtype=object)], [np.array(["b"], dtype=object)]) == 1.0
    assert _difference(one, [np.array([1.0])]) == _difference(one, one * 2) == 1.0
    assert math.isfinite(_difference([np.array([math.inf, 2.0])], one))  # JSON has no infinity
    most = np.finfo(np.float64).max
    for a, b in ((math.nan, 5.0), (5.0, math.nan), (math.nan, math.inf), (math.inf, -math.inf)):
        assert _difference([np.array([1.0, a])], [np.array([1.0, b])]) == most
    assert _difference([np.array([math.inf, -math.inf])], [np.array([math.inf, -math.inf])]) == 0.0


def test_what_is_not_compared_is_not_counted_as_compared() -> None:
    class Answers:
        number, facts, decode = "2", {"columns": None}, None

        async def raw(self, _: bytes, content_type: str) -> tuple[int, str, bytes]:
            return (200 if content_type == "text/csv" else 400), "application/json", b'{"predictions": [2.0]}'

    async def run() -> dict[str, float]:
        counts = Stats()
        shadow = Shadow(counts, None, 10)
        version: Any = Answers()
        series = counts.of("shadow", "2", "mlflow")
        variant = Variant(version, "shadow", series, series)
        shadow.copy(variant, None, (b"a\n1\n", b"text/csv"))
        shadow.copy(variant, None, (b"", b""))
        shadow.copy(variant, [np.array([1.0])], (b"", b""), lambda _: None)  # over /v2, which MLflow does not support
        await asyncio.gather(*shadow._tasks)
        return counts.shadow

    assert asyncio.run(run()) == {"answered": 1, "failed": 1, "dropped": 1}


# -- Log


def test_log_is_written_in_whole_segments(tmp_path: Path) -> None:
    counts = Stats()
    log = Log(tmp_path / "spool", 1.0, counts)
    facts = {"columns": DOUBLES}
    source = PredictionSource("champion", "4", facts)  # type: ignore[arg-type]
    log.add(
        LoggedRequest(
            source, [np.array([[1.0, 2.0], [3.0, 4.0]])], b"{}", 200, b'{"predictions": [5.0, 6.0]}', 0.00125, 0.25
        )
    )
    log.add(
        LoggedRequest(source, None, b'\xff{"inputs": 1}', 400, b'{"error_code": "BAD_REQUEST", "message": "no"}', 0.5)
    )
    log.add(LoggedRequest(source, None, b"x", 415, b"The scoring server only supports UTF-8", 0.5))
    log.close()
    assert not [*log.folder.glob("*.part")]
    (segment,) = log.folder.glob("*.jsonl")
    decoded, raw, text = map(json.loads, segment.read_bytes().splitlines())
    assert time.time() - 60 < decoded.pop("time") <= time.time()
    assert len({decoded.pop("request"), raw["request"], text["request"]}) == 3
    assert decoded == {
        "role": "champion",
        "version": "4",
        "rows": 2,
        "inputs": {"a": [1.0, 3.0], "b": [2.0, 4.0]},
        "raw": None,
        "predictions": [5.0, 6.0],
        "status": 200,
        "seconds": 0.00125,
        "difference": 0.25,
    }
    assert (raw["status"], raw["inputs"], raw["raw"]) == (400, None, '\ufffd{"inputs": 1}')
    assert text["predictions"] == "The scoring server only supports UTF-8"
    assert counts.log == {"written": 4}


def test_log_takes_its_share_and_drops_what_nobody_takes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Stats()
    log = Log(tmp_path / "spool", 0.25, counts)
    assert 350 < sum(log.takes() for _ in range(2000)) < 650
    monkeypatch.setattr("metalworks.serving.telemetry.prediction_log.SPOOL_BYTES", 10)
    (log.folder / "1-1.jsonl").write_bytes(b"x" * 11)
    source = PredictionSource("champion", "4", {"columns": None})  # type: ignore[arg-type]
    log.add(LoggedRequest(source, None, b"x", 200, b"{}", 0.1))
    log.close()
    assert (counts.log, len([*log.folder.iterdir()])) == ({"dropped": 1}, 1)


def test_log_that_is_full_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metalworks.serving.telemetry.prediction_log.WAITING", 2)
    held = threading.Event()
    monkeypatch.setattr("metalworks.serving.telemetry.prediction_log._line", lambda *_: held.wait(30) and b"\n")
    counts = Stats()
    log = Log(tmp_path / "spool", 1.0, counts)
    source = PredictionSource("champion", "4", {"columns": None})  # type: ignore[arg-type]
    for _ in range(10):
        log.add(LoggedRequest(source, None, b"x", 200, b"{}", 0.1))
    held.set()
    log.close()
    assert counts.log["dropped"] >= 7
    assert counts.log["dropped"] + counts.log["written"] == 10


def test_log_holds_no_more_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metalworks.serving.telemetry.prediction_log.WAITING_BYTES", 10_000)
    held = threading.Event()
    bodies = []

    def line(request: LoggedRequest) -> bytes:
        assert held.wait(30)
        bodies.append(request.body)
        return b"\n"

    monkeypatch.setattr("metalworks.serving.telemetry.prediction_log._line", line)
    counts = Stats()
    log = Log(tmp_path / "spool", 1.0, counts)
    source = PredictionSource("champion", "4", {"columns": None})  # type: ignore[arg-type]
    for _ in range(5):
        log.add(LoggedRequest(source, [np.array([["x" * 4_100]], dtype=object)], b"x" * 4_100, 200, b"{}", 0.1))
        log.add(LoggedRequest(source, None, b"x" * 4_000, 200, b"{}", 0.1))
    held.set()
    log.close()
    assert bodies == [b"", b"x" * 4_000, b""]  # the body of decoded requests is not logged
    assert counts.log == {"written": 3, "dropped": 7}
    assert log._bytes_taken == log._bytes_done


def test_request_that_cannot_be_written_ends_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counts = Stats()
    log = Log(tmp_path / "spool", 1.0, counts)
    facts = {"columns": [{"name": "a", "type": "string", "required": True}]}
    source = PredictionSource("champion", "4", facts)  # type: ignore[arg-type]
    for text in ("\ud800", "\ud801", "a"):
        log.add(LoggedRequest(source, [np.array([text], dtype=object)], b"", 200, b'{"predictions": [1.0]}', 0.1))
    log.close()
    assert counts.log == {"dropped": 2, "written": 1}
    (segment,) = log.folder.glob("*.jsonl")
    assert json.loads(segment.read_bytes())["inputs"] == {"a": ["a"]}
    assert len([each for each in caplog.messages if "UnicodeEncodeError" in each]) == 1


# -- Settings

MINIMAL = {
    "METALWORKS_INFERENCE_SERVICE": "delay",
    "METALWORKS_INFERENCE_DESIRED": "/w.json",
    "RUNTIME_DIRECTORY": "/run/d",
    "STATE_DIRECTORY": "/var/d",
}


def test_settings_come_from_the_environment() -> None:
    settings = Settings.read(MINIMAL)
    assert (settings.runtime, settings.state) == (Path("/run/d"), Path("/var/d"))
    more = {
        "WORKERS": "3",
        "TOKENS_SHA256": '["ab"]',
        "LOG_SHARE": "0.5",
        "EXECUTORS": '["native", "mlflow"]',
        "CANARY": '{"percent": 5}',
        "REQUEST_TIMEOUT": "1.5",
        "RUNTIME": "/else",
    }
    settings = Settings.read(MINIMAL | {f"METALWORKS_INFERENCE_{name}": value for name, value in more.items()})
    assert settings == replace(
        Settings.read(MINIMAL),
        workers=3,
        tokens_sha256=frozenset({"ab"}),
        log_share=0.5,
        executors=("native", "mlflow"),
        canary=CanaryRules(percent=5),
        request_timeout=1.5,
        runtime=Path("/else"),
    )
    assert Settings.read(MINIMAL | {"METALWORKS_INFERENCE_CANARY": ""}).canary is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "0"), ("PORT", "http"), ("PORT", "65536"), ("WORKERS", "0"), ("MAX_QUEUE", "-1"), ("LOG_SHARE", "1.1"),
        ("LOG_SHARE", "nan"), ("REQUEST_TIMEOUT", "nan"), ("LOAD_TIMEOUT", "0"), ("TOKENS_SHA256", "ab"),
        ("TOKENS_SHA256", '"ab"'), ("EXECUTORS", '["onnix"]'), ("EXECUTORS", "[]"), ("EXECUTORS", '"onnx"'),
        ("CANARY", '{"percent": 0}'), ("CANARY", '{"percent": 5, "speed": 1}'), ("CANARY", "{}"), ("CANARY", "5"),
        ("CERTIFICATE", "/c.pem"), ("LAUNCHER_RUNTIME", "/run/models"), ("LAUNCHER_STATE", "/var/lib/models"),
    ],
)  # fmt: skip
def test_wrong_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"METALWORKS_INFERENCE_{name}"):
        Settings.read(MINIMAL | {f"METALWORKS_INFERENCE_{name}": value})


@pytest.mark.parametrize("name", ["METALWORKS_INFERENCE_SERVICE", "METALWORKS_INFERENCE_DESIRED", "STATE_DIRECTORY"])
def test_missing_setting_is_named(name: str) -> None:
    with pytest.raises(
        SettingsError, match=f"{name.replace('STATE_DIRECTORY', 'METALWORKS_INFERENCE_STATE')} is not set"
    ):
        Settings.read({k: v for k, v in MINIMAL.items() if k != name})


# -- Equivalence check


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_UV_AUTO_DETECT", "false")


def set_leaf(graph: Any) -> None:
    (tree,) = (node for node in graph.node if node.op_type.startswith("TreeEnsemble"))
    weights = next(each for each in tree.attribute if each.name == "target_weights")
    weights.floats[len(weights.floats) // 2] += 0.5


def round_thresholds(graph: Any) -> None:
    (tree,) = (node for node in graph.node if node.op_type.startswith("TreeEnsemble"))
    values = next(each for each in tree.attribute if each.name == "nodes_values")
    values.floats[:] = np.nextafter(np.array(values.floats, dtype=np.float32), np.float32(np.inf)).tolist()


def set_coefficient(graph: Any) -> None:
    node = next(node for node in graph.node if node.op_type == "LinearRegressor")
    next(each for each in node.attribute if each.name == "coefficients").floats[0] *= 1.0001


def set_constant(graph: Any) -> None:
    tensor = next(each for each in graph.initializer if onnx.numpy_helper.to_array(each).dtype.kind == "f")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[0] *= 1.0001
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


@pytest.mark.parametrize(("name", "change"), [("ridge", None), ("forest", set_leaf), ("forest", round_thresholds)])
def test_converted_model_that_answers_otherwise_is_not_used(tmp_path: Path, name: str, change: Any) -> None:
    inspect_model(save(name, tmp_path / "model"), tmp_path / "evidence")
    allowed = ("onnx", "native", "pyfunc", "mlflow")
    assert check_equivalence(tmp_path / "evidence", allowed)["executor"] == "onnx"
    for file in (tmp_path / "evidence").glob("*.onnx"):
        model = onnx.load(file)
        if change is None:
            kinds = {node.op_type for node in model.graph.node}
            (set_coefficient if "LinearRegressor" in kinds else set_constant)(model.graph)
        else:
            change(model.graph)
        onnx.save(model, file)
    said = check_equivalence(tmp_path / "evidence", allowed)
    assert said["executor"] == "native"
    assert "differs from MLflow on" in said["reason"]


def test_converted_model_may_refuse_what_the_model_itself_answers(tmp_path: Path) -> None:
    inspect_model(save("gaps", tmp_path / "model"), tmp_path / "evidence")
    said = check_equivalence(tmp_path / "evidence", ("onnx",))
    assert "equal to MLflow's on " in said["reason"]
    assert "; the model itself answers what it refuses, as " in said["reason"]
    assert said["nulls"]
    assert said["feed"]["double"]
    assert said["function"] == "pyfunc"
    assert check_equivalence(tmp_path / "evidence", ("onnx", "native"))["function"] == "frame"


def test_converted_model_that_refuses_the_recorded_example_is_not_used(tmp_path: Path) -> None:
    inspect_model(save("gaps", tmp_path / "model"), tmp_path / "evidence")
    for file in (tmp_path / "evidence").glob("*.onnx"):
        model = onnx.load(file)
        (words,) = (node for node in model.graph.node if node.op_type == "OneHotEncoder")
        categories = next(each for each in words.attribute if each.name == "cats_strings")
        categories.strings[:] = [b"?" if each == b"JFK" else each for each in categories.strings]
        onnx.save(model, file)
    said = check_equivalence(tmp_path / "evidence", ("onnx", "native"))
    assert said["executor"] == "native"
    assert "the converted model refuses rows of its kind: " in said["reason"]


def test_model_whose_first_row_is_refused_is_timed_by_another(tmp_path: Path) -> None:
    """Without an example, the first row is random."""
    inspect_model(save("gaps", tmp_path / "model"), tmp_path / "evidence")
    known = evidence.read(tmp_path / "evidence")
    first = next(each for each in known["rows"] if each.dtype == object).tolist().index("an unknown value")
    for group in ("rows", "expected"):
        known[group] = [np.roll(each, -first, axis=0)[: samples.ROWS] for each in known[group]]
    evidence.write(tmp_path / "evidence", known)
    assert check_equivalence(tmp_path / "evidence", ("onnx",))["executor"] == "onnx"


def test_converted_model_that_is_none_is_not_used(tmp_path: Path) -> None:
    inspect_model(save("ridge", tmp_path / "model"), tmp_path / "evidence")
    for file in (tmp_path / "evidence").glob("*.onnx"):
        file.write_bytes(b"junk")
    assert check_equivalence(tmp_path / "evidence", ("onnx", "mlflow"))["executor"] == "mlflow"


class Raises(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        raise ValueError("not\ntoday")


def test_model_that_does_not_answer_its_example_is_refused(tmp_path: Path) -> None:
    mlflow.pyfunc.save_model(
        tmp_path / "model", python_model=Raises(), signature=infer_signature(FRAME), pip_requirements=REQUIREMENTS
    )
    (tmp_path / "model" / "serving_input_example.json").write_text(
        json.dumps({"dataframe_split": FRAME.to_dict("split")})
    )
    with pytest.raises(InspectionError, match=r"^it does not answer its own example: .*unexpected error"):
        inspect_model(tmp_path / "model", tmp_path / "evidence")


@pytest.mark.parametrize("change", [0.0, 1e-9, 0.01])
def test_model_that_answers_its_example_otherwise_than_when_it_was_made_is_refused(
    tmp_path: Path, change: float
) -> None:
    from sklearn.linear_model import Ridge

    model = Ridge().fit(FRAME, TARGET)
    mlflow.sklearn.save_model(
        model,
        tmp_path / "model",
        signature=infer_signature(FRAME, model.predict(FRAME)),
        input_example=FRAME[:2],
        pip_requirements=REQUIREMENTS,
        metadata={"metalworks.example_predictions": (model.predict(FRAME[:2]) * (1 + change)).tolist()},
    )
    if change < 1e-6:
        assert inspect_model(tmp_path / "model", tmp_path / "evidence")["executors"]["native"]["ok"]
    else:
        with pytest.raises(InspectionError, match=r"it answers its example with .* when it was made"):
            inspect_model(tmp_path / "model", tmp_path / "evidence")


@pytest.mark.parametrize("inline_rows", [0, 1000])
def test_version_that_left_leaves_nothing_in_memory(tmp_path: Path, inline_rows: int) -> None:
    """Without the garbage collector, which ignores loaded models."""
    from metalworks.serving.predict.variants import Route

    inspect_model(save("ridge", tmp_path / "model"), tmp_path / "evidence")
    check_equivalence(tmp_path / "evidence", ("onnx",))
    card = {"name": "model", "version": "1", "alias": "champion"}
    entry = {"id": "1", "card": card, "environment": "", "evidence": str(tmp_path / "evidence"), "socket": "/nowhere"}
    settings = Settings(service="model", desired=tmp_path, runtime=tmp_path, state=tmp_path)

    async def run() -> list[Any]:
        route = Route()
        await route.follow({"champion": entry, "revision": 1}, settings, Stats())
        assert route.champion is not None
        version = route.champion.version
        assert version.inline is not None
        version.inline_rows = inline_rows
        await version.outputs([FRAME.to_numpy()])
        gone = [weakref.ref(version), weakref.ref(version.inline)]
        del version
        await route.follow({"champion": None, "revision": 2}, settings, Stats())
        route.in_flight()
        deadline = time.monotonic() + 30  # the thread that loaded it releases it when it is scheduled
        while any(each() for each in gone) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return [each() for each in gone]

    gc.disable()
    try:
        assert asyncio.run(run()) == [None, None]
    finally:
        gc.enable()


# -- A request that only checks whether the service works


@pytest.mark.parametrize("inline", [True, False], ids=["at once", "by the model's process"])
def test_a_check_is_answered_and_leaves_no_trace_in_log_and_shadow(tmp_path: Path, inline: bool) -> None:
    counts, copied, logged = Stats(), list[Any](), list[Any]()
    outputs = [np.array([1.0])]

    async def slowly(arrays: Any) -> Any:
        return outputs

    version = SimpleNamespace(
        number="1",
        facts={},
        decode=lambda body: outputs,
        inline=(lambda arrays: outputs) if inline else None,
        inline_rows=1,
        write=lambda arrays: b"{}",
        outputs=slowly,
    )
    series = counts.of("champion", "1", "onnx")
    route: Any = SimpleNamespace(
        choose=lambda: Variant(version, "champion", series, series),  # type: ignore[arg-type]
        shadow=object(),
    )
    shadow: Any = SimpleNamespace(copy=lambda *given: copied.append(given))
    log: Any = SimpleNamespace(takes=lambda: True, add=lambda *given: logged.append(given))
    settings = Settings(service="model", desired=tmp_path, runtime=tmp_path, state=tmp_path)
    plane = DataPlane(settings, route, counts, log)
    plane.shadow = shadow
    entry = Invocations(None, plane)  # type: ignore[arg-type]

    def status(*headers: tuple[bytes, bytes]) -> int:
        sent: list[Any] = []

        async def receive() -> Any:
            raise AssertionError("the body was read already")

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "path": "/invocations", "method": "POST", BODY: b"{}"}
        given = [(b"content-type", b"application/json"), *headers]
        asyncio.run(entry(scope | {"headers": given}, receive, send))
        return int(sent[0]["status"])

    assert (status((b"metalworks-check", b"smoke")), copied, logged) == (200, [], [])
    assert (status(), len(copied), len(logged)) == (200, 1, 1)
