"""Role docker_engine: what becomes of daemon.json, what is refused, and how an engine is recognized."""

from __future__ import annotations

import grp
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleError
from ansible.template import trust_as_template

from tests.unit.repository import ROOT, load, rendered, role_templar

settings = load("plugins/module_utils/docker_settings.py")
engine = load("plugins/modules/docker_engine.py")
nvidia = load("plugins/modules/nvidia_facts.py")
rules = load("plugins/plugin_utils/site_rules.py")
ROLE = ROOT / "roles/docker_engine"
POOLS = [{"base": "172.29.0.0/16", "size": 24}]
WANTS = {
    "data_root": "",
    "address_pools": POOLS,
    "addresses": ["192.0.2.11", "db.example.org", "172.16.0.0/12"],
    "log_max_size": "10m",
    "log_max_files": 3,
    "settings": {},
}
OURS = {
    "log-driver": "json-file",
    "log-opts": {"max-size": "10m", "max-file": "3"},
    "default-address-pools": POOLS,
    "live-restore": True,
}
RUNS = {"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled", settings.STARTED: "7"}


def seen(theirs: Any = None, **changes: Any) -> dict[str, Any]:
    """Return what was seen on a host with an engine, whose daemon.json has these settings."""
    text = theirs if isinstance(theirs, str) else json.dumps(theirs) if theirs is not None else ""
    return {
        "unit": RUNS,
        "listens": "",
        "podman": False,
        "snap": False,
        "loose": [],
        "text": text,
        "ours": {},
        "flags": {"hosts": ["fd://"]},
        "info": {},
        "routes": ["192.0.2.0/24"],
        "resolvers": ["192.0.2.1"],
    } | changes


def told(found: dict[str, Any], root: Path = Path("/nowhere"), **wants: Any) -> str:
    """Return what is refused, in words."""
    return " ".join(f"{what}. {cure}." for what, cure in settings.faults(WANTS | wants, found, root))


def becomes(theirs: dict[str, Any], ours: dict[str, Any] | None = None, **wants: Any) -> dict[str, Any]:
    found = seen(theirs)
    new: dict[str, Any] = settings.merged(theirs, ours or {}, settings.wanted(WANTS | wants, found), found["flags"])[0]
    return new


# -- daemon.json
def test_a_new_engine_gets_all_settings() -> None:
    assert becomes({}) == OURS
    assert becomes({}, data_root="/data/docker") == OURS | {"data-root": "/data/docker"}
    assert told(seen()) == ""


def test_what_others_set_wins_key_by_key_and_keeps_its_place() -> None:
    theirs = {
        "registry-mirrors": ["https://mirror.example.org"],
        "log-driver": "journald",
        "live-restore": False,
        "default-address-pools": [{"base": "10.9.0.0/16", "size": 26}],
    }
    assert becomes(theirs) == theirs
    assert list(becomes({"debug": True})) == ["debug", *OURS]
    # Options of a driver belong to it.
    assert becomes({"log-opts": {"tag": "x"}}) == {
        "log-opts": {"tag": "x"},
        "default-address-pools": POOLS,
        "live-restore": True,
    }


def test_a_key_that_the_command_line_sets_is_left_out_or_the_daemon_would_not_start() -> None:
    found = seen({}, flags=settings.flags_of(["dockerd", "--live-restore", "--log-opt", "max-size=5m", "-H", "fd://"]))
    new, mine = settings.merged({}, {}, settings.wanted(WANTS, found), found["flags"])
    assert new == mine == {"default-address-pools": POOLS}


def test_a_swarms_engine_is_not_told_to_live_restore() -> None:
    found = seen({}, info={"Swarm": {"LocalNodeState": "active"}})
    assert "live-restore" not in settings.wanted(WANTS, found)


def test_the_sites_settings_replace_those_of_the_role() -> None:
    assert becomes({}, settings={"log-driver": "journald", "mtu": 1400}) == {
        "default-address-pools": POOLS,
        "live-restore": True,
        "log-driver": "journald",
        "mtu": 1400,
    }


