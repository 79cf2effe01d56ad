"""scripts/site/build_minio.py: only the pinned version gets into the cache, atomically."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.common import ProblemError
from scripts.site import build_minio

RECORD = """\
/x/minio: go1.26.8
\tpath\tgithub.com/minio/minio
\tmod\tgithub.com/minio/minio\tv0.0.1\th1:right=
\tdep\tgithub.com/minio/madmin-go\tv3.0.0\th1:other=
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> build_minio.Module:
    monkeypatch.setattr(build_minio, "CACHE", tmp_path)
    monkeypatch.setattr("scripts.common.CACHE", tmp_path)
    return build_minio.Module("minio", "github.com/minio/minio", "v0.0.1", "h1:right=")


def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checksum: str, record: str = RECORD) -> list[str]:
    """Create a stand-in for Go that downloads a module with this checksum and a binary with this build record."""
    compiled: list[str] = []

    def install(argv: list[str], *, extra_env: dict[str, str], log: Path) -> None:
        compiled.append(argv[-1])
        (Path(extra_env["GOBIN"]) / "minio").write_text("binary")

    monkeypatch.setattr(build_minio, "toolchain", lambda: Path("/usr/bin/go"))
    monkeypatch.setattr(build_minio, "run_go", lambda *_: json.dumps({"Sum": checksum}))
    monkeypatch.setattr(build_minio, "logged", install)
    monkeypatch.setattr(build_minio, "capture", lambda argv: record)
    return compiled


def test_it_builds_once(module: build_minio.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build_minio, "pinned", lambda name: module)
    compiled = pretend(monkeypatch, tmp_path, "h1:right=")
    assert build_minio.ensure("minio").binary == tmp_path / "minio" / "v0.0.1" / "minio"
    described = json.loads(build_minio.ensure("minio").describe())
    assert Path(described["path"]).read_text() == "binary"
    assert described["sha256"] == hashlib.sha256(b"binary").hexdigest()
    assert compiled == ["github.com/minio/minio@v0.0.1"]
    assert not list(tmp_path.glob("minio-build-*"))


def test_a_wrong_module_is_not_compiled(
    module: build_minio.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiled = pretend(monkeypatch, tmp_path, "h1:wrong=")
    with pytest.raises(ProblemError, match=r"h1:wrong=, but h1:right= is pinned"):
        build_minio.build(module)
    assert not compiled
    assert not module.binary.exists()


def test_a_binary_with_another_checksum_is_not_cached(
    module: build_minio.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path, "h1:right=", RECORD.replace("h1:right=", "h1:wrong="))
    with pytest.raises(ProblemError, match="the built binary"):
        build_minio.build(module)
    assert not module.binary.exists()
    assert not module.cached()


def test_a_binary_without_its_stamp_or_of_another_pin_is_not_trusted(
    module: build_minio.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path, "h1:right=")
    build_minio.build(module)
    assert module.cached()
    assert not replace(module, checksum="h1:newer=").cached()
    module.stamp.unlink()
    assert not module.cached()


@pytest.mark.parametrize(
    ("said", "version"),
    [("go version go1.26.8 linux/amd64", (1, 26)), ("go version go1.9 linux/arm64", (1, 9)), ("no", (0,))],
)
def test_a_recent_enough_go_is_chosen(said: str, version: tuple[int, ...]) -> None:
    assert build_minio.go_version(said) == version


def test_the_pin_has_a_module_sum() -> None:
    assert build_minio.pinned("minio").checksum.startswith("h1:")


def test_a_missing_pin_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_minio, "ROOT", tmp_path)
    pins = tmp_path / "versions.yml"
    pins.write_text("minio_version: v1\n")
    with pytest.raises(ProblemError, match=r"versions\.yml has no minio_module_sum"):
        build_minio.pinned("minio", pins)
