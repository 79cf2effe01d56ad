"""Decide whether a host needs a new certificate, issue it in the controller's memory and send it to the host."""

from __future__ import annotations

import datetime
import ipaddress
from typing import Any

from ansible.plugins.action import ActionBase
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)
# Tolerance for hosts whose clock is not yet set.
EARLIER = datetime.timedelta(hours=1)
LONGEST_COMMON_NAME = 64
USAGE = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
"""Hosts answer with their certificates, and send metrics and logs with them."""


class UnfitError(Exception):
    """An input cannot be used; the text says which and what to do."""


def public(key: Any) -> bytes:
    """Return the public key of a key, certificate or request, in a form that can be compared."""
    half = key.public_key() if hasattr(key, "public_key") else key
    return bytes(half.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def private_key(text: str, what: str) -> CertificateIssuerPrivateKeyTypes:
    """Return the key in a PEM text, whose content never appears in a message."""
    try:
        return load_pem_private_key(text.encode(), None)  # type: ignore[return-value]
    except (ValueError, TypeError):
        raise UnfitError(f"{what} is not a PEM private key without a passphrase") from None


def certificate(text: str, what: str) -> x509.Certificate:
    """Return the first certificate of a PEM text."""
    try:
        return x509.load_pem_x509_certificates(text.encode())[0]
    except ValueError:
        raise UnfitError(f"{what} is not a PEM certificate") from None


def general_names(names: list[str]) -> list[x509.GeneralName]:
    """Return names and addresses as entries of a certificate."""
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            try:
                found.append(x509.DNSName(name))
            except ValueError:
                raise UnfitError(f"certificates_names: {name} is not an ASCII name or an address") from None
    if not found:
        raise UnfitError("certificates_names is empty; list the names and addresses by which clients reach the host")
    return found


def subject(names: list[str]) -> x509.Name:
    """Return the subject of a host's certificate, for people; clients use the alternative names."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:LONGEST_COMMON_NAME])])


def renewal_reason(
    present: str, request: str, ca: x509.Certificate, names: list[str], renew_days: int, valid_days: int
) -> str:
    """Return why a host's certificate must be replaced; empty if it need not be."""
    if not present:
        return "none is present"
    try:
        ours = certificate(present, "what stands")
    except UnfitError:
        return "the file is damaged"
    if not request or public(ours) != public(x509.load_pem_x509_csr(request.encode())):
        return "the key has changed"
    try:
        ours.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return "the CA has changed"
    held = ours.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if set(held) != set(general_names(names)) or ours.subject != subject(names):
        return "the names have changed"
    if list(ours.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) != USAGE:
        return "what it may be used for has changed"
    left = ours.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    if left < renew_days * DAY:
        return f"it expires in {max(left // DAY, 0)} days"
    if left > (valid_days + 1) * DAY:
        return f"it is valid for more than {valid_days} days"
    return ""


def issue(
    request: str,
    ca: x509.Certificate,
    ca_key: CertificateIssuerPrivateKeyTypes,
    names: list[str],
    valid_days: int,
    now: datetime.datetime | None = None,
) -> str:
    """Return a certificate for the key of a request. Names and usage are set here, whatever the request says."""
    asked = x509.load_pem_x509_csr(request.encode())
    if not asked.is_signature_valid:
        raise UnfitError("the host's request is not signed with the key that it contains")
    key, now = asked.public_key(), now or datetime.datetime.now(datetime.UTC)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign",
         "encipher_only", "decipher_only"), False,
    )  # fmt: skip
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.SubjectAlternativeName(general_names(names)), False),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.KeyUsage(digital_signature=True, **usage), True),
        (x509.ExtendedKeyUsage(USAGE), False),
        (x509.SubjectKeyIdentifier.from_public_key(key), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False),
    ]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject(names))
        .issuer_name(ca.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - EARLIER, ca.not_valid_before_utc))
        .not_valid_after(min(now + valid_days * DAY, ca.not_valid_after_utc))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def internal_ca(text: str, key_text: str, renew_days: int) -> tuple[x509.Certificate, CertificateIssuerPrivateKeyTypes]:
    """Return the CA's certificate and key, if they fit and the certificate is valid for long enough."""
    ca = certificate(text, "certificates_ca_certificate")
    key = private_key(key_text, "certificates_ca_private_key")
    if public(ca) != public(key):
        raise UnfitError("certificates_ca_private_key is not the key of certificates_ca_certificate")
    if ca.not_valid_after_utc - datetime.datetime.now(datetime.UTC) < renew_days * DAY:
        raise UnfitError(
            f"the internal CA expires on {ca.not_valid_after_utc:%Y-%m-%d}: remove vault_ca_certificate and "
            "vault_ca_private_key from the vault, run `make secrets`, then run site.yml"
        )
    return ca, key


