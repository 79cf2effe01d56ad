"""Mask secrets in commands, parameters and URLs."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit, urlunsplit

MASK = "***"
# "key" and "token" only at the end of a name: --key-column and --max-tokens are not secrets.
_SECRET = re.compile(
    r"(passw(or)?d|passwd|passphrase|pwd|secret|credential|api[-_]?key|authorization)|(token|key|auth)$", re.IGNORECASE
)
_OPTION = re.compile(r"(--?)?([A-Za-z_][\w.\-]*)")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*://)([^\s/@]*):([^\s/@]*)@")


def secret(name: str) -> bool:
    """Tell whether an option or parameter of this name holds a secret."""
    return bool(_SECRET.search(name))


def command(line: list[str]) -> list[str]:
    """Return a command with the values of secret options masked."""
    shown, hide = [], False
    for part in line:
        name, equals, _ = part.partition("=")
        option = _OPTION.fullmatch(name)
        if hide and not part.startswith("--"):
            shown.append(MASK)
            hide = False
            continue
        looks_secret = bool(option and secret(option[2]))
        hide = looks_secret and not equals and part.startswith("-")
        shown.append(f"{name}={MASK}" if looks_secret and equals else text(part))
    return shown


def text(value: str) -> str:
    """Return a text with passwords in URLs masked."""
    return _ADDRESS.sub(rf"\1\2:{MASK}@", value)


def parameters(value: Any) -> Any:
    """Return parameters with the values of secret ones masked."""
    if isinstance(value, dict):
        return {
            str(name): MASK if secret(str(name)) and item is not None else parameters(item)
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [parameters(item) for item in value]
    return text(value) if isinstance(value, str) else value


def address(url: str) -> str:
    """Return a URL without password and query, and without user unless it is an SSH URL."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    kept = f"{user.partition(':')[0]}@" if at and parts.scheme.endswith("ssh") else ""
    return urlunsplit((parts.scheme, kept + host, parts.path, "", ""))
