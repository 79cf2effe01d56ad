"""plugins/modules/managed_files.py: correct files are left alone, others are written."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from tests.unit.repository import load

files = load("plugins/modules/managed_files.py")
with_block = load("plugins/module_utils/managed_files.py").with_block
ME = {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}


def call(capsys: pytest.CaptureFixture[str], check: bool = False, **options: Any) -> dict[str, Any]:
    """Return the module's result."""
    with patch_module_args({**options, "_ansible_check_mode": check}), pytest.raises(SystemExit):
        files.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_a_file_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "new" / "settings.ini"
    wanted = [{"path": str(place), "content": "[a]\nb = 1\n", "mode": "0640", **ME}]
    dry = call(capsys, check=True, files=wanted)
    assert (dry["changed"], dry["paths"], place.exists()) == (True, [str(place)], False)
    assert call(capsys, files=wanted)["diff"][0]["after"] == "[a]\nb = 1\n"
    assert (place.read_text(), place.stat().st_mode & 0o777) == ("[a]\nb = 1\n", 0o640)
    assert place.parent.stat().st_mode & 0o777 == 0o755
    assert not call(capsys, files=wanted)["changed"]
    place.chmod(0o644)
    assert call(capsys, files=wanted)["paths"] == [str(place)]
    assert place.stat().st_mode & 0o777 == 0o640


def test_a_block_is_added_to_a_file_that_exists_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "hosts.tmpl"
    wanted = [{"path": str(place), "name": "names", "content": "10.0.0.1 a", "create": False}]
    assert not call(capsys, blocks=wanted)["changed"]
    assert not place.exists()
    place.write_text("127.0.0.1 localhost\n")
    assert call(capsys, blocks=wanted)["changed"]
    assert "10.0.0.1 a" in place.read_text()


def test_a_mounted_file_is_written_in_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker mounts /etc/hosts into its containers."""
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "hosts")
    place = tmp_path / "hosts"
    place.write_text("127.0.0.1 localhost\n")
    same = place.stat().st_ino
    for names in ("10.0.0.1 a b c", "10.0.0.2 a"):
        assert call(capsys, blocks=[{"path": str(place), "name": "names", "content": names}])["changed"]
        lines = place.read_text().splitlines()
        assert (place.stat().st_ino, lines[0], lines[2:-1]) == (same, "127.0.0.1 localhost", [names])


@pytest.mark.parametrize("mask", [0o077, 0o027])
def test_a_strict_umask_does_not_change_modes(tmp_path: Path, capsys: pytest.CaptureFixture[str], mask: int) -> None:
    place = tmp_path / "new" / "settings.ini"
    before = os.umask(mask)
    try:
        call(capsys, files=[{"path": str(place), "content": "[a]\n", **ME}])
    finally:
        os.umask(before)
    assert (place.parent.stat().st_mode & 0o777, place.stat().st_mode & 0o777) == (0o755, 0o644)


def test_secrets_are_not_in_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "pgpass"
    wanted = [{"path": str(place), "secret": "host:5432:db:user:hunter22", "mode": "0600", **ME}]
    answer = call(capsys, files=wanted)
    assert "hunter22" not in json.dumps(answer)
    assert place.read_text() == "host:5432:db:user:hunter22"
    assert place.stat().st_mode & 0o777 == 0o600
    assert not call(capsys, files=wanted)["changed"]


def test_a_file_that_its_program_rejects_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "a.json"
    place.write_text("{}")
    place.chmod(0o644)
    judge = f"{shlex.quote(sys.executable)} -m json.tool %s"
    wanted = [{"path": str(place), "content": "no json", "validate": judge, **ME}]
    answer = call(capsys, files=wanted)
    assert answer["failed"]
    assert "is invalid; the file was not changed" in answer["msg"]
    assert place.read_text() == "{}"


def test_a_directory_is_made_with_its_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "a" / "b"
    wanted = [{"path": str(place), "mode": "0750", **ME}]
    assert call(capsys, check=True, directories=wanted)["changed"]
    assert not place.exists()
    assert call(capsys, directories=wanted)["paths"] == [str(place)]
    assert place.stat().st_mode & 0o777 == 0o750
    assert not call(capsys, directories=wanted)["changed"]


def test_a_missing_owner_is_a_change_in_check_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = [{"path": str(tmp_path), "owner": "nobody-knows-them", "group": ME["group"]}]
    assert call(capsys, check=True, directories=wanted)["changed"]
    assert call(capsys, directories=wanted)["failed"]


@pytest.mark.parametrize("text", ["", "A=1", "A=1\n", "A=1\n\n"])
def test_a_block_is_added_once_and_replaced_in_place(text: str) -> None:
    once = with_block(text, "ours", "B=2\n")
    assert once.startswith(text)
    assert with_block(once, "ours", "B=2") == once
    assert with_block(once + "C=3\n", "ours", "B=4") == once.replace("B=2", "B=4") + "C=3\n"


def test_the_rest_and_the_mode_of_a_file_with_a_block_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "hosts"
    place.write_text("127.0.0.1 localhost\n")
    place.chmod(0o600)
    wanted = [{"path": str(place), "name": "ours", "content": "192.0.2.1 a\n"}]
    assert call(capsys, blocks=wanted)["changed"]
    assert place.read_text() == "127.0.0.1 localhost\n# BEGIN ours\n192.0.2.1 a\n# END ours\n"
    assert place.stat().st_mode & 0o777 == 0o600
    assert not call(capsys, blocks=wanted)["changed"]


def test_a_link_replaces_an_existing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dvc"
    path.write_text("a program")
    wanted = {str(path): "/opt/dvc"}
    assert call(capsys, check=True, links=wanted)["changed"]
    assert path.read_text() == "a program"
    assert call(capsys, links=wanted)["changed"]
    assert not call(capsys, links=wanted)["changed"]
    assert str(path.readlink()) == "/opt/dvc"
