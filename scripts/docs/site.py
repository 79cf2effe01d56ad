"""Build the docs site from the repository's Markdown: `make docs`. The gateway serves it at docs.<domain>.

MkDocs needs all pages in one folder, but README, the changelog and the example's page are where GitHub shows them. So
the pages and the files that they link to are copied into a folder with the repository's layout: links that work on
GitHub also work on the site.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from scripts.common import BUILD, CACHE, ROOT, ProblemError, end, environment
from scripts.site.build_once import build_once

CONFIG = ROOT / "mkdocs.yml"
THEME = ROOT / "scripts/docs/theme"
"""Files that replace the theme's own."""
SITE = BUILD / "docs"
ARCHIVES = CACHE / "docs"
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


def slug(title: str, separator: str) -> str:
    """Return a heading's id, which never begins with a digit: the theme's table of contents would fail."""
    from markdown.extensions.toc import slugify  # comes with MkDocs

    plain = slugify(title, separator)
    return f"section{separator}{plain}" if plain[:1].isdigit() else plain


def sources(root: Path) -> list[Path]:
    """Return the paths, below `root`, of the pages and of the files that they link to."""
    named = [root / source for source in SOURCES]
    found = {path for source in named for path in (source.rglob("*") if source.is_dir() else [source])}
    for page in [path for path in found if path.suffix == ".md"]:
        links = LINK.findall(page.read_text())
        found |= {Path(os.path.normpath(page.parent / link)) for link in links}
    return sorted(path.relative_to(root) for path in found if path.is_relative_to(root) and path.is_file())


def stage(root: Path, folder: Path) -> None:
    """Fill `folder` with the pages of the repository at `root`, and with the files that they link to."""
    shutil.rmtree(folder, ignore_errors=True)
    for source in sources(root):
        (folder / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / source, folder / source)


def build(root: Path, pages: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of the repository at `root`; MkDocs exits with 1 for a dead link or a page missing in the menu."""
    stage(root, pages)
    config = pages.with_suffix(".yml")
    lines = [
        f"INHERIT: {CONFIG}",
        f"docs_dir: {pages}",
        f"site_dir: {site}",
        f"theme: {{custom_dir: {THEME}}}",
        "markdown_extensions:",
        "  - toc:",
        "      slugify: !!python/name:scripts.docs.site.slug",
    ]
    config.write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config)]
    # A fixed date makes the build reproducible.
    variables = environment({"SOURCE_DATE_EPOCH": "0"})
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)


def digest() -> str:
    """Return 16 hexadecimal digits that name the site's content."""
    try:
        total = hashlib.sha256(version("mkdocs").encode())
    except PackageNotFoundError:
        raise ProblemError(
            f"{sys.executable} has no MkDocs, which builds the docs site: run Ansible from the environment that "
            "`make environment` makes, or install the mkdocs that pyproject.toml names"
        ) from None
    for path in [CONFIG, Path(__file__), *sorted(THEME.rglob("*.*")), *(ROOT / source for source in sources(ROOT))]:
        total.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return total.hexdigest()[:16]


def pack(folder: Path) -> None:
    """Build the site and put it into a folder as a ZIP file."""
    with tempfile.TemporaryDirectory() as scratch:
        done = build(ROOT, Path(scratch, "pages"), Path(scratch, "site"))
        if done.returncode:
            raise ProblemError(done.stdout + done.stderr)
        shutil.make_archive(str(folder / "docs"), "zip", Path(scratch, "site"))


def archive() -> Path:
    """Return the site as a ZIP file for hosts, built once for each content; its folder is named after the digest."""
    return build_once(ARCHIVES, digest(), pack) / "docs.zip"


def main() -> None:
    """Build the site into build/docs or the folder given by --into; with --archive, print the path of the ZIP file."""
    parser = argparse.ArgumentParser(description="Build the docs site.")
    parser.add_argument("--into", type=Path, default=SITE, help="folder of the site (default: build/docs)")
    parser.add_argument("--archive", action="store_true", help="build a ZIP file for hosts instead, and print its path")
    arguments = parser.parse_args()
    if arguments.archive:
        print(archive())
        return
    site = arguments.into.resolve()
    done = build(ROOT, BUILD / "docs-pages", site)
    if done.returncode:
        raise ProblemError(done.stdout + done.stderr)
    print(f"Docs: {site}/index.html")


if __name__ == "__main__":
    try:
        main()
    except ProblemError as error:
        end(error)
