"""scripts/site/make_secrets.py: missing secrets are generated, existing ones kept, and none is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from scripts.common import ROOT, ProblemError
from scripts.site import make_secrets

HOSTS = "services: {hosts: {a: {ansible_host: 127.0.0.1}}}\n"
USERS = [{"name": "ada", "role": "admin"}, {"name": "grace", "role": "developer"}, {"name": "vera", "role": "viewer"}]


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    (tmp_path / "hosts.yml").write_text(HOSTS)
    directory = tmp_path / "group_vars" / "all"
    directory.mkdir(parents=True)
    (directory / "00-product").symlink_to(ROOT / "group_vars" / "all")
    users(tmp_path, USERS)
    return tmp_path


def users(inventory: Path, listed: object) -> None:
    (inventory / "group_vars" / "all" / "site.yml").write_text(yaml.safe_dump({"platform_users": listed}))


def vault(inventory: Path) -> Path:
    return inventory / "group_vars" / "all" / "vault.yml"


def test_missing_secrets_are_generated_once_and_only_named(
    inventory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["make_secrets", str(inventory)])
    make_secrets.main()
    made = yaml.safe_load(vault(inventory).read_text())
    assert set(made) == set(make_secrets.names(make_secrets.EXAMPLE.read_text())) - make_secrets.GIVEN
    assert vault(inventory).stat().st_mode & 0o777 == 0o600
    said = capsys.readouterr().out
    assert "vault_object_store_root_password" in said
    assert not [value for value in values(made) if value in said]
    make_secrets.main()
    assert capsys.readouterr().out == "complete already\n"
    assert yaml.safe_load(vault(inventory).read_text()) == made


def values(made: dict[str, object]) -> list[str]:
    nested = [value for value in made.values() if isinstance(value, dict)]
    return [value for value in made.values() if isinstance(value, str)] + [v for each in nested for v in each.values()]


def test_each_mapping_has_its_machines_and_the_users_whose_role_needs_it(inventory: Path) -> None:
    make_secrets.ensure(inventory)
    made = yaml.safe_load(vault(inventory).read_text())
    for name, people in {
        "vault_user_passwords": {"ada", "grace", "vera"},
        "vault_object_store_secret_keys": {"ada", "grace"},
        "vault_inference_tokens": {"ada", "grace"},
        "vault_machine_passwords": set(),
    }.items():
        assert set(made[name]) == people | make_secrets.KEYED[name].machines
        assert len(set(made[name].values())) == len(made[name])
    assert "backup" in made["vault_object_store_secret_keys"]
    assert "backup" not in made["vault_machine_passwords"], "it asks no API"


def test_every_mapping_is_in_the_example() -> None:
    assert set(make_secrets.KEYED) <= set(make_secrets.names(make_secrets.EXAMPLE.read_text()))


def test_a_new_user_gets_secrets_and_the_others_keep_theirs(inventory: Path) -> None:
    make_secrets.ensure(inventory)
    before = yaml.safe_load(vault(inventory).read_text())
    users(inventory, [*USERS[:2], {"name": "mary", "role": "developer"}])
    gained = {"vault_inference_tokens", "vault_object_store_secret_keys", "vault_user_passwords"}
    assert set(make_secrets.ensure(inventory)) == gained
    after = yaml.safe_load(vault(inventory).read_text())
    for name in gained:
        assert set(after[name]) - set(before[name]) == {"mary"}
        del after[name]["mary"]
    # Secrets of removed users are kept, too: the platform reads only those of listed users.
    assert after == before


@pytest.mark.parametrize("user", [{"name": "ada"}, {"name": "ada", "role": "root"}, {"role": "admin"}, "ada"])
def test_a_user_without_a_known_role_is_refused(inventory: Path, user: object) -> None:
    users(inventory, [user])
    with pytest.raises(ProblemError, match="one of admin, developer, viewer"):
        make_secrets.ensure(inventory)


def test_users_must_be_a_list(inventory: Path) -> None:
    users(inventory, "{{ others }}")
    with pytest.raises(ProblemError, match="must be a literal list"):
        make_secrets.ensure(inventory)


# -- The internal CA


def ca(made: dict[str, str]) -> tuple[Any, x509.Certificate]:
    key = load_pem_private_key(made[make_secrets.CA_KEY].encode(), None)
    return key, x509.load_pem_x509_certificate(made[make_secrets.CA_CERTIFICATE].encode())


def test_the_ca_can_only_issue_host_certificates() -> None:
    key, certificate = ca(make_secrets.ca({}))
    assert certificate.public_key() == key.public_key()
    assert key.curve.name == "secp256r1"
    certificate.verify_directly_issued_by(certificate)
    assert certificate.subject.rfc4514_string().startswith("CN=Metalworks internal CA ")
    assert certificate.subject != ca(make_secrets.ca({}))[1].subject
    extensions = {extension.oid: extension for extension in certificate.extensions}
    constraints = extensions[x509.BasicConstraints.oid]
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    usage = extensions[x509.KeyUsage.oid]
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days == 365 * make_secrets.CA_YEARS


def test_an_existing_ca_is_kept_and_a_key_without_certificate_gets_one() -> None:
    made = make_secrets.ca({})
    assert make_secrets.ca(made) == {}
    again = make_secrets.ca({make_secrets.CA_KEY: made[make_secrets.CA_KEY]})
    assert again[make_secrets.CA_KEY] == made[make_secrets.CA_KEY]
    key, certificate = ca(again)
    assert certificate.public_key() == key.public_key()


@pytest.mark.parametrize(
    ("present", "message"),
    [
        ({make_secrets.CA_CERTIFICATE: "x"}, "vault_ca_certificate is set but vault_ca_private_key is not"),
        ({make_secrets.CA_KEY: "se"}, "vault_ca_private_key is not a PEM private key"),
    ],
)
def test_an_incomplete_ca_is_refused(present: dict[str, str], message: str) -> None:
    with pytest.raises(ProblemError, match=message) as told:
        make_secrets.ca(present)
    assert "for a new CA" in str(told.value)


def test_multiline_secrets_are_written_as_literal_blocks(inventory: Path) -> None:
    make_secrets.ensure(inventory)
    text = vault(inventory).read_text()
    assert "vault_ca_certificate: |\n  -----BEGIN CERTIFICATE-----\n" in text


# -- The file


def test_secrets_issued_by_others_are_generated_only_for_a_lab(inventory: Path) -> None:
    make_secrets.ensure(inventory)
    assert not make_secrets.GIVEN & set(yaml.safe_load(vault(inventory).read_text()))
    assert make_secrets.ensure(inventory, also_given=True) == sorted(make_secrets.GIVEN)


def test_secrets_issued_by_others_are_in_the_example() -> None:
    assert set(make_secrets.names(make_secrets.EXAMPLE.read_text())) >= make_secrets.GIVEN


def test_an_encrypted_file_is_refused(inventory: Path) -> None:
    vault(inventory).write_text("$ANSIBLE_VAULT;1.1;AES256\n00\n")
    with pytest.raises(ProblemError, match="ansible-vault decrypt"):
        make_secrets.ensure(inventory)
    assert vault(inventory).read_text().startswith("$ANSIBLE_VAULT")


def test_secrets_are_long_and_need_no_quoting() -> None:
    made = {make_secrets.new_value() for _ in range(50)}
    assert len(made) == 50
    assert all(len(each) >= 40 and each.replace("-", "").replace("_", "").isalnum() for each in made)


def test_a_missing_inventory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="is not an inventory directory"):
        make_secrets.ensure(tmp_path / "nowhere")


def test_rotating_all_keeps_the_ca_and_secrets_issued_by_others() -> None:
    people = [{"name": "ada", "role": "developer"}]
    wanted = make_secrets.names(make_secrets.EXAMPLE.read_text())
    before = make_secrets.complete({}, wanted, people)
    after = make_secrets.complete(make_secrets.without(before, "all"), wanted, people)
    same = {"vault_ca_private_key", "vault_ca_certificate", "vault_backup_passphrase", *make_secrets.GIVEN}
    assert {name for name in before if before[name] == after[name]} == same


def test_one_secret_can_be_rotated() -> None:
    people = [{"name": "ada", "role": "developer"}]
    wanted = make_secrets.names(make_secrets.EXAMPLE.read_text())
    before = make_secrets.complete({}, wanted, people)
    after = make_secrets.complete(make_secrets.without(before, "vault_user_passwords.ada"), wanted, people)
    assert {name for name in before if before[name] != after[name]} == {"vault_user_passwords"}
    ca = make_secrets.complete(make_secrets.without(before, "vault_ca_certificate"), wanted, people)
    assert ca["vault_ca_private_key"] != before["vault_ca_private_key"]


def test_several_secrets_can_be_rotated_at_once() -> None:
    wanted = make_secrets.names(make_secrets.EXAMPLE.read_text())
    before = make_secrets.complete({}, wanted, [])
    which = "vault_machine_passwords.worker-cpu,vault_object_store_secret_keys.worker-cpu"
    after = make_secrets.complete(make_secrets.without(before, which), wanted, [])
    changed = {
        (name, holder)
        for name in before
        if isinstance(before[name], dict)
        for holder in before[name]
        if before[name][holder] != after[name][holder]
    }
    both = {("vault_machine_passwords", "worker-cpu"), ("vault_object_store_secret_keys", "worker-cpu")}
    assert changed == both
    with pytest.raises(ProblemError, match=r"no generated secret `vault_x\.y`"):
        make_secrets.without(before, f"{which},vault_x.y")


@pytest.mark.parametrize("which", ["vault_x", "vault_user_passwords.eve", "vault_raw_database_password"])
def test_secrets_issued_by_others_are_not_rotated(which: str) -> None:
    present = {"vault_user_passwords": {"ada": "x"}, "vault_raw_database_password": "x"}
    with pytest.raises(ProblemError, match="the vault has no generated secret"):
        make_secrets.without(present, which)
