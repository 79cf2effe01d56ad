"""A host without a device is left alone, or refused where one is required."""

from __future__ import annotations

testinfra_hosts = ["ansible://nvidia-none"]


def test_nothing_is_installed(host) -> None:
    assert host.check_output("dpkg-query --show --showformat '${Package} '").find("nvidia") == -1
    for folder in ("/etc/apt/sources.list.d", "/etc/apt/keyrings", "/etc/modprobe.d"):
        assert host.run(f"ls {folder}/*nvidia* {folder}/metalworks-*").stdout == ""


def test_a_host_without_a_device_is_not_changed(play) -> None:
    result = play()
    assert result.ok, result.text
    assert result.changed == 0
    # The three roles only look at such a host.
    assert result.text.count("TASK [nvidia_driver : Gather facts about NVIDIA devices and software]") == 1


def test_a_host_that_requires_a_device_is_refused_without_one(host, play) -> None:
    result = play(require_device=True)
    assert not result.ok
    assert "nvidia-none has no NVIDIA device" in result.words
    assert "set nvidia_require_device to false" in result.words
    test_nothing_is_installed(host)


def test_a_driver_from_a_run_file_is_refused_before_anything_is_installed(host, play) -> None:
    host.check_output("touch /usr/bin/nvidia-uninstall")
    try:
        result = play(install_without_device=True)
    finally:
        host.check_output("rm /usr/bin/nvidia-uninstall")
    assert not result.ok
    assert "has a driver from NVIDIA's .run file (/usr/bin/nvidia-uninstall)" in result.words
    test_nothing_is_installed(host)
