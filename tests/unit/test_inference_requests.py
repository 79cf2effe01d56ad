"""Requests as clients write them: media types, compressed and long bodies, and columns with any name."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from metalworks_model_runner.inspection import inspect_model
from metalworks_model_runner.model import Model
from metalworks_model_runner.signature import describe
from mlflow.types import ColSpec, Schema

from metalworks.serving.http import media_type
from metalworks.serving.predict.codecs.mlflow_request import TableDecoder
from tests.unit.inference_models import FRAME, save
from tests.unit.inference_service import CSV, JSON, Assembled, assembled

BODY = json.dumps({"dataframe_split": FRAME.to_dict("split")}).encode()
TENSORS = json.dumps(
    {"inputs": [{"name": n, "shape": [4], "datatype": "FP64", "data": FRAME[n].tolist()} for n in FRAME.columns]}
).encode()
INFER = "/v2/models/model/infer"
MOST = 100_000


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Assembled]:
    folder = tmp_path_factory.mktemp("ridge")
    inspect_model(save("ridge", folder / "model"), folder / "evidence")
    with assembled(folder / "evidence", Model(folder / "model"), "onnx", max_body_bytes=MOST) as service:
        yield service


def post(client: TestClient, path: str, body: bytes, **headers: str) -> Any:
    return client.post(path, content=body, headers={name.replace("_", "-"): text for name, text in headers.items()})


# -- Media types


@pytest.mark.parametrize(
    ("sent", "plain"),
    [
        ("application/json", "application/json"),
        ("application/json;charset=UTF-8", "application/json"),
        ("application/json; charset=Utf-8", "application/json"),
        ('application/json ; charset="utf-8"', "application/json"),
        ("Application/JSON; Charset=utf8", "application/json"),
        ("TEXT/csv", "text/csv"),
        ("text/csv; charset=latin-1", "text/csv; charset=latin-1"),
        ("application/json; version=1", "application/json; version=1"),
        ("application/json; charset=utf-8; version=1", "application/json; charset=utf-8; version=1"),
        ("application/jsonl", "application/jsonl"),
        ("", ""),
        (";", ";"),
        ("\xff", "\xff"),
    ],
)
def test_media_type_is_read_in_any_spelling(sent: str, plain: str) -> None:
    assert media_type.plain(sent.encode("latin-1")) == plain.encode("latin-1")


@pytest.mark.parametrize(
    "content_type",
    [JSON, "application/json;charset=UTF-8", 'application/json; charset="UTF-8"', "Application/Json; charset=utf-8"],
)
def test_json_in_any_spelling_takes_the_fast_way(served: Assembled, content_type: str) -> None:
    before = {each.executor: each.count for each in served.stats.series}
    answer = post(served.client, "/invocations", BODY, content_type=content_type)
    assert (answer.status_code, len(answer.json()["predictions"])) == (200, 4)
    after = {each.executor: each.count for each in served.stats.series}
    assert after == before | {"onnx": before["onnx"] + 1}


def test_csv_in_capitals_is_read(served: Assembled) -> None:
    table = FRAME.to_csv(index=False).encode()
    answers = [post(served.client, "/invocations", table, content_type=kind) for kind in (CSV, "Text/CSV")]
    assert [each.status_code for each in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()


@pytest.mark.parametrize(
    "headers",
    [
        {"content_type": JSON},
        {},
        {"content_type": "application/octet-stream"},
        {"content_type": "application/octet-stream", "inference_header_content_length": str(len(TENSORS))},
    ],
)
def test_open_inference_protocol_takes_json_with_any_content_type(served: Assembled, headers: dict[str, str]) -> None:
    answer = post(served.client, INFER, TENSORS, **headers)
    assert (answer.status_code, answer.json()["outputs"][0]["shape"]) == (200, [4])


def test_open_inference_protocol_says_that_binary_tensors_are_not_taken(served: Assembled) -> None:
    answer = post(served.client, INFER, TENSORS + bytes(32), inference_header_content_length=str(len(TENSORS)))
    assert answer.status_code == 400
    assert answer.json()["error"] == "Send the tensors as JSON: this server does not take binary data after it"


# -- Bodies


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip"])
def test_gzip_is_inflated(served: Assembled, encoding: str) -> None:
    plain = post(served.client, "/invocations", BODY, content_type=JSON).json()
    half = len(BODY) // 2
    for body in (gzip.compress(BODY), gzip.compress(BODY[:half]) + gzip.compress(BODY[half:])):
        answer = post(served.client, "/invocations", body, content_type=JSON, content_encoding=encoding)
        assert (answer.status_code, answer.json()) == (200, plain)
    answer = post(served.client, INFER, gzip.compress(TENSORS), content_encoding=encoding)
    assert answer.json()["outputs"][0]["data"] == plain["predictions"]


@pytest.mark.parametrize("path", ["/invocations", INFER])
@pytest.mark.parametrize(
    ("body", "encoding", "status", "kind"),
    [
        (gzip.compress(b" " * 10_000_000), "gzip", 413, "too_long"),  # 10 kB
        (gzip.compress(b" " * (MOST + 1)), "gzip", 413, "too_long"),
        (gzip.compress(BODY)[:-9], "gzip", 400, "refused"),
        (BODY, "gzip", 400, "refused"),
        (b"\x1f\x8b\x08\x00" + b"\xff" * 50, "gzip", 400, "refused"),
        (BODY, "br", 415, "refused"),
        (BODY, "gzip, gzip", 415, "refused"),
    ],
)
def test_compressed_body_is_refused(
    served: Assembled, path: str, body: bytes, encoding: str, status: int, kind: str
) -> None:
    served.stats.kinds.clear()
    answer = post(served.client, path, body, content_type=JSON, content_encoding=encoding)
    assert answer.status_code == status
    assert answer.json()["message"]
    assert (answer.headers.get("accept-encoding") == "gzip") is (status == 415)
    assert served.stats.kinds == {kind: 1}
    application: Any = served.client.app
    assert application.held == 0


def test_inflated_bodies_share_the_room_of_long_ones(served: Assembled) -> None:
    application: Any = served.client.app
    application.held = 4 * MOST - 10
    try:
        answer = post(served.client, "/invocations", gzip.compress(BODY), content_type=JSON, content_encoding="gzip")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert application.held == 4 * MOST - 10
    finally:
        application.held = 0


def test_body_that_is_not_compressed_may_say_so(served: Assembled) -> None:
    answer = post(served.client, "/invocations", BODY, content_type=JSON, content_encoding="identity")
    assert answer.status_code == 200


def test_body_of_40_megabytes_is_taken(tmp_path: Path) -> None:
    inspect_model(save("counts", tmp_path / "model"), tmp_path / "evidence")
    body = b'{"inputs": ["%s"]}' % (b"x" * 40_000_000)
    with assembled(tmp_path / "evidence", Model(tmp_path / "model"), "mlflow") as service:
        for sent, headers in ((body, {}), (gzip.compress(body, 1), {"content_encoding": "gzip"})):
            answer = post(service.client, "/invocations", sent, content_type=JSON, **headers)
            assert (answer.status_code, answer.json()) == (200, {"predictions": [1]})


# -- Names of columns


@pytest.mark.parametrize("name", ['say "hi"', "a\\b", "two\nlines", "\x00", "", "ü", "a" * 10_000])
def test_columns_with_any_name_are_decoded(name: str) -> None:
    columns: Any = [{"name": each, "type": "double", "required": True} for each in (name, "b")]
    decode = TableDecoder(columns, nulls=False).arrays_of
    for order in ([name, "b"], ["b", name]):
        row = [1.0 if each == name else 2.0 for each in order]
        arrays = decode(json.dumps({"dataframe_split": {"columns": order, "data": [row]}}).encode())
        assert arrays is not None
        assert arrays[0].tolist() == [[1.0, 2.0]]
    # By name, or left to MLflow's own functions.
    arrays = decode(json.dumps({"dataframe_records": [{name: 1.0, "b": 2.0}]}).encode())
    assert arrays is None or arrays[0].tolist() == [[1.0, 2.0]]


def test_columns_that_no_decoder_can_tell_apart_are_left_to_mlflow() -> None:
    assert describe(Schema([ColSpec("double", "a"), ColSpec("double", "b")]))["columns"]
    assert describe(Schema([ColSpec("double", "a"), ColSpec("double", "\ud800")]))["columns"] is None
