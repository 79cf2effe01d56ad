"""Write two package indexes as folders of wheels (PEP 503) below a folder.

The company's own has its private package, and an old release of a public one, as PyTorch's index has. In the other one,
a stranger took the private package's name.
"""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from pathlib import Path

INDEXES = {"own": {"acmescale": "2.5", "six": "1.0.0"}, "strangers": {"acmescale": "99.0"}}


def publish(folder: Path, name: str, version: str) -> None:
    """Put a package that holds its own version into an index."""
    folder.mkdir(parents=True)
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": f"FACTOR = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {path: hashlib.sha256(text.encode()).digest() for path, text in files.items()}
    lines = [
        f"{path},sha256={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()},{len(files[path])}\n"
        for path, digest in digests.items()
    ]
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in (files | {f"{info}/RECORD": f"{''.join(lines)}{info}/RECORD,,\n"}).items():
            archive.writestr(path, text)
    (folder / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')


if __name__ == "__main__":
    for index, packages in INDEXES.items():
        for name, version in packages.items():
            publish(Path(sys.argv[1], index, "simple", name), name, version)