def test_what_the_platform_has_set_follows_its_choices() -> None:
    larger = OURS["log-opts"] | {"max-size": "50m"}  # type: ignore[operator]
    assert becomes(OURS, OURS, log_max_size="50m") == OURS | {"log-opts": larger}
    assert becomes(OURS | {"mtu": 1400}, OURS | {"mtu": 1400}) == OURS
    # Somebody changed it since.
    assert becomes(OURS | {"log-opts": {"max-size": "1g"}}, OURS)["log-opts"] == {"max-size": "1g"}


def test_a_run_that_was_killed_before_it_noted_its_settings_owns_them() -> None:
    new, mine = settings.merged(OURS, {}, settings.wanted(WANTS, seen(OURS)), {})
    assert (new, mine) == (OURS, OURS)


def test_nvidias_settings_and_ours_do_not_undo_each_other() -> None:
    """`nvidia-ctk runtime configure --cdi.enabled` adds these keys to the file and keeps all others."""
    theirs = {
        "features": {"cdi": True},
        "runtimes": {"nvidia": {"args": [], "path": "nvidia-container-runtime"}},
    }
    after_ctk = OURS | theirs
    assert becomes(after_ctk, OURS) == after_ctk
    assert becomes(theirs) == theirs | OURS
    info = json.dumps({"ServerVersion": "26.1.5", "Runtimes": {"runc": {}, "nvidia": {}}, "CDISpecDirs": ["/etc/cdi"]})
    assert nvidia.docker_state(info)["runtimes"] == ["nvidia", "runc"]
    assert settings.changes(OURS, after_ctk) <= settings.RELOADED


# -- Refusals
@pytest.mark.parametrize(
    ("found", "words"),
    [
        (seen({"hosts": ["unix:///run/docker.sock", "tcp://0.0.0.0:2375"]}), "tcp://0.0.0.0:2375, by `hosts` in /etc"),
        (seen({"hosts": ["0.0.0.0:2375"]}), "listens on 0.0.0.0:2375"),
        (seen({}, flags={"hosts": ["fd://", "tcp://:2376"]}), "tcp://:2376, by the command line of docker.service"),
        (seen({}, listens="/run/docker.sock (Stream) [::]:2375 (Stream)"), "[::]:2375, by docker.socket"),
        (seen("{'live-restore': true}"), "daemon.json is not valid JSON (Expecting property name"),
        (seen("[]"), "is not valid JSON (it is not an object)"),
    ],
)
def test_an_engine_that_contradicts_the_platform_is_refused(found: dict[str, Any], words: str) -> None:
    assert words in told(found)


def test_the_site_cannot_open_it_to_the_network_either() -> None:
    assert "tcp://:2375, by `hosts`" in told(seen({}, flags={}), settings={"hosts": ["tcp://:2375"]})
    assert told(seen({"hosts": ["unix:///run/docker.sock", "fd://"]})) == ""


