"""The verdict of `make test-age` on its rounds."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.tests.age import __main__ as age
from scripts.tests.age import site


def rounds(number: int = 9, **grown: float) -> list[dict[str, Any]]:
    """Return rounds in which some figures grow from the second to the last third."""
    known = {"site": 40.0, "smoke": 10.0, "changes": 0, "database mlflow": 1e7, "database prefect": 1e7, "objects": 1e6}
    return [
        {what: value * (grown.get(what, 1.0) if one >= number * 2 // 3 else 1) for what, value in known.items()}
        for one in range(number)
    ]


def test_an_unchanged_site_passes() -> None:
    found = age.judge(rounds(), [])
    assert found["ok"]
    assert found["figures"]["rounds"] == 9
    assert all(isinstance(figure, int | float) for figure in found["figures"].values())
    assert age.judge(rounds(1), [])["ok"]


@pytest.mark.parametrize(
    ("what", "by", "ok"),
    [
        ("smoke", 1.15, True),
        ("smoke", 1.5, False),
        ("site", 1.5, False),
        ("database mlflow", 1.05, False),
        ("objects", 1.05, False),
        ("database prefect", 1.5, True),  # Prefect keeps events for some days
    ],
)
def test_growth_fails(what: str, by: float, ok: bool) -> None:
    found = age.judge(rounds(**{what: by}), [])
    assert found["ok"] == ok
    assert found["grown"] == ([] if ok else [what])


def test_leftovers_and_changes_fail() -> None:
    assert not age.judge(rounds(), ["new: object: training-data metalworks-smoke/objects/1 v1 Versions"])["ok"]
    changing = rounds()
    changing[3]["changes"] = 1
    assert not age.judge(changing, [])["ok"]


def test_changes_of_all_hosts_are_counted() -> None:
    recap = "PLAY RECAP ***\ndev-1  : ok=12   changed=0    unreachable=0\ngpu-1  : ok=7    changed=2    unreachable=0\n"
    assert age.CHANGES.findall(recap) == ["0", "2"]


def test_differences_list_gone_and_new_things() -> None:
    assert site.differences({"a", "b"}, {"b", "c"}) == ["gone: a", "new: c"]


@pytest.mark.parametrize(
    ("path", "passing"),
    [
        ("/var/lib/postgresql/15/main/base/1", True),
        ("/var/lib/minio/.minio.sys/tmp/x", True),
        ("/var/log/nginx/access.log.1", True),
        ("/var/lib/models-delay/evidence/3-1a2b", True),
        ("/var/lib/models-delay/x", False),
        ("/var/lib/minio/training-data/metalworks-smoke/x/xl.meta", False),
        ("/tmp/metalworks-smoke-x1", False),
        ("/home/ml1/.cache/x", False),
        ("/var/lib/prefect-worker/x", False),
        ("/run/metalworks/x", False),
        ("/etc/apt/sources.list.1~", False),
    ],
)
def test_platform_files_are_compared(path: str, passing: bool) -> None:
    assert bool(site.PASSING_FILES.search(path)) == passing
