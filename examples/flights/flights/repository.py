"""The project's repository on a worker, where a run starts with an archive of the deployed commit and no Git."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import yaml

from flights.errors import FlightsError

BRANCH = "retrain"
# What retraining itself changes; all else on its branch is the code of the commit that is deployed.
CHANGED = ["params.yaml", "dvc.lock", "data"]
# Also when a flow is tried again, which has gone elsewhere by then.
START = Path.cwd()


def get(commit: str) -> None:
    """Make this run's folder a clone of the project at that commit, with the data that the commit names.

    In a reproduction that is where the run has been started.
    """
    if "METALWORKS_REPRODUCES" in os.environ:
        return
    _enter()
    _git("checkout", "--quiet", "--force", "--detach", commit)
    _dvc("pull", "prepare")


def prepare(months: list[str], message: str) -> str:
    """Prepare these months as a pushed version of the data; the commit on the branch `retrain` that has it."""
    if os.environ.get("METALWORKS_GIT_DIRTY") == "true":
        raise FlightsError("Retraining goes on from a commit, and this code is none: commit, push, deploy again.")
    _enter()
    deployed = os.environ["METALWORKS_GIT_COMMIT"]
    if not _succeeds("cat-file", "-e", f"{deployed}^{{commit}}"):
        raise FlightsError(f"No branch of {_remote()} has the deployed commit {deployed}: push it.")
    _go_on(deployed)
    params = Path("params.yaml")
    params.write_text(_with_months(params.read_text(), months))
    # Data that an earlier run has prepared and pushed, and nobody has learnt from, is taken as it is.
    _dvc("repro", "--pull", "prepare")
    _dvc("push", "prepare")
    _git("add", *CHANGED)
    if not _succeeds("diff", "--cached", "--quiet"):
        _git("commit", "--quiet", f"--message={message}")
    _git("push", "--quiet", "origin", BRANCH)
    return _answer("rev-parse", "HEAD")


def _with_months(text: str, months: list[str]) -> str:
    """params.yaml with other months and all else as it was, comments too."""
    changed = re.sub("^months: .*$", f"months: {json.dumps(months)}", text, flags=re.MULTILINE)
    if yaml.safe_load(changed)["months"] != months:
        raise FlightsError('params.yaml needs its months on one line, as `months: ["2013-01"]`.')
    return changed


def _enter() -> None:
    """Make the folder that the run started in a clone, and go to the project in it.

    In place, so that the flow's own file is a file of the clone; of a project in a subfolder the clone lies beside.
    """
    folder = os.environ.get("METALWORKS_GIT_FOLDER", "")
    root = START / "repository" if folder else START
    _git("init", "--quiet", str(root))
    os.chdir(root)
    _git("config", "remote.origin.url", _remote())
    _git("config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*")
    _git("fetch", "--quiet", "origin")
    if folder:
        _git("checkout", "--quiet", "--force", "--detach", os.environ["METALWORKS_GIT_COMMIT"])
        os.chdir(folder)


def _go_on(deployed: str) -> None:
    """Be on the branch `retrain`: the code of the deployed commit, and the history of the data so far."""
    earlier = f"origin/{BRANCH}"
    known = _succeeds("rev-parse", "--quiet", "--verify", earlier)
    others = [f":(exclude){path}" for path in CHANGED]
    if (
        known
        and _succeeds("merge-base", "--is-ancestor", deployed, earlier)
        and _succeeds("diff", "--quiet", deployed, earlier, "--", ".", *others)
    ):
        _git("checkout", "--quiet", "--force", "-B", BRANCH, earlier)
        # Its other parameters are the deployed ones, too.
        _git("checkout", "--quiet", deployed, "--", "params.yaml")
        return
    _git("checkout", "--quiet", "--force", "-B", BRANCH, deployed)
    if known:
        _git("merge", "--quiet", "--no-ff", "--strategy=ours", f"--message=Go on with {deployed[:10]}", earlier)


def _remote() -> str:
    return os.environ["METALWORKS_GIT_REMOTE"]


def _git(*arguments: str) -> None:
    _run("git", *arguments)


def _dvc(*arguments: str) -> None:
    _run("dvc", *arguments)


def _run(*command: str) -> None:
    """Run a command; what it says is printed, and so gets into the flow's log."""
    done = subprocess.run(command, env=_quiet(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.stdout.strip():
        print(done.stdout.strip())
    if done.returncode:
        said = done.stdout.strip().splitlines()[-1:] or ["it said nothing"]
        raise FlightsError(f"`{' '.join(command[:2])}` ended with {done.returncode}: {said[0]}")


def _succeeds(*arguments: str) -> bool:
    return subprocess.run(["git", *arguments], env=_quiet(), capture_output=True).returncode == 0


def _answer(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def _quiet() -> dict[str, str]:
    """Nobody is there to answer a question."""
    return os.environ | {"GIT_TERMINAL_PROMPT": "0"}
