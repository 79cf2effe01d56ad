"""The record of what a host was like, and what the platform's removal finds by it."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.repository import ROOT, load, read_yaml

before = load("plugins/module_utils/before.py")
uninstall = load("plugins/modules/uninstall_host.py")


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "geteuid", lambda: 0)  # only root keeps the record
    folder = tmp_path / "record"
    folder.mkdir()
    (folder / before.RECORD).write_text('{"complete": true}')
    return folder


def kept(record: Path, path: Path) -> str | None:
    before.keep(path, record, (record.parent,))
    copy = json.loads((record / before.WRITTEN).read_text())[str(path)]
    return (record / before.COPIES / copy).read_text() if copy else None


def test_the_first_copy_of_a_file_stays(record: Path) -> None:
    path = record.parent / "nginx.conf"
    path.write_text("theirs\n")
    path.chmod(0o640)
    assert kept(record, path) == "theirs\n"
    path.write_text("ours\n")
    assert kept(record, path) == "theirs\n"
    (copy,) = (record / before.COPIES).iterdir()
    assert copy.stat().st_mode & 0o777 == 0o640


def test_a_file_that_was_not_there_is_noted_with_its_folders(record: Path) -> None:
    path = record.parent / "conf.d/deep/ours.conf"
    assert kept(record, path) is None
    written = json.loads((record / before.WRITTEN).read_text())
    assert written == dict.fromkeys([str(path.parent.parent), str(path.parent), str(path)])


def test_a_link_is_kept_as_a_link(record: Path) -> None:
    path = record.parent / "default"
    path.symlink_to("../sites-available/default")
    before.keep(path, record, (record.parent,))
    (copy,) = (record / before.COPIES).iterdir()
    assert str(copy.readlink()) == "../sites-available/default"


def test_what_an_earlier_release_wrote_is_not_what_was_before(record: Path) -> None:
    (record / before.RECORD).write_text('{"complete": false}')
    theirs, ours = record.parent / "theirs", record.parent / "ours"
    theirs.write_text("include other\n")
    ours.write_text("# Ansible managed\npassword\n")
    assert (kept(record, theirs), kept(record, ours)) == ("include other\n", None)


def test_nothing_is_noted_without_a_record_or_elsewhere(tmp_path: Path, record: Path) -> None:
    before.keep(tmp_path / "x", tmp_path / "none", (tmp_path,))
    before.made("account", "mlflow", tmp_path / "none")
    before.keep(Path("/home/ada/.aws/credentials"), record)
    assert not (tmp_path / "none").exists()
    assert not (record / before.WRITTEN).exists()


def test_a_package_is_there_under_the_name_that_it_had() -> None:
    """In Debian 13 and Ubuntu 24.04, many libraries have new names and provide the old ones."""
    listed = (
        "installed libglib2.0-0t64, libgio-2.0-0 (= 2.84.4-3), libglib2.0-0 (= 2.84.4-3)\n"
        "installed mawk, awk\n"
        "config-files old, older\n"
        "installed git, \n"
    )
    module = SimpleNamespace(run_command=lambda *_, **__: (0, listed, ""))
    there = before.packages(module)
    assert there == {
        "libglib2.0-0t64": ["libglib2.0-0t64", "libgio-2.0-0", "libglib2.0-0"],
        "mawk": ["mawk", "awk"],
        "git": ["git"],
    }
    # What was installed under the old name goes again.
    assert uninstall.asked_for(there, ["libglib2.0-0", "gi?", "libgomp1"]) == {"libglib2.0-0t64", "git"}


def test_only_the_platforms_blocks_go() -> None:
    text = "127.0.0.1 localhost\n# BEGIN Metalworks: a\n1 b\n# END Metalworks: a\n# BEGIN theirs\n2 c\n# END theirs\n"
    assert uninstall.without_blocks(text) == "127.0.0.1 localhost\n# BEGIN theirs\n2 c\n# END theirs\n"


def test_the_block_of_developers_hosts_goes() -> None:
    """Its name begins with a small letter."""
    name = read_yaml(ROOT / "roles/workstation/vars/main.yml")["__workstation_block"]
    assert uninstall.without_blocks(f"A=1\n# BEGIN {name}\nB=2\n# END {name}\n") == "A=1\n"


@pytest.mark.parametrize(("packages", "before"), [([], False), (["postgresql-15"], True)])
def test_data_that_a_restore_replaced_goes_unless_it_may_be_others(
    packages: list[str], before: bool, tmp_path: Path, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = tmp_path / "postgresql/15/main.before-restore"
    aside.mkdir(parents=True)
    monkeypatch.setattr(uninstall, "STATES", tmp_path)
    monkeypatch.setattr(uninstall, "CLUSTERS", tmp_path / "none")
    host = object.__new__(uninstall.Host)
    host.dry, host.complete, host.record, host.written, host.kept = True, True, {"packages": packages}, {}, []
    host.wants = {"data": [], "delete_data": True}
    _, folders = host.plan([])
    host.clusters()
    assert (folders == [aside]) is not before
    assert [str(aside) in line for line in host.kept] == ([True] if before else [])


def test_units_are_found_by_name_record_or_what_they_use_and_stop_in_order(tmp_path: Path) -> None:
    texts = {
        "metalworks-backup.timer": "[Timer]\n",
        "metalworks-backup.service": "[Service]\nUser=postgres\n",
        "mlflow.service": "[Service]\nEnvironmentFile=/etc/metalworks/mlflow.env\n",
        "models-delay.service": "[Service]\nExecStart=/opt/metalworks/inference/current/bin/x\n",
        "inference-delay.service": "[Service]\nExecStart=/opt/metalworks/inference/current/bin/x\n",
        "theirs.service": "[Service]\nExecStart=/usr/bin/monitor metalworks.internal\n",
        "noted.service": "[Service]\nExecStart=/usr/bin/x\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "alias.service").symlink_to(tmp_path / "mlflow.service")
    found = uninstall.own_units({str(tmp_path / "noted.service")}, tmp_path)
    assert [path.name for path in found] == [
        "metalworks-backup.timer",
        "inference-delay.service",
        "metalworks-backup.service",
        "mlflow.service",
        "noted.service",
        "models-delay.service",
    ]


def test_accounts_of_others_are_not_the_platforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = tmp_path / "x.service"
    unit.write_text("[Service]\nUser=mlflow\nUser=postgres\nStateDirectory=mlflow cache\nStateDirectory=\n")
    homes = [("mlflow", "/var/lib/mlflow"), ("postgres", "/var/lib/postgresql"), ("root", "/root")]
    people = [SimpleNamespace(pw_name=name, pw_dir=home) for name, home in homes]
    monkeypatch.setattr(pwd, "getpwall", lambda: people)
    assert uninstall.accounts_of([unit]) == {"mlflow"}
    assert uninstall.folders_of([unit]) == {Path("/var/lib/mlflow"), Path("/var/lib/cache")}


def test_names_and_links_of_the_platform_are_found(tmp_path: Path) -> None:
    (tmp_path / "apt.conf.d").mkdir()
    (tmp_path / "apt.conf.d/90metalworks-x").touch()
    (tmp_path / "nginx/metalworks").mkdir(parents=True)
    (tmp_path / "nginx/metalworks/users").touch()
    (tmp_path / "nginx/nginx.conf").touch()
    (tmp_path / "dvc").symlink_to("/opt/metalworks/workstation/current/bin/dvc")
    (tmp_path / "vi").symlink_to("/usr/bin/vim")
    found = [str(path.relative_to(tmp_path)) for path in uninstall.named([tmp_path])]
    assert found == ["apt.conf.d/90metalworks-x", "dvc", "nginx/metalworks"]


def test_units_that_read_a_file_are_known() -> None:
    drop_in = Path("/etc/systemd/system/chrony.service.d/metalworks.conf")
    assert uninstall.readers([drop_in, Path("/etc/ssh/sshd_config"), Path("/etc/pip.conf")]) == {
        "chrony.service",
        "ssh.service",
    }


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return a host with an engine of the platform's, and the commands that its removal runs."""
    monkeypatch.setattr(uninstall, "NUKE", tmp_path / "nuke-graph-directory.sh")
    monkeypatch.setattr(uninstall, "show", lambda *_: {"ActiveState": "active"})
    host = object.__new__(uninstall.Host)
    host.dry, host.complete, host.done, host.kept = False, True, [], []
    host.record, host.wants = {"packages": []}, {"data": [], "delete_data": False}
    host.written = dict.fromkeys(["engine docker", f"data {tmp_path}/docker", "member docker ada"])
    host.module = SimpleNamespace(get_bin_path=lambda name: f"/usr/bin/{name}")
    commands: list[str] = []

    def run(*command: str, check: bool = True) -> str:
        commands.append(" ".join(one for one in command if not one.startswith(("-o", "DPkg"))))
        if command[:1] == ("apt-get",) and "remove" in command:
            uninstall.NUKE.touch()  # as Debian's package does
        assert not ("purge" in command and uninstall.NUKE.exists()), "a purge would delete images and volumes"
        return "ab cd" if "ps" in command else ""

    host.run = run
    return SimpleNamespace(host=host, commands=commands)


