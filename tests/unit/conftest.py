"""Settings for running the unit tests in several processes: unique test ids, and the longest files first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from scripts import common
from tests.unit.inference_wheels import serve

__all__ = ["serve"]

LONG = ["test_inference_swap", "test_inference_golden", "test_inference_follow", "test_runs_reproduce",
        "test_mlflow_plugin_runs", "test_deploy_command", "test_inference_schema"]  # fmt: skip
"""The slowest files: if one of them started last, all processes would wait for it."""


@pytest.fixture(scope="session", autouse=True)
def own_locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Wait for nobody's lab: `make test` holds the lab's lock meanwhile, in this clone or in another."""
    folder = tmp_path_factory.mktemp("locks")
    folder.chmod(0o1777)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "OPEN_FOLDERS", (str(folder),))
        yield


def pytest_itemcollected(item: pytest.Item) -> None:
    """Add the names to the ids of tests that schemathesis generates, which pytest 9.2 leaves out."""
    if not item.nodeid.endswith(item.name):
        item._id = item.id.parse(f"{item.nodeid.rpartition('::')[0]}::{item.name}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    twice = [name for name, count in Counter(item.nodeid for item in items).items() if count > 1]
    if twice:
        raise pytest.UsageError(f"of tests with the same id only one would be run: {', '.join(twice)}")
    rank = {name: at for at, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONG)))
