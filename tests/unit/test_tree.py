"""Conventions of the repository that no linter checks."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from scripts.docs import choices as choice_docs
from scripts.docs import roles as role_docs
from tests.unit.repository import ROLE_NAMES, ROLES, ROOT, read_yaml

YAML = sorted(
    {*ROOT.glob("*.yml"), *ROOT.glob("playbooks/*.yml"), *ROOT.glob("roles/**/*.yml"), *ROOT.glob("molecule/**/*.yml")}
)
HIDES_FAILURE = re.compile(r"ignore_errors:|failed_when: false|\|\| true")
INJECTED_FACT = re.compile(
    r"\bansible_(?:distribution|hostname|memtotal_mb|os_family|architecture|kernel|default_ipv4)\b"
)
EXTENSION = re.compile(r"tasks_from: \S+\.ya?ml")


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    """Return file:line of each match outside comments."""
    found = []
    for path in YAML:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if pattern.search(line.split(" #")[0]) and not line.lstrip().startswith("#"):
                found.append(f"{path.relative_to(ROOT)}:{number}")
    return found


def test_site_yml_only_imports_playbooks() -> None:
    plays = read_yaml(ROOT / "site.yml")
    assert [set(play) for play in plays] == [{"name", "ansible.builtin.import_playbook"}] * len(plays)
    imported = [play["ansible.builtin.import_playbook"] for play in plays]
    assert imported[0] == "playbooks/validate.yml"
    assert imported[-1] == "playbooks/smoke.yml"
    assert [path for path in imported if not (ROOT / path).exists()] == []


def test_no_failure_is_hidden() -> None:
    assert lines_with(HIDES_FAILURE) == []


def test_no_injected_fact_is_read() -> None:
    assert lines_with(INJECTED_FACT) == []


def test_no_spec_is_skipped() -> None:
    """`tasks_from` with an extension silently skips the entry point's argument spec."""
    assert lines_with(EXTENSION) == []


@pytest.mark.parametrize("role", ROLES, ids=ROLE_NAMES)
def test_role_runs_somewhere(role: Path) -> None:
    name = rf"(?:role|name): {role.name}$"
    users = [*ROOT.glob("playbooks/*.yml"), *ROOT.glob("roles/*/tasks/*.yml")]
    assert any(re.search(name, path.read_text(), re.M) for path in users)


@pytest.mark.parametrize("role", ROLES, ids=ROLE_NAMES)
def test_internal_variables_are_marked(role: Path) -> None:
    """A role's internal variables start with two underscores, and are not in its defaults."""
    assert [name for name in read_yaml(role / "defaults/main.yml") if name.startswith("_")] == []
    theirs = f"__{role.name}_"
    assert [name for name in read_yaml(role / "vars/main.yml") if not name.startswith(theirs)] == []


def test_roles_are_documented() -> None:
    """docs/roles.md matches the specs; `python -m scripts.docs.roles` writes it."""
    assert (ROOT / "docs/roles.md").read_text() == role_docs.document()


def test_choices_are_documented() -> None:
    """docs/choices.md says what the schema says; `python -m scripts.docs.choices` writes it."""
    assert (ROOT / "docs/choices.md").read_text() == choice_docs.document()


def test_links_in_documents_are_valid() -> None:
    broken = []
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            if not (path.parent / target).exists():
                broken.append(f"{path.name}: {target}")
    assert broken == []


def test_documents_name_only_existing_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")):
        assert set(re.findall(r"`make ([a-z-]+)", path.read_text())) <= targets, path.name


def missing_paths(text: str) -> list[str]:
    """Return the paths of code that a document names and that do not exist."""
    named = re.findall(
        r"`((?:molecule|playbooks|plugins|roles|scripts|src|tests|serving|model_sync)/[^`\s<*…]+)`", text
    )
    return [name for name in named if not (ROOT / name).exists() and not (ROOT / "src/metalworks" / name).exists()]


def test_documents_name_only_existing_paths() -> None:
    """A file that moves takes what the documents say of it along."""
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    assert {path.name: missing for path in documents if (missing := missing_paths(path.read_text()))} == {}
    assert missing_paths("`serving/http/app.py`, `src/metalworks/cli.py`, `serving/gone.py`") == ["serving/gone.py"]


def test_every_file_is_text_that_ends_with_a_newline() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    texts = [ROOT / name for name in listed if Path(name).suffix in (".py", ".yml", ".md", ".j2", ".sh", ".toml")]
    existing = [path for path in texts if path.is_file() and path.stat().st_size]
    assert [str(path) for path in existing if not path.read_text().endswith("\n")] == []


def test_only_templates_use_ansible_managed() -> None:
    """Ansible defines it while it renders a template's file, and not for a variable's text."""
    files = [path for folder in ("roles", "group_vars", "playbooks") for path in (ROOT / folder).rglob("*.yml")]
    assert [path for path in files if "ansible_managed" in path.read_text()] == []
