"""Requests that cost far more than their size suggests are refused before decoding, without delaying others."""

from __future__ import annotations

import contextlib
import functools
import gzip
import http.client
import io
import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from metalworks_model_runner.cost import check_cost, scan_json
from metalworks_model_runner.limits import Limits, TooMuchError

from metalworks.serving.predict import decoding
from metalworks.serving.predict.codecs import mlflow_request, open_inference
from metalworks.serving.predict.codecs.mlflow_request import RequestRefusedError
from metalworks.serving.predict.decoding import DecodingProcess, light
from tests.unit.inference_models import FRAME, save
from tests.unit.inference_service import CSV, DIGEST, JSON, PARQUET, TOKEN, Answer, Service, service, wait_for

INFER = "/v2/models/model/infer"
NAMES = json.dumps([*FRAME.columns]).encode()
SMALL = json.dumps({"dataframe_split": FRAME[:1].to_dict("split")}).encode()


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def of_parquet(table: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(table, file, **options)
    return file.getvalue()


def one_text_many_times() -> pa.Table:
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(90_000, np.int32)), ["x" * 2**20])
    return pa.table({"a": column})


def split_of(rows: bytes, count: int, columns: bytes = NAMES) -> bytes:
    return b'{"dataframe_split": {"columns": ' + columns + b', "data": [' + b",".join([rows] * count) + b"]}}"


def tensor_of(data: bytes, count: int) -> bytes:
    start = b'{"inputs": [{"name": "distance", "shape": [1], "datatype": "FP64", "data": ['
    return start + b",".join([data] * count) + b"]}]}"


