"""Check a settings file as unattended-upgrades reads it: apt's syntax, and Python's regular expressions in it."""

from __future__ import annotations

import re
import sys


def unreadable(patterns: list[str]) -> list[str]:
    """Return the patterns that are empty, contain a space or are invalid, each with the reason."""
    wrong = []
    for pattern in patterns:
        if not pattern or re.search(r"\s", pattern):
            wrong.append(f"{pattern!r} (empty, or with a space or a line break)")
            continue
        try:
            re.compile(pattern)
        except re.error as error:
            wrong.append(f"{pattern!r} ({error})")
    return wrong


if __name__ == "__main__":
    import apt_pkg

    try:
        apt_pkg.read_config_file(apt_pkg.config, sys.argv[1])
    except apt_pkg.Error as error:
        sys.exit(f"apt rejects the settings: {error}")
    if wrong := unreadable(apt_pkg.config.value_list("Unattended-Upgrade::Package-Blacklist")):
        sys.exit(f"unattended_upgrades_never: not a valid regular expression: {', '.join(wrong)}")
