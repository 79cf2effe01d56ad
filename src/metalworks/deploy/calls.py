"""Flows that start other deployments and wait for them, as their source says."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

from metalworks.deploy.definition import Deployment


def waited_for(source: str) -> set[str]:
    """Return the deployments that a file starts with `run_deployment("flow/name")` and waits for."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return set()  # told elsewhere
    found = set[str]()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        named = {word.arg: word.value for word in node.keywords}
        name = node.args[0] if node.args else named.get("name")
        timeout = named.get("timeout")
        waits = not (isinstance(timeout, ast.Constant) and timeout.value == 0)
        if called in ("run_deployment", "arun_deployment") and waits and isinstance(name, ast.Constant):
            found.add(str(name.value))
    return found


def own_pool(code: Path, deployments: Iterable[Deployment], pools: Mapping[str, str]) -> list[str]:
    """Return a hint for each deployment that waits for one of its own pool; `pools` are those of all deployments."""
    hints = []
    for item in deployments:
        path = code / item.entrypoint.rpartition(":")[0]
        if not path.is_file():
            continue
        for name in sorted(waited_for(path.read_text(errors="replace"))):
            if pools.get(name) == item.pool:
                hints.append(
                    f"{item.name} waits for {name} in its own pool {item.pool}: when such flows hold all slots of the "
                    "pool, none of them continues. Call the flow as a function, or give one of the two another pool"
                )
    return hints
