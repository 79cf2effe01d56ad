"""Tables of a service's routes, and who may call each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

NOBODY = "nobody"
ANY = "[A-Z]+"


def lines(table: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield role, verb, path and the prefix that is excepted, in the table's order.

    `same` maps a prefix to another, below which everything is served, too. Raises ValueError for a line that is none.
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
    """Return the regular expression, without a backslash, of the paths that a route's path stands for."""
    text = ""
    for part in re.split(r"(\{[^}]+\})", path):
        if part.startswith("{"):
            text += ".*" if part.endswith(":path}") else "[^/]+"
        else:
            text += re.sub(r"([.+*?()|$^])", r"[\1]", part)
    return (f"(?!{without})" if without else "") + text


def route_map(table: dict[str, Any]) -> list[dict[str, str]]:
    """Return keys of an nginx map of "VERB path" with the role of each, nobody's first.

    A path without parts of its own is itself the key, which nginx finds at once; the others are tried in this order.
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
        """Return them by name."""
        return {"route_map": route_map}
