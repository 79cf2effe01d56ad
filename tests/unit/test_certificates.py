"""roles/certificates: replacement and content of certificates, and that the CA's key stays on the controller."""

from __future__ import annotations

import datetime
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from scripts.site import make_secrets
from tests.unit.repository import load

plugin = load("plugins/action/host_certificate.py")

NAMES = ["services-1", "198.51.100.10", "mlflow.lab.test"]
SECRETS, OTHER = make_secrets.ca({}), make_secrets.ca({})
CA = plugin.certificate(SECRETS["vault_ca_certificate"], "")
CA_KEY = plugin.private_key(SECRETS["vault_ca_private_key"], "")


def request(key: str) -> str:
    """Return a host's request, which asks for more names than it may have."""
    builder = x509.CertificateSigningRequestBuilder()
    builder = builder.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "everybody")]))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(plugin.private_key(key, ""), hashes.SHA256()).public_bytes(Encoding.PEM).decode()


KEY = make_secrets.new_ca_key()
REQUEST = request(KEY)


def issued(names: list[str] = NAMES, days: int = 397, **moved: Any) -> str:
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(**moved)
    return str(plugin.issue(REQUEST, CA, CA_KEY, names, days, now))


def renewal_reason(present: str, **changed: Any) -> str:
    asked = {"request": REQUEST, "ca": CA, "names": NAMES, "renew_days": 30, "valid_days": 397} | changed
    return str(plugin.renewal_reason(present, **asked))


def test_a_certificate_has_the_given_names_and_not_those_of_the_request() -> None:
    made = plugin.certificate(issued(), "")
    made.verify_directly_issued_by(CA)
    extensions = {extension.oid: extension.value for extension in made.extensions}
    assert [str(name.value) for name in extensions[x509.SubjectAlternativeName.oid]] == NAMES
    assert made.subject.rfc4514_string() == "CN=services-1"
    assert not extensions[x509.BasicConstraints.oid].ca
    assert not extensions[x509.KeyUsage.oid].key_cert_sign


def test_a_certificate_lasts_no_longer_than_its_ca() -> None:
    assert plugin.certificate(issued(days=100_000), "").not_valid_after_utc == CA.not_valid_after_utc


def test_a_request_with_a_wrong_signature_is_refused() -> None:
    content = bytearray(x509.load_pem_x509_csr(REQUEST.encode()).public_bytes(Encoding.DER))
    content[-1] ^= 1  # flip a bit of the signature
    forged = x509.load_der_x509_csr(bytes(content)).public_bytes(Encoding.PEM).decode()
    with pytest.raises(plugin.UnfitError, match="not signed with the key"):
        plugin.issue(forged, CA, CA_KEY, NAMES, 397)


def test_a_valid_certificate_is_kept() -> None:
    assert renewal_reason(issued()) == ""
    assert renewal_reason(issued(), names=[NAMES[0], *reversed(NAMES[1:])]) == ""


@pytest.mark.parametrize(
    ("present", "changed", "reason"),
    [
        ("", {}, "none is present"),
        ("damaged", {}, "the file is damaged"),
        (issued(), {"request": ""}, "the key has changed"),
        (issued(), {"request": request(make_secrets.new_ca_key())}, "the key has changed"),
        (issued(), {"ca": plugin.certificate(OTHER["vault_ca_certificate"], "")}, "the CA has changed"),
        (issued(), {"names": [*NAMES, "s3.lab.test"]}, "the names have changed"),
        (issued(), {"names": list(reversed(NAMES))}, "the names have changed"),
        (issued(days=29), {}, "it expires in 28 days"),
        (issued(days=0, minutes=-5), {}, "it expires in 0 days"),
        (issued(), {"valid_days": 90}, "it is valid for more than 90 days"),
    ],
)
def test_an_unsuitable_certificate_is_replaced(present: str, changed: dict[str, Any], reason: str) -> None:
    assert renewal_reason(present, **changed) == reason


