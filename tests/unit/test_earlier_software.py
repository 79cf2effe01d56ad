"""Software that others set up on a host is found, and refused unless the site lets the platform take it over."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.unit.repository import load

earlier = load("plugins/module_utils/earlier_software.py")
rules = load("plugins/plugin_utils/site_rules.py")
NOTHING: dict[str, Any] = {"nginx": [], "units": [], "run_files": [], "driver": {}}
VERSIONS = ["595.3.4", "580.1.2"]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def packaged(*files: tuple[str, str]) -> str:
    """Return what dpkg lists for files with these contents."""
    return "\n".join(f" {path} {hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()}" for path, text in files)


@pytest.fixture
def nginx(tmp_path: Path) -> tuple[Path, str]:
    """Return a host with the distribution's nginx, and what dpkg lists for it."""
    write(tmp_path / "etc/nginx/nginx.conf", "http {}")
    site = write(tmp_path / "etc/nginx/sites-available/default", "server {}")
    (tmp_path / "etc/nginx/sites-enabled").mkdir()
    (tmp_path / "etc/nginx/sites-enabled/default").symlink_to(site)
    return tmp_path, packaged(("/etc/nginx/nginx.conf", "http {}"), ("/etc/nginx/sites-available/default", "server {}"))


def test_the_distributions_nginx_is_nobodys(nginx: tuple[Path, str]) -> None:
    assert earlier.nginx_files(*nginx) == []


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("etc/nginx/sites-enabled/wiki", "/etc/nginx/sites-enabled/wiki"),
        ("etc/nginx/conf.d/wiki.conf", "/etc/nginx/conf.d/wiki.conf"),
        ("etc/nginx/nginx.conf", "/etc/nginx/nginx.conf"),
        ("etc/nginx/sites-available/default", "/etc/nginx/sites-enabled/default"),  # its link is what nginx reads
    ],
)
def test_a_site_of_somebodys_is_found_until_the_platform_has_taken_over(
    nginx: tuple[Path, str], path: str, found: str
) -> None:
    root, listed = nginx
    write(root / path, "server { listen 8088; }")
    assert earlier.nginx_files(root, listed) == [found]
    write(root / "etc/nginx/metalworks/users", "")
    assert earlier.nginx_files(root, listed) == []


HBA = """\
# Database administrative login by Unix domain socket
local   all             postgres                                peer
host    all             all             127.0.0.1/32            scram-sha-256
"""


def cluster(root: Path, hba: str, *databases: str) -> None:
    write(root / "etc/postgresql/15/main/pg_hba.conf", hba)
    for oid in ("1", "4", "5", *databases):
        (root / "var/lib/postgresql/15/main/base" / oid).mkdir(parents=True)
    write(root / "var/lib/postgresql/15/main/PG_VERSION", "15\n")


def judged_clusters(root: Path, version: str = "15", accepted: Any = ()) -> list[Any]:
    return list(rules.earlier_clusters("a", earlier.postgresql_clusters(root), version, accepted))


def test_the_distributions_cluster_is_nobodys(tmp_path: Path) -> None:
    assert judged_clusters(tmp_path) == []
    cluster(tmp_path, HBA)
    assert judged_clusters(tmp_path) == []


def test_a_database_of_somebodys_is_found_until_the_platform_has_taken_over(tmp_path: Path) -> None:
    cluster(tmp_path, f"{HBA}host wiki wiki 127.0.0.1/32 scram-sha-256\nlocal x x trust\n", "16385")
    (problem,) = judged_clusters(tmp_path)
    assert "15/main, with 1 database and 2 lines of pg_hba.conf" in problem.what
    assert "`take_over: [postgresql]`" in problem.cure
    assert judged_clusters(tmp_path, accepted=["postgresql"]) == []
    write(tmp_path / "etc/postgresql/15/main/conf.d/metalworks.conf", "")
    assert judged_clusters(tmp_path) == []


def test_data_of_another_version_and_a_missing_main_are_found(tmp_path: Path) -> None:
    cluster(tmp_path, HBA)
    (problem,) = judged_clusters(tmp_path, version="17", accepted=["postgresql"])
    assert "another version (15/main); the platform would install 17" in problem.what
    assert "Run playbooks/upgrade_postgresql.yml" in problem.cure
    assert '`postgresql_version: "15"`' in problem.cure
    (tmp_path / "var/lib/postgresql/15/main").rename(tmp_path / "var/lib/postgresql/15/wiki")
    assert "`sudo pg_createcluster 15 main`" in judged_clusters(tmp_path)[0].cure


@pytest.mark.parametrize("name", ["before_17", "undone", "main.before-restore"])
def test_a_cluster_that_is_kept_for_a_way_back_is_nobodys(tmp_path: Path, name: str) -> None:
    cluster(tmp_path, HBA, "16385")
    (tmp_path / "var/lib/postgresql/15/main").rename(tmp_path / "var/lib/postgresql/15" / name)
    assert judged_clusters(tmp_path, version="17") == []
    assert judged_clusters(tmp_path, version="15") == []