@pytest.mark.parametrize("delete_data", [True, False])
def test_docker_goes_without_its_data(bare: SimpleNamespace, delete_data: bool) -> None:
    bare.host.wants["delete_data"] = delete_data
    bare.host.purge({"docker.io", "containerd"})
    assert bare.commands == ["apt-get --yes remove docker.io", "apt-get --yes purge containerd docker.io"]


def test_containers_end_with_an_engine_of_the_platforms_only(bare: SimpleNamespace) -> None:
    bare.host.containers()
    assert bare.commands == ["/usr/bin/docker ps --quiet", "/usr/bin/docker stop ab cd"]
    bare.commands.clear()
    del bare.host.written["engine docker"]
    bare.host.containers()
    assert bare.commands == []


def test_data_of_an_engine_is_the_platforms_where_its_packages_go(
    bare: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uninstall, "FOLDER", tmp_path / "before")
    monkeypatch.setattr(uninstall, "STATES", tmp_path / "states")
    assert bare.host.plan([])[1] == [tmp_path / "docker"]
    (tmp_path / "before/leaving.json").unlink()
    bare.host.complete = False
    assert bare.host.plan([])[1] == []


def test_people_leave_a_group_that_stays(bare: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uninstall.grp, "getgrnam", lambda _: SimpleNamespace(gr_mem=["theirs", "ada"]))
    bare.host.members()
    assert bare.commands == ["gpasswd --delete ada docker"]
