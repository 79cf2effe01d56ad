"""playbooks/upgrade_postgresql.yml: what it decides in every state that a run, or a killed one, leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template
from ansible.utils.collection_loader import AnsibleCollectionConfig

from tests.unit.repository import ROOT, read_yaml, role_templar

VARIABLES = ("upgrade.yml", "upgrade_postgresql.yml")
GIB = 1 << 30
# What tasks/upgrade_postgresql/look.yml leaves on a host after an upgrade of Debian.
SEEN: dict[str, Any] = {
    "new": "17",
    "mains": ["15"],
    "kept": [],
    "taken": False,
    "programs": True,
    "runs": True,
    "checksums": True,
    "checksums_wanted": True,
    "bytes": GIB,
    "free": 3 * GIB,
    "note": {},
}
SINCE = "2001-01-01T00:00:00Z"
DONE = {"id": "20261129", "old": "15", "new": "17", "since": SINCE, "phase": "done"}
UPGRADED = {"mains": ["17"], "kept": ["15/before_17"], "note": DONE}


@pytest.fixture(scope="module")
def loader() -> DataLoader:
    if AnsibleCollectionConfig.collection_finder is None:
        init_plugin_loader([])
    return DataLoader()


@pytest.fixture
def ask(loader: DataLoader) -> Callable[..., Any]:
    """Return a function that computes one of the playbook's variables for what was seen on the host."""
    known: dict[str, Any] = {"upgrade_reserve_mb": 1024, "upgrade_undo_days": 7, "backup_target": {"path": "/mnt"}}
    for name in VARIABLES:
        known |= loader.load_from_file(str(ROOT / "playbooks/vars" / name), trusted_as_template=True)
    known |= {"__upgrade_database_host": "services-1"}

    def asked(name: str, go_back: str = "", *, wanted: bool = True, backups: bool = True, **seen: Any) -> Any:
        there = {"__upgrade_look": SEEN | seen, "__upgrade_wanted": wanted}
        there["__backups_unit"] = {"stat": {"exists": backups}}
        more = {"__upgrade_there": there} | ({"go_back": go_back} if go_back else {})
        return Templar(loader=loader, variables=known | more).template(trust_as_template(f"{{{{ {name} }}}}"))

    return asked


def test_an_upgrade_that_can_be_done_has_no_problems(ask: Callable[..., Any]) -> None:
    assert ask("__upgrade_problems") == []
    assert ask("__upgrade_plan") == "PostgreSQL 15 → 17"
    assert ask("__upgrade_problems", **UPGRADED) == []
    assert "nothing to upgrade" in ask("__upgrade_plan", wanted=False, **UPGRADED)


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        ({"mains": []}, "no cluster of PostgreSQL named main: set the platform up with site.yml"),
        ({"mains": ["14", "15"]}, "clusters main of PostgreSQL 14 and 15. Keep the one that is in use"),
        ({"new": "13"}, 'there is no way down: set postgresql_version to "15"'),
        ({"mains": ["15", "17"], "taken": True}, "`pg_dropcluster --stop 17 main`"),
        ({"programs": False, "runs": False}, "install postgresql-15 there again"),
        ({"runs": False}, "postgresql@15-main does not run on services-1"),
        ({"checksums": False}, "/usr/lib/postgresql/15/bin/pg_checksums --enable"),
        ({"free": 2 * GIB - 1}, "has 2047 MB free for PostgreSQL, and the copy needs 2048 MB"),
        ({"backups": False}, 'no set can be taken now. Set postgresql_version to "15", run site.yml'),
        ({"note": DONE | {"phase": "going back"}}, "run this with -e go_back=20261129 first"),
    ],
)
def test_what_cannot_end_well_is_refused(ask: Callable[..., Any], seen: dict[str, Any], says: str) -> None:
    (problem,) = ask("__upgrade_problems", **seen)
    assert says in problem


@pytest.mark.parametrize("seen", [{"free": 2 * GIB}, {"checksums": False, "checksums_wanted": False}])
def test_what_is_just_enough_is_accepted(ask: Callable[..., Any], seen: dict[str, Any]) -> None:
    assert ask("__upgrade_problems", **seen) == []


