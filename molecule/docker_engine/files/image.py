"""Write an image to standard output that holds Python alone, so that no registry is needed."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

PROGRAMS = [Path(sys.executable).resolve(), Path("/usr/bin/sleep")]
LEFT_OUT = re.compile(r"dist-packages|/(?:test|idlelib|lib2to3|ensurepip|config-[^/]*)(?:/|$)")

libraries = Path(sysconfig.get_path("stdlib"))
binaries = [*PROGRAMS, *libraries.glob("lib-dynload/*.so")]
shown = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=True).stdout
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", dereference=True) as image:
    for path in (*PROGRAMS, *map(Path, sorted(set(re.findall(r"(/\S+) \(0x", shown))))):
        image.add(path, arcname=str(path).lstrip("/"))
    image.add(libraries, filter=lambda one: None if LEFT_OUT.search(one.name) else one)
