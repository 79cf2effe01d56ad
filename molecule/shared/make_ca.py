"""Create two CAs in the scenario's folder, as `make secrets` does for a site."""

from __future__ import annotations

import sys
from pathlib import Path

from scripts.site import make_secrets

for name in ("ca", "other"):
    certificate, key = (Path(sys.argv[1]) / f"{name}.{end}" for end in ("crt", "key"))
    if not certificate.exists():
        made = make_secrets.ca({})
        key.touch(0o600)
        key.write_text(made[make_secrets.CA_KEY])
        certificate.write_text(made[make_secrets.CA_CERTIFICATE])
