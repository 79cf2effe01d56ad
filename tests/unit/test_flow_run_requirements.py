"""Projects without uv.lock need a requirements.txt that pins everything."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from inference_wheels import Serve, add_wheel

from metalworks.errors import FlowRunError
from metalworks.flow_run import environment, lock
from metalworks.requirement_files import Index


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    code = tmp_path / "code"
    code.mkdir()
    (tmp_path / "wheels").mkdir()
    add_wheel(tmp_path / "wheels", "prefect", "3.0.0")
    add_wheel(tmp_path / "wheels", "other", "1.0")
    (code / "requirements.txt").write_text(f"--no-index\n--find-links {tmp_path / 'wheels'}\nprefect==3.0.0  # ours\n")
    return code


def test_the_environment_contains_the_files_packages(project: Path, tmp_path: Path) -> None:
    built = environment.environment_of(project, tmp_path / "cache", print)
    assert [path.name for path in built.glob("lib/python*/site-packages/*.dist-info")] == ["prefect-3.0.0.dist-info"]
    assert environment.import_path(project) == [str(project)]
    environment.require_prefect(project, print)


def test_another_file_or_python_gives_another_environment(project: Path) -> None:
    first = environment.identity(project)
    (project / ".python-version").write_text("3.12\n")
    second = environment.identity(project)
    (project / "requirements.txt").write_text("prefect==3.0.1\n")
    assert len({first, second, environment.identity(project)}) == 3


@pytest.mark.parametrize("line", ["other", "other>=1", "other==1.*", "-r more.txt", "-e .", ".", "other==1,<2"])
def test_unpinned_lines_are_refused_and_named(line: str, project: Path, tmp_path: Path) -> None:
    with (project / "requirements.txt").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(FlowRunError, match="line 4: "):
        environment.environment_of(project, tmp_path / "cache", print)


def test_hashes_and_markers_are_pins() -> None:
    text = "a[x]==1.0 ; python_version > '3' \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\nb @ https://x/b.whl#sha256=0\n"
    lock.check_requirements(text)
    assert lock.has_hashes(text)
    assert not lock.has_hashes("a==1")


def test_a_project_without_either_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlowRunError, match=r"has neither uv\.lock nor requirements\.txt at its root"):
        lock.lock_of(tmp_path)


def served(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Serve, lines: list[str]) -> None:
    """Give the project these lines beside Prefect, and uv a served default index, as PyPI is."""
    config = tmp_path / "uv.toml"
    config.write_text(f'[[index]]\nurl = "{serve(tmp_path / "wheels")}"\ndefault = true\n')
    monkeypatch.setenv("UV_CONFIG_FILE", str(config))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    (project / "requirements.txt").write_text("\n".join([*lines, "prefect==3.0.0", ""]))


def installed(project: Path, cache: Path) -> set[str]:
    built = environment.environment_of(project, cache, print)
    return {path.name.removesuffix(".dist-info") for path in built.glob("lib/*/site-packages/*.dist-info")}


def test_packages_come_from_the_index_that_the_file_names(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    """As with PyTorch's index: local versions, beside old copies of public packages."""
    own = serve(tmp_path / "own")
    add_wheel(tmp_path / "own", "torch", "2.0+cpu")
    add_wheel(tmp_path / "own", "other", "0.5")
    add_wheel(tmp_path / "wheels", "torch", "2.0")
    served(project, tmp_path, monkeypatch, serve, [f"--extra-index-url {own}", "torch==2.0+cpu", "other==1.0"])
    assert installed(project, tmp_path / "cache") == {"prefect-3.0.0", "torch-2.0+cpu", "other-1.0"}


def test_a_package_of_the_sites_index_comes_from_it_alone(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    own = serve(tmp_path / "own", login="ci:s3cret")
    add_wheel(tmp_path / "own", "acmescale", "1.0")
    for version in ("1.0", "99.0"):
        add_wheel(tmp_path / "wheels", "acmescale", version, files={"acmescale.py": "raise SystemExit\n"})
    monkeypatch.setattr(environment, "site_indexes", lambda: [Index(own, ("acme*",))])
    served(project, tmp_path, monkeypatch, serve, ["acmescale==1.0"])
    with pytest.raises(FlowRunError, match="package_indexes") as refused:  # not a stranger's, for want of a login
        installed(project, tmp_path / "cache")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ci password s3cret\n")
    assert installed(project, tmp_path / "cache") == {"prefect-3.0.0", "acmescale-1.0"}
    served(project, tmp_path, monkeypatch, serve, ["acmescale==99.0"])
    with pytest.raises(FlowRunError, match=r"acmescale 99\.0 would come from .* alone") as refused:
        installed(project, tmp_path / "cache")
    assert "s3cret" not in str(refused.value)


def test_a_wheel_in_the_project(project: Path, tmp_path: Path) -> None:
    add_wheel(project, "acmescale", "1.0", files={"acmescale.py": "FACTOR = 1\n"})
    with (project / "requirements.txt").open("a") as file:
        file.write("./acmescale-1.0-py3-none-any.whl\n")
    assert installed(project, tmp_path / "cache") == {"prefect-3.0.0", "acmescale-1.0"}
    first = environment.identity(project)
    add_wheel(project, "acmescale", "1.0", files={"acmescale.py": "FACTOR = 2\n"})
    assert environment.identity(project) != first