# Name → content type, body, and the option that limits it.
BOMBS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "empty lists": (JSON, lambda: split_of(b"[]", 3_000_000), "cells"),
    "empty objects": (JSON, lambda: body(inputs=[{}] * 2_100_000), "cells"),
    "lists behind an escaped quote": (JSON, lambda: b'{"inputs": ["\\\\",' + b"[]," * 2_100_000 + b"[]]}", "cells"),
    "numbers in UTF-16": (JSON, lambda: f'{{"inputs": ["\u0122", {"1," * 2_100_000} 1]}}'.encode("utf-16"), "cells"),
    "nesting": (JSON, lambda: b'{"inputs": ' + b"[" * 40 + b"]" * 40 + b"}", "depth"),
    "nesting of objects": (JSON, lambda: b'{"a":' * 900 + b"1" + b"}" * 900, "depth"),
    "records, each with a name of its own": (
        JSON,
        lambda: body(dataframe_records=[{f"a{i}": 1} for i in range(6500)]),
        "cells",
    ),
    "instances, each with a name of its own": (
        JSON,
        lambda: body(instances=[{f"a{i}": 1} for i in range(6500)]),
        "cells",
    ),
    "objects, each with a name of its own": (
        JSON,
        lambda: body(inputs={f"a{i}": {f"b{i}": 1} for i in range(5000)}),
        "cells",
    ),
    "one long row among empty ones": (
        JSON,
        lambda: body(dataframe_split={"data": [[]] * 60_000 + [[1] * 9000]}),
        "cells",
    ),
    "an index and columns for nothing": (
        JSON,
        lambda: body(dataframe_split={"data": None, "index": [0] * 60_000, "columns": [1] * 9000}),
        "cells",
    ),
    "many columns": (JSON, lambda: body(inputs={f"a{i}": [1] for i in range(10_001)}), "columns"),
    "many names": (JSON, lambda: body(dataframe_split={"columns": [*range(10_001)], "data": []}), "columns"),
    "many rows": (JSON, lambda: body(dataframe_split={"data": [[1]] * 100_001}), "rows"),
    "many instances": (JSON, lambda: body(instances=[1] * 100_001), "rows"),
    "a long text among short ones": (JSON, lambda: body(inputs=["a"] * 1000 + ["b" * 10**6]), "cells"),
    "a long text among short ones, in records": (
        JSON,
        lambda: body(instances=[{"a": "a"}] * 1000 + [{"a": "b" * 10**6}]),
        "cells",
    ),
    "csv of a header": (CSV, lambda: b",".join(b"c%d" % i for i in range(3_000_000)) + b"\n", "c"),
    "csv of 10,001 columns": (CSV, lambda: b"," * 10_000 + b"\n", "columns"),
    "csv of short rows": (CSV, lambda: b",".join(b"c%d" % i for i in range(9000)) + b"\n" + b"1\n" * 90_000, "cells"),
    "csv of a long row": (CSV, lambda: b"a\n" + b"1," * 10_001 + b"1\n", "columns"),
    "csv of rows": (CSV, lambda: b"a\n" + b"1\n" * 100_002, "rows"),
    "csv of rows by carriage returns": (CSV, lambda: b"a\r" + b"1\r" * 100_002, "rows"),
    "csv behind a quote": (CSV, lambda: b'a,b"\n' + b"1,2\n" * 100_002, "rows"),
    "parquet of rows": (
        PARQUET,
        lambda: of_parquet(pa.table({"a": np.zeros(60_000_000, np.int8)}), compression="zstd"),
        "rows",
    ),
    "parquet of lists": (PARQUET, lambda: of_parquet(pa.table({"a": [np.zeros(6_000_000)]})), "cells"),
    "parquet of one text": (PARQUET, lambda: of_parquet(one_text_many_times(), store_schema=False), "cells"),
    "parquet of columns": (PARQUET, lambda: of_parquet(pa.table({f"a{i}": [1] for i in range(10_001)})), "columns"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_the_cost_is_estimated_before_decoding(bomb: str) -> None:
    content_type, made, option = BOMBS[bomb]
    sent = made()
    with pytest.raises(TooMuchError, match=f"max_{option}"):
        check_cost(sent, content_type, Limits())


FRAMES = {
    "numbers": pd.DataFrame(np.arange(2000.0).reshape(200, 10), columns=[*"abcdefghij"]),
    "texts": pd.DataFrame({"a": ['x, "y", [[[{{{', "\\", '\\"', "", "a\nb\r\n"] * 20, "b": range(100)}),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_requests_at_the_limit_are_accepted(frame: pd.DataFrame) -> None:
    """Punctuation in strings does not count."""
    count, width = frame.shape
    limits = Limits(count, width, count * (width + 1) + width, 4)
    less = Limits(count - 1, width, count * (width + 1) + width, 4)
    for content_type, sent in [
        (JSON, body(dataframe_split=frame.to_dict("split"))),
        (JSON, body(dataframe_records=frame.to_dict("records"))),
        (JSON, body(inputs=frame.to_dict("list"))),
        (CSV, frame.to_csv(index=False).encode()),
        (PARQUET, of_parquet(pa.Table.from_pandas(frame))),
    ]:
        check_cost(sent, content_type, limits)
        with pytest.raises(TooMuchError, match="max_rows"):
            check_cost(sent, content_type, less)


def test_wide_tensors_have_no_columns() -> None:
    check_cost(body(instances=[[0.5] * 150_000]), JSON, Limits())
    check_cost(body(inputs=[[[0.5] * 224] * 224] * 3), JSON, Limits())


def test_invalid_bodies_are_left_to_the_decoder() -> None:
    for content_type, sent in [(CSV, b""), (CSV, b'"'), (PARQUET, b"junk"), (PARQUET, b""), ("text/plain", b"x")]:
        check_cost(sent, content_type, Limits())
        check_cost(sent, JSON, Limits())
    for sent in (b"", b"{", b"\xff\xfe", b"[1,"):
        with pytest.raises(ValueError, match=r"\w"):
            check_cost(sent + b" " * 2000, JSON, Limits())
    assert scan_json(b"[]", Limits()) == 1


def test_counts_do_not_depend_on_chunk_boundaries(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = body(inputs=[["a,[\\\\", 'b"', "ü", {"c": [1, [2, "]"]]}]] * 50)
    monkeypatch.setattr("metalworks_model_runner.cost.CHUNK", 1)
    one = scan_json(sent, Limits())
    monkeypatch.undo()
    assert one == scan_json(sent, Limits()) == 50 * 6
    for depth, fits in ((6, True), (5, False)):
        with contextlib.nullcontext() if fits else pytest.raises(TooMuchError, match="max_depth"):
            scan_json(sent, Limits(depth=depth))


# -- Decoding

FACTS = {"columns": [{"name": n, "type": "double", "required": True} for n in FRAME.columns], "tensor": None}


def infer(**changes: Any) -> bytes:
    inputs = [{"name": n, "shape": [1], "datatype": "FP64", "data": [1.5], **changes} for n in FRAME.columns]
    return body(inputs=inputs)


HALF = "\ud800"


@pytest.mark.parametrize(
    "sent",
    [
        body(id=HALF, inputs=[]),
        body(inputs=[], parameters={HALF: 1}),
        infer(name=HALF),
        infer(datatype=HALF),
        infer(data=[HALF]),
        infer(shape=[HALF]),
        infer(parameters={"a": [HALF]}),
        infer(shape=[10**400]),
        infer(data=[10**400]),
        infer(data="1.5"),
        infer(data={}),
        infer(data=None),
        infer(data=[[[[{}]]]]),
        infer(shape=["1"]),
        infer(shape=[1.5]),
        infer(shape=[True]),
        b"[" * 100_000,
        b'{"inputs": ' + b'[{"name": ' * 10_000,
        infer().replace(b"1.5", b"[" * 50_000 + b"]" * 50_000),
        infer().replace(b"1.5", b"NaN"),
        infer().replace(b"1.5", b"-Infinity"),
        infer().replace(b"1.5", b"1e999"),
        infer().replace(b"1.5", b"1" * 5000),
        infer().replace(b"1.5", b"0x1"),
        b"\xff" + infer(),
        infer().decode().encode("utf-16"),
        infer() + b"x",
        b"",
    ],
)
def test_invalid_requests_are_refused_with_a_reason(sent: bytes) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        open_inference.decode(FACTS, 10, sent)
    assert refused.value.status == 400
    assert len(refused.value.message) < 1000
    json.dumps(refused.value.message).encode()


def test_the_last_of_two_of_a_name_counts() -> None:
    twice = infer().replace(b'"data": [1.5]', b'"data": [[]], "data": [2.5]')
    assert open_inference.decode(FACTS, 10, twice)[1][0].tolist() == [[2.5, 2.5, 2.5]]


def test_more_rows_than_there_may_be_are_refused_also_of_small_requests() -> None:
    known = mlflow_request.decoder(FACTS, Limits(rows=4, cells=9))
    with pytest.raises(RequestRefusedError, match="max_rows, and max_cells for all columns: for this model 3"):
        known(split_of(b"[1, 2, 3]", 4))
    assert known(split_of(b"[1, 2, 3]", 3)) is not None
    with pytest.raises(RequestRefusedError, match="has 1 rows"):
        open_inference.decode(FACTS, 0, infer())


def test_columns_that_callers_invent_are_not_kept() -> None:
    known = mlflow_request.TableDecoder(FACTS["columns"], False)  # type: ignore[arg-type]
    names = [*FRAME.columns, *map(str, range(1000))]
    assert known.arrays_of(split_of(b"[1, 2, 3]", 1, json.dumps(names).encode())) is None
    assert known._orders == {}


def test_requests_within_the_limit_are_decoded_within_50_ms() -> None:
    known = mlflow_request.decoder(FACTS, Limits())
    for sent in (
        split_of(b"[]", decoding.LIGHT_BYTES // 3 - 50),
        split_of(b"[1,1,1]", decoding.LIGHT_BYTES // 8 - 50),
        split_of(b"[1.2345678901234567,1.2345678901234567,1.2345678901234567]", 15_000),
        split_of(b"[1]", 1, body(a=[*map(str, range(15_000))])[6:-1]),
        tensor_of(b"[]", decoding.LIGHT_BYTES // 3 - 50),
        tensor_of(b"1", decoding.LIGHT_BYTES // 2 - 60),
    ):
        assert light(sent)
        seconds = []
        for _ in range(3):
            began = time.thread_time()
            with contextlib.suppress(RequestRefusedError):
                known(sent) if b"datatype" not in sent else open_inference.decode(FACTS, 10, sent)
            seconds.append(time.thread_time() - began)
        assert min(seconds) < 0.05, sent[:80]
    assert not light(split_of(b"[]", 100_000))
    assert not light(b" " * (decoding.LOOK_BYTES + 1))


async def _ask(decode: DecodingProcess, *asked: tuple[str, bytes]) -> list[Any]:
    found: list[Any] = []
    for protocol, sent in asked:
        try:
            found.append(await decode(protocol, sent))
        except RequestRefusedError as refusal:
            found.append(refusal)
    return found


def test_the_decoder_process_decodes_the_same_and_exits_when_idle() -> None:
    import asyncio

    decode = DecodingProcess(FACTS, Limits())
    good, bad = split_of(b"[1, 2, 3]", 4), b"{}"
    asked = [(decoding.INVOCATIONS, good), (decoding.INVOCATIONS, bad), (decoding.TENSORS, infer())]
    asked += [(decoding.TENSORS, bad), (decoding.INVOCATIONS, split_of(b"[]", 3_000_000))]
    arrays, none, said, refused, too_much = asyncio.run(_ask(decode, *asked))
    assert (arrays[0].tolist(), none) == ([[1.0, 2.0, 3.0]] * 4, None)
    assert (said[0], said[1][0].tolist()) == (None, [[1.5] * 3])
    assert (refused.status, too_much.status) == (400, 413)
    process = decode._process
    assert process is not None
    process.kill()
    assert asyncio.run(_ask(decode, *asked[:1]))[0][0].shape == (4, 3)
    second = decode._process
    assert second is not None
    decode.close()
    wait_for(lambda: second.poll() is not None, "it ends")


# -- A service


class Probe(threading.Thread):
    """Sends small requests continuously."""

    def __init__(self, served: Service) -> None:
        super().__init__(daemon=True)
        self.served, self.seconds, self.over = served, list[float](), threading.Event()
        self.usual = 0.0
        """Return the latency before the test, on this machine with its present load."""

    def run(self) -> None:
        connection = self.served.connect()
        headers = {"content-type": JSON, "authorization": f"Bearer {TOKEN}"}
        while not self.over.is_set():
            began = time.perf_counter()
            connection.request("POST", "/invocations", SMALL, headers)
            assert connection.getresponse().read()
            self.seconds.append(time.perf_counter() - began)
            time.sleep(0.002)


@contextlib.contextmanager
def probed(served: Service) -> Iterator[Probe]:
    probe = Probe(served)
    probe.start()
    wait_for(lambda: len(probe.seconds) > 20, "it is answered")
    probe.usual = statistics.median(probe.seconds)
    probe.seconds.clear()
    try:
        yield probe
    finally:
        probe.over.set()
        probe.join()


def memory(served: Service) -> float:
    """Return the private memory of the service's processes, in MiB."""
    total = 0
    pending = [served.process.pid]
    while pending:
        pid = pending.pop()
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += int(next(line for line in lines if line.startswith("Private_Dirty:")).split()[1])
            pending += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return total / 1024


class Peak(threading.Thread):
    def __init__(self, served: Service) -> None:
        super().__init__(daemon=True)
        self.served, self.most, self.over = served, 0.0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.02):
            self.most = max(self.most, memory(self.served))


@pytest.fixture(scope="module", params=["ridge", "counts"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Serve a model whose requests the server decodes, and one whose requests MLflow parses."""
    folder = tmp_path_factory.mktemp("cost")
    save(request.param, folder / "model")
    with service(folder / "served", folder / "model", tokens_sha256=json.dumps([DIGEST])) as running:
        running.serves("1")
        yield running


def ask(served: Service, path: str, content_type: str, sent: bytes, **headers: str) -> Answer:
    return served.ask("POST", path, sent, content_type, authorization=f"Bearer {TOKEN}", **headers)


SERVED: dict[str, tuple[str, str, Callable[[], bytes]]] = {
    "json": ("/invocations", JSON, lambda: split_of(b"[]", 10_000_000)),
    "v2": (INFER, JSON, lambda: tensor_of(b"[]", 10_000_000)),
    **{
        name: ("/invocations", *BOMBS[name][:2])
        for name in ("csv of a header", "parquet of rows", "records, each with a name of its own")
    },
}


@functools.cache
def bomb_body(bomb: str) -> bytes:
    """Return the body, made once for all models, and not during collection."""
    return SERVED[bomb][2]()


@pytest.mark.parametrize("bomb", SERVED)
def test_bombs_are_refused_without_delaying_others_and_memory_is_freed(served: Service, bomb: str) -> None:
    path, content_type, _ = SERVED[bomb]
    sent = bomb_body(bomb)
    assert ask(served, "/invocations", JSON, SMALL).status == 200
    before = memory(served)
    peak = Peak(served)
    peak.start()
    with probed(served) as probe:
        answers = [ask(served, path, content_type, sent) for _ in range(3)]
    peak.over.set()
    peak.join()
    for answer in answers:
        if path == INFER and answer.status == 400:
            assert "MLflow's scoring protocol alone" in answer.json["message"]
        else:
            assert (answer.status, answer.json["error_code"]) == (413, "MAX_READ_SIZE_EXCEEDED"), answer
            assert "option max_" in answer.json["message"]
    # There are several copies of the body: in both processes, and in transit.
    assert peak.most - before < 60 + 8 * len(sent) / 2**20
    wait_for(lambda: memory(served) - before < 90 + len(sent) / 2**20, "memory comes back", 60)
    # On a busy machine, any request may be slow; before the fix, one of these took thousands of times as long.
    assert max(probe.seconds) < max(1.5, 300 * probe.usual), (probe.usual, sorted(probe.seconds)[-5:])
    assert statistics.median(probe.seconds) < max(0.1, 20 * probe.usual), probe.usual


def test_large_requests_are_answered_by_the_same_executor(served: Service) -> None:
    sent = split_of(b"[1, 2, 3]", 50_000)
    answer = ask(served, "/invocations", JSON, sent)
    assert answer.status == 200
    version = served.get("/version", authorization=f"Bearer {TOKEN}").json
    text = served.get("/metrics", authorization=f"Bearer {TOKEN}").body.decode()
    if version["executor"] != "mlflow":
        assert len(answer.json["predictions"]) == 50_000
        inputs = [{"name": n, "shape": [50_000], "datatype": "FP64", "data": [1] * 50_000} for n in FRAME.columns]
        said = ask(served, INFER, JSON, body(id="a", inputs=inputs)).json
        assert (said["id"], len(said["outputs"][0]["data"])) == ("a", 50_000)
    assert f'executor="{version["executor"]}",status="200"' in text


def test_error_messages_do_not_repeat_long_bodies(served: Service) -> None:
    answer = ask(served, "/invocations", JSON, b'{"inputs": ' + b"\xff" * 3_000_000)
    assert (answer.status, len(answer.body) < 1000) == (400, True)


def test_lone_surrogates_are_refused_with_a_reason(served: Service) -> None:
    for sent in (body(id=HALF, inputs=[]), infer(name=HALF), infer(data=[HALF])):
        answer = ask(served, INFER, JSON, sent)
        assert (answer.status, answer.json["error_code"]) == (400, "BAD_REQUEST")
    for path in ("/v2/models/%ed%a0%80/infer", "/v2/models/%00/infer"):
        assert ask(served, path, JSON, infer()).status == 404
    assert ask(served, "/invocations", JSON, body(inputs=[HALF])).status < 500
    assert ask(served, "/invocations", JSON, body(dataframe_records=[{HALF: HALF}])).status < 500


def test_compressed_bodies_keep_the_limits_once_inflated(served: Service) -> None:
    bomb, option = gzip.compress(b'{"dataframe_records": [' + b"{}," * 3_000_000 + b"{}]}"), "max_cells"
    for packed, status in (
        (gzip.compress(b" " * 10_000_000 + SMALL), 200),
        (gzip.compress(b" " * 65 * 2**20), 413),
        (bomb, 413),
    ):
        answer = ask(served, "/invocations", JSON, packed, **{"content-encoding": "gzip"})
        assert answer.status == status
        assert (option in answer.json.get("message", "")) is (packed is bomb)


# -- Refused bodies are not read


def speak(served: Service, *head: str) -> socket.socket:
    plug = socket.create_connection(("127.0.0.1", served.port), timeout=60)
    plug.sendall("\r\n".join([*head, "host: x", "", ""]).encode())
    return plug


def answered(plug: socket.socket) -> http.client.HTTPResponse:
    answer = http.client.HTTPResponse(plug)
    answer.begin()
    return answer


KNOWN = f"authorization: Bearer {TOKEN}"


@pytest.mark.parametrize("path", ["/invocations", INFER, "/version", "/nothing"])
def test_unauthorized_clients_are_refused_before_their_body_is_read(served: Service, path: str) -> None:
    for head in ("content-length: 60000000", "transfer-encoding: chunked"):
        plug = speak(served, f"POST {path} HTTP/1.1", head, f"content-type: {JSON}")
        assert answered(plug).status == 401
        plug.close()


def test_public_routes_read_no_body(served: Service) -> None:
    for path in ("/ping", "/v2/health/live", "/docs"):
        plug = speak(served, f"GET {path} HTTP/1.1", "content-length: 60000000")
        assert answered(plug).status == 200
        plug.close()


def test_a_too_large_content_length_is_refused_at_once(served: Service) -> None:
    plug = speak(served, "POST /invocations HTTP/1.1", KNOWN, f"content-length: {64 * 2**20 + 1}")
    plug.sendall(b" ")
    answer = answered(plug)
    assert answer.status == 413
    assert "67108864 bytes" in json.loads(answer.read())["message"]
    plug.close()


@pytest.mark.parametrize("who", [KNOWN, "x-nobody: 1"])
def test_an_endless_body_is_refused_and_the_connection_closed(served: Service, who: str) -> None:
    before = memory(served)
    plug = speak(served, "POST /invocations HTTP/1.1", who, "transfer-encoding: chunked")
    chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < 1000:
            plug.sendall(chunk)
            sent += 1
    assert 127 < sent < 250
    wait_for(lambda: memory(served) - before < 90, "what was sent is not kept", 30)
    plug.close()


def test_a_client_that_disconnects_gets_no_response(served: Service) -> None:
    plug = speak(served, "POST /invocations HTTP/1.1", KNOWN, f"content-type: {JSON}", "content-length: 1000000")
    plug.sendall(b'{"dataframe_split": ')
    plug.close()
    assert ask(served, "/invocations", JSON, SMALL).status == 200
    assert "rror" not in served.log[-500:].rpartition("Uvicorn running")[2]


@pytest.fixture(scope="module")
def ridge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a model for services with other limits; the first one runs its equivalence check."""
    folder = tmp_path_factory.mktemp("ridge")
    save("ridge", folder / "model")
    return folder


def test_slow_bodies_time_out_and_their_number_is_limited(ridge: Path) -> None:
    with service(ridge / "served", ridge / "model", request_timeout=2, max_body_bytes=1_000_000) as running:
        running.serves("1")
        plugs = []
        for _ in range(5):
            plugs.append(speak(running, "POST /invocations HTTP/1.1", "content-length: 1000000"))
            plugs[-1].sendall(b" " * 999_000)
        statuses = sorted(answered(plug).status for plug in plugs)
        assert statuses == [408] * 4 + [503]
        assert running.ask("POST", "/invocations", SMALL, JSON).status == 200
        for plug in plugs:
            plug.close()


def test_a_services_own_limits_are_kept(ridge: Path) -> None:
    limits = {"max_rows": 2, "max_columns": 4, "max_cells": 30, "max_depth": 4}
    with service(ridge / "served", ridge / "model", **limits) as running:
        running.serves("1")
        for content_type, sent, option in [
            (JSON, split_of(b"[1, 2, 3]", 3), "rows"),
            (JSON, body(dataframe_records=[{f"a{i}": 1 for i in range(5)}]), "columns"),
            (JSON, body(inputs=[[1] * 31]), "cells"),
            (JSON, body(inputs=[[[[1]]]]), "depth"),
            (CSV, FRAME.to_csv(index=False).encode(), "rows"),
            (PARQUET, of_parquet(pa.Table.from_pandas(FRAME)), "rows"),
        ]:
            answer = running.post(content_type, sent)
            assert (answer.status, f"max_{option}" in answer.json["message"]) == (413, True), answer
        assert running.post(JSON, split_of(b"[1, 2, 3]", 2)).status == 200
