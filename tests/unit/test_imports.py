"""The contracts of import-linter in pyproject.toml, and unique class names."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from tests.unit.repository import ROOT


def test_packages_keep_their_layers_and_have_no_cycles() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    path = os.pathsep.join(str(ROOT / each) for each in ("src", "src/model_runner", "src/mlflow_plugin"))
    done = subprocess.run(
        [program, "--no-cache"], cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(file.relative_to(ROOT)))
    assert len(places) > 100
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
