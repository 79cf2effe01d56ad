"""What of data, DVC's and Prefect's own, will not work in a project's flows as it does where the developer works."""

from __future__ import annotations

import re
from pathlib import Path

from metalworks.deploy.source import git
from metalworks.flow_run import results
from metalworks.flow_run.lock import lock_of, locked_versions

STORED = re.compile(r"\b(persist_result\s*=\s*True|cache_policy\s*=|cache_key_fn\s*=)")
"""By these a flow or task stores its results."""


def hints(code: Path, project: Path) -> list[str]:
    """Return what deploy says about data. `project`: where the developer works."""
    return [*_dvc(code, project), *_results(code)]


def _results(code: Path) -> list[str]:
    if results.LIBRARY in locked_versions(code):
        return []
    files = [path for path in sorted(code.glob("**/*.py")) if STORED.search(path.read_text(errors="replace"))]
    if not files:
        return []
    cure = "`uv add s3fs`" if lock_of(code).name == "uv.lock" else "s3fs in requirements.txt"
    return [
        f"{files[0].relative_to(code)} stores results, and {lock_of(code).name} has no s3fs: they stay on the host "
        f"that made them, and flows on other hosts cannot read them → {cure}"
    ]


def _dvc(code: Path, project: Path) -> list[str]:
    if not any(path.is_file() for pattern in ("**/*.dvc", "**/dvc.yaml") for path in code.glob(pattern)):
        return []
    if not (code / ".dvc").is_dir():
        root = git("rev-parse", "--show-toplevel", folder=project).stdout.decode(errors="replace").strip()
        if (Path(root) / ".dvc").is_dir() and Path(root) != project.resolve():
            return [
                "DVC: its settings (.dvc) are at the root of the repository and not in the project's folder, so its "
                "flows cannot use DVC: run `dvc init --subdir` in the project's folder"
            ]
        return ["DVC: the project has files of DVC and no .dvc folder, so its flows cannot use DVC: `git add .dvc`"]
    locked = locked_versions(code)
    lacking = [name for name in ("dvc", "dvc-s3") if name not in locked]
    if lacking and (lock_of(code).name == "uv.lock" or "dvc" not in locked):
        cure = "`uv add 'dvc[s3]'`" if lock_of(code).name == "uv.lock" else "dvc[s3] in requirements.txt"
        return [f"DVC: {lock_of(code).name} has no {lacking[0]}, and workers have no DVC of their own → {cure}"]
    return []
