"""Build the docs site from the repository's Markdown: `make docs`.

MkDocs wants all pages in one folder, but README, the changelog and the example's page stand where GitHub shows them.
So the pages, and the files that they link to, are copied into a folder that is laid out as the repository is: a link
that works on GitHub works on the site as well, and nothing is rewritten.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.common import BUILD, ROOT, environment

CONFIG = ROOT / "mkdocs.yml"
SITE = BUILD / "docs"
SOURCES = (
    "README.md",
    "README.zh-TW.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs",
    "examples/flights/README.md",
)
LINK = re.compile(r"\]\(([^)#:\s]+)")


def stage(root: Path, folder: Path) -> None:
    """Fill `folder` with the pages of the repository at `root`, and with the files that they link to."""
    shutil.rmtree(folder, ignore_errors=True)
    for source in SOURCES:
        (folder / source).parent.mkdir(parents=True, exist_ok=True)
        if (root / source).is_dir():
            shutil.copytree(root / source, folder / source)
        else:
            shutil.copy(root / source, folder / source)
    for page in [*folder.rglob("*.md")]:
        for target in LINK.findall(page.read_text()):
            copy = Path(os.path.normpath(page.parent / target))
            if copy.is_relative_to(folder) and not copy.exists() and (root / copy.relative_to(folder)).is_file():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(root / copy.relative_to(folder), copy)


def build(root: Path, pages: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of the repository at `root`; MkDocs ends with 1 for a dead link or a page in no menu."""
    stage(root, pages)
    config = pages.with_suffix(".yml")
    config.write_text(f"INHERIT: {CONFIG}\ndocs_dir: {pages}\nsite_dir: {site}\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config)]
    # Pages carry no dates, so that the same sources make the same bytes.
    variables = environment({"SOURCE_DATE_EPOCH": "0"})
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def main() -> int:
    """Build the site into build/docs, or where --into says."""
    parser = argparse.ArgumentParser(description="Build the docs site.")
    parser.add_argument("--into", type=Path, default=SITE, help="folder of the site (default: build/docs)")
    site = parser.parse_args().into.resolve()
    done = build(ROOT, BUILD / "docs-pages", site)
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
        return 1
    print(f"Docs: {site}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