@pytest.mark.parametrize("mains", [["15"], ["15", "17"], ["17"]])
def test_an_interrupted_run_is_completed_wherever_it_was_killed(ask: Callable[..., Any], mains: list[str]) -> None:
    # The new cluster is that run's, and the old one may have its other name already.
    seen = {"mains": mains, "taken": "17" in mains, "runs": False, "backups": False}
    seen |= {"note": DONE | {"phase": "under way"}}
    assert ask("__upgrade_problems", **seen) == []
    assert ask("__upgrade_begun", **seen) is True
    assert ask("__upgrade_old", **seen) == "15"
    assert "as an interrupted run began" in ask("__upgrade_plan", **seen)


def test_going_back_needs_the_cluster_and_the_upgrades_number(ask: Callable[..., Any]) -> None:
    assert ask("__upgrade_problems", "true", **UPGRADED) == []
    assert ask("__upgrade_confirmed", "true", **UPGRADED) is False
    assert ask("__upgrade_confirmed", "20261129", **UPGRADED) is True
    assert ask("__upgrade_plan", "20261129", **UPGRADED) == f"PostgreSQL 17 → 15, as it was at {SINCE}"
    (problem,) = ask("__upgrade_problems", "20261129", **UPGRADED | {"kept": []})
    assert "The cluster of PostgreSQL 15 has been removed" in problem
    (problem,) = ask("__upgrade_problems", "true")
    assert problem == "No upgrade to PostgreSQL 17 is known on services-1."
    (problem,) = ask("__upgrade_problems", "true", **UPGRADED | {"note": DONE | {"phase": "under way"}})
    assert "run upgrade_postgresql.yml again without go_back first" in problem
    # It was interrupted: the clusters may have their names already.
    assert ask("__upgrade_problems", "20261129", mains=["15"], note=DONE | {"phase": "going back"}) == []


def test_a_kept_cluster_is_removed_after_its_days(ask: Callable[..., Any]) -> None:
    kept = ["15/before_17", "17/undone"]
    assert ask("__upgrade_due_clusters", **UPGRADED | {"kept": kept}) == kept
    fresh = DONE | {"since": "2999-01-01T00:00:00Z"}
    assert ask("__upgrade_due_clusters", **UPGRADED | {"kept": [*kept, "14/before_15"], "note": fresh}) == [
        "14/before_15"
    ]


def test_a_note_about_a_way_to_another_version_is_history(ask: Callable[..., Any]) -> None:
    seen = {"new": "19", "mains": ["17"], "kept": ["15/before_17"], "note": DONE}
    assert ask("__upgrade_problems", **seen) == []
    assert ask("__upgrade_plan", **seen) == "PostgreSQL 17 → 19"
    (problem,) = ask("__upgrade_problems", "true", **seen)
    assert "No upgrade to PostgreSQL 19 is known" in problem


# -- What the role makes of it


def found(*clusters: str) -> dict[str, Any]:
    return {"files": [{"path": f"/var/lib/postgresql/{one}/PG_VERSION"} for one in clusters]}


@pytest.mark.parametrize(
    ("clusters", "refused"),
    [
        (("17/main",), False),
        (("15/main",), True),
        (("15/main", "17/main"), True),
        (("15/before_17", "17/main"), False),
        (("15/wiki", "17/main"), True),
        (("15/before_the_move", "17/main"), True),
        (("15/main.before-restore", "17/main"), False),
        (("17/main", "19/undone"), False),
    ],
)
def test_a_kept_cluster_is_no_data_in_use(clusters: tuple[str, ...], refused: bool) -> None:
    known = {"postgresql_version": "17", "inventory_hostname": "a", "__postgresql_found": found(*clusters)}
    templar = role_templar(ROOT / "roles/postgresql", **known)
    problems = templar.template(trust_as_template("{{ __postgresql_problems }}"))
    assert bool(problems) == refused
    assert all("Run playbooks/upgrade_postgresql.yml" in one for one in problems)


# -- The script that looks at the clusters, on a host that does not exist


TASKS = ROOT / "playbooks/tasks/upgrade_postgresql"