@pytest.mark.parametrize("folder", ["etc/systemd/system", "usr/lib/systemd/system"])
def test_a_unit_of_somebodys_is_found(tmp_path: Path, folder: str) -> None:
    write(tmp_path / folder / "mlflow.service", f"{earlier.MANAGED}\n[Unit]\n")
    assert earlier.foreign_units(tmp_path, ["minio.service", "mlflow.service"]) == []
    write(tmp_path / folder / "minio.service", "[Unit]\n")
    found = earlier.foreign_units(tmp_path, ["minio.service", "mlflow.service"])
    assert found == [f"/{folder}/minio.service"]
    assert "`systemctl disable --now minio.service`" in judged({"units": found})[0].cure


def test_all_that_is_left_of_a_run_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "var/lib/nvidia").mkdir(parents=True)
    left = [f"/{path}" for path in ("usr/bin/nvidia-uninstall", "usr/bin/nvidia-installer", "var/lib/nvidia/log")]
    for count in range(4):
        assert earlier.run_files(tmp_path) == left[:count]
        if count < 3:
            write(tmp_path / left[count][1:], "")


def test_packages_of_a_driver_are_those_with_its_version(tmp_path: Path) -> None:
    listing = """\
ii |nvidia-driver-535|535.183.01-0ubuntu0.24.04.1
ii |nvidia-dkms-535-server|535.183.06-0ubuntu1
ii |linux-modules-nvidia-535-6.8.0-88-generic|6.8.0-88.89
ii |libnvidia-compute-535|535.183.01-0ubuntu0.24.04.1
rc |nvidia-driver-470|470.256.02-0ubuntu1
ii |nvidia-driver-assistant|0.22.87.01-1
ii |nvidia-driver-pinning-595.3.4|595.3.4-1
ii |nvidia-kernel-common|20240109
hi |nvidia-open-kernel-dkms|550.163.01-2
ii |nvidia-container-toolkit|1.18.0-1
"""
    assert sorted(earlier.driver_packages(tmp_path, listing)) == [
        "libnvidia-compute-535",
        "linux-modules-nvidia-535-6.8.0-88-generic",
        "nvidia-dkms-535-server",
        "nvidia-driver-535",
        "nvidia-open-kernel-dkms",
    ]
    write(tmp_path / "etc/modprobe.d/metalworks-nouveau.conf", "")
    assert earlier.driver_packages(tmp_path, listing) == {}, "from here on, the role answers for the driver"


GROUPS = ["platform", "gateway", "nvidia"]
FOUND = {
    "nginx": ["/etc/nginx/sites-enabled/wiki"],
    "run_files": ["/usr/bin/nvidia-uninstall", "/var/lib/nvidia/log"],
    "driver": {"nvidia-driver-535": "535.183.01-0ubuntu1"},
}


def judged(seen: dict[str, Any], groups: list[str] = GROUPS, accepted: Any = (), drivers: Any = VERSIONS) -> list[Any]:
    return list(rules.earlier_software("a", NOTHING | seen, groups, accepted, drivers))


def test_a_host_without_software_of_others_passes() -> None:
    assert judged({}) == []


def test_what_would_be_replaced_is_named_with_the_choice_that_allows_it() -> None:
    nginx, run_file, driver = judged(FOUND)
    assert "/etc/nginx/sites-enabled/wiki" in nginx.what
    assert "`take_over: [nginx]`" in nginx.cure
    assert "(/usr/bin/nvidia-uninstall, /var/lib/nvidia/log)" in run_file.what
    assert "nvidia-uninstall" in run_file.cure
    assert "nvidia-driver-535 535.183.01-0ubuntu1" in driver.what
    assert "purge --autoremove nvidia-driver-535`" in driver.cure


def test_hosts_without_the_role_keep_their_software() -> None:
    assert judged(FOUND, groups=["platform", "dev"]) == []


def test_the_site_may_let_the_platform_take_over() -> None:
    left = judged(FOUND, accepted=["nginx"])
    assert [problem.what.partition(" from ")[0].partition(" of ")[0] for problem in left] == [
        "has a driver",
        "has an NVIDIA driver",
    ]


@pytest.mark.parametrize(
    ("version", "drivers", "refused"),
    [("580.1.2-1", VERSIONS, False), ("580.1.20-1", VERSIONS, True), ("535.1-1", [], False)],
)
def test_a_driver_of_a_version_that_the_platform_installs_is_kept(version: str, drivers: Any, refused: bool) -> None:
    assert bool(judged({"driver": {"nvidia-dkms-580": version}}, drivers=drivers)) is refused


def test_a_replaced_file_is_kept_once(tmp_path: Path) -> None:
    place = write(tmp_path / "etc/nginx.conf", "theirs")
    place.chmod(0o640)
    earlier.keep_copy(place, tmp_path)
    place.write_text("ours")
    earlier.keep_copy(place, tmp_path)
    copy = tmp_path / "nginx.conf.before-metalworks"
    assert (copy.read_text(), copy.stat().st_mode & 0o777) == ("theirs", 0o640)
    earlier.keep_copy(tmp_path / "missing", tmp_path)
