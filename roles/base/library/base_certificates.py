#!/usr/bin/python
"""Certificates that the host trusts besides its distribution's own, in one call."""

from __future__ import annotations

import hashlib
import re
import shutil
import ssl
from collections.abc import Iterable
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: base_certificates
short_description: The host trusts these CA certificates
description:
  - Splits bundles into files of one certificate, as update-ca-certificates wants them, named after their content.
  - Leaves out what the distribution trusts anyway, and removes what an earlier call wrote and nobody wants now.
  - Rebuilds the host's bundle when it does not hold what it should, so a play that was killed is finished.
options:
  bundles: {type: dict, required: true, description: Name of a file, for messages, and its PEM text.}
"""

RETURN = """
added: {type: int, returned: success, description: Certificates written.}
removed: {type: int, returned: success, description: Certificates removed.}
"""

DISTRIBUTION, LOCAL = Path("/usr/share/ca-certificates"), Path("/usr/local/share/ca-certificates")
LINKS, BUNDLE = Path("/etc/ssl/certs"), Path("/etc/ssl/certs/ca-certificates.crt")
PREFIX = "metalworks-"
PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def certificates(text: str) -> dict[str, str]:
    """Return the certificates in a PEM text by fingerprint.

    Raises ValueError for one that is damaged.
    """
    found = {}
    for pem in PEM.findall(text):
        found[hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()[:32]] = f"{pem}\n"
    return found


def wanted(bundles: dict[str, str]) -> dict[str, str]:
    """Return all certificates of the bundles by fingerprint.

    Raises ValueError, with the bundle's name, for one without certificates or with one that is damaged.
    """
    found: dict[str, str] = {}
    for name, text in bundles.items():
        try:
            ours = certificates(text)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cadata="".join(ours.values()))
        except (ValueError, ssl.SSLError) as error:
            raise ValueError(f"{name}: not a readable PEM file with certificates ({error})") from error
        found |= ours
    return found


def trusted(files: Iterable[Path]) -> set[str]:
    """Return the fingerprints of the certificates in these files."""
    return {print_ for file in files for print_ in certificates(file.read_text(errors="replace"))}


def main() -> None:
    """Read the arguments and converge."""
    module = AnsibleModule(
        argument_spec={"bundles": {"type": "dict", "required": True}},
        supports_check_mode=True,
    )
    try:
        wants = wanted(module.params["bundles"])
    except ValueError as error:
        module.fail_json(msg=str(error))
    ours = {file.stem.removeprefix(PREFIX): file for file in LOCAL.glob(f"{PREFIX}*.crt")}
    known = trusted(DISTRIBUTION.rglob("*.crt"))
    add = {key: pem for key, pem in wants.items() if key not in known and key not in ours}
    remove = [file for key, file in ours.items() if key not in wants]
    built = trusted([BUNDLE] if BUNDLE.exists() else [])
    dangling = any(not link.exists() for link in LINKS.glob(f"{PREFIX}*.pem"))
    changed = bool(add or remove) or dangling or not wants.keys() <= built
    if changed and not module.check_mode:
        LOCAL.mkdir(parents=True, exist_ok=True)
        for file in remove:
            file.unlink()
        for key, pem in add.items():
            (LOCAL / f"{PREFIX}{key}.crt").write_text(pem)
        # Where the program is missing, the package ca-certificates does this when it is installed.
        if program := shutil.which("update-ca-certificates"):
            # Only a fresh start drops the links of files that are gone.
            module.run_command([program, *(["--fresh"] if remove or dangling else [])], check_rc=True)
    module.exit_json(changed=changed, added=len(add), removed=len(remove))


if __name__ == "__main__":
    main()
