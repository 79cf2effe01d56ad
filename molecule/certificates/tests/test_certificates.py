"""A host's certificate: who can read it, who trusts it, when it is replaced, and recovery after a killed play."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

PLACE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
TLS = "/etc/metalworks/tls"
SHORT = {"certificates_valid_days": 10, "certificates_renew_days": 1, "certificates_warn_days": 1}
EC = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


def put(host, path: str, text: str) -> None:
    host.check_output("printf '%%s\\n' %s > " + path, text.strip())


def about(host, what: str) -> str:
    return str(host.check_output(f"openssl x509 -in {TLS}/host.crt -noout -{what}"))


def key(host) -> str:
    return str(host.check_output(f"sha256sum {TLS}/host.key"))


def sound(host) -> None:
    """Assert that certificate, key and CA match, and that the host trusts the CA."""
    host.check_output(f"openssl verify -x509_strict -CAfile {TLS}/ca.crt {TLS}/host.crt")
    host.check_output(f"openssl verify -no-CAfile -no-CAstore -CApath /etc/ssl/certs {TLS}/host.crt")
    host.check_output(
        f"openssl verify -no-CApath -no-CAstore -CAfile /etc/ssl/certs/ca-certificates.crt {TLS}/host.crt"
    )
    assert about(host, "pubkey") == host.check_output(f"openssl pkey -in {TLS}/host.key -pubout").strip()
    facts = host.file(f"{TLS}/host.key")
    assert (facts.user, facts.group, facts.mode) == ("root", "metalworks-tls", 0o640)
    assert host.file(f"{TLS}/.host.key.next").exists is False
    assert host.service("metalworks-certificate.timer").is_running
    assert host.service("metalworks-certificate.timer").is_enabled


def run(play, *options: str, **variables) -> str:
    done = play(*options, **variables)
    assert done.returncode == 0, done.stdout
    return str(done.stdout)


@pytest.fixture
def restored(host, play):
    """Converge after a test that changes variables."""
    yield
    run(play)
    sound(host)


@pytest.fixture
def mended(host, play):
    """After the test, one play must repair the host, and a second one change nothing."""
    yield
    run(play)
    sound(host)
    assert "changed=0" in run(play)


def test_the_certificate_is_for_the_host(host):
    sound(host)
    names = about(host, "ext subjectAltName").splitlines()[-1].strip()
    assert names == "DNS:certificates, IP Address:127.0.0.1, DNS:mlflow.lab.test"
    assert about(host, "subject -nameopt RFC2253") == "subject=CN=certificates"
    assert host.run(f"openssl x509 -in {TLS}/host.crt -noout -checkend {396 * 86400}").rc == 0
    assert host.run(f"openssl x509 -in {TLS}/host.crt -noout -checkend {398 * 86400}").rc == 1


def test_only_the_group_reads_the_key(host):
    host.check_output("useradd --system --groups metalworks-tls reader")
    assert host.run(f"runuser -u reader -- cat {TLS}/host.key").rc == 0
    assert host.run(f"runuser -u nobody -- cat {TLS}/host.key").rc != 0
    assert host.run(f"runuser -u nobody -- cat {TLS}/host.crt {TLS}/ca.crt").rc == 0
    host.check_output("userdel reader")


def test_only_a_client_that_trusts_the_ca_accepts_the_server(host):
    put(host, "/tmp/other.crt", (PLACE / "other.crt").read_text())
    server = f"openssl s_server -quiet -accept 8443 -cert {TLS}/host.crt -key {TLS}/host.key -www"
    host.check_output(f"systemd-run --quiet --collect --unit tls-server {server}")

    def ask(name: str, trusted: str):
        options = f"--silent --show-error --retry 5 --retry-connrefused --resolve {name}:8443:127.0.0.1"
        # Debian's curl would also trust the system's folder, which contains the CA.
        return host.run(f"curl {options} --capath /nowhere --cacert {trusted} https://{name}:8443/")

    for name in ("127.0.0.1", "certificates", "mlflow.lab.test"):
        assert ask(name, f"{TLS}/ca.crt").rc == 0, name
        assert "SSL certificate problem" in ask(name, "/tmp/other.crt").stderr
    assert "no alternative certificate subject name matches" in ask("other.lab.test", f"{TLS}/ca.crt").stderr
    host.check_output("systemctl stop tls-server")


def test_an_expiring_certificate_is_reported_and_renewed(host, play, restored):
    check = host.check_output("cat /opt/metalworks/certificates/check.sh")
    old = key(host)
    run(play, **SHORT)
    assert host.run(f"openssl x509 -in {TLS}/host.crt -noout -checkend {11 * 86400}").rc == 1
    assert "changed=0" in run(play, **SHORT)
    assert host.run("systemctl start metalworks-certificate").rc == 0
    put(host, "/opt/metalworks/certificates/check.sh", check)
    assert host.run("systemctl start metalworks-certificate").rc == 1
    said = host.check_output("journalctl --unit metalworks-certificate --priority err --output cat --no-pager")
    assert re.search(r"host.crt of certificates ends: notAfter=.*Renew it, on the controller: .* site.yml", said)
    assert host.service("metalworks-certificate.timer").is_running
    run(play)
    assert host.run(f"openssl x509 -in {TLS}/host.crt -noout -checkend {396 * 86400}").rc == 0
    assert host.run("systemctl is-failed metalworks-certificate").rc == 1
    assert host.run("systemctl start metalworks-certificate").rc == 0
    assert key(host) == old


def test_changed_names_give_a_new_certificate_for_the_same_key(host, play, restored):
    old = key(host)
    run(play, certificates_names=["certificates", "198.51.100.7", "fd00::7"])
    assert "IP Address:198.51.100.7, IP Address:FD00:0:0:0:0:0:0:7" in about(host, "ext subjectAltName")
    assert key(host) == old
    sound(host)
    assert "changed=0" in run(play, certificates_names=["certificates", "198.51.100.7", "fd00::7"])


def test_another_ca_replaces_everything_and_nothing_secret_is_printed(host, play, restored):
    old, before = key(host), host.check_output(f"cat {TLS}/ca.crt")
    said = run(play, "-vvv", "--diff", ca="other")
    secret = (PLACE / "other.key").read_text().splitlines()[1:-1]
    assert not [line for line in secret if line in said]
    sound(host)
    assert key(host) != old
    assert host.check_output(f"cat {TLS}/ca.crt") == (PLACE / "other.crt").read_text().strip()
    assert before not in host.file("/etc/ssl/certs/ca-certificates.crt").content_string
    assert host.check_output("find /etc/ssl/certs -xtype l") == ""
    put(host, "/tmp/before.crt", before)
    assert host.run("openssl verify /tmp/before.crt").rc != 0
    assert "changed=0" in run(play, ca="other")


def own(folder: Path, name: str) -> dict[str, str]:
    """Issue a certificate from the scenario's second CA with openssl, as a team would."""
    paths = {"certificate": str(folder / f"{name}.crt"), "key": str(folder / f"{name}.key"), "ca": f"{PLACE}/other.crt"}
    issuer = ["-CA", f"{PLACE}/other.crt", "-CAkey", f"{PLACE}/other.key"]
    files = ["-keyout", paths["key"], "-out", paths["certificate"]]
    command = ["openssl", "req", "-x509", *EC, *issuer, *files, "-days", "90", "-subj", "/CN=own"]
    subprocess.run([*command, "-addext", "basicConstraints=critical,CA:FALSE"], check=True, capture_output=True)
    return paths


