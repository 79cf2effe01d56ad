"""roles/workstation: a user's own entries are kept, and the platform's are added once."""

from __future__ import annotations

import grp
import os
import pwd
import tomllib
from pathlib import Path

import pytest

from tests.unit.repository import load

developers = load("plugins/modules/developer_accounts.py")
system_user = load("plugins/module_utils/system_user.py")

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


NAMED = "[user]\n\tname = ada\n\temail = ada@ml.example\n"


@pytest.mark.parametrize(
    ("text", "other", "wanted"),
    [
        ("", "", NAMED),
        ("[alias]\n\tst = status", "[core]\n", f"[alias]\n\tst = status\n{NAMED}"),
        (NAMED, "", NAMED),
        (" [User]\n\tname = Ada L.\n", "", " [User]\n\tname = Ada L.\n"),
        ("[alias]\n", "[user]\n\temail = a@b\n", "[alias]\n"),
        ('[includeIf "gitdir:~/work/"]\n\tpath = x\n', "", '[includeIf "gitdir:~/work/"]\n\tpath = x\n'),
    ],
)
def test_a_first_commit_has_an_author_and_a_persons_own_identity_stays(text: str, other: str, wanted: str) -> None:
    assert developers.git_identity(text, other, "ada", "ada@ml.example") == wanted


def test_a_home_is_set_up_once(tmp_path: Path) -> None:
    me = pwd.getpwuid(os.getuid())
    person = pwd.struct_passwd((me.pw_name, "x", me.pw_uid, me.pw_gid, "", str(tmp_path), "/bin/bash"))
    wants = {"name": "ada", "password": "pass", "access_key": "ada", "secret_key": "s3cret", "inference_token": "t0ken"}
    wants |= {"ssh_public_keys": ["ssh-ed25519 AAAA ada "], "email": "ada@ml.example"}
    names = (".aws/credentials", ".mlflow/credentials", ".prefect/profiles.toml", ".config/metalworks/inference_token")
    paths = [f"{tmp_path}/{name}" for name in (*names, ".pgpass", ".ssh/authorized_keys", ".gitconfig")]
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


class Stopped(Exception):
    """What ends a module."""


class Module:
    """As much of AnsibleModule as accounts need; it runs no command."""

    check_mode = False

    def __init__(self, *names: str) -> None:
        secrets = dict.fromkeys(("password", "access_key", "secret_key", "inference_token"), "x")
        people = [
            {
                "name": name,
                "uid": None,
                "email": f"{name}@ml.example",
                "ssh_public_keys": ["ssh-ed25519 AAAA"],
                **secrets,
            }
            for name in names
        ]
        self.params = {"developers": people, "raw_database": None}
        self.commands: list[list[str]] = []
        self.warnings: list[str] = []

    def run_command(self, command: list[str], **_: object) -> None:
        self.commands.append(command)

    def warn(self, words: str) -> None:
        self.warnings.append(words)

    def fail_json(self, msg: str) -> None:
        raise Stopped(msg)


def test_the_account_that_ansible_uses_gets_no_other_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "ops")
    module = Module("ada", "ops")
    with pytest.raises(Stopped, match="ops is the account that Ansible logs in with"):
        developers.converge(module)
    assert module.commands == []


@pytest.mark.parametrize(("login", "locked"), [("ops", []), ("root", ["lock ops"])])
def test_the_account_that_ansible_uses_is_not_locked(
    monkeypatch: pytest.MonkeyPatch, login: str, locked: list[str]
) -> None:
    monkeypatch.setenv("SUDO_USER", login)
    monkeypatch.setattr(developers, "local_accounts", lambda: {"root", "ops"})
    group = grp.struct_group((developers.MEMBERS, "x", 999, ["ops"]))
    monkeypatch.setattr(developers.grp, "getgrall", lambda: [group])
    monkeypatch.setattr(developers, "expired", lambda name: False)
    module = Module()
    assert developers.converge(module) == locked
    assert bool(module.commands) == bool(locked)
    assert bool(module.warnings) != bool(locked)


