"""What `make unit` needs to share the tests among processes: ids that are no other test's, the longest files first."""

from __future__ import annotations

from collections import Counter

import pytest

LONG = ["test_inference_swap", "test_inference_golden", "test_inference_follow", "test_runs_reproduce",
        "test_mlflow_plugin_runs", "test_deploy_command", "test_inference_schema"]  # fmt: skip
"""Files that take longest; last among others, one of them would keep all others waiting."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let what schemathesis generates have ids that end with its names, which pytest 9.2 leaves out."""
    if not item.nodeid.endswith(item.name):
        item._id = item.id.parse(f"{item.nodeid.rpartition('::')[0]}::{item.name}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    twice = [name for name, count in Counter(item.nodeid for item in items).items() if count > 1]
    if twice:
        raise pytest.UsageError(f"of tests with the same id only one would be run: {', '.join(twice)}")
    rank = {name: at for at, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONG)))
