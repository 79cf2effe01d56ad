"""`metalworks deploy`: it deploys what the file says, or lists all problems and changes nothing."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from metalworks import cli
from metalworks.deploy import check, command, definition, server, store, summer_time
from metalworks.deploy.server import Known, PrefectServer
from metalworks.errors import CommandError
from metalworks.flow_run.environment import metadata

PREFECT = metadata.version("prefect")
FLOW = "from prefect import flow\n@flow\ndef learn(month: str = 'now'):\n    import json\n"
FILE = """
name: demo
definitions:
  common: &common {tags: [a-tag], work_pool: {name: cpu, job_variables: {env: {MARK: "{{ $MARK }}"}}}}
deployments:
  - {name: nightly, entrypoint: "flows.py:learn", <<: *common, schedules: [{cron: "0 6 * * *", timezone: UTC}]}
  - {name: by-hand, entrypoint: "flows.py:learn", <<: *common, parameters: {month: May}}
"""
# The project's Python: records what it would pass to Prefect, and is a normal Python otherwise.
PYTHON = """#!/bin/sh
if [ "$2" != prefect ]; then exec {python} "$@"; fi
cp "$6" {given}
printf '%s\n' "$PWD" "$PYTHONPATH" >{given}.place
"""


class Site:
    """A project, with a fake object store and server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = folder / "clone"
        self.objects: dict[str, bytes] = {}
        self.known = PrefectServer(PREFECT, {"cpu": {"default"}, "idle": {"default"}}, {"cpu"})
        self.given = folder / "given.yaml"
        self.deleted: list[str] = []

    def git(self, *arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=self.project, check=True, capture_output=True)

    def write(self, **files: str) -> None:
        for name, text in files.items():
            (self.project / name.replace("_", ".")).write_text(text)
        self.git("add", "--all")
        self.git("commit", "-qm", "more")
        self.git("push", "-q", "origin", "main")

    def look(self, pools: Any) -> PrefectServer:
        if self.given.exists():
            for item in yaml.safe_load(self.given.read_text())["deployments"]:
                pool = item["work_pool"]
                schedules = [server.asked_schedule(entry) or "" for entry in item.get("schedules", [])]
                variables = pool["job_variables"]["env"]
                known = Known(
                    1, f"learn/{item['name']}", item["version"], item["entrypoint"], pool["name"], "default",
                    item.get("parameters", {}), item["tags"], variables, schedules, False,
                )  # fmt: skip
                self.known.deployments[known.slug] = known
        return self.known

    def plan(self, key: str, content: bytes) -> store.Upload:
        return store.Upload("code", key, content, there=key in self.objects)

    def put(self, upload: store.Upload) -> None:
        self.objects[upload.key] = upload.content


ANSWERS: dict[str, Any] = {}
ask = check.ask


def ask_once(environment: Path, code: Path, flows: Any, begun: check.Starts) -> dict[str, Any]:
    """Probe the same code only once, because starting Python and Prefect takes seconds."""
    key = repr((flows, begun, sorted(path.read_text() for path in code.glob("*.py"))))
    if key not in ANSWERS:
        ANSWERS[key] = ask(environment, code, flows, begun)
    return dict(ANSWERS[key])


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    found = Site(tmp_path)
    for name, value in {"HOME": tmp_path, "XDG_CACHE_HOME": tmp_path / "cache", "MARK": "set"}.items():
        monkeypatch.setenv(name, str(value))
    # The command sets it; setting it here first makes monkeypatch restore it.
    monkeypatch.setenv("UV_CACHE_DIR", "")
    monkeypatch.delenv("UV_CACHE_DIR")
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "ada")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "ada@example.org")
    found.project.mkdir()
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "remote.git"], check=True)
    found.git("init", "-q", "-b", "main")
    found.git("remote", "add", "origin", str(tmp_path / "remote.git"))
    found.write(prefect_yaml=FILE, flows_py=FLOW, requirements_txt=f"prefect=={PREFECT}\n")
    python = tmp_path / "environment/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON.format(given=shlex.quote(str(found.given)), python=shlex.quote(sys.executable)))
    python.chmod(0o755)
    monkeypatch.chdir(found.project)
    monkeypatch.setattr(command, "environment_of", lambda *_: python.parents[1])
    monkeypatch.setattr(server, "look", found.look)
    monkeypatch.setattr(server, "delete", lambda items: found.deleted.extend(item.slug for item in items))
    monkeypatch.setattr(server, "next_runs", lambda slugs: dict.fromkeys(slugs))
    monkeypatch.setattr(command, "Store", lambda: found)
    monkeypatch.setattr(check, "ask", ask_once)
    return found