def test_a_choice_that_would_have_no_effect_is_refused() -> None:
    lost = told(seen({"mtu": 1500}), settings={"mtu": 1400, "hosts": ["unix:///x"]})
    assert "whose `hosts` others set, by the command line of docker.service" in lost
    assert "whose `mtu` others set, by /etc/docker/daemon.json, and docker_settings" in lost
    assert told(seen({"mtu": 1400}), settings={"mtu": 1400}) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"snap": True, "podman": True}, "from a snap"),
        ({"podman": True}, "`apt-get remove podman-docker`"),
        ({"loose": ["41", "977"]}, "runs dockerd (process 41, 977) without a unit docker.service"),
    ],
)
def test_another_engine_is_named_and_left_alone(changes: dict[str, Any], words: str) -> None:
    assert words in told(seen(unit={}, **changes))
    assert "take the host out of the group docker_engine" in told(seen(unit={}, **changes))
    assert told(seen(**changes)) == "", "beside an engine with a unit they do no harm"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a host whose engine has a volume in /var/lib/docker."""
    (tmp_path / "var/lib/docker/volumes/data").mkdir(parents=True)
    (tmp_path / "var/lib/docker/volumes/metadata.db").touch()
    return tmp_path


def test_a_data_root_that_would_hide_data_is_refused(root: Path) -> None:
    refused = told(seen({}), root, data_root="/data/docker")
    assert "in /var/lib/docker, which an engine with its data in /data/docker would not see" in refused
    assert "docker_data_root on the host's line to /var/lib/docker" in refused
    assert told(seen({}), root, data_root="/var/lib/docker") == ""
    (root / "var/lib/docker/volumes/data").rmdir()
    assert told(seen({}), root, data_root="/data/docker") == "", "folders of an engine that was never used"
    images = root / "var/lib/docker/image/overlay2/imagedb/content/sha256"
    images.mkdir(parents=True)
    (images / "ab").touch()
    assert "would not see" in told(seen(unit={}), root, data_root="/data/docker"), "left by an engine that is gone"


def test_a_choice_that_is_taken_back_does_not_hide_data_either(root: Path) -> None:
    (root / "data/docker/containers/ab").mkdir(parents=True)
    theirs = OURS | {"data-root": "/data/docker"}
    assert "in /data/docker, which an engine with its data in /var/lib/docker" in told(seen(theirs, ours=theirs), root)
    assert told(seen(theirs), root) == "", "others set it"


def test_a_data_root_of_others_contradicts_another_choice(root: Path) -> None:
    words = "others told to keep its data in /srv/docker, and docker_data_root is /data/docker"
    assert words in told(seen({"data-root": "/srv/docker"}), root, data_root="/data/docker")
    assert words in told(seen({"graph": "/srv/docker"}), root, data_root="/data/docker")
    assert words in told(seen({}, flags={"data-root": ["/srv/docker"]}), root, data_root="/data/docker")
    assert told(seen({"data-root": "/srv/docker/"}), root, data_root="/srv/docker") == ""


@pytest.mark.parametrize(
    ("found", "wants", "hidden"),
    [
        ({}, {"addresses": ["172.29.4.7"]}, "172.29.4.7"),
        ({}, {"addresses": ["172.29.4.0/24", "172.16.0.0/12"]}, "172.29.4.0/24"),
        ({"routes": ["172.16.0.0/12"]}, {}, "172.16.0.0/12"),
        ({"resolvers": ["172.29.0.53"]}, {}, "172.29.0.53"),
        ({}, {"address_pools": [{"base": "10.0.0.0/16", "size": 24}], "addresses": ["10.0.3.1", "::1"]}, "10.0.3.1"),
        ({}, {"address_pools": [{"base": "fd00:1::/48", "size": 64}], "addresses": ["fd00:1::7"]}, "fd00:1::7"),
    ],
)
def test_pools_that_hide_somebody_are_refused(found: dict[str, Any], wants: dict[str, Any], hidden: str) -> None:
    assert f"could no longer reach {hidden}, because" in told(seen({}, **found), **wants)


def test_what_an_engine_uses_already_is_judged_by_the_inventory_alone() -> None:
    assert told(seen(OURS, routes=["172.29.0.0/16"])) == ""
    assert "could no longer reach 172.29.0.9" in told(seen(OURS), addresses=["172.29.0.9"])
    theirs = {"default-address-pools": [{"base": "192.0.2.0/24", "size": 28}]}
    assert "could no longer reach 192.0.2.11" in told(seen(theirs))


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ({"base": "172.29.0.0/16", "size": 8}, "networks of size 8 from Docker's pool 172.29.0.0/16"),
        ({"base": "172.29.0.0/16", "size": 31}, "from 16 to 30"),
        ({"base": "172.29.0.1/16", "size": 24}, "172.29.0.1/16 has host bits set"),
    ],
)
def test_impossible_pools_are_refused(pool: dict[str, Any], words: str) -> None:
    assert words in told(seen({}), address_pools=[pool])


# -- What is seen
def test_routes_of_dockers_own_networks_do_not_count() -> None:
    listing = [
        {"dst": "default", "dev": "eth0"},
        {"dst": "172.17.0.0/16", "dev": "docker0"},
        {"dst": "172.18.0.0/16", "dev": "br-0123456789ab"},
        {"dst": "10.1.0.0/16", "dev": "br-lan"},
        {"dst": "10.8.0.0/24", "dev": "tun0"},
        {"type": "blackhole", "dst": "10.9.0.0/16"},
    ]
    assert settings.routes(json.dumps(listing)) == ["10.1.0.0/16", "10.8.0.0/24", "10.9.0.0/16"]
    assert settings.routes("") == []


def test_a_command_line_is_read_from_the_process_or_the_unit() -> None:
    unit = "{ path=/usr/sbin/dockerd ; argv[]=/usr/sbin/dockerd -H fd:// $DOCKER_OPTS ; ignore_errors=no ; }"
    debian = '# DOCKER_OPTS="--dns 192.0.2.9"\nDOCKER_OPTS="--bip=10.1.0.1/24 -g /srv/docker"\n'
    words = settings.command_of("", unit, debian)
    assert words == ["/usr/sbin/dockerd", "-H", "fd://", "--bip=10.1.0.1/24", "-g", "/srv/docker"]
    flags = settings.flags_of(words)
    assert flags == {"hosts": ["fd://"], "bip": ["10.1.0.1/24"], "data-root": ["/srv/docker"]}
    running = "dockerd\0-H\0fd://\0--host=tcp://:2375\0-Htcp://:2376\0"
    assert settings.flags_of(settings.command_of(running, unit, debian))["hosts"] == [
        "fd://",
        "tcp://:2375",
        "tcp://:2376",
    ]


def process(proc: Path, number: str, name: str, cgroup: str, namespace: str) -> None:
    (proc / number / "ns").mkdir(parents=True)
    (proc / number / "comm").write_text(f"{name}\n")
    (proc / number / "cgroup").write_text(cgroup)
    (proc / number / "ns/pid").symlink_to(f"pid:[{namespace}]")


def test_only_a_daemon_of_root_on_this_host_without_a_unit_is_loose(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("the processes of the test are root's")
    process(tmp_path, "1", "systemd", "0::/init.scope\n", "1")
    process(tmp_path, "20", "dockerd", "0::/system.slice/docker.service\n", "1")
    process(tmp_path, "30", "dockerd", "0::/system.slice/docker-ab.scope/system.slice/x\n", "2")
    process(tmp_path, "40", "dockerd", "0::/user.slice/session-3.scope\n", "1")
    os.chown(tmp_path / "40", 1000, 1000)
    assert settings.loose_daemons(tmp_path) == []
    process(tmp_path, "50", "dockerd", "0::/user.slice/session-3.scope\n", "1")
    assert settings.loose_daemons(tmp_path) == ["50"]


def test_a_daemon_that_does_not_answer_says_nothing(tmp_path: Path) -> None:
    assert settings.info(str(tmp_path / "none.sock")) == {}


# -- The module
class Module:
    """A stand-in that records the commands of the module."""

    check_mode = False
    tmpdir = "/nowhere"

    def __init__(self, **wants: Any) -> None:
        self.params = WANTS | {"users": [], "only_users": False} | wants
        self.commands: list[str] = []

    def run_command(self, argv: list[str], **_: Any) -> tuple[int, str, str]:
        self.commands.append(" ".join(argv))
        return 0, "", ""

    def get_bin_path(self, *_: Any, **__: Any) -> None:
        return None

    def fail_json(self, msg: str, **_: Any) -> None:
        raise AnsibleError(msg)


class Case(SimpleNamespace):
    """A host with an engine."""

    def run(self, module: Module, found: dict[str, Any]) -> Any:
        self.patch.setattr(engine, "look", lambda _: found)
        done = engine.Engine(module)
        self.absent = done.converge()
        return done


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    written: dict[str, None] = {}
    made = Case(path=tmp_path / "daemon.json", written=written, started="7", patch=monkeypatch)
    made.info = {"LiveRestoreEnabled": True, "ContainersRunning": 2}
    monkeypatch.setattr(engine, "CONFIGURATION", made.path)
    monkeypatch.setattr(engine, "OURS", tmp_path / "ours.json")
    monkeypatch.setattr(engine, "OWED", tmp_path / "owed.json")
    monkeypatch.setattr(engine, "load", lambda: ({}, written))
    monkeypatch.setattr(engine, "made", lambda kind, name: written.update({f"{kind} {name}": None}))
    monkeypatch.setattr(engine, "info", lambda: made.info)
    monkeypatch.setattr(engine, "show", lambda *_: {settings.STARTED: made.started})

    def replace(path: Path, content: str, mode: int = 0o644, *_: Any) -> None:
        path.write_text(content)
        path.chmod(mode)

    monkeypatch.setattr(engine, "replace", replace)
    return made


def test_an_engine_that_was_there_is_reloaded_and_not_restarted(case: Case) -> None:
    case.path.write_text('{"debug": true}')
    case.path.chmod(0o600)
    module = Module()
    done = case.run(module, seen({"debug": True}))
    assert module.commands == ["systemctl reload docker.service"]
    assert done.waits == ["default-address-pools", "log-driver", "log-opts"]
    assert json.loads(case.path.read_text()) == {"debug": True} | OURS
    assert case.path.stat().st_mode & 0o777 == 0o600, "it may hold passwords"
    assert "debug" not in json.dumps(done.diff)
    # Converged: nothing to do until somebody restarts it, and then nothing waits.
    module = Module()
    again = case.run(module, seen({"debug": True} | OURS, ours=OURS))
    assert (module.commands, again.actions, again.waits) == ([], [], done.waits)
    case.started = "8"
    assert case.run(Module(), seen({"debug": True} | OURS, ours=OURS)).waits == []


def test_the_platforms_engine_is_restarted_only_if_its_containers_survive(case: Case) -> None:
    case.written["engine docker"] = None
    found = seen(OURS, ours=OURS)
    case.info = {"LiveRestoreEnabled": False, "ContainersRunning": 1}
    module = Module(log_max_size="50m")
    assert case.run(module, found).waits == ["log-opts"]
    assert module.commands == []
    case.info = {"LiveRestoreEnabled": True, "ContainersRunning": 1}
    module = Module(log_max_size="50m")
    new = json.loads(case.path.read_text())
    assert case.run(module, seen(new, ours=new)).waits == []
    assert module.commands == ["systemctl restart docker.service"]


def test_a_restart_owed_by_a_killed_run_is_made_up_for(case: Case) -> None:
    case.written["engine docker"] = None

    def kill(_: object) -> None:
        raise KeyboardInterrupt

    with case.patch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine.Engine, "follow", kill)
        case.run(Module(log_max_size="50m"), seen(OURS, ours=OURS))
    new = json.loads(case.path.read_text())
    assert new["log-opts"]["max-size"] == "50m"
    module = Module(log_max_size="50m")
    case.run(module, seen(new, ours=new))
    assert module.commands == ["systemctl restart docker.service"]


def test_settings_are_there_before_the_first_start(case: Case) -> None:
    module = Module()
    done = case.run(module, seen(unit={}, flags={}))
    assert case.absent
    assert json.loads(case.path.read_text()) == OURS
    assert module.commands == []
    assert done.actions == [f"set {', '.join(sorted(OURS))} in {case.path}"]
    assert "engine docker" in case.written
    module = Module()
    case.run(module, seen(OURS, ours=OURS))
    assert module.commands == [], "the package has started it"


def test_a_stopped_engine_is_started(case: Case) -> None:
    module = Module()
    stopped = RUNS | {"ActiveState": "inactive", "UnitFileState": "disabled"}
    case.run(module, seen(OURS, ours=OURS, unit=stopped))
    assert module.commands == ["systemctl --quiet enable docker.service", "systemctl start docker.service"]


def test_nothing_is_changed_on_a_refused_host(case: Case) -> None:
    module = Module(users=["root"])
    with pytest.raises(AnsibleError, match=r"listens on tcp://:2375.*\n.*Nothing was changed"):
        case.run(module, seen({"hosts": ["tcp://:2375"]}))
    assert module.commands == []
    assert not case.path.exists()


def test_only_named_people_are_in_the_group_and_others_stay(case: Case) -> None:
    group = SimpleNamespace(gr_mem=["theirs", "leaver"])
    case.patch.setattr(grp, "getgrnam", lambda _: group)
    case.patch.setattr(engine, "account", lambda name: name != "elsewhere")
    case.written["member docker leaver"] = None
    module = Module(users=["ada", "elsewhere"])
    engine.Engine(module).members()
    assert module.commands == ["gpasswd --add ada docker", "gpasswd --delete leaver docker"]
    assert "member docker ada" in case.written


def test_people_with_root_rights_are_people_of_the_platform() -> None:
    people = [{"name": "ada", "role": "developer"}]
    assert rules.strangers(["ada"], people, "docker_users", "platform_users") == []
    (problem,) = rules.strangers(["adah"], people, "docker_users", "platform_users")
    assert "Did you mean `ada`?" in problem.cure


# -- Packages
def on(distribution: str, version: str, release: str, **variables: Any) -> Any:
    names = ("distribution", "distribution_major_version", "distribution_release")
    facts = dict(zip(names, (distribution, version, release), strict=True))
    return role_templar(ROLE, ansible_facts=facts, **variables)


@pytest.mark.parametrize(
    ("system", "packages"),
    [
        (("Debian", "12", "bookworm"), ["docker.io", "iptables"]),
        (("Debian", "13", "trixie"), ["docker.io", "iptables", "docker-cli"]),
        (("Ubuntu", "24", "noble"), ["docker.io", "iptables"]),
    ],
)
def test_the_distributions_packages(system: tuple[str, str, str], packages: list[str]) -> None:
    found = on(*system).template(trust_as_template("{{ __docker_engine_of }}"))
    assert found["distribution"] == packages


def source(templar: Any) -> str:
    return str(rendered(templar, ROLE / "templates/docker.sources.j2"))


def test_dockers_repository_by_fingerprint() -> None:
    text = source(on("Ubuntu", "24", "noble"))
    assert "URIs: https://download.docker.com/linux/ubuntu\nSuites: noble\nComponents: stable\n" in text
    assert (
        "Signed-By: /etc/apt/keyrings/metalworks-docker-8d81803c0ebfcd88.asc 9DC858229FC7DD38854AE2D88D81803C0EB"
        in (text)
    )


def test_a_mirror_with_a_key_of_its_own(tmp_path: Path) -> None:
    key = tmp_path / "mirror.asc"
    key.write_text("-----BEGIN PGP PUBLIC KEY BLOCK-----\n")
    wants = {
        "docker_engine_repository_url": "https://mirror.example.org/docker",
        "docker_engine_repository_key": str(key),
    }
    text = source(on("Debian", "13", "trixie", **wants))
    assert "URIs: https://mirror.example.org/docker\nSuites: trixie\n" in text
    line = next(one for one in text.splitlines() if one.startswith("Signed-By: "))
    assert len(line.split()) == 2, "the file is the key, whatever its fingerprint"


def test_the_platforms_removal_knows_the_packages_without_facts() -> None:
    names = role_templar(ROLE).template(trust_as_template("{{ __docker_engine_packages }}"))
    assert {"docker.io", "containerd.io", "docker-ce"} <= set(names)