def bash(loader: DataLoader, root: Path, text: str, known: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run a task's script below a folder, with the programs of its bin."""
    script = str(Templar(loader=loader, variables=known).template(trust_as_template(text)))
    for place in ("/var/lib/postgresql", "/etc/postgresql", "/usr/lib/postgresql"):
        script = script.replace(place, f"{root}{place}")
    path = f"{root}/bin:{os.environ['PATH']}"
    found = shutil.which("bash")
    assert found
    return subprocess.run([found, "-c", script], capture_output=True, text=True, check=False, env={"PATH": path})


def looked(loader: DataLoader, root: Path, others: list[str]) -> dict[str, Any]:
    """Run the script of look.yml below a folder; return what it prints."""
    tasks = next(task["block"] for task in read_yaml(TASKS / "look.yml") if "block" in task)
    text = tasks[0]["ansible.builtin.shell"]["cmd"]
    known = {"__postgresql_version": "17", "others": others, "__upgrade_note_file": f"{root}/note.json"}
    done = bash(loader, root, text, known)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_the_clusters_are_seen_as_they_are(loader: DataLoader, tmp_path: Path) -> None:
    data, programs = tmp_path / "var/lib/postgresql", tmp_path / "usr/lib/postgresql/15/bin"
    (data / "15/main/base/1").mkdir(parents=True)
    (data / "15/main/base/1/1").write_bytes(b"x" * 100_000)
    seen = looked(loader, tmp_path, ["15"])
    assert (seen["programs"], seen["checksums"], seen["checksums_wanted"], seen["taken"]) == (False,) * 4
    assert 100_000 < seen["bytes"] < 200_000
    assert seen["free"] > 0
    assert seen["note"] == {}
    program(programs / "postgres", "true")
    program(programs / "pg_controldata", "echo 'Data page checksum version:           1'")
    (tmp_path / "etc/postgresql-common/createcluster.d").mkdir(parents=True)
    options = "initdb_options = '--encoding=UTF8 --locale=C.UTF-8 --data-checksums'\n"
    (tmp_path / "etc/postgresql-common/createcluster.d/metalworks.conf").write_text(options)
    (tmp_path / "note.json").write_text('{"id": "1"}\n')
    # The empty cluster of the packages for 17 is nobody's; a database of users makes it somebody's.
    (data / "17/main/base/pgsql_tmp").mkdir(parents=True)
    (data / "17/main/base/5").mkdir()
    seen = looked(loader, tmp_path, ["15"])
    assert (seen["programs"], seen["checksums"], seen["checksums_wanted"], seen["taken"]) == (True, True, True, False)
    assert seen["note"] == {"id": "1"}
    (data / "17/main/base/16384").mkdir()
    assert looked(loader, tmp_path, ["15"])["taken"] is True


def test_a_cluster_without_checksums_is_seen_as_one(loader: DataLoader, tmp_path: Path) -> None:
    (tmp_path / "var/lib/postgresql/15/main").mkdir(parents=True)
    program(tmp_path / "usr/lib/postgresql/15/bin/postgres", "true")
    program(tmp_path / "usr/lib/postgresql/15/bin/pg_controldata", "echo 'Data page checksum version:           0'")
    assert looked(loader, tmp_path, ["15"])["checksums"] is False


def test_a_host_without_postgresql_is_looked_at(loader: DataLoader, tmp_path: Path) -> None:
    assert looked(loader, tmp_path, [])["bytes"] == 0


# -- The script that lets the old cluster serve, after a kill within pg_renamecluster. Stand-ins act as Debian's do.


RENAME = """
cd @root@
[ -e "etc/postgresql/$1/$2/postgresql.conf" ] && [ ! -e "etc/postgresql/$1/$3/postgresql.conf" ] || exit 1
[ -d "$(sed -n "s/^data_directory = '\\(.*\\)'/\\1/p" "etc/postgresql/$1/$2/postgresql.conf")" ] || exit 1
left=-1
! grep -qsx "$1 $2 $3" kill-in || left=$(cat kill-after)
step() { [ "$left" != 0 ] || exit 137; left=$((left - 1)); }
set_value() { step; sed -i "/^$1 = /s/\\b$2\\b/$3/" "$4"; }
conf=etc/postgresql/$1/$3/postgresql.conf
step; mv "etc/postgresql/$1/$2" "etc/postgresql/$1/$3"
for key in hba_file ident_file external_pid_file cluster_name; do set_value $key "$2" "$3" "$conf"; done
data=$(sed -n "s/^data_directory = '\\(.*\\)'/\\1/p" "$conf")
if [ "${data##*/}" = "$2" ]; then
  step; mv "$data" "${data%/*}/$3"
  set_value data_directory "$2" "$3" "$conf"
fi
step
"""
CONFTOOL = """
if [ "$1" = --short ]; then
  sed -n "s/^$5 = '\\(.*\\)'/\\1/p" "@root@/etc/postgresql/$2/$3/postgresql.conf"
elif [ "$3" = show ]; then
  cat "@root@/etc/postgresql/$1/$2/postgresql.conf"
fi
"""
DROP = """
[ "$1" != --stop ] || shift
cd @root@ && rm -r "etc/postgresql/$1/$2" "var/lib/postgresql/$1/$2"
"""
CONF = """\
data_directory = '{root}/var/lib/postgresql/{version}/{name}'
hba_file = '/etc/postgresql/{version}/{name}/pg_hba.conf'
ident_file = '/etc/postgresql/{version}/{name}/pg_ident.conf'
external_pid_file = '/var/run/postgresql/{version}-{name}.pid'
cluster_name = '{version}/{name}'
archive_command = 'archive --of /var/lib/postgresql/15/main'
"""
STEPS = 8
"""Of a rename, with the one before all and the one after."""


def make_cluster(root: Path, version: str, name: str) -> None:
    etc, data = (root / place / "postgresql" / version / name for place in ("etc", "var/lib"))
    etc.mkdir(parents=True)
    data.mkdir(parents=True)
    (etc / "postgresql.conf").write_text(CONF.format(root=root, version=version, name=name))
    (etc / "start.conf").write_text("auto\n")
    (data / "rows").write_text(f"{version} {name}")


def all_clusters(root: Path) -> dict[str, str]:
    """Return the clusters by name, each with what it holds; fail if their settings and data do not fit."""
    found = {}
    for conf in root.glob("etc/postgresql/*/*/postgresql.conf"):
        version, name = conf.parts[-3:-1]
        assert conf.read_text() == CONF.format(root=root, version=version, name=name)
        found[f"{version}/{name}"] = (root / "var/lib/postgresql" / version / name / "rows").read_text()
    assert len(found) == len([*root.glob("var/lib/postgresql/*/*")])
    return found


@pytest.mark.parametrize("steps", range(STEPS))
@pytest.mark.parametrize(
    ("aside", "killed"),
    [(False, "15 main before_17"), (False, "15 before_17 main"), (True, "17 main undone"), (True, "15 before_17 main")],
)
def test_a_rename_that_was_killed_is_completed(
    loader: DataLoader, tmp_path: Path, aside: bool, killed: str, steps: int
) -> None:
    for name, text in {"pg_renamecluster": RENAME, "pg_conftool": CONFTOOL, "pg_dropcluster": DROP}.items():
        program(tmp_path / "bin" / name, text.replace("@root@", str(tmp_path)))
    program(tmp_path / "bin/systemctl", "true")
    before = "main" if killed == "15 main before_17" else "before_17"
    for version, name in (("15", before), ("17", "main"), *([("17", "undone")] if aside else [])):
        make_cluster(tmp_path, version, name)
    (tmp_path / "kill-in").write_text(f"{killed}\n")
    (tmp_path / "kill-after").write_text(f"{steps}\n")
    known = {
        "aside": aside,
        "postgresql_port": 5432,
        "__upgrade_old": "15",
        "__upgrade_new": "17",
        "__upgrade_kept_name": "before_17",
        "__upgrade_aside_name": "undone",
    }
    script = read_yaml(TASKS / "old.yml")[1]["ansible.builtin.shell"]["cmd"]
    if killed == "15 main before_17":  # of new.yml, after which the next run begins with this script
        died = bash(loader, tmp_path, f"pg_renamecluster {killed}", {})
    else:
        died = bash(loader, tmp_path, script, known)
    assert died.returncode == 137
    (tmp_path / "kill-in").unlink()
    done = bash(loader, tmp_path, script, known)
    assert done.returncode == 0, done.stderr
    assert all_clusters(tmp_path) == {"15/main": f"15 {before}"} | ({"17/undone": "17 main"} if aside else {})
    assert (tmp_path / "etc/postgresql/15/main/start.conf").read_text() == "auto\n"
    if aside:
        assert (tmp_path / "etc/postgresql/17/undone/start.conf").read_text() == "manual\n"
