"""Generate the missing secrets of a site: inventory/<site>/group_vars/all/vault.yml, readable only by its owner.

Existing secrets are kept, so running this again changes nothing. Values are never printed. The names come from
group_vars/all/vault.example.yml; some secrets are mappings with a value for each machine or user, and two are the
internal CA's key and certificate.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from scripts.common import ROOT, ProblemError, end, listed_inventory

EXAMPLE = ROOT / "group_vars" / "all" / "vault.example.yml"


class Keyed(NamedTuple):
    """Who has a value in a mapping of secrets: these machines, and users with these roles."""

    machines: frozenset[str]
    roles: frozenset[str]


NOBODY: frozenset[str] = frozenset()
WRITERS = frozenset({"admin", "developer"})
EVERYBODY = WRITERS | {"viewer"}
WORKERS = ("worker-cpu", "worker-gpu")  # one identity per work pool
KEYED = {
    "vault_object_store_secret_keys": Keyed(frozenset({"backup", "inference", "mlflow", *WORKERS}), WRITERS),
    "vault_user_passwords": Keyed(NOBODY, EVERYBODY),
    "vault_machine_passwords": Keyed(frozenset({"inference", *WORKERS}), NOBODY),
    "vault_inference_tokens": Keyed(frozenset({"monitoring", *WORKERS}), WRITERS),
}
CA_KEY, CA_CERTIFICATE = "vault_ca_private_key", "vault_ca_certificate"
CA_YEARS = 10
# Secrets that somebody else issues. Only a lab generates them, because it includes the other side.
GIVEN = frozenset(
    {
        "vault_raw_database_password",
        "vault_git_token",
        "vault_package_index_password",
        "vault_backup_target_secret_key",
    }
)
BACKUP_PASSPHRASE = "vault_backup_passphrase"  # noqa: S105 - the name of a secret
NAMED_ONLY = (*GIVEN, CA_KEY, CA_CERTIFICATE, BACKUP_PASSPHRASE)
"""Secrets that `--rotate all` keeps."""
HEADER = (
    "---\n# Secrets of this site. `make secrets` adds missing ones and keeps the existing ones.\n"
    "# Encrypt it (`ansible-vault encrypt`) or keep it out of Git.\n"
)


def names(example: str) -> list[str]:
    """Return the names of the secrets in the example file."""
    return re.findall(r"^#\s*(vault_\w+):", example, re.MULTILINE)


def new_value() -> str:
    """Return a new secret: 256 bits, without a character that needs quoting anywhere."""
    return secrets.token_urlsafe(32)


def new_ca_key() -> str:
    """Return a new private key for the internal CA, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def new_ca_certificate(key_text: str) -> str:
    """Return a certificate for the internal CA's key, in PEM; the CA can issue host certificates only."""
    try:
        key = cast(CertificateIssuerPrivateKeyTypes, load_pem_private_key(key_text.encode(), None))
    except (ValueError, TypeError):
        raise ProblemError(f"{CA_KEY} is not a PEM private key: correct it, or remove it for a new CA") from None
    # The random part distinguishes the CAs of several sites, and a site's next CA from its last.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Metalworks internal CA {secrets.token_hex(4)}")])
    now = datetime.datetime.now(datetime.UTC)
    other = ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    other += ["digital_signature", "encipher_only", "decipher_only"]
    usage = x509.KeyUsage(key_cert_sign=True, crl_sign=True, **dict.fromkeys(other, False))
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=365 * CA_YEARS))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def ca(present: Mapping[str, Any]) -> dict[str, str]:
    """Return the internal CA's key and certificate if they are missing."""
    if present.get(CA_CERTIFICATE):
        if present.get(CA_KEY):
            return {}
        raise ProblemError(f"{CA_CERTIFICATE} is set but {CA_KEY} is not: add the key, or remove both for a new CA")
    key = present.get(CA_KEY) or new_ca_key()
    return {CA_KEY: key, CA_CERTIFICATE: new_ca_certificate(key)}


