"""What must not be told: passwords in commands, parameters and addresses."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit, urlunsplit

MASK = "***"
# "key" and "token" only as a name's end: --key-column and --max-tokens are no secrets.
_SECRET = re.compile(
    r"(passw(or)?d|passwd|passphrase|pwd|secret|credential|api[-_]?key|authorization)|(token|key|auth)$", re.IGNORECASE
)
_OPTION = re.compile(r"(--?)?([A-Za-z_][\w.\-]*)")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*://)([^\s/@]*):([^\s/@]*)@")


def secret(name: str) -> bool:
    """Tell whether an option or parameter of this name holds a secret."""
    return bool(_SECRET.search(name))


def command(line: list[str]) -> list[str]:
    """Return a command without the values of options that look like secrets."""
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
    """Return a text without passwords in addresses."""
    return _ADDRESS.sub(rf"\1\2:{MASK}@", value)


def parameters(value: Any) -> Any:
    """Return parameters without the values of those that look like secrets."""
    if isinstance(value, dict):
        return {
            str(name): MASK if secret(str(name)) and item is not None else parameters(item)
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [parameters(item) for item in value]
    return text(value) if isinstance(value, str) else value


def address(url: str) -> str:
    """Return a URL that can be shown: of SSH with its user, of others without, never with a password or a query."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    kept = f"{user.partition(':')[0]}@" if at and parts.scheme.endswith("ssh") else ""
    return urlunsplit((parts.scheme, kept + host, parts.path, "", ""))
