"""Create a source package that runs code at build time and at every start of Python, and a lock for it."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

HERE = Path("/srv/hostile")
TELL = 'import os; open("/tmp/ran-as", "a").write(f"{os.getuid()} ")'
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "hostile"
version = "1"
"""
BACKEND = f"""
{TELL}
import zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "hostile-1-py3-none-any.whl"
    with zipfile.ZipFile(folder + "/" + name, "w") as wheel:
        wheel.writestr("hostile.pth", {TELL!r})
        wheel.writestr("hostile-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: hostile\\nVersion: 1\\n")
        wheel.writestr("hostile-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("hostile-1.dist-info/RECORD", "")
    return name
"""

HERE.mkdir(exist_ok=True)
package = HERE / "hostile-1.tar.gz"
with tarfile.open(package, "w:gz") as archive:
    for name, text in (("pyproject.toml", PROJECT), ("backend.py", BACKEND)):
        entry = tarfile.TarInfo(f"hostile-1/{name}")
        entry.size = len(text.encode())
        archive.addfile(entry, io.BytesIO(text.encode()))
digest = hashlib.sha256(package.read_bytes()).hexdigest()
(HERE / "lock.txt").write_text(f"hostile @ file://{package} --hash=sha256:{digest}\n")