@pytest.fixture
def ada(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pwd.struct_passwd:
    """Return ada's account, which name services know, with this test's user and a home of its own."""
    monkeypatch.setenv("SUDO_USER", "ops")
    me = pwd.getpwuid(os.getuid())
    home = tmp_path / "ada"
    home.mkdir(mode=0o700)
    person = pwd.struct_passwd(("ada", "x", os.getuid(), me.pw_gid, "", str(home), "/bin/bash"))
    monkeypatch.setattr(developers, "FIRST_UID", 0)
    monkeypatch.setattr(developers, "account", {"ada": person}.get)
    monkeypatch.setattr(system_user, "account", {"ada": person}.get)
    monkeypatch.setattr(developers, "expired", lambda name: False)
    monkeypatch.setattr(developers, "ensure_system_group", lambda module, name: False)
    return person


def test_an_account_of_a_directory_gets_its_keys_and_is_not_changed(
    monkeypatch: pytest.MonkeyPatch, ada: pwd.struct_passwd
) -> None:
    monkeypatch.setattr(developers, "local_accounts", lambda: {"root"})
    module = Module("ada")
    done = developers.converge(module)
    assert f"{ada.pw_dir}/.aws/credentials" in done
    assert "ada" not in done
    assert module.commands == [], "no useradd, no usermod"
    assert developers.converge(module) == []


def test_a_person_of_a_directory_who_is_no_longer_listed_is_left_to_it(
    monkeypatch: pytest.MonkeyPatch, ada: pwd.struct_passwd
) -> None:
    monkeypatch.setattr(developers, "local_accounts", lambda: {"root"})
    group = grp.struct_group((developers.MEMBERS, "x", 999, [ada.pw_name]))
    monkeypatch.setattr(developers.grp, "getgrall", lambda: [group])
    module = Module()
    assert (developers.converge(module), module.commands) == ([], [])


def test_a_missing_home_of_a_directorys_account_is_created_as_at_a_first_login(
    monkeypatch: pytest.MonkeyPatch, ada: pwd.struct_passwd
) -> None:
    monkeypatch.setattr(developers, "local_accounts", lambda: {"root"})
    Path(ada.pw_dir).rmdir()
    module = Module("ada")
    monkeypatch.setattr(module, "run_command", lambda command, **_: Path(ada.pw_dir).mkdir(mode=0o700))
    assert developers.converge(module)[0] == ada.pw_dir
    assert (Path(ada.pw_dir) / ".mlflow/credentials").exists()


def test_an_account_of_the_host_is_managed(monkeypatch: pytest.MonkeyPatch, ada: pwd.struct_passwd) -> None:
    monkeypatch.setattr(developers, "local_accounts", lambda: {"root", "ada"})
    module = Module("ada")
    assert "unlock ada" in developers.converge(module)
    assert [command[0] for command in module.commands] == ["usermod"]


def test_a_new_account_gets_the_uid_that_the_site_chose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SUDO_USER", "ops")
    monkeypatch.setattr(system_user, "HOMES", tmp_path)
    monkeypatch.setattr(developers, "ensure_system_group", lambda module, name: False)
    module = Module("nobody-has-this-name")
    module.params["developers"][0]["uid"] = 200001

    def run_command(command: list[str], **_: object) -> None:
        module.commands.append(command)
        raise Stopped  # no account comes into being here

    monkeypatch.setattr(module, "run_command", run_command)
    with pytest.raises(Stopped):
        developers.converge(module)
    assert module.commands[0][-3:] == ["--uid", "200001", "nobody-has-this-name"]


def test_uids_that_do_not_fit_are_refused_before_a_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ada: pwd.struct_passwd
) -> None:
    uid = ada.pw_uid
    monkeypatch.setattr(system_user, "HOMES", tmp_path)
    for name, wanted in (("ada", None), ("ada", uid), ("eve", None), ("eve", 200001)):
        assert system_user.wrong_uid(name, wanted) is None
    assert system_user.wrong_uid("ada", 200001)[0] == f"the account ada has UID {uid}, not 200001"
    assert "UID 1 is that of the account" in system_user.wrong_uid("eve", 1)[0]
    module = Module("ada")
    module.params["developers"][0]["uid"] = 200001
    with pytest.raises(Stopped, match="not 200001"):
        developers.converge(module)
    assert (module.commands, list(Path(ada.pw_dir).iterdir())) == ([], [])


def test_a_shared_home_of_another_uid_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(system_user, "HOMES", tmp_path)
    shared = tmp_path / "eve"
    shared.mkdir()
    real = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        found = real(path, **options)
        return os.stat_result([*found[:4], 2001, *found[5:]]) if path == shared else found

    monkeypatch.setattr(Path, "stat", stat)
    assert system_user.wrong_uid("eve", 2001) is None
    for uid in (None, 200002):
        assert "set `uid: 2001` for eve" in system_user.wrong_uid("eve", uid)[1]


def test_the_account_that_ansible_logged_in_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record, me = tmp_path / "loginuid", pwd.getpwuid(os.getuid()).pw_name
    monkeypatch.setattr(system_user, "LOGIN_UID", record)
    for name in ("SUDO_USER", "DOAS_USER"):
        monkeypatch.delenv(name, raising=False)
    assert system_user.login_account() == me
    record.write_text("4294967295")  # none: started by no login
    assert system_user.login_account() == me
    record.write_text("1")
    assert system_user.login_account() == pwd.getpwuid(1).pw_name
    monkeypatch.setenv("SUDO_USER", "ops")
    assert system_user.login_account() == "ops"


def test_names_that_the_system_has(monkeypatch: pytest.MonkeyPatch) -> None:
    accounts = [("daemon", 1), ("ada", 1000), ("wheel", 1001)]
    monkeypatch.setattr(
        pwd, "getpwall", lambda: [pwd.struct_passwd((name, "x", uid, uid, "", "/", "/")) for name, uid in accounts]
    )
    groups = [("daemon", 1), ("docker", 990), ("ada", 1000), ("wheel", 10)]
    monkeypatch.setattr(grp, "getgrall", lambda: [grp.struct_group((name, "x", gid, [])) for name, gid in groups])
    assert system_user.system_names() == ["daemon", "docker"]


def test_an_account_that_a_package_made_stays_as_it_is() -> None:
    """PostgreSQL's tools need its user's home and shell, and usermod refuses while the server runs."""
    assert system_user.ensure_system_user(None, "postgres") is False  # would call the module to change anything