def deploy(*arguments: str) -> int:
    return cli.main(["deploy", *arguments])


def test_a_project_is_deployed_once(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy() == 0
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert set(site.objects) == {f"demo/{commit}.tar.gz", f"demo/{commit}.requirements.txt"}
    given = yaml.safe_load(site.given.read_text())
    assert given["pull"] == [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}]
    nightly, by_hand = given["deployments"]
    assert nightly["version"] == commit
    assert nightly["schedules"] == [{"cron": "0 6 * * *", "timezone": "UTC"}]
    assert by_hand["parameters"] == {"month": "May"}
    variables = nightly["work_pool"]["job_variables"]["env"]
    assert variables["MARK"] == "{{ $MARK }}", "Prefect resolves it"
    assert variables["METALWORKS_FLOW_CODE"] == f"s3://code/demo/{commit}.tar.gz"
    assert variables["METALWORKS_GIT_DIRTY"] == "false"
    assert variables["METALWORKS_GIT_COMMIT"] == commit
    place, path = site.given.with_name("given.yaml.place").read_text().splitlines()
    assert place == path != str(site.project)
    assert capsys.readouterr().out.count("created") == 2
    site.given.unlink()
    assert deploy() == 0
    assert not site.given.exists()
    assert capsys.readouterr().out.count("unchanged") == 2


