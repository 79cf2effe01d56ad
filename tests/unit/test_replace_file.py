"""plugins/module_utils/replace_file.py: atomic, and never readable beyond the file's mode."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.unit.repository import load

files = load("plugins/module_utils/replace_file.py")
ME = {"group": os.getgid(), "owner": os.getuid()}


def test_a_file_is_replaced_atomically(tmp_path: Path) -> None:
    place = tmp_path / "new" / "settings"
    files.replace(place, "a\n", 0o640, **ME)
    assert not files.differs(place, "a\n", 0o640, **ME)
    first = place.stat().st_ino
    files.replace(place, "b\n", 0o600, **ME)
    assert (place.read_text(), stat.S_IMODE(place.stat().st_mode)) == ("b\n", 0o600)
    assert place.stat().st_ino != first  # a process that has the old file open still reads that
    assert [path.name for path in place.parent.iterdir()] == ["settings"]


@pytest.mark.parametrize("change", ["content", "mode", "link", "missing"])
def test_differences_are_named(tmp_path: Path, change: str) -> None:
    place = tmp_path / "settings"
    files.replace(place, "a\n", **ME)
    if change == "content":
        place.write_text("b\n")
    elif change == "mode":
        place.chmod(0o600)
    elif change == "link":
        place.rename(tmp_path / "elsewhere")
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.unlink()
    assert files.differs(place, "a\n", **ME)


def test_a_rejected_file_leaves_the_old_one_and_no_temporary_file(tmp_path: Path) -> None:
    place = tmp_path / "settings"
    files.replace(place, "a\n", **ME)

    def refuse(draft: Path) -> None:
        assert (draft.read_text(), stat.S_IMODE(draft.stat().st_mode)) == ("secret\n", 0o600)
        raise SystemExit(1)

    with pytest.raises(SystemExit):
        files.replace(place, "secret\n", check=refuse, **ME)
    assert place.read_text() == "a\n"
    assert [path.name for path in tmp_path.iterdir()] == ["settings"]


def test_a_temporary_file_of_a_killed_run_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".settings.new").symlink_to("/etc/passwd")
    files.replace(tmp_path / "settings", "a\n", group=files.UNCHANGED, owner=files.UNCHANGED)
    assert [path.name for path in tmp_path.iterdir()] == ["settings"]


def test_a_missing_file_is_empty(tmp_path: Path) -> None:
    assert files.read(tmp_path / "nowhere") == ""
