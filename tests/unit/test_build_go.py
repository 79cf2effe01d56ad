"""scripts/site/build_go.py: only the pinned version gets into the cache, atomically."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts.common import ProblemError
from scripts.site import build_go

RECORD = """\
/x/minio: go1.26.8
\tpath\tgithub.com/minio/minio
\tmod\tgithub.com/minio/minio\tv0.0.1\th1:right=
\tdep\tgithub.com/minio/madmin-go\tv3.0.0\th1:other=
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> build_go.Program:
    monkeypatch.setattr(build_go, "CACHE", tmp_path)
    monkeypatch.setattr("scripts.common.CACHE", tmp_path)
    return build_go.Program("minio", "github.com/minio/minio", "", "v0.0.1", "h1:right=", "minio")


def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checksum: str, record: str = RECORD) -> list[str]:
    """Create a stand-in for Go that downloads a module with this checksum and a binary with this build record."""
    compiled: list[str] = []

    def install(argv: list[str], *, extra_env: dict[str, str], log: Path) -> None:
        compiled.append(argv[-1])
        (Path(extra_env["GOBIN"]) / "minio").write_text("binary")

    monkeypatch.setattr(build_go, "toolchain", lambda: Path("/usr/bin/go"))
    monkeypatch.setattr(build_go, "run_go", lambda *_: json.dumps({"Sum": checksum}))
    monkeypatch.setattr(build_go, "logged", install)
    monkeypatch.setattr(build_go, "capture", lambda argv: record)
    return compiled


def test_it_builds_once(program: build_go.Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build_go, "pinned", lambda name: program)
    compiled = pretend(monkeypatch, tmp_path, "h1:right=")
    assert build_go.ensure("minio").binary == tmp_path / "minio" / "v0.0.1" / "minio"
    described = json.loads(build_go.ensure("minio").describe())
    assert Path(described["path"]).read_text() == "binary"
    assert described["sha256"] == hashlib.sha256(b"binary").hexdigest()
    assert compiled == ["github.com/minio/minio@v0.0.1"]
    assert not list(tmp_path.glob("minio-build-*"))


def test_a_wrong_module_is_not_compiled(
    program: build_go.Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiled = pretend(monkeypatch, tmp_path, "h1:wrong=")
    with pytest.raises(ProblemError, match=r"h1:wrong=, but h1:right= is pinned"):
        build_go.build(program)
    assert not compiled
    assert not program.binary.exists()


def test_a_binary_with_another_checksum_is_not_cached(
    program: build_go.Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path, "h1:right=", RECORD.replace("h1:right=", "h1:wrong="))
    with pytest.raises(ProblemError, match="the built binary"):
        build_go.build(program)
    assert not program.binary.exists()
    assert not program.cached()


def test_a_binary_without_its_stamp_or_of_another_pin_is_not_trusted(
    program: build_go.Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path, "h1:right=")
    build_go.build(program)
    assert program.cached()
    assert not replace(program, checksum="h1:newer=").cached()
    program.stamp.unlink()
    assert not program.cached()


@pytest.mark.parametrize(
    ("said", "version"),
    [("go version go1.26.8 linux/amd64", (1, 26)), ("go version go1.9 linux/arm64", (1, 9)), ("no", (0,))],
)
def test_a_recent_enough_go_is_chosen(said: str, version: tuple[int, ...]) -> None:
    assert build_go.go_version(said) == version


@pytest.mark.parametrize("name", build_go.PROGRAMS)
def test_every_program_has_a_pin_with_a_module_sum(name: str) -> None:
    program = build_go.pinned(name)
    assert program.checksum.startswith("h1:")
    assert program.path.rpartition("/")[2] == name, "`go install` names the program after its package"


def test_a_program_of_a_larger_module_is_built_alone(
    program: build_go.Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The checksum is that of the whole module, whose programs have it in common."""
    inner = replace(program, package="cmd/minio", pin="store")
    compiled = pretend(monkeypatch, tmp_path, "h1:right=")
    build_go.build(inner)
    assert compiled == ["github.com/minio/minio/cmd/minio@v0.0.1"]
    with pytest.raises(ProblemError, match="store_module_sum"):
        build_go.compare(inner, "h1:wrong=", "the module")


def test_only_what_is_missing_is_built_in_the_background(
    program: build_go.Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun: list[list[str]] = []

    class Building:
        pid = 0

        def __init__(self, argv: list[str], **_: Any) -> None:
            begun.append(argv[3:])

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(build_go, "BUILD", tmp_path)
    monkeypatch.setattr(build_go, "LOG", tmp_path / "go.log")
    monkeypatch.setattr(build_go.subprocess, "Popen", Building)
    pretend(
        monkeypatch,
        tmp_path,
        build_go.pinned("minio").checksum,
        RECORD.replace("h1:right=", build_go.pinned("minio").checksum),
    )
    build_go.build(build_go.pinned("minio"))
    with build_go.in_background(["minio", "vmagent"]):
        assert begun == [["vmagent"]]


def test_a_missing_pin_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_go, "ROOT", tmp_path)
    pins = tmp_path / "versions.yml"
    pins.write_text("minio_version: v1\n")
    with pytest.raises(ProblemError, match=r"versions\.yml has no minio_module_sum"):
        build_go.pinned("minio", pins)