def test_a_changed_template_value_updates_the_deployment(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert deploy() == 0
    site.given.unlink()
    monkeypatch.setenv("MARK", "other")
    assert deploy("by-hand") == 0
    assert [item["name"] for item in yaml.safe_load(site.given.read_text())["deployments"]] == ["by-hand"]


def test_a_dry_run_changes_nothing(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy("--dry-run") == 0
    assert not site.objects
    assert not site.given.exists()
    assert capsys.readouterr().out.count("would be created") == 2


def test_prune_deletes_deployments_missing_in_the_file(site: Site) -> None:
    assert deploy() == 0
    site.write(prefect_yaml=FILE.rpartition("  - ")[0])
    assert deploy() == 0
    assert site.deleted == []
    assert deploy("--prune") == 0
    assert site.deleted == ["learn/by-hand"]


def test_a_project_of_the_same_name_in_another_repository_is_left_alone(site: Site) -> None:
    assert deploy() == 0
    another_repositorys(site)
    site.write(prefect_yaml=FILE.replace("name: nightly", "name: other").replace("name: by-hand", "name: one"))
    assert deploy("--prune") == 0
    assert site.deleted == []
    site.write(prefect_yaml=FILE)
    assert deploy() == 1
    assert deploy("--moved") == 0


def test_no_package_is_advised_by_the_name_of_a_module(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """It may be anybody's: dependency confusion begins there."""
    (site.project / "libs/common").mkdir(parents=True)
    (site.project / "libs/common/__init__.py").touch()
    site.write(flows_py=FLOW.replace("json", "common, acme_tools"))
    assert deploy() == 1
    told = capsys.readouterr().err
    assert "no module common in the environment → libs/common/__init__.py has a module of that name" in told
    assert "no module acme_tools in the environment → add the package that provides it" in told
    assert "acme-tools" not in told
    assert "common==" not in told


@pytest.mark.parametrize(
    ("schedule", "hint"),
    [
        ({"cron": "0 * * * *", "timezone": "Europe/Berlin"}, "leaves out an hour on 2027-10-31"),
        ({"cron": "*/15 * * * *", "timezone": "America/New_York"}, "leaves out an hour on 2027-11-07"),
        ({"cron": "0 * * * *", "timezone": "UTC"}, ""),
        ({"cron": "0 * * * *", "timezone": "Asia/Taipei"}, ""),
        ({"cron": "0 * * * *"}, ""),
        ({"cron": "30 2 * * *", "timezone": "Europe/Berlin"}, ""),
        ({"cron": "0 */6 * * *", "timezone": "Europe/Berlin"}, ""),
        ({"interval": 3600, "timezone": "Europe/Berlin"}, ""),
    ],
)
def test_an_hour_that_a_schedule_leaves_out_is_named(schedule: dict[str, Any], hint: str) -> None:
    found = summer_time.hints("hourly", [schedule], datetime(2027, 6, 1, tzinfo=UTC))
    assert [hint in text for text in found] == ([True] if hint else [])


Spoil = Callable[[Site], None]


def another_projects(site: Site) -> None:
    assert deploy() == 0
    site.given.unlink()
    site.objects.clear()
    site.write(prefect_yaml=FILE.replace("name: demo", "name: other"))


def another_repositorys(site: Site) -> None:
    another_projects(site)
    site.write(prefect_yaml=FILE)
    other = str(site.folder / "other.git")
    subprocess.run(["git", "clone", "-q", "--bare", str(site.folder / "remote.git"), other], check=True)
    site.git("remote", "set-url", "origin", other)


def of_the_file(old: str, new: str) -> Spoil:
    return lambda site: site.write(prefect_yaml=FILE.replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda site: (site.project / "flows.py").write_text(FLOW + "\n"), "not committed: flows.py"),
        (lambda site: site.git("commit", "-q", "--allow-empty", "-m", "x"), "`git push origin main`"),
        (lambda site: site.write(flows_py=FLOW.replace("json", "sklear")), "flows.py:4: no module sklear in the"),
        (lambda site: site.write(flows_py=FLOW.replace("json", "PIL_, bs4")), "beautifulsoup4==VERSION` into req"),
        (lambda site: site.write(flows_py="import surely_missing\n" + FLOW), "flows.py:1: no module surely_missing"),
        (lambda site: site.write(flows_py="1 / 0\n"), "does not load: flows.py:1: ZeroDivisionError"),
        (lambda site: site.write(requirements_txt="prefect==2.1.0\n"), f"`prefect=={PREFECT}` in requirements.txt"),
        (lambda site: site.write(requirements_txt="mlflow==3\n"), "requirements.txt does not contain prefect"),
        (of_the_file("name: cpu", "name: nowhere"), "no work pool nowhere (used by nightly, by-hand), only cpu"),
        (of_the_file("name: cpu", "name: idle"), "no worker of the pool idle"),
        (of_the_file("name: cpu", "work_queue_name: q, name: cpu"), "has no queue q, only default"),
        (of_the_file("0 6 * * *", "0 66 * * *"), "nightly: invalid schedule"),
        (of_the_file("flows.py:learn", "flows.py:lern"), "'lern' not found"),
        (of_the_file("month: May", "moth: May"), "by-hand: the flow has no parameter moth, only month"),
        (of_the_file("name: by-hand", "name: nightly"), "two deployments are named learn/nightly"),
        (of_the_file("{env:", "{memory_limit: lots, env:"), "nightly: memory_limit is 'lots': write a size such as 8G"),
        (of_the_file("$MARK", "$UNKNOWN_MARK"), "it refers to $UNKNOWN_MARK"),
        (of_the_file("tags: [a-tag]", "tags: [a-tag], build: [{x: {}}]"), "remove the `build` steps"),
        (another_repositorys, "if it is the same project in a new place, `metalworks deploy --moved`"),
        (another_projects, "learn/nightly belongs to the project demo"),
    ],
)
def test_a_problem_is_named_and_nothing_is_changed(
    spoil: Spoil, words: str, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(site)
    assert deploy() == 1
    assert words in capsys.readouterr().err
    assert not site.objects
    assert not site.given.exists()


def test_all_problems_are_named_at_once(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.write(prefect_yaml=FILE.replace("name: cpu", "name: nowhere"), flows_py=FLOW.replace("json", "sklear"))
    (site.project / "new").touch()
    assert deploy() == 1
    assert capsys.readouterr().err.count("\n  - ") == 3


def test_an_unknown_deployment_name_is_refused(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy("nigthly") == 1
    assert "has no deployment nigthly, only nightly, by-hand" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["deployments: [", "name: x", "[]", "deployments: []"])
def test_an_invalid_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").write_text(text)
    with pytest.raises(CommandError, match=r"prefect\.yaml"):
        definition.read(tmp_path, tmp_path)
