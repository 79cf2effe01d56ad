#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Install the platform's docs site as a folder that is replaced in one step."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docs_site
short_description: Install the platform's docs site
description:
  - Builds the site on the controller from the installed version's pages, once for each content, without network. The
    controller's Python needs MkDocs.
  - Unpacks it into C(<path>/releases/<digest>), points C(<path>/current) there in one step, and removes other releases.
  - Sends the site only to a host that has another one.
options:
  path: {type: path, required: true, description: Folder of the site. A web server serves C(<path>/current).}
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Install the docs site
  metalworks.platform.docs_site:
    path: /opt/metalworks/docs
"""

RETURN = r"""
missing: {type: bool, returned: always, description: Whether the host must be sent the site first.}
release: {type: str, returned: always, description: Digest of the site's sources.}
"""

import os
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def is_current(folder: Path, release: str) -> bool:
    """Tell whether the release is installed and in use, with no other beside it."""
    releases, current = folder / "releases", folder / "current"
    return (
        releases.is_dir()
        and [path.name for path in releases.iterdir()] == [release]
        and current.is_symlink()
        and current.readlink() == releases / release
    )


def install(folder: Path, release: str, archive: str) -> None:
    """Put the release into use, from the archive if it is not unpacked yet, and remove all others."""
    os.umask(0o022)
    releases, current = folder / "releases", folder / "current"
    releases.mkdir(parents=True, exist_ok=True)
    if archive:
        draft = releases / f".{release}.new"
        if draft.exists():  # left by a killed run
            shutil.rmtree(draft)
        shutil.unpack_archive(archive, draft, "zip")
        draft.rename(releases / release)
    fresh = folder / ".current.new"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(releases / release)
    fresh.replace(current)
    for other in releases.iterdir():
        if other.name != release:
            shutil.rmtree(other)


def main() -> None:
    """Read the arguments and converge."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "release": {"type": "str", "required": True},
            "archive": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    folder, release, archive = (module.params[name] for name in ("path", "release", "archive"))
    folder = Path(folder)
    result = {"changed": not is_current(folder, release), "release": release, "missing": False}
    if result["changed"]:
        result["missing"] = not archive and not (folder / "releases" / release).is_dir()
        if not result["missing"] and not module.check_mode:
            install(folder, release, archive)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
