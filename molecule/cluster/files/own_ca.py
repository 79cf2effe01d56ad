"""Create a CA and a certificate for one host name, as a company's CA would issue it. Arguments: DIRECTORY NAME."""

import datetime
import os
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.backends import default_backend
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


def issue(name, key, issuer, issuer_key, authority):
    """Return a certificate."""
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=365))
    builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    if not authority:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(sys.argv[2])]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256(), default_backend()).public_bytes(Encoding.PEM)


directory = Path(sys.argv[1])
directory.mkdir(mode=0o755, exist_ok=True)
os.umask(0o077)
keys = [ec.generate_private_key(ec.SECP256R1(), default_backend()) for _ in range(2)]
owners = (f"The CA of {sys.argv[2]}", sys.argv[2])
names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in owners]
(directory / "host.key").write_bytes(keys[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
for file, content in (
    ("ca.crt", issue(names[0], keys[0], names[0], keys[0], True)),
    ("host.crt", issue(names[1], keys[1], names[0], keys[0], False)),
):
    (directory / file).write_bytes(content)
    (directory / file).chmod(0o644)
