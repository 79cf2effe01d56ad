"""The workflows of GitHub and GitLab run all targets and scenarios, with sufficient timeouts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

from scripts.tests import scenarios
from tests.unit.repository import ROOT, read_yaml
from tests.unit.test_pins import project

GITHUB = ROOT / ".github/workflows"
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))
SLOW = set(re.findall(r"^([a-z-]+):[^#]*## slow:", MAKEFILE, re.M))
PREPARE = {"lab", "lab-down"}
"""Targets that a job runs before a slow one, because it needs them."""
PINNED = re.compile(r"^[\w-]+/[\w-]+@[0-9a-f]{40}$")
LONGEST = 360
"""GitHub's limit for a job, in minutes."""


@dataclass(frozen=True)
class Job:
    """A job for one entry of its matrix."""

    command: str
    minutes: int
    scheduled: bool
    python: str
    keeps: str


def github() -> list[Job]:
    """Yield every job of every workflow, with `${{ matrix.x }}` filled in."""
    jobs = []
    for path in GITHUB.glob("*.yml"):
        workflow = read_yaml(path)
        for job in workflow["jobs"].values():
            choices = dict(job["strategy"]["matrix"])
            rows = choices.pop("include", [{name: value} for name, values in choices.items() for value in values])
            for row in rows:
                filled = fill(job, r"\$\{\{ matrix\.(\w+) \}\}", row)
                (command,) = (step["run"] for step in filled["steps"] if "run" in step)
                (python,) = (step["with"] for step in filled["steps"] if "setup-python" in step.get("uses", ""))
                (kept,) = (step for step in filled["steps"] if "upload-artifact" in step.get("uses", ""))
                folder = job["defaults"]["run"].get("working-directory", "")
                keeps = kept["with"]["path"].removeprefix(folder).strip("/") if kept["if"] == "always()" else ""
                scheduled = "schedule" in workflow[True]  # `on`, in YAML 1.1
                jobs.append(Job(command, job["timeout-minutes"], scheduled, python["python-version"], keeps))
    return jobs


def gitlab() -> list[Job]:
    """Yield every job, with the matrix's variables filled in."""
    pipeline, jobs = read_yaml(ROOT / ".gitlab-ci.yml"), []
    for name, written in pipeline.items():
        if name != "workflow" and not name.startswith("."):
            job = {**pipeline.get(written.get("extends"), {}), **written}
            ((variable, values),) = job["parallel"]["matrix"][0].items()
            for value in values:
                filled = fill(job, rf"\$\{{?({variable})\}}?", {variable: value})
                (command,) = filled["script"]
                # A runner without an image is Debian 12.
                python = re.search(r"python:([\d.]+)-", filled.get("image", "python:3.11-"))
                assert python
                kept = job["artifacts"]["paths"][0].strip("/") if job["artifacts"]["when"] == "always" else ""
                scheduled = job["rules"] == [{"if": '$CI_PIPELINE_SOURCE == "schedule"'}]
                jobs.append(Job(command, int(job["timeout"].removesuffix("m")), scheduled, python[1], kept))
    return jobs


def fill(value: Any, pattern: str, row: dict[str, str]) -> Any:
    """Replace the pattern's matches in all texts of a value by the row's values."""
    if isinstance(value, dict):
        return {name: fill(each, pattern, row) for name, each in value.items()}
    if isinstance(value, list):
        return [fill(each, pattern, row) for each in value]
    return re.sub(pattern, lambda found: row[found[1]], value) if isinstance(value, str) else value


def minutes(target: str) -> int:
    """Return the time of a target in a fresh clone according to the README, in minutes."""
    row = rf"^\| `make {target}`, fresh clone[^|]*\| (?:about )?(\d+) min"
    found = re.search(row, (ROOT / "README.md").read_text(), re.M)
    assert found, f"README.md does not say how long `make {target}` takes in a fresh clone"
    return int(found[1]) + 1


@pytest.fixture(params=[github, gitlab], ids=["github", "gitlab"])
def jobs(request: pytest.FixtureRequest) -> list[Job]:
    found: list[Job] = request.param()
    assert len(found) > 5
    return found


def goals(job: Job) -> list[str]:
    """Return the targets that a job runs."""
    words = re.sub(r'NAMES="[^"]*"', "", job.command).split()
    assert words[0] == "make", f"workflows only call make: {job.command}"
    return words[1:]


def test_jobs_call_only_existing_targets(jobs: list[Job]) -> None:
    assert {goal for job in jobs for goal in goals(job)} <= TARGETS


def test_every_scenario_is_run_by_exactly_one_job(jobs: list[Job]) -> None:
    named = [name for job in jobs for name in re.findall(r'NAMES="([^"]*)"', job.command)]
    assert sorted(" ".join(named).split()) == sorted(scenarios.in_ci())
    made = [goal for job in jobs for goal in goals(job)]
    assert [made.count(f"test-{name.replace('_', '-')}") for name in scenarios.SLOW] == [1] * len(scenarios.SLOW)
    folders = {path.parent.name for path in scenarios.SCENARIOS.glob("*/molecule.yml")}
    assert folders == {*scenarios.in_ci(), *scenarios.SLOW}


def test_every_slow_target_is_run_regularly_and_nothing_else_is(jobs: list[Job]) -> None:
    assert "test-kills" in SLOW
    scheduled = [goal for job in jobs if job.scheduled for goal in goals(job)]
    assert sorted(goal for goal in scheduled if goal not in PREPARE) == sorted(SLOW)
    assert not SLOW & {goal for job in jobs if not job.scheduled for goal in goals(job)}


def test_a_change_is_tested_with_every_version_of_ansible(jobs: list[Job]) -> None:
    pins = [Requirement(line) for line in project()["dependency-groups"]["dev"] if line.startswith("ansible==")]
    markers = [pin.marker for pin in pins if pin.marker]
    assert len(markers) == len(pins) > 1

    def covered(marker: Marker, tested: list[Job]) -> bool:
        return any(marker.evaluate({"python_version": job.python}) for job in tested)

    fast = [job for job in jobs if goals(job) == ["test-fast"]]
    assert all(covered(marker, fast) for marker in markers)


def test_timeouts_are_long_enough(jobs: list[Job]) -> None:
    for job in jobs:
        whole = minutes("test-fast") * 2 if goals(job) == ["test-fast"] else minutes("test")
        assert whole <= job.minutes < LONGEST, job


def test_every_job_uploads_its_results(jobs: list[Job]) -> None:
    assert {job.keeps for job in jobs} == {"build"}


def test_unit_tests_run_in_a_path_with_a_blank() -> None:
    """In a path with a blank, in a folder with the package's name."""
    folder = read_yaml(GITHUB / "test.yml")["jobs"]["fast"]["defaults"]["run"]["working-directory"]
    cloned = read_yaml(ROOT / ".gitlab-ci.yml")["fast"]["variables"]["GIT_CLONE_PATH"]
    assert folder == cloned.removeprefix("$CI_BUILDS_DIR/") == "My Projects/metalworks"


def test_actions_are_pinned_by_commit() -> None:
    for path in GITHUB.glob("*.yml"):
        used = re.findall(r"uses: (\S+)( # v\d+\.\d+\.\d+)?$", path.read_text(), re.M)
        assert used
        assert [action for action, version in used if not (PINNED.match(action) and version)] == [], path.name


def test_no_job_uses_a_latest_image() -> None:
    texts = [path.read_text() for path in (*GITHUB.glob("*.yml"), ROOT / ".gitlab-ci.yml")]
    assert not [text for text in texts if "latest" in text]