def holders(keyed: Keyed, people: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return who has a value in a mapping of secrets: machines first, then people in the order listed."""
    return [*sorted(keyed.machines), *(person["name"] for person in people if person.get("role") in keyed.roles)]


def complete(present: Mapping[str, Any], wanted: Iterable[str], people: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the present secrets with the missing ones added."""
    result, people = dict(present), list(people)
    for name in wanted:
        if keyed := KEYED.get(name):
            values = dict(result.get(name) or {})
            for holder in holders(keyed, people):
                values[holder] = values.get(holder) or new_value()
            result[name] = values
        elif name in (CA_KEY, CA_CERTIFICATE):
            result |= ca(result)
        elif not result.get(name):
            result[name] = new_value()
    return result


def without(present: Mapping[str, Any], which: str) -> dict[str, Any]:
    """Return the secrets without those to rotate: `all`, or names with commas, also of a value (`name.holder`).

    `all` leaves out secrets that others issued, and those that you have to name: the CA, because with a new one every
    certificate is replaced, and browsers distrust the platform until they have it; the passphrase of the backups,
    because with a new one nobody can read the older sets.
    """
    if which == "all":
        return {name: value for name, value in present.items() if name in NAMED_ONLY}
    left = dict(present)
    for one in which.split(","):
        left = without_one(left, one)
    return left


def without_one(present: Mapping[str, Any], which: str) -> dict[str, Any]:
    """Return the secrets without one, or without one value of a mapping."""
    ours = [name for name in present if name not in GIVEN]
    name, _, holder = which.partition(".")
    if name not in ours or (holder and holder not in (present[name] if isinstance(present[name], dict) else {})):
        raise ProblemError(f"the vault has no generated secret `{which}`, only {', '.join(ours)}")
    if holder:
        return {**present, name: {key: value for key, value in present[name].items() if key != holder}}
    gone = (CA_KEY, CA_CERTIFICATE) if name in (CA_KEY, CA_CERTIFICATE) else (name,)
    return {key: value for key, value in present.items() if key not in gone}


def platform_users(inventory: Path) -> list[dict[str, Any]]:
    """Return the site's users, as Ansible reads them from the inventory."""
    listed = listed_inventory(inventory)
    for variables in listed.get("_meta", {}).get("hostvars", {}).values():
        people = variables.get("platform_users", [])
        if not isinstance(people, list):
            raise ProblemError(f"`platform_users` in {inventory} must be a literal list, to generate secrets")
        for person in people:
            if not isinstance(person, dict) or not person.get("name") or person.get("role") not in EVERYBODY:
                who = person.get("name") if isinstance(person, dict) else person
                roles = ", ".join(sorted(EVERYBODY))
                raise ProblemError(f"`platform_users` in {inventory}: {who} needs a name and a role, one of {roles}")
        return people
    raise ProblemError(f"{inventory} has no hosts: write hosts.yml first")


class Dumper(yaml.SafeDumper):
    """Writes a text of several lines, such as a key, as a literal block."""


def as_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    """Write a text of several lines as a literal block."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


Dumper.add_representer(str, as_text)


def read(vault: Path) -> dict[str, Any]:
    """Return the present secrets; refuse an encrypted file, to which nothing can be added."""
    if not vault.exists():
        return {}
    text = vault.read_text()
    if text.startswith("$ANSIBLE_VAULT"):
        raise ProblemError(f"{vault} is encrypted: run `ansible-vault decrypt`, this again, and encrypt it again")
    loaded = yaml.safe_load(text) or {}
    if not isinstance(loaded, dict):
        raise ProblemError(f"{vault} is not a YAML mapping of variables: correct it")
    return loaded


def write(vault: Path, content: dict[str, Any]) -> None:
    """Replace the file atomically; it is never readable by others."""
    vault.parent.mkdir(parents=True, exist_ok=True)
    partial = vault.with_name(f".{vault.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(HEADER)
        yaml.dump(content, handle, Dumper, sort_keys=False)
    partial.replace(vault)


def ensure(inventory: Path, *, also_given: bool = False, rotate: str = "") -> list[str]:
    """Generate the missing secrets and those to rotate; return their names."""
    if not inventory.is_dir():
        raise ProblemError(f"{inventory} is not an inventory directory: use one such as inventory/lab")
    vault = inventory / "group_vars" / "all" / "vault.yml"
    present = read(vault)
    wanted = [name for name in names(EXAMPLE.read_text()) if also_given or name not in GIVEN]
    content = complete(without(present, rotate) if rotate else present, wanted, platform_users(inventory))
    if content == present:
        return []
    write(vault, content)
    return sorted(name for name in content if content[name] != present.get(name))


def main() -> None:
    """Generate the missing secrets of an inventory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inventory", type=Path, help="the inventory's directory, for example inventory/lab")
    parser.add_argument("--also-given", action="store_true", help="also generate secrets that others issue (for a lab)")
    parser.add_argument("--rotate", default="", help="replace all, or vault_x,vault_y.HOLDER; then run site.yml")
    arguments = parser.parse_args()
    added = ensure(arguments.inventory.resolve(), also_given=arguments.also_given, rotate=arguments.rotate)
    print(f"added: {', '.join(added)}" if added else "complete already")


if __name__ == "__main__":
    try:
        main()
    except ProblemError as error:
        end(error)
