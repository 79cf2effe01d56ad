"""scripts/lab/host_image.py: the image's tag follows its recipe, and downloads use the machine's settings."""

from __future__ import annotations

import pytest

from scripts.lab import host_image

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
    before = host_image.tag([])
    assert before == host_image.tag([])
    assert host_image.tag(['Acquire::Retries "3"']) != before
    monkeypatch.setattr(host_image, "SETUP", host_image.SETUP + "true\n")
    assert host_image.tag([]) != before


def test_no_secret_or_identity_is_shared_by_hosts() -> None:
    assert "rm -f /etc/ssh/ssh_host_*" in host_image.SETUP
    assert ": > /etc/machine-id" in host_image.SETUP


def test_an_existing_image_is_not_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("built")

    monkeypatch.setattr(host_image, "machine_apt_options", list)
    monkeypatch.setattr(host_image, "exists", lambda image: image == host_image.tag([]))
    monkeypatch.setattr(host_image, "build", refuse)
    monkeypatch.setattr(host_image, "capture", lambda argv: "")
    assert host_image.ensure() == host_image.tag([])
