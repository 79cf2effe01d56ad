"""Clone the project's repository on a worker, where a run starts with only an archive of the deployed commit."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import yaml

from flights.errors import FlightsError

BRANCH = "retrain"
# What retraining changes; everything else on its branch is the code of the deployed commit.
CHANGED = ["params.yaml", "dvc.lock", "data"]
# Evaluated at import: a flow that is retried has changed its folder by then.
START = Path.cwd()


def get(commit: str) -> None:
    """Turn this run's folder into a clone of the project at this commit, with the commit's data.

    A reproduction starts in such a clone already.
    """
    if "METALWORKS_REPRODUCES" in os.environ:
        return
    _enter()
    _git("checkout", "--quiet", "--force", "--detach", commit)
    _dvc("pull", "prepare")


def prepare(months: list[str], message: str) -> str:
    """Prepare these months and push the data; return its commit on the branch `retrain`."""
    if os.environ.get("METALWORKS_GIT_DIRTY") == "true":
        raise FlightsError("Retraining needs a commit, but this code is uncommitted: commit, push, deploy again.")
    _enter()
    deployed = os.environ["METALWORKS_GIT_COMMIT"]
    if not _succeeds("cat-file", "-e", f"{deployed}^{{commit}}"):
        raise FlightsError(f"No branch of {_remote()} contains the deployed commit {deployed}: push it.")
    _go_on(deployed)
    params = Path("params.yaml")
    params.write_text(_with_months(params.read_text(), months))
    # Use data that an earlier run has prepared and pushed, but that no version was trained with.
    _dvc("repro", "--pull", "prepare")
    _dvc("push", "prepare")
    _git("add", *CHANGED)
    if not _succeeds("diff", "--cached", "--quiet"):
        _git("commit", "--quiet", f"--message={message}")
    _git("push", "--quiet", "origin", BRANCH)
    return _answer("rev-parse", "HEAD")


def _with_months(text: str, months: list[str]) -> str:
    """Return params.yaml with these months and everything else unchanged, including comments."""
    changed = re.sub("^months: .*$", f"months: {json.dumps(months)}", text, flags=re.MULTILINE)
    if yaml.safe_load(changed)["months"] != months:
        raise FlightsError('params.yaml must have its months on one line, like `months: ["2013-01"]`.')
    return changed


def _enter() -> None:
    """Turn the folder that the run started in into a clone, and change to the project in it.

    In place, so that the flow's file belongs to the clone. For a project in a subfolder, the clone is a subfolder, too.
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
    """Check out the branch `retrain`: the code of the deployed commit, and the history of the data so far."""
    earlier = f"origin/{BRANCH}"
    known = _succeeds("rev-parse", "--quiet", "--verify", earlier)
    others = [f":(exclude){path}" for path in CHANGED]
    if (
        known
        and _succeeds("merge-base", "--is-ancestor", deployed, earlier)
        and _succeeds("diff", "--quiet", deployed, earlier, "--", ".", *others)
    ):
        _git("checkout", "--quiet", "--force", "-B", BRANCH, earlier)
        # Take the other parameters from the deployed commit, too.
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
    """Run a command and print its output, so that it is in the flow's log."""
    done = subprocess.run(command, env=_quiet(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.stdout.strip():
        print(done.stdout.strip())
    if done.returncode:
        output = done.stdout.strip().splitlines()[-1:] or ["no output"]
        raise FlightsError(f"`{' '.join(command[:2])}` failed with exit code {done.returncode}: {output[0]}")


def _succeeds(*arguments: str) -> bool:
    return subprocess.run(["git", *arguments], env=_quiet(), capture_output=True).returncode == 0


def _answer(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def _quiet() -> dict[str, str]:
    """Return the environment for Git without prompts."""
    return os.environ | {"GIT_TERMINAL_PROMPT": "0"}
