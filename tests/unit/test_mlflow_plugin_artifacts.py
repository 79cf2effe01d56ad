"""The MLflow plugin's transfer of artifacts, between MLflow's client and a small server of signed addresses."""

from __future__ import annotations

import gzip
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import ArtifactRepositoryRegistry

from mlflow_plugin.metalworks_mlflow import artifacts
from scripts.common import ROOT as CLONE

LARGE = os.urandom(5_000_000)
ROOT = "/1/run/artifacts"


class Server(ThreadingHTTPServer):
    """MLflow's routes for artifacts, and a store behind signed addresses."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.seen: list[str] = []
        self.connections: set[Any] = set()
        self.broken = 0
        """How many downloads to break off halfway."""
        self.meeting: threading.Barrier | None = None


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def answer(self, body: bytes = b"{}", status: int = 200, **headers: str) -> None:
        """Send a response."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def respond(self) -> None:
        """Do what MLflow's server or the store would do."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server, (_, _, path) = self.server, self.path.partition("/mlflow-artifacts/")
        server.seen.append(f"{self.command} {path.partition('/')[0] or self.path.split('/')[1]}")
        what, _, place = path.partition("/")
        if self.path.startswith("/store/"):
            server.connections.add(self.client_address)
            self.store(self.path.removeprefix("/store"), body)
        elif what == "mpu":
            step, _, folder = place.partition("/")
            name = f"/{folder}/{Path(json.loads(body)['path']).name}"
            if step == "create" and server.meeting:
                server.meeting.wait(20)
            credential = {"url": f"{server.url}/store{name}", "part_number": 1, "headers": {}}
            self.answer(json.dumps({"upload_id": "u", "credentials": [credential]}).encode())
        elif what == "presigned":
            size = len(server.files[f"/{place}"])
            self.answer(json.dumps({"url": f"{server.url}/store/{place}", "headers": {}, "file_size": size}).encode())
        elif what == "artifacts" and self.command == "PUT":
            server.files[f"/{place}"] = body
            self.answer()
        else:
            server_info = {"multipart_uploads_enabled": True, "multipart_downloads_enabled": True}
            self.answer(json.dumps({"files": [], **server_info}).encode())

    def store(self, name: str, body: bytes) -> None:
        """Keep a file or send it, with the encoding that MLflow's server would store."""
        if self.command == "PUT":
            self.server.files[name] = body
            return self.answer(ETag='"e"')
        if name not in self.server.files:
            return self.answer(b"<Error><Code>AccessDenied</Code></Error>", 403)
        found, encoded = self.server.files[name], {"Content_Encoding": "gzip"} if name.endswith(".gz") else {}
        if self.server.broken:
            self.server.broken -= 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            self.wfile.write(found[: len(found) // 2])
            self.close_connection = True
            return None
        return self.answer(found, **encoded)

    do_GET = do_PUT = do_POST = respond


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", "5000000")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield made
        made.shutdown()


def repository(server: Server) -> artifacts.Artifacts:
    return artifacts.Artifacts(f"mlflow-artifacts:{ROOT}", tracking_uri=server.url)


def test_mlflow_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CLONE / "src/mlflow_plugin"))
    registry = ArtifactRepositoryRegistry()
    registry.register_entrypoints()
    found = registry.get_artifact_repository("mlflow-artifacts:/1", tracking_uri="http://127.0.0.1:9")
    assert type(found).__module__ == "metalworks_mlflow.artifacts"


def test_a_folder_is_uploaded_with_its_folders(server: Server, tmp_path: Path) -> None:
    (tmp_path / "deep/deeper").mkdir(parents=True)
    (tmp_path / "large").write_bytes(LARGE)
    (tmp_path / "deep/large").write_bytes(LARGE[::-1])
    (tmp_path / "deep/deeper/small").write_bytes(b"1")
    repository(server).log_artifacts(str(tmp_path), "a/b")
    below = f"{ROOT}/a/b"
    assert server.files == {
        f"{below}/large": LARGE,
        f"{below}/deep/large": LARGE[::-1],
        f"{below}/deep/deeper/small": b"1",
    }
    assert sorted(server.seen).count("PUT store") == 2, "large files go to the store"
    repository(server).log_artifacts(str(tmp_path / "deep"))
    assert server.files[f"{ROOT}/large"] == LARGE[::-1]


def test_files_are_uploaded_at_once(server: Server, tmp_path: Path) -> None:
    server.meeting = threading.Barrier(artifacts.FILES_AT_ONCE)  # nobody gets an address before all have asked
    for number in range(artifacts.FILES_AT_ONCE):
        (tmp_path / str(number)).write_bytes(LARGE)
    repository(server).log_artifacts(str(tmp_path))
    assert len(server.files) == artifacts.FILES_AT_ONCE


def test_connections_to_the_store_are_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    for _ in range(3):
        repository(server).log_artifact(str(tmp_path / "large"))
    assert len(server.connections) == 1


def test_a_failed_upload_is_raised_and_ends_the_others(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        (tmp_path / f"{number:02}").write_bytes(b"1")
    tried = []

    def refuse(self: object, file: str, place: str | None = None) -> None:
        tried.append(file)
        raise MlflowException("refused")

    monkeypatch.setattr(artifacts.Artifacts, "log_artifact", refuse)
    with pytest.raises(MlflowException, match="refused"):
        repository(server).log_artifacts(str(tmp_path))
    assert len(tried) < 50


@pytest.mark.parametrize("broken", [0, artifacts.ATTEMPTS - 1])
def test_a_file_is_downloaded_as_it_is_stored(server: Server, tmp_path: Path, broken: int) -> None:
    server.files[f"{ROOT}/rows.csv.gz"] = packed = gzip.compress(b"a,b\n" * 1000)
    server.broken = broken
    got = repository(server).download_artifacts("rows.csv.gz", str(tmp_path))
    assert Path(got).read_bytes() == packed


def test_a_store_that_keeps_breaking_off_is_told(server: Server, tmp_path: Path) -> None:
    server.files[f"{ROOT}/rows"] = b"1" * 100
    server.broken = artifacts.ATTEMPTS
    with pytest.raises(MlflowException, match="50"):
        repository(server).download_artifacts("rows", str(tmp_path))


def test_several_chunks_are_left_to_mlflow(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_MULTIPART_DOWNLOAD_CHUNK_SIZE", "50")
    server.files[f"{ROOT}/rows"] = b"1" * 100
    asked = []

    def download(self: object, answer: object, path: str, *_: object) -> None:
        asked.append(path)

    monkeypatch.setattr(artifacts.MlflowArtifactsRepository, "_multipart_download", download)
    repository(server).download_artifacts("rows", str(tmp_path))
    assert asked == ["rows"]


def test_an_expired_address_is_an_error(server: Server, tmp_path: Path) -> None:
    with pytest.raises(requests.HTTPError):
        artifacts.fetch(f"{server.url}/store/nothing", {}, tmp_path / "file", 2)
