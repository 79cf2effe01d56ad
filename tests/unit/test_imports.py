"""What may import what: the contracts of import-linter in pyproject.toml."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.unit.repository import ROOT


def test_packages_keep_their_layers_and_have_no_cycles() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    path = os.pathsep.join(str(ROOT / each) for each in ("src", "src/model_runner", "src/mlflow_plugin"))
    done = subprocess.run(
        [program, "--no-cache"], cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
