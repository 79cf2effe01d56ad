"""A module's documentation matches its arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.plugins.loader import fragment_loader, init_plugin_loader
from ansible.utils.collection_loader import AnsibleCollectionConfig
from ansible.utils.plugin_docs import get_docstring

from tests.unit.repository import ROOT, load

MODULES = sorted((ROOT / "plugins/modules").glob("*.py"))
KEYS = ("type", "elements", "required", "default", "choices")
# Options that an action plugin does not pass on, and arguments that it adds.
TAKEN = {
    "host_certificate": {"ca_certificate", "ca_private_key", "names", "own", "valid_days", "renew_days", "warn_days"},
    "python_app": {"requirements", "project", "environment"},
    "validate_host": {"home", "roles", "schema", "accounts", "role_groups", "ports", "distributions", "written_units"}
    | {"python", "minimums", "device", "runtimes"},
}
TOLD = {
    "docs_site": {"release", "archive"},
    "host_certificate": {"look", "ca", "certificate", "key"},
    "python_app": {"lock", "lock_sha256", "wheel", "inquiry", "settings", "relay"},
}
each_module = pytest.mark.parametrize("path", MODULES, ids=[path.stem for path in MODULES])


class Asked(Exception):
    """The arguments that a module passes to AnsibleModule."""


def documentation(path: Path) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Return a module's documentation with its fragments, examples and return values."""
    if AnsibleCollectionConfig.collection_finder is None:
        init_plugin_loader([])
    told, examples, returned, _ = get_docstring(
        str(path), fragment_loader, collection_name="metalworks.platform", plugin_type="module"
    )
    return told, examples, yaml.safe_load(returned) if isinstance(returned, str) else returned


def spec(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return a module's argument spec."""
    module = load(str(path.relative_to(ROOT)))

    def ask(argument_spec: dict[str, Any], **_: Any) -> None:
        raise Asked(argument_spec)

    monkeypatch.setattr(module, "HostModule" if hasattr(module, "HostModule") else "AnsibleModule", ask)
    main: Callable[[], None] = module.main
    with pytest.raises(Asked) as asked:
        main()
    return dict(asked.value.args[0])


def flat(options: dict[str, Any], inner: str, above: str = "") -> dict[str, dict[str, Any]]:
    """Return options and suboptions by path, each with its type, choices and other constraints."""
    found = {}
    for name, option in options.items():
        said = {key: option[key] for key in KEYS if option.get(key) not in (None, False)}
        found[above + name] = {"type": "str", **said}
        found |= flat(option.get(inner) or {}, inner, f"{above}{name}.")
    return found


@each_module
def test_options_are_documented(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(load(str(path.relative_to(ROOT))), "main"):
        assert (ROOT / "plugins/action" / path.name).exists()
        return
    documented = flat(documentation(path)[0].get("options", {}), "suboptions")
    taken = flat(spec(path, monkeypatch), "options")
    for option in taken:
        if option.endswith("units.environment"):  # the action plugin converts it to JSON, to hide it as a whole
            taken[option] = {"type": "dict", "default": {}}
    assert TAKEN.get(path.stem, set()) <= documented.keys() - taken.keys()
    assert {name: option for name, option in documented.items() if name not in TAKEN.get(path.stem, set())} == {
        name: option for name, option in taken.items() if name not in TOLD.get(path.stem, set())
    }


@each_module
def test_everything_is_described(path: Path) -> None:
    told, examples, returned = documentation(path)
    assert told["module"] == path.stem
    described = [*told.get("options", {}).values(), *returned.values()]
    assert [one for one in described if not one.get("description") or not one.get("type")] == []
    assert [name for name, one in returned.items() if not one.get("returned")] == []
    tasks = yaml.safe_load(examples)
    calls = [task[f"metalworks.platform.{path.stem}"] or {} for task in tasks if "meta" not in str([*task])]
    required = {name for name, option in told.get("options", {}).items() if option.get("required")}
    for call in calls:
        assert required <= call.keys() <= told.get("options", {}).keys()
