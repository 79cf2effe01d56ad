"""A small project of a developer's with flows, deployed on the lab as people deploy theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from scripts.common import ROOT
from scripts.tests.age import site as age_site
from scripts.tests.faults import client, site
from scripts.tests.faults.load import BUCKET, HOST, PERSON, as_developer

TOOLBOX = ROOT / "molecule/cluster/files/nightly"
DEPLOYMENTS = ("hold", "alone", "leave", "parent")
PLACE = "/srv/git/toolbox.git"
EMPTY = f"rm -rf {PLACE} && sudo -u git git init --quiet --bare --initial-branch=main {PLACE}"
"""Creates its repository on the Git host, run by root."""


def deploy() -> str:
    """Return the script in which the developer commits, pushes and deploys it, in a subfolder with requirements.txt."""
    lines = ["rm -rf ~/toolbox", "git init --quiet --initial-branch=main ~/toolbox", "mkdir -p ~/toolbox/jobs/nightly"]
    lines.append("cd ~/toolbox/jobs/nightly")
    for path in TOOLBOX.iterdir():
        lines += [f"cat >{path.name} <<'END_OF_FILE'", path.read_text(), "END_OF_FILE"]
    lines += [
        "git config user.name ml1 && git config user.email ml1@example.com",
        "git remote add origin git@git:toolbox.git",
        "uv pip compile --quiet requirements.in --output-file requirements.txt",
        "git add --all && git commit --quiet --message='Hold' && git push --quiet --set-upstream origin main",
        "metalworks deploy",
    ]
    return "\n".join(lines)


@contextmanager
def deployed() -> Iterator[str]:
    """Deploy the load's flow; yield the id of its deployment, and remove everything at the end."""
    site.inside("git", EMPTY)
    age_site.over_ssh(HOST, f"sudo su - {PERSON} -c 'bash -euo pipefail'", deploy())
    mine = {one["name"]: one["id"] for one in as_developer("prefect('/deployments/filter', 'POST', {})")}
    with tidied():
        try:
            yield mine["hold"]
        finally:
            for name in DEPLOYMENTS:
                as_developer(f"prefect('/deployments/{mine[name]}', 'DELETE')")


@contextmanager
def tidied() -> Iterator[None]:
    """At the end, remove what the load made in MLflow, in the store and in the developer's home."""
    try:
        yield
    finally:
        place = as_developer("experiment()")
        as_developer(f"mlflow('mlflow/experiments/delete', 'POST', {{'experiment_id': '{place}'}}).decode()")
        age_site.remove_experiments([place])
        places = [(BUCKET, f"{client.PLACE}/"), ("mlflow-artifacts", f"{place}/")]
        age_site.at_the_store(f"remove({places!r})")
        as_developer("clean()")
