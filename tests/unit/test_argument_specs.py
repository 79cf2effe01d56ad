"""A role's argument spec, defaults and comments agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.repository import ROLE_NAMES, ROLES, ROOT, entry_points, read_yaml

SECRET = re.compile(r"(password|secret_key|token)$")
each_role = pytest.mark.parametrize("role", ROLES, ids=ROLE_NAMES)


def test_every_role_has_a_spec() -> None:
    without = [path.name for path in (ROOT / "roles").iterdir() if not (path / "meta/argument_specs.yml").exists()]
    assert without == []


@each_role
def test_spec_and_defaults_have_the_same_names(role: Path) -> None:
    defaults = read_yaml(role / "defaults/main.yml")
    required = {name for options in entry_points(role) for name in options if options[name].get("required")}
    named = {name for options in entry_points(role) for name in options}
    assert named - required == set(defaults)


@each_role
def test_spec_repeats_the_defaults(role: Path) -> None:
    defaults = read_yaml(role / "defaults/main.yml")
    for options in entry_points(role):
        told = {name: option.get("default") for name, option in options.items() if not option.get("required")}
        assert told == {name: defaults[name] for name in told}


@each_role
def test_every_option_is_explained(role: Path) -> None:
    assert [n for options in entry_points(role) for n, option in options.items() if not option.get("description")] == []


@each_role
def test_every_default_has_a_comment(role: Path) -> None:
    """The comment is directly above the variable."""
    path = role / "defaults/main.yml"
    lines = path.read_text().splitlines() if path.exists() else []
    names = [number for number, line in enumerate(lines) if re.match(r"[a-z_]\w*:", line)]
    bare = [lines[number] for number in names if not lines[number - 1].startswith("#")]
    assert bare == []


@each_role
def test_options_carry_the_role_in_their_names(role: Path) -> None:
    names = [name for options in entry_points(role) for name in options]
    assert [name for name in names if not name.startswith(f"{role.name}_")] == []


@each_role
def test_secrets_are_never_printed(role: Path) -> None:
    """A secret has no `choices`, because a violation would print its value."""
    given = [pair for options in entry_points(role) for pair in options.items()]
    for name, option in given:
        if not SECRET.search(name):
            continue
        assert option.get("no_log"), name
        assert option["type"] == "str", name
        assert "choices" not in option, name


@each_role
def test_every_role_has_a_description(role: Path) -> None:
    galaxy = read_yaml(role / "meta/main.yml")["galaxy_info"]
    assert galaxy["license"] == "Apache-2.0"
    assert galaxy["description"]
    assert {platform["name"]: platform["versions"] for platform in galaxy["platforms"]} == {
        "Debian": ["bookworm", "trixie"],
        "Ubuntu": ["noble"],
    }
    assert read_yaml(role / "meta/main.yml")["dependencies"] == []
