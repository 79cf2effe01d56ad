"""What to do about packages that do not install or load."""

from __future__ import annotations

from pathlib import Path

import pytest

from metalworks.contracts import DesiredVersion
from metalworks.deploy import check
from metalworks.install_errors import cures, missing_library
from metalworks.serving.rollout import release


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (
            "OSError: libgomp.so.1: cannot open shared object file: No such file or directory",
            "This host lacks the system library libgomp.so.1: add libgomp1 to runtime_packages, and run site.yml.",
        ),
        (
            "ImportError: libxcb.so.1: cannot open shared object file: No such file or directory",
            "This host lacks the system library libxcb.so.1: add libxcb1 to runtime_packages, and run site.yml.",
        ),
        (
            "ImportError: libfoo++.so.3.2: cannot open shared object file: No such file or directory",
            "This host lacks the system library libfoo++.so.3.2: add the distribution's package that contains it to "
            "runtime_packages, and run site.yml.",
        ),
        ("ImportError: libcudart.so.12: cannot open shared object file: No such file or directory", ""),
        ("ModuleNotFoundError: No module named 'libgomp'", ""),
    ],
)
def test_a_missing_system_library(error: str, cure: str) -> None:
    assert missing_library(error) == cure


@pytest.mark.parametrize(
    ("error", "model", "cure"),
    [
        ("hint: Wheels are required because building from source is disabled", True, "inference_build_packages: true"),
        (
            "error: command 'x86_64-linux-gnu-gcc' failed: No such file or directory",
            False,
            "build-essential and python",
        ),
        ("src/x.c:3:10: fatal error: Python.h: No such file or directory", False, "build-essential and python3-dev"),
        ("error: Git executable not found. Ensure that Git is installed", False, "add git to runtime_packages"),
        ("lack of valid authentication credentials (401 Unauthorized)", False, "user and password in package_indexes"),
        ("error sending request for url (https://own/simple/a/)", True, "may_reach.packages or package_indexes"),
        ("Distribution not found at: file:///home/ada/a.whl", True, "log the wheel with the model"),
        (
            "Because there is no version of torch==2.0+cpu and you require torch==2.0+cpu, we can conclude",
            True,
            "torch==2.0+cpu is a build that only one index has: log the model with the line --extra-index-url",
        ),
        ("Because torch was not found in the package registry and you require torch==2.0+cpu", False, "tool.uv.index"),
        ("error: No interpreter found for Python 3.13 in managed installations", False, "This host has no Python 3.13"),
    ],
)
def test_errors_of_uv(error: str, model: bool, cure: str) -> None:
    found = cures(error, model=model)
    assert len(found) == 1
    assert cure in found[0]


def test_other_errors_are_left_alone() -> None:
    assert cures("error: No solution found when resolving dependencies", model=True) == []


LACKING = "OSError: libgomp.so.1: cannot open shared object file: No such file or directory"


def test_a_refused_version_names_the_library_and_the_setting() -> None:
    """Even if the model's own error, which comes last, hides it."""
    with pytest.raises(
        release.VersionRefusedError, match=r"MlflowException: cannot load .* add libgomp1 to runtime_pa"
    ):
        release._require_success(3, [LACKING, "", "MlflowException: cannot load the model"])


def test_deploy_names_the_library_and_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "requirements.txt").write_text("prefect==3.0.0\n")
    answer = {
        "imports": [],
        "distributions": {},
        "flows": {"f.py:f": {"error": LACKING, "where": None, "missing": None}},
    }
    monkeypatch.setattr(check, "ask", lambda *_: answer)
    report = check.check(tmp_path, tmp_path, tmp_path, [])
    assert len(report.problems) == 1
    assert "add libgomp1 to runtime_packages" in report.problems[0]


@pytest.mark.parametrize(("line", "remark"), [("3.99.1", "with Python 3.99; this host serves with 3.11. If"), ("", "")])
def test_a_refused_version_names_another_python(line: str, remark: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/MLmodel").write_text(f"flavors:\n  python_function:\n    python_version: {line}\n")
    (tmp_path / "environment/bin").mkdir(parents=True)
    (tmp_path / "environment/pyvenv.cfg").write_text("home = /usr/bin\nversion_info = 3.11.2\n")
    desired = DesiredVersion("3", str(tmp_path), str(tmp_path / "environment/bin/python"), "0")
    version = release.Release(desired, None)  # type: ignore[arg-type]
    version._refuse("TypeError: code() argument 13 must be str, not int")
    assert version.refused.startswith("TypeError: code() argument 13 must be str, not int")
    assert remark in version.refused
    assert bool(remark) == ("this host serves" in version.refused)
