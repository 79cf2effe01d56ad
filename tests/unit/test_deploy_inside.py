"""The environment probe: a project's imports, and whether its flows load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from metalworks.deploy import calls, check, data, environment_probe
from metalworks.deploy.definition import Deployment

FILES = {
    "flows/main.py": """
from typing import TYPE_CHECKING
from prefect import flow
import pkg.work
if TYPE_CHECKING:
    import only_types
else:
    import not_only_types

@flow
def main(month: str, again: int = 1) -> None:
    "Do it."
    def later():
        import lazy_missing.part
""",
    "pkg/__init__.py": "",
    "pkg/work.py": """
import os, yaml
from . import beside, nowhere
from .gone import x
try:
    import fast_json
except ImportError:
    import slow_json
with contextlib.suppress(ImportError):
    import suppressed
import pkg.vanished
from importlib import import_module
import_module("by_name")
import_module(variable)
""",
    "pkg/beside.py": "import sys\nif sys.version_info < (3, 11):\n    import tomli\n",
    "pkg/unused.py": "import in_the_package\n",
    "script.py": "import helper\n",
    "helper.py": "import of_the_stage\n",
    "notebook.py": "import for_nobody\n",
    "tests/test_it.py": "import of_a_test\n",
}


@pytest.fixture
def code(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def imports(code: Path, scripts: list[str], modules: list[str] | None = None) -> dict[str, dict[str, Any]]:
    rows = environment_probe.imports(environment_probe.Project(code, [str(code)], scripts, modules or []))
    return {row["missing"]: row for row in rows if row["missing"]}


def test_imports_are_found_wherever_they_are(code: Path) -> None:
    found = imports(code, ["flows/main.py", "script.py"])
    needed = {name for name, row in found.items() if row["kind"] == "needed" and row["reached"] and not row["own"]}
    assert needed == {"not_only_types", "lazy_missing", "by_name", "in_the_package", "of_the_stage"}
    assert (found["lazy_missing"]["file"], found["lazy_missing"]["line"]) == ("flows/main.py", 14)


def test_guarded_imports_are_optional(code: Path) -> None:
    found = imports(code, ["flows/main.py"])
    optional = {name for name, row in found.items() if row["kind"] == "optional"}
    assert optional == {"fast_json", "slow_json", "suppressed", "tomli"}
    assert found["only_types"]["kind"] == "typing"


def test_missing_modules_of_the_project_are_found(code: Path) -> None:
    found = imports(code, ["flows/main.py"])
    assert {name for name, row in found.items() if row["own"]} == {".gone", "pkg.vanished"}


def test_imports_that_no_flow_reaches_are_marked(code: Path) -> None:
    found = imports(code, ["flows/main.py"])
    assert not found["for_nobody"]["reached"]
    assert not found["of_the_stage"]["reached"]
    assert "of_a_test" not in found


def test_a_module_of_a_package_reaches_the_whole_package(code: Path) -> None:
    assert imports(code, [], ["pkg/beside.py"])["in_the_package"]["reached"]


def test_missing_modules_of_namespace_packages_are_found(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = code / "site"
    (place / "google/cloud").mkdir(parents=True)
    (place / "google/cloud/there.py").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path, str(place)])
    (code / "script.py").write_text("import google.storage\nfrom google.cloud import there, other\nimport os.nothing")
    assert set(imports(code, ["script.py"])) >= {"google.storage", "google.cloud.other"}
    assert "google.cloud.there" not in imports(code, ["script.py"])


def test_installed_imports_are_listed(code: Path) -> None:
    rows = environment_probe.imports(environment_probe.Project(code, [str(code)], ["flows/main.py"], []))
    assert {row["module"] for row in rows if row["missing"] is None} == {"prefect", "yaml"}


def test_a_file_with_a_syntax_error_is_named(code: Path) -> None:
    (code / "pkg/unused.py").write_text("def (\n")
    rows = environment_probe.imports(environment_probe.Project(code, [str(code)], ["flows/main.py"], []))
    assert [(row["file"], row["line"], row["reached"]) for row in rows if "syntax" in row] == [
        ("pkg/unused.py", 1, True)
    ]


def test_dvc_stages_count_as_entry_points(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n"
        "  a: {cmd: python -m pkg.step --month 3}\n"
        "  b: {foreach: [1], do: {cmd: [python 'scripts/b.py', echo done]}}\n"
    )
    flow = Deployment({}, {"entrypoint": "flows/main.py:main"})
    scripts, modules = check.starts(tmp_path, [flow, Deployment({}, {"entrypoint": "pkg.flows.other"})])
    assert scripts == ["flows/main.py", "scripts/b.py"]
    assert {"pkg/flows.py", "pkg/step.py", "pkg/step/__main__.py"} < set(modules)


FLOWS = {
    "good.py": "from prefect import flow\nprint('noise')\n@flow\ndef a_flow(month, again=1): 'Do it.'\n",
    "broken.py": "from prefect import flow\nimport part\n@flow\ndef a_flow(): pass\n",
    "part.py": "\n\nimport surely_missing\n",
    "none.py": "def a_flow(): pass\n",
    "exits.py": "import os\nos._exit(3)\n",
    "marked.py": "import os\nfrom prefect import flow\nos.environ['MARK']\nflow(lambda: 0, name='lambda')\n",
    "path.py": "import of_the_shell\n",
}


def test_flows_are_loaded_isolated_from_the_users_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in one test, because starting Python and Prefect takes seconds."""
    code, shell = tmp_path / "code", tmp_path / "shell"
    code.mkdir()
    shell.mkdir()
    for name, text in FLOWS.items():
        (code / name).write_text(text)
    (code / "requirements.txt").write_text("prefect==3\n")
    (shell / "of_the_shell.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(shell))
    monkeypatch.setenv("MARK", "the user's")
    entrypoints = ["good.py:a_flow", "good.py:no_flow", "broken.py:a_flow", "none.py:a_flow", "exits.py:a_flow"]
    entrypoints += ["marked.py:a_flow", "path.py:a_flow", "nowhere.py:a_flow"]
    found = check.ask(Path(sys.prefix), code, {name: {} for name in entrypoints}, (["good.py"], []))["flows"]
    assert found["good.py:a_flow"]["name"] == "a-flow"
    assert found["good.py:a_flow"]["parameters"] == ["month", "again"]
    assert found["good.py:a_flow"]["required"] == ["month"]
    assert found["broken.py:a_flow"]["where"] == "part.py:3"
    assert found["broken.py:a_flow"]["missing"] == "surely_missing"
    assert "'no_flow' not found" in found["good.py:no_flow"]["error"]
    assert "is not a flow" in found["none.py:a_flow"]["error"]
    assert "ended Python" in found["exits.py:a_flow"]["error"]
    assert (found["marked.py:a_flow"]["error"], found["marked.py:a_flow"]["where"]) == (
        "KeyError: 'MARK'",
        "marked.py:3",
    )
    assert found["path.py:a_flow"]["missing"] == "of_the_shell"
    assert "nowhere.py" in found["nowhere.py:a_flow"]["error"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('run_deployment("child/a")', {"child/a"}),
        ('await prefect.deployments.run_deployment(name="child/a", timeout=300)', {"child/a"}),
        ('run_deployment("child/a", timeout=0)', set()),
        ("run_deployment(name)", set()),
        ("def (", set()),
    ],
)
def test_what_a_flow_waits_for_is_read_from_its_source(line: str, expected: set[str]) -> None:
    assert calls.waited_for(line) == expected


