"""Package indexes: if two have a package of the same name, only the site's index is used."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from metalworks.requirement_files import Index, Sources, site_indexes
from scripts.common import environment
from tests.unit.repository import ROOT, rendered, role_templar

NAME = "acme_secret_sauce"
OURS, STRANGERS = "1.0", "99.0"


def publish(index: Path, version: str) -> None:
    """Put a wheel of this name into a file-based index (PEP 503)."""
    folder = index / NAME.replace("_", "-")
    folder.mkdir(parents=True)
    wheel = folder / f"{NAME}-{version}-py3-none-any.whl"
    info = f"{NAME}-{version}.dist-info"
    files = {
        f"{NAME}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}\n"
        for name, text in files.items()
    )
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in (files | {f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}).items():
            archive.writestr(name, text)
    (folder / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without logging."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Serve the site's index with its package, and a public one where a stranger took the name."""
    servers = []
    for name, version in (("site", OURS), ("public", STRANGERS)):
        folder = tmp_path_factory.mktemp(name)
        publish(folder, version)
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
    yield tuple(f"http://127.0.0.1:{server.server_port}/" for server in servers)  # type: ignore[misc]
    for server in servers:
        server.shutdown()


def configured(index: str, template: str, folder: Path) -> Path:
    """Write the host's configuration of uv or pip, as role base does for a site with an index."""
    role = ROOT / "roles/base"
    path = folder / template.removesuffix(".j2")
    path.write_text(rendered(role_templar(role, base_pip_index_url=index), role / "templates" / template))
    return path


def clean(**more: str) -> dict[str, str]:
    """Return the environment without this machine's index settings."""
    return {name: value for name, value in environment(more).items() if not name.startswith(("UV_", "PIP_"))} | more


def uv_takes(config: Path, requirements: str, folder: Path) -> str:
    """Return the version that uv resolves to."""
    (folder / "asked.txt").write_text(requirements)
    command = [
        Path(sys.executable).parent / "uv",
        "--config-file",
        config,
        "pip",
        "compile",
        "--no-header",
        "--no-cache",
    ]
    done = subprocess.run(
        [*command, "--no-annotate", "asked.txt"],
        cwd=folder,
        env=clean(),
        capture_output=True,
        text=True,
        check=True,
    )
    return next(line.rpartition("==")[2] for line in done.stdout.splitlines() if "==" in line)


def test_uv_uses_only_the_sites_index(indexes: tuple[str, str], tmp_path: Path) -> None:
    config = configured(indexes[0], "uv.toml.j2", tmp_path)
    assert uv_takes(config, NAME, tmp_path) == OURS


def test_a_second_index_has_priority(indexes: tuple[str, str], tmp_path: Path) -> None:
    """See docs/security.md; on inference hosts, the firewall prevents it."""
    config = configured(indexes[0], "uv.toml.j2", tmp_path)
    assert uv_takes(config, f"--extra-index-url {indexes[1]}\n{NAME}", tmp_path) == STRANGERS


def test_models_and_flows_ask_the_sites_indexes_first(indexes: tuple[str, str], tmp_path: Path) -> None:
    """Even if a model names another index."""
    role = ROOT / "roles/base"
    own: list[dict[str, object]] = [{"url": "https://own.example/simple", "packages": ["acme-*"]}]
    variables = {"base_pip_index_url": indexes[0], "base_package_indexes": own}
    text = rendered(role_templar(role, **variables), role / "templates/package-indexes.json.j2")
    (tmp_path / "package-indexes.json").write_text(text)
    site = site_indexes(tmp_path / "package-indexes.json")
    assert site == [Index("https://own.example/simple", ("acme-*",)), Index(indexes[0])]
    found = Sources(indexes=[indexes[1]]).variables(site)
    assert found["UV_INDEX"].split() == ["https://own.example/simple", *indexes]


def test_pip_uses_only_the_sites_index(indexes: tuple[str, str], tmp_path: Path) -> None:
    config = configured(indexes[0], "pip.conf.j2", tmp_path)
    # The host's CA bundle does not matter here.
    config.write_text("".join(line for line in config.read_text().splitlines(True) if not line.startswith("cert")))
    command = [
        Path(sys.executable).parent / "uv",
        "venv",
        "--seed",
        "--quiet",
        "--python",
        sys.executable,
        tmp_path / "env",
    ]
    subprocess.run(command, env=clean(), check=True)
    told = subprocess.run(
        [tmp_path / "env/bin/python", "-m", "pip", "download", "--no-deps", "--no-cache-dir", NAME],
        cwd=tmp_path,
        env=clean(PIP_CONFIG_FILE=str(config)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{NAME}-{OURS}-py3-none-any.whl" in told.stdout