def check_own(own: dict[str, str]) -> None:
    """Reject a certificate of the team's that no service could use."""
    if missing := sorted({"certificate", "key", "ca"} - {name for name, text in own.items() if text}):
        raise UnfitError(f"certificates_own lacks {', '.join(missing)}")
    ours, key = (
        certificate(own["certificate"], "certificates_own.certificate"),
        private_key(own["key"], "certificates_own.key"),
    )
    certificate(own["ca"], "certificates_own.ca")
    if public(ours) != public(key):
        raise UnfitError(
            "certificates_own: the key does not fit the first certificate; put the host's own first in the chain"
        )
    if ours.not_valid_after_utc < datetime.datetime.now(datetime.UTC):
        raise UnfitError(f"certificates_own: the certificate expired on {ours.not_valid_after_utc:%Y-%m-%d}")


def tidy(value: str) -> str:
    """Return a PEM text with uniform line ends, including the last."""
    return "".join(f"{line}\n" for line in value.strip().splitlines()) if value else ""


class ActionModule(ActionBase):  # type: ignore[misc]
    """Compare the host with the wanted state, and act only where they differ."""

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Bring the host's certificate to the wanted state."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        try:
            return result | self._converge(self._task.args, task_vars)
        except UnfitError as error:
            return result | {"failed": True, "msg": f"{error}."}

    def _converge(self, args: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        valid, renew, warn = (int(args[name]) for name in ("valid_days", "renew_days", "warn_days"))
        if not valid > renew >= warn > 0:
            raise UnfitError(
                f"certificates_valid_days ({valid}) must exceed certificates_renew_days ({renew}), and that must be at "
                f"least certificates_warn_days ({warn}): otherwise a run of site.yml could not end the warning"
            )
        wanted = {name: args[name] for name in ("check", "service", "timer")}
        if args["own"]:
            own = {name: tidy(value) for name, value in args["own"].items()}
            check_own(own)
            return self._host(wanted | own, task_vars)
        ca, ca_key = internal_ca(args["ca_certificate"], args["ca_private_key"], renew)
        wanted["ca"] = tidy(args["ca_certificate"])
        seen = self._host(wanted | {"look": True}, task_vars)
        if seen.get("failed"):
            return seen
        present, request = str(seen.pop("certificate")), str(seen.pop("request"))
        reason = renewal_reason(present, request, ca, args["names"], renew, valid)
        if reason:
            seen = {"changed": True, "actions": [*seen["actions"], f"new certificate: {reason}"]}
        if not seen["changed"] or self._task.check_mode:
            return seen
        fresh = issue(request, ca, ca_key, args["names"], valid) if reason else present
        done = self._host(wanted | {"certificate": fresh}, task_vars)
        return done if done.get("failed") else done | {"changed": True, "actions": seen["actions"]}

    def _host(self, args: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        done: dict[str, Any] = self._execute_module(module_args=args, task_vars=task_vars)
        # Ansible prints this with -vvv, and it contains secrets.
        done.pop("invocation", None)
        return done
