"""Bring directories, files, blocks of lines and links to the wanted state."""

from __future__ import annotations

import grp
import os
import pwd
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .before import keep, made
from .replace_file import diff, read, replace

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule


def owned(mode: str, **more: Any) -> dict[str, Any]:
    """Return the argument spec of a path with owner, group and mode."""
    text = {"type": "str"}
    return {
        "path": {"type": "path", "required": True},
        "owner": {**text, "default": "root"},
        "group": {**text, "default": "root"},
        "mode": {**text, "default": mode},
        **more,
    }


TEXT, REQUIRED = {"type": "str"}, {"type": "str", "required": True}
MANY = {"type": "list", "elements": "dict", "default": []}
SPEC: dict[str, Any] = {
    "directories": {**MANY, "options": owned("0755")},
    "files": {
        **MANY,
        "options": owned("0644", content=TEXT, secret={**TEXT, "no_log": True}, validate=TEXT),
        "mutually_exclusive": [("content", "secret")],
        "required_one_of": [("content", "secret")],
    },
    "blocks": {
        **MANY,
        "options": {
            "path": {"type": "path", "required": True},
            "name": REQUIRED,
            "content": REQUIRED,
            "create": {"type": "bool", "default": True},
        },
    },
    "links": {"type": "dict", "default": {}},
}
"""The argument spec of module managed_files, shared with modules that also manage files."""


def with_block(text: str, name: str, block: str) -> str:
    """Return the text with the block between its markers: in its old place, or at the end."""
    begin, end = f"# BEGIN {name}\n", f"# END {name}\n"
    marked = f"{begin}{block.strip()}\n{end}"
    before, found, rest = text.partition(begin)
    if not found:
        return before + ("\n" if before and not before.endswith("\n") else "") + marked
    return before + marked + rest.partition(end)[2]


def known(wants: dict[str, Any]) -> bool:
    """Tell whether the owner and the group exist on this host."""
    try:
        return bool(pwd.getpwnam(wants["owner"]) and grp.getgrnam(wants["group"]))
    except KeyError:
        return False


class Files:
    """Carries out the changes and records them."""

    def __init__(self, module: AnsibleModule) -> None:
        """Keep the module."""
        self.module = module
        self.paths: list[str] = []
        self.diff: list[dict[str, str]] = []

    def attributes(self, wants: dict[str, Any]) -> bool:
        """Set owner, group and mode; tell whether one of them changed."""
        if self.module.check_mode and not known(wants):
            return True  # an earlier task would have created them
        wanted = {key: wants[key] for key in ("path", "owner", "group", "mode")}
        return bool(
            self.module.set_fs_attributes_if_different(self.module.load_file_common_arguments(wanted), changed=False)
        )

    def converge(self, wants: Mapping[str, Any]) -> None:
        """Apply all that `wants` lists, which has some or all keys of SPEC."""
        for directory in wants.get("directories") or ():
            self.directory(directory)
        for file in wants.get("files") or ():
            self.file(file)
        for block in wants.get("blocks") or ():
            self.block(block)
        for path, target in (wants.get("links") or {}).items():
            self.link(Path(path), target)

    def directory(self, wants: dict[str, Any]) -> None:
        """Create a directory, or correct its attributes."""
        path = Path(wants["path"])
        missing = not path.is_dir()
        if missing and not self.module.check_mode:
            keep(path)
            path.mkdir(mode=0o700, parents=True)
        if (missing and self.module.check_mode) or self.attributes(wants) or missing:
            self.paths.append(str(path))

    def file(self, wants: dict[str, Any]) -> None:
        """Write a file, never readable by more than its attributes allow."""
        path, secret = Path(wants["path"]), wants["secret"] is not None
        content = wants["secret"] if secret else wants["content"]
        old = read(path)
        if path.is_file() and old == content:
            if self.attributes(wants):
                self.paths.append(str(path))
            return
        self.note(path, "" if secret else old, "" if secret else content)
        if not self.module.check_mode:
            if not known(wants):
                self.module.fail_json(
                    msg=f"{path}: this host has no user {wants['owner']} or no group {wants['group']}"
                )
            owner, group = pwd.getpwnam(wants["owner"]).pw_uid, grp.getgrnam(wants["group"]).gr_gid
            replace(path, content, int(wants["mode"], 8), group, owner, lambda draft: self.judge(wants, draft))

    def block(self, wants: dict[str, Any]) -> None:
        """Write a block of lines into a file; a mounted file is written in place, not replaced."""
        path = Path(wants["path"])
        if not wants["create"] and not path.exists():
            return
        old = read(path)
        new = with_block(old, wants["name"], wants["content"])
        if old == new:
            return
        self.note(path, old, new)
        if self.module.check_mode:
            return
        if not path.exists():
            keep(path)
        made("block", str(path))
        if os.path.ismount(path):  # as a container's /etc/hosts, which can be written but not replaced
            with path.open("r+", encoding="utf-8") as file:  # whoever reads it meanwhile does not find it empty
                file.write(new)
                file.truncate()
        else:
            draft = self.draft(path, new)
            if not path.exists():
                Path(draft).chmod(0o644)
            self.module.atomic_move(draft, str(path))

    def link(self, path: Path, target: str) -> None:
        """Point a link at its target."""
        if path.is_symlink() and str(path.readlink()) == target:
            return
        self.paths.append(str(path))
        if not self.module.check_mode:
            keep(path)
            fresh = path.with_name(f".{path.name}.new")
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(target)
            fresh.replace(path)

    def note(self, path: Path, before: str, after: str) -> None:
        """Record a change and its diff."""
        self.paths.append(str(path))
        self.diff.append(diff(path, before, after))

    def draft(self, path: Path, content: str) -> str:
        """Write the content to a temporary file that only root can read; return its path."""
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.module.tmpdir)
        with os.fdopen(handle, "w") as sink:
            sink.write(content)
        return str(name)

    def judge(self, wants: dict[str, Any], draft: Path) -> None:
        """Run the validation command on a new file; end the task with its output if it fails."""
        if not wants.get("validate"):
            return
        code, out, err = self.module.run_command(wants["validate"].replace("%s", str(draft)))
        if code:
            self.module.fail_json(
                msg=f"the new content of {wants['path']} is invalid; the file was not changed. {out}{err}".strip()
            )
