"""A package index for the tests of locks and environments: a folder of almost empty wheels."""

from __future__ import annotations

import base64
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

import pytest

UV = str(Path(sys.executable).parent / "uv")
MLFLOW = metadata.version("mlflow")


def add_wheel(folder: Path, name: str, version: str, extra: str = "", files: dict[str, str] | None = None) -> None:
    """Put a package, empty by default, into the folder that uv resolves from."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    files = {
        **(files or {}),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + (f"Provides-Extra: {extra}\n" if extra else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


class IndexHandler(SimpleHTTPRequestHandler):
    """Serves a folder of packages as an index (PEP 503), to those who have the login if there is one."""

    def __init__(self, *args: object, login: str, **options: object) -> None:
        """Take the login, as user:password."""
        self.login = login
        super().__init__(*args, **options)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Answer with a package, or with the page that lists those of a name."""
        wanted = f"Basic {base64.b64encode(self.login.encode()).decode()}"
        if self.login and self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic")
            self.end_headers()
        elif self.path.endswith("/"):
            name = self.path.strip("/").replace("-", "_")
            found = sorted(path.name for path in Path(self.directory).glob(f"{name}-*"))
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write("".join(f'<a href="/{quote(each)}">{each}</a>' for each in found).encode())
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that serves a folder of packages as an index and returns its URL."""
    servers = []

    def start(folder: Path, login: str = "") -> str:
        folder.mkdir(exist_ok=True)
        handler = partial(IndexHandler, directory=str(folder), login=login)
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the only index uv knows: MLflow, as the platform has it and others, and a `scaler`."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in ("mlflow", "mlflow-skinny"):
        for version in ("2.5.0", "2.22.0", MLFLOW, "999.0"):
            add_wheel(folder, name, version)
    add_wheel(folder, "scaler", "1.0")
    config = tmp_path / "uv.toml"
    config.write_text(f'no-index = true\nfind-links = ["{folder}"]\n')
    monkeypatch.setenv("UV_CONFIG_FILE", str(config))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    return folder
