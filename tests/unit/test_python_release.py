"""Hosts keep a limited number of releases, wheels, and packages in uv's cache."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.repository import load

release = load("plugins/module_utils/python_release.py")


def made(folder: Path, *packages: str, age: int = 0) -> Path:
    """Create a complete release of this age in seconds."""
    for package in packages:
        (folder / f"lib/python3.11/site-packages/{package}.dist-info").mkdir(parents=True)
    (folder / release.MARKER).touch()
    os.utime(folder / release.MARKER, (1e9 - age, 1e9 - age))
    return folder


class Module:
    """Records the commands."""

    def __init__(self, wheel: Path | None = None) -> None:
        self.params = {"wheel": str(wheel or "")}
        self.ran: list[tuple[list[str], dict[str, str]]] = []

    def run_command(self, command: list[str], environ_update: dict[str, str], **_: Any) -> SimpleNamespace:
        self.ran.append((command, environ_update))
        return SimpleNamespace()


def test_the_newest_releases_are_kept_and_removed_ones_reported(tmp_path: Path) -> None:
    releases = tmp_path / "demo/releases"
    for name, age in (("now", 0), ("last", 1), ("old", 2), ("older", 3)):
        made(releases / name, f"{name}-1.0", age=age)
    (releases / "half").mkdir()
    (current := tmp_path / "demo/current").symlink_to(releases / "now")
    gone, had = release.tidy(releases, current, 1)
    assert (sorted(gone), sorted(had)) == (["half", "old", "older"], ["old-1.0", "older-1.0"])
    assert sorted(path.name for path in releases.iterdir()) == ["last", "now"]


def test_packages_that_no_program_has_leave_uvs_cache(tmp_path: Path) -> None:
    made(tmp_path / "demo/releases/now", "h11-2.0", "only_here-1.0")
    made(tmp_path / "other/releases/now", "shared-1.0")
    module = Module()
    release.forget(module, {"h11-1.0", "shared-1.0", "only_here-1.0", "gone_kit-3.0"}, tmp_path / "demo")
    ((command, environment),) = module.ran
    assert command == [release.UV, "cache", "clean", "--quiet", "gone_kit", "h11"]
    assert environment["UV_CACHE_DIR"] == release.CACHE
    release.forget(module, {"shared-1.0"}, tmp_path / "demo")
    release.forget(module, set(), tmp_path / "demo")
    assert len(module.ran) == 1


def test_only_one_wheel_of_the_project_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "WHEELS", tmp_path / "wheels")
    for name in ("new", "old", "older"):
        (tmp_path / "wheels" / name).mkdir(parents=True)
    (tmp_path / "elsewhere/theirs").mkdir(parents=True)
    release.forget(Module(tmp_path / "wheels/new/metalworks.whl"), set(), tmp_path / "demo")
    assert [path.name for path in (tmp_path / "wheels").iterdir()] == ["new"]
    release.forget(Module(tmp_path / "elsewhere/mine/some.whl"), set(), tmp_path / "demo")
    assert (tmp_path / "elsewhere/theirs").exists(), "a wheel from somewhere else says nothing of what lies beside it"