def test_a_flow_that_waits_in_its_own_pool_is_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "flows.py").write_text('run_deployment("child/a")\nrun_deployment("child/b")\n')
    item = Deployment({}, {"name": "parent", "entrypoint": "flows.py:parent", "work_pool": {"name": "gpu"}})
    (hint,) = calls.own_pool(tmp_path, [item], {"child/a": "gpu", "child/b": "cpu"})
    assert "parent waits for child/a in its own pool gpu" in hint


@pytest.mark.parametrize(
    ("files", "requirements", "hint"),
    [
        (["data.dvc", ".dvc/config"], "dvc==3\ndvc-s3==3\n", ""),
        ([], "prefect==3\n", ""),
        ([".dvc/config"], "prefect==3\n", ""),
        (
            ["dvc.yaml", ".dvc/config"],
            "prefect==3\n",
            "requirements.txt has no dvc, and workers have no DVC of their own",
        ),
        (["data.dvc"], "dvc==3\n", "no .dvc folder"),
    ],
)
def test_what_dvc_cannot_do_in_flows_is_said(files: list[str], requirements: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text(requirements)
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = data.hints(tmp_path, tmp_path)
    assert [hint in text for text in found] == ([True] if hint else [])


def test_dvc_above_the_project_is_not_in_the_code(tmp_path: Path) -> None:
    project, code = tmp_path / "clone/project", tmp_path / "code"
    for folder in (project, code, tmp_path / "clone/.dvc"):
        folder.mkdir(parents=True)
    subprocess.run(["git", "init", "-q"], cwd=project.parent, check=True)
    (code / "dvc.yaml").touch()
    (code / "requirements.txt").touch()
    (hint,) = data.hints(code, project)
    assert "dvc init --subdir" in hint


@pytest.mark.parametrize(
    ("line", "requirements", "said"),
    [
        ("@flow(persist_result=True)", "prefect==3\n", True),
        ("@task(cache_policy=INPUTS)", "prefect==3\n", True),
        ("@flow(persist_result=True)", "prefect==3\ns3fs==2026.9.0\n", False),
        ("@flow", "prefect==3\n", False),
    ],
)
def test_results_that_stay_on_their_host_are_pointed_out(
    line: str, requirements: str, said: bool, tmp_path: Path
) -> None:
    (tmp_path / "requirements.txt").write_text(requirements)
    (tmp_path / "flows.py").write_text(line)
    assert ["flows.py stores results" in text for text in data.hints(tmp_path, tmp_path)] == [True] * said
