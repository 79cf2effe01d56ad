"""Compute nginx maps from tables that say who may call which route of a service."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

NOBODY = "nobody"
ANY = "[A-Z]+"


def lines(table: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield role, verb, path and excepted prefix of each line, in the table's order.

    `same` maps a prefix to another one that serves the same routes. Raises ValueError for an invalid line.
    """
    same = table.get("same", {})
    for role, text in table.items():
        for line in text.splitlines() if role != "same" else ():
            parts = line.split()
            if len(parts) not in (2, 4) or not parts[1].startswith("/") or parts[2:3] not in ([], ["except"]):
                raise ValueError(f"invalid route `{line}`: write a verb and a path, such as `GET /api/runs/{{id}}`")
            verb, path, without = parts[0], parts[1], (parts[3] if len(parts) == 4 else "")
            yield role, verb, path, without
            for one, other in same.items():
                if path.startswith(one):
                    yield role, verb, other + path.removeprefix(one), without


def pattern(path: str, without: str = "") -> str:
    """Return a regular expression without backslashes for the paths that a route matches."""
    text = ""
    for part in re.split(r"(\{[^}]+\})", path):
        if part.startswith("{"):
            text += ".*" if part.endswith(":path}") else "[^/]+"
        else:
            text += re.sub(r"([.+*?()|$^])", r"[\1]", part)
    return (f"(?!{without})" if without else "") + text


def route_map(table: dict[str, Any]) -> list[dict[str, str]]:
    """Return the entries of an nginx map from "VERB path" to role, those of nobody first.

    A path without placeholders is a literal key, which nginx looks up at once. Others are expressions, tried in order.
    """
    found = []
    for role, verb, path, without in sorted(lines(table), key=lambda line: line[0] != NOBODY):
        if verb != "*" and "{" not in path:
            found.append({"key": f"{verb} {path}", "role": role})
        else:
            verb = ANY if verb == "*" else verb
            found.append({"key": f"~^{verb} {pattern(path, without)}$", "role": role})
    return found


class FilterModule:
    """Ansible's filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"route_map": route_map}