def test_a_certificate_that_cannot_be_sent_with_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier ones were for servers alone."""
    now = plugin.USAGE
    monkeypatch.setattr(plugin, "USAGE", now[:1])
    earlier = issued()
    monkeypatch.setattr(plugin, "USAGE", now)
    assert renewal_reason(earlier) == "what it may be used for has changed"


def test_a_long_host_name_is_in_the_names_whole() -> None:
    name = f"{'a' * 60}.lab.test"
    made = plugin.certificate(issued([name]), "")
    held = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert held.get_values_for_type(x509.DNSName) == [name]
    assert renewal_reason(issued([name]), names=[name]) == ""


@pytest.mark.parametrize(
    ("certificate", "key", "renew", "message"),
    [
        ("vault_ca_certificate", OTHER["vault_ca_private_key"], 30, "is not the key of"),
        ("vault_ca_certificate", "no PEM", 30, "is not a PEM private key"),
        ("vault_ca_private_key", SECRETS["vault_ca_private_key"], 30, "is not a PEM certificate"),
        ("vault_ca_certificate", SECRETS["vault_ca_private_key"], 4000, "run `make secrets`"),
    ],
)
def test_the_error_about_an_unusable_ca_does_not_show_its_key(
    certificate: str, key: str, renew: int, message: str
) -> None:
    with pytest.raises(plugin.UnfitError) as told:
        plugin.internal_ca(SECRETS[certificate], key, renew)
    assert message in str(told.value)
    assert "PRIVATE KEY" not in str(told.value)


OWN = {"certificate": issued(), "key": KEY, "ca": SECRETS["vault_ca_certificate"]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"key": ""}, "lacks key"),
        ({"key": make_secrets.new_ca_key()}, "the key does not fit the first certificate"),
        ({"certificate": issued(days=0, minutes=-5)}, "the certificate expired on"),
        ({"ca": "damaged"}, "certificates_own.ca is not a PEM certificate"),
    ],
)
def test_an_own_certificate_that_cannot_serve_is_refused(changed: dict[str, str], message: str) -> None:
    plugin.check_own(OWN)
    with pytest.raises(plugin.UnfitError, match=message):
        plugin.check_own(OWN | changed)


class Action(plugin.ActionModule):  # type: ignore[misc,name-defined]
    """The plugin with a fake host that responds at once and records what it is sent."""

    def __init__(self, seen: dict[str, Any], *, check: bool = False) -> None:
        self.seen, self.sent = seen, list[dict[str, Any]]()
        self._task = SimpleNamespace(check_mode=check)

    def _execute_module(self, *, module_args: dict[str, Any], **_: Any) -> dict[str, Any]:
        self.sent.append(module_args)
        answer = {"changed": False, "actions": [], "invocation": {"module_args": module_args}}
        return answer | (dict(self.seen) if module_args.get("look") else {})

    def converge(self, **changed: Any) -> dict[str, Any]:
        given = {
            "names": NAMES,
            "ca_certificate": SECRETS["vault_ca_certificate"],
            "ca_private_key": SECRETS["vault_ca_private_key"],
            "own": {},
            "valid_days": 397,
            "renew_days": 30,
            "warn_days": 21,
        }
        return dict(self._converge(given | dict.fromkeys(("check", "service", "timer"), "x") | changed, {}))


def test_one_call_suffices_if_nothing_is_to_be_done() -> None:
    action = Action({"certificate": issued(), "request": REQUEST})
    assert action.converge() == {"changed": False, "actions": []}
    assert len(action.sent) == 1


def test_a_new_certificate_takes_two_calls_and_the_cas_key_stays_on_the_controller() -> None:
    action = Action({"certificate": "", "request": REQUEST})
    done = action.converge()
    assert done["changed"]
    assert done["actions"] == ["new certificate: none is present"]
    assert renewal_reason(action.sent[1]["certificate"]) == ""
    assert SECRETS["vault_ca_private_key"].splitlines()[1] not in str([action.sent, done])


def test_other_differences_are_repaired_without_a_new_certificate() -> None:
    standing = issued()
    action = Action({"certificate": standing, "request": REQUEST, "changed": True, "actions": ["start x.timer"]})
    assert action.converge()["actions"] == ["start x.timer"]
    assert action.sent[1]["certificate"] == standing


def test_check_mode_changes_nothing() -> None:
    action = Action({"certificate": "", "request": ""}, check=True)
    assert action.converge()["changed"]
    assert [args.get("look") for args in action.sent] == [True]


def test_an_own_certificate_is_installed_and_never_shown() -> None:
    action = Action({})
    assert "invocation" not in action.converge(own=OWN)
    assert action.sent[0]["key"] == KEY
