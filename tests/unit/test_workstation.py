"""roles/workstation: a user's own entries are kept, and the platform's are added once."""

from __future__ import annotations

import os
import pwd
import tomllib
from pathlib import Path

import pytest

from tests.unit.repository import load

developers = load("plugins/modules/developer_accounts.py")

DATABASE = {"host": "db", "port": "5432", "name": "raw", "user": "reader", "password": r"a:b\c"}
LINE = r"db:5432:raw:reader:a\:b\\c" + "\n"


def aws(text: str) -> str:
    key = {"aws_access_key_id": "ada", "aws_secret_access_key": "s3cret"}
    return str(developers.ini(text, ".aws/credentials", "default", key))


def test_other_profiles_and_settings_are_kept() -> None:
    text = "[mine]\naws_access_key_id = x\n[default]\nregion = there\naws_access_key_id = old\n"
    merged = aws(text)
    assert "[mine]\naws_access_key_id = x\n" in merged
    assert "[default]\nregion = there\naws_access_key_id = ada\naws_secret_access_key = s3cret\n" in merged
    assert aws(merged) == merged


def test_an_equivalent_file_is_left_unchanged() -> None:
    text = "# by hand\n[default]\naws_secret_access_key=s3cret\naws_access_key_id=ada"
    assert aws(text) == text


def test_an_invalid_file_is_not_quoted_in_the_error() -> None:
    with pytest.raises(ValueError, match=r"~/\.aws/credentials is not a valid INI file") as refused:
        aws("s3cret of mine\n")
    assert "of mine" not in str(refused.value)


def test_a_users_prefect_profiles_are_kept() -> None:
    text = 'active = "mine"\n[profiles.mine]\nPREFECT_LOGGING_LEVEL = "DEBUG"\n[profiles.other]\n'
    merged = developers.prefect_profiles(text, {"PREFECT_API_AUTH_STRING": "ada:new"})
    assert tomllib.loads(merged) == {
        "active": "mine",
        "profiles": {"mine": {"PREFECT_LOGGING_LEVEL": "DEBUG", "PREFECT_API_AUTH_STRING": "ada:new"}, "other": {}},
    }
    assert developers.prefect_profiles(merged, {"PREFECT_API_AUTH_STRING": "ada:new"}) == merged


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", LINE),
        (LINE, LINE),
        ("other:1:a:b:c\n" + LINE, "other:1:a:b:c\n" + LINE),
        ("other:1:a:b:c\ndb:5432:raw:reader:old\n", LINE + "other:1:a:b:c\n"),
    ],
)
def test_the_database_is_in_pgpass_once(text: str, wanted: str) -> None:
    assert developers.pgpass(text, DATABASE) == wanted


def test_a_home_is_set_up_once(tmp_path: Path) -> None:
    me = pwd.getpwuid(os.getuid())
    person = pwd.struct_passwd((me.pw_name, "x", me.pw_uid, me.pw_gid, "", str(tmp_path), "/bin/bash"))
    wants = {"name": "ada", "password": "pass", "access_key": "ada", "secret_key": "s3cret", "inference_token": "t0ken"}
    wants |= {"ssh_public_keys": ["ssh-ed25519 AAAA ada "]}
    names = (".aws/credentials", ".mlflow/credentials", ".prefect/profiles.toml", ".config/metalworks/inference_token")
    paths = [f"{tmp_path}/{name}" for name in (*names, ".pgpass", ".ssh/authorized_keys")]
    tmp_path.chmod(0o700)
    assert developers.furnish(person, wants, DATABASE, dry=True) == paths
    assert list(tmp_path.iterdir()) == []
    assert developers.furnish(person, wants, DATABASE, dry=False) == paths
    assert {Path(path).stat().st_mode & 0o777 for path in paths} == {0o600}
    assert (tmp_path / ".ssh").stat().st_mode & 0o777 == 0o700
    assert Path(paths[5]).read_text() == "ssh-ed25519 AAAA ada\n"
    assert "mlflow_tracking_password = pass" in Path(paths[1]).read_text()
    profiles = tomllib.loads(Path(paths[2]).read_text())["profiles"]
    assert profiles == {"metalworks": developers.prefect_login("ada", "pass")}
    assert developers.furnish(person, wants, DATABASE, dry=False) == []
    tmp_path.chmod(0o755)
    assert developers.furnish(person, wants, DATABASE, dry=False) == [str(tmp_path)]
    assert tmp_path.stat().st_mode & 0o777 == 0o750
    Path(paths[1]).chmod(0o644)
    assert developers.furnish(person, wants | {"ssh_public_keys": None}, DATABASE, dry=False) == [paths[1]]