def test_own_certificates_are_installed_and_invalid_ones_refused(host, play, restored, tmp_path):
    first, second = own(tmp_path, "first"), own(tmp_path, "second")
    said = run(play, "-vvv", certificates_own=first)
    sound(host)
    assert about(host, "subject -nameopt RFC2253") == "subject=CN=own"
    assert host.check_output(f"cat {TLS}/host.key") == (secret := Path(first["key"]).read_text().strip())
    assert not [line for line in secret.splitlines()[1:-1] if line in said]
    assert "changed=0" in run(play, certificates_own=first)
    for unfit, message in (
        (first | {"key": second["key"]}, "certificates_own: the key does not fit the first certificate"),
        ({"certificate": first["certificate"], "key": first["key"]}, "certificates_own lacks ca"),
        (first | {"certificate": first["key"]}, "certificates_own.certificate is not a PEM certificate"),
    ):
        refused = play(certificates_own=unfit)
        assert refused.returncode != 0
        assert message in " ".join(refused.stdout.split())
    assert about(host, "subject -nameopt RFC2253") == "subject=CN=own"
    run(play, certificates_own=second)
    sound(host)


@pytest.mark.parametrize(
    "left",
    [
        f"rm {TLS}/host.crt",
        f"rm {TLS}/ca.crt",
        f"echo damaged > {TLS}/host.crt",
        f"echo damaged > {TLS}/host.key",
        f"openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {TLS}/host.key",
        f"cp {TLS}/host.key {TLS}/.host.key.next",
        f"chmod 0644 {TLS}/host.key; chgrp root {TLS}/host.key; chmod 0600 {TLS}/host.crt; chmod 0777 {TLS}",
        "rm /usr/local/share/ca-certificates/metalworks_ca.crt; update-ca-certificates --fresh",
        "sed -i 's/^[A-Z]/x/' /etc/ssl/certs/ca-certificates.crt",
        "systemctl disable --now metalworks-certificate.timer",
        "rm -r /opt/metalworks/certificates /etc/systemd/system/metalworks-certificate.service",
        f"groupdel metalworks-tls; rm -r {TLS}",
    ],
)
def test_damage_by_a_killed_play_or_a_person_is_repaired(host, mended, left):
    host.check_output(left)


def test_check_mode_changes_nothing_on_a_new_host(host, play, mended):
    host.check_output(
        f"systemctl disable --now metalworks-certificate.timer; groupdel metalworks-tls; rm -r {TLS} "
        "/opt/metalworks/certificates /etc/systemd/system/metalworks-certificate.* "
        "/usr/local/share/ca-certificates/metalworks_ca.crt; update-ca-certificates --fresh; systemctl daemon-reload"
    )
    assert "changed=1" in run(play, "--check")
    assert not host.file(TLS).exists
    assert not host.group("metalworks-tls").exists


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"certificates_valid_days": 20}, "certificates_valid_days (20) must exceed certificates_renew_days"),
        ({"certificates_warn_days": 40}, "at least certificates_warn_days (40)"),
        ({"certificates_names": []}, "certificates_names is empty"),
        ({"certificates_names": ["größe"]}, "größe is not an ASCII name or an address"),
        ({"certificates_ca_private_key": "damaged"}, "certificates_ca_private_key is not a PEM private key"),
        ({"certificates_ca_certificate": "damaged"}, "certificates_ca_certificate is not a PEM certificate"),
    ],
)
def test_invalid_variables_are_refused_and_change_nothing(host, play, variables, message):
    before = host.check_output(f"sha256sum {TLS}/*")
    refused = play(**variables)
    assert refused.returncode != 0
    assert message in " ".join(refused.stdout.split())
    assert host.check_output(f"sha256sum {TLS}/*") == before
