"""scripts/lab/host_image.py: the image's tag follows its recipe, and downloads use the machine's settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from scripts.common import ProblemError
from scripts.lab import host_image
from scripts.lab import hosts as lab_hosts

DUMP = """\
Acquire "";
Acquire::Check-Valid-Until "false";
Acquire::Check-Date "";
Acquire::http::Proxy "http://proxy.example.org:3128";
Acquire::Languages "";
Acquire::CompressionTypes::xz "xz";
APT::Install-Recommends "1";
"""


def test_only_settings_about_downloads_are_taken_over() -> None:
    assert host_image.apt_options(DUMP) == [
        'Acquire::Check-Valid-Until "false"',
        'Acquire::http::Proxy "http://proxy.example.org:3128"',
    ]


def test_the_tag_changes_with_the_recipe_and_with_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    before = host_image.tag("trixie", [])
    assert before == host_image.tag("trixie", [])
    assert before.startswith("metalworks-lab-host:trixie-")
    assert host_image.tag("trixie", ['Acquire::Retries "3"']) != before
    assert host_image.tag("bookworm", []).rpartition("-")[2] != before.rpartition("-")[2]
    monkeypatch.setitem(host_image.SUITES, "trixie", host_image.SETUP + "true\n")
    assert host_image.tag("trixie", []) != before


def test_hosts_are_of_debian_12_unless_another_suite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METALWORKS_LAB_SUITE", raising=False)
    assert host_image.default_suite() == "bookworm"
    assert f"default='{host_image.default_suite()}'" in lab_hosts.CREATE.read_text()
    monkeypatch.setenv("METALWORKS_LAB_SUITE", "trixie")
    assert host_image.default_suite() == "trixie"
    monkeypatch.setenv("METALWORKS_LAB_SUITE", "sid")
    with pytest.raises(ProblemError, match="METALWORKS_LAB_SUITE is sid, which is none of bookworm, trixie"):
        host_image.default_suite()


def test_no_secret_or_identity_is_shared_by_hosts() -> None:
    for setup in host_image.SUITES.values():
        assert "rm -f /etc/ssh/ssh_host_*" in setup
        assert ": > /etc/machine-id" in setup


def test_mmdebstrap_gets_no_path_of_the_clone_in_a_hook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Mmdebstrap splits them at blanks: in `My Projects/`, building the image failed."""
    lab = tmp_path / "My Projects"
    ran: list[list[str]] = []

    def record(argv: Sequence[str | Path]) -> None:
        ran.append([str(argument) for argument in argv])
        (lab / "image.tar").touch()

    monkeypatch.setattr(host_image, "LAB", lab)
    monkeypatch.setattr(host_image.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(host_image, "logged", record)
    host_image.build("trixie", "image:tag", [])
    assert [argv[0] for argv in ran] == ["mmdebstrap", "docker"]
    assert ran[0][-2] == "trixie"
    assert [argument for argument in ran[0] if str(lab) in argument] == [str(lab / "image.tar")]


@pytest.mark.parametrize("suite", ["", *host_image.SUITES])
def test_an_existing_image_is_not_built_again(suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def refuse(*_: object) -> None:
        raise AssertionError("built")

    monkeypatch.delenv("METALWORKS_LAB_SUITE", raising=False)
    monkeypatch.setattr(host_image, "machine_apt_options", list)
    image = host_image.tag(suite or "bookworm", [])
    monkeypatch.setattr(host_image, "exists", lambda name: name == image)
    monkeypatch.setattr(host_image, "build", refuse)
    monkeypatch.setattr(host_image, "capture", ran.append)
    assert host_image.ensure(suite) == image
    assert ran == [["docker", "tag", image, f"metalworks-lab-host:{suite or 'bookworm'}"]]
