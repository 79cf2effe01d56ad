"""The data of a run comes back, whatever its files are called."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from mlflow.entities import Run

from metalworks.runs.data import DataCheckout
from metalworks.runs.record import Recorded
from mlflow_plugin.metalworks_mlflow import data
from tests.unit.test_mlflow_plugin import ODD, call, commit, settings

__all__ = ["settings"]


def test_data_with_odd_names_is_pulled(settings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dvc.repo import Repo

    work, clone, names = tmp_path / "work", tmp_path / "clone", [f"data/{name}" for name in ODD[:-1]]
    (work / "data").mkdir(parents=True)
    call("git", "init", folder=work)
    with Repo.init(str(work)) as dvc:
        (work / ".dvc/config").write_text(
            f"[core]\n    remote = store\n['remote \"store\"']\n    url = {tmp_path}/store\n"
        )
        for name in names:
            (work / name).write_text(name)
        stages = dvc.add([str(work / name) for name in names])
        dvc.push()
    commit(work)
    call("git", "clone", str(work), str(clone), folder=tmp_path)
    hashes = {stage.outs[0].fs_path: stage.outs[0].hash_info.value for stage in stages}
    tags = data.tags({name: {"md5": hashes[str(work / name)], "remote": f"{tmp_path}/store"} for name in names})
    run = cast(Run, SimpleNamespace(data=SimpleNamespace(tags=tags)))
    old = Recorded(run, "e", None, None)
    assert set(old.data) == set(names)
    checkout = DataCheckout(old, clone, clone)
    assert checkout.prepare() == []
    checkout.pull()
    assert {name: (clone / name).read_text() for name in names} == {name: name for name in names}
