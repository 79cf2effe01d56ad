"""Prepare a release in build/release: the collection, its section of CHANGELOG.md and SHA256SUMS.

Builds what is committed, not the working tree. Two builds of one commit are the same, byte for byte. Without --tag or
--sign no tag is made; the output says which commands come next.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import shutil
import tarfile
import tempfile
import tomllib
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml

from scripts.common import BUILD, ROOT, ProblemError, capture, end

RESULT = BUILD / "release"
SUMS, CHANGES = "SHA256SUMS", "CHANGES.md"
SECTION = re.compile(
    r"^## \[(?P<version>[^]]+)\] - \d{4}-\d{2}-\d{2}\n(?P<text>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL
)


def git(*arguments: str | Path) -> str:
    """Return what git prints about the repository."""
    return capture(["git", "-C", ROOT, *arguments]).rstrip()


def versions() -> dict[str, str]:
    """Return the version in each file that has one."""
    found = {"pyproject.toml": str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])}
    galaxy = ROOT / "galaxy.yml"
    if not galaxy.exists():
        raise ProblemError("galaxy.yml is missing, so there is no collection to release")
    return found | {"galaxy.yml": str(yaml.safe_load(galaxy.read_text())["version"])}


def changes(version: str) -> str:
    """Return the text of the version's section in CHANGELOG.md; empty without one."""
    sections = {found["version"]: found["text"] for found in SECTION.finditer((ROOT / "CHANGELOG.md").read_text())}
    return sections.get(version, "").strip()


def problems(version: str, tag: str) -> list[str]:
    """Return everything that keeps this commit from being released."""
    found = []
    if len(set(versions().values())) > 1:
        found.append("the versions differ: " + ", ".join(f"{name} has {value}" for name, value in versions().items()))
    if changed := git("status", "--porcelain"):
        found.append(f"there are changes that are not committed:\n{changed}")
    if not changes(version):
        found.append(f"CHANGELOG.md has no section `## [{version}] - YYYY-MM-DD` with text below it")
    if tagged(tag) not in ("", git("rev-parse", "HEAD")):
        found.append(f"the tag {tag} exists and is on another commit: raise the version")
    return found


def tagged(tag: str) -> str:
    """Return the commit that a tag is on; empty if there is no such tag."""
    return git("rev-list", "--max-count=1", tag) if git("tag", "--list", tag) else ""


def build(folder: Path) -> Path:
    """Build the committed collection into `folder` and return the tarball."""
    with tempfile.TemporaryDirectory(prefix="metalworks-release-") as scratch:
        archive, tree, built = (Path(scratch) / name for name in ("tree.tar", "tree", "built"))
        tree.mkdir()
        git("archive", "--output", archive, "HEAD")
        capture(["tar", "--extract", "--file", archive, "--directory", tree])
        capture(["ansible-galaxy", "collection", "build", tree, "--output-path", built])
        (tarball,) = built.iterdir()
        target = folder / tarball.name
        repack(tarball, target, int(git("log", "-1", "--format=%ct")))
    return target


def repack(source: Path, target: Path, moment: int) -> None:
    """Write a collection's tarball again, in a fixed order and with the commit's time.

    ansible-galaxy takes files in the file system's order, and writes the present time into the tarball.
    """
    entries: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
    with tarfile.open(source) as archive:
        for entry in archive:
            content = archive.extractfile(entry) if entry.isfile() else None
            entries[entry.name] = entry, content.read() if content else b""

    def replace(name: str, content: Any) -> bytes:
        text = json.dumps(content, indent=True).encode()
        entries[name] = entries[name][0], text
        return text

    files = json.loads(entries["FILES.json"][1])
    files["files"].sort(key=lambda each: each["name"])
    listed = replace("FILES.json", files)
    manifest = json.loads(entries["MANIFEST.json"][1])
    manifest["file_manifest_file"]["chksum_sha256"] = hashlib.sha256(listed).hexdigest()
    replace("MANIFEST.json", manifest)
    with (
        target.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=moment) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for _, (entry, data) in sorted(entries.items()):
            entry.mtime, entry.size, entry.pax_headers = moment, len(data), {}
            archive.addfile(entry, BytesIO(data))


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS, which `sha256sum --check` reads, about everything in the folder."""
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / SUMS).write_text("".join(lines))


def main() -> None:
    """Check, build, and tag if asked to."""
    parser = argparse.ArgumentParser(prog="release", description=__doc__)
    tagging = parser.add_mutually_exclusive_group()
    tagging.add_argument("--tag", dest="how", action="store_const", const="--annotate", help="make an annotated tag")
    tagging.add_argument("--sign", dest="how", action="store_const", const="--sign", help="make a signed tag")
    how: str | None = parser.parse_args().how
    version = versions()["galaxy.yml"]
    tag, message = f"v{version}", f"Metalworks {version}"
    if found := problems(version, tag):
        raise ProblemError("\n".join([f"{version} cannot be released:", *(f"- {each}" for each in found)]))
    shutil.rmtree(RESULT, ignore_errors=True)
    RESULT.mkdir(parents=True)
    build(RESULT)
    (RESULT / CHANGES).write_text(f"# {message}\n\n{changes(version)}\n")
    write_sums(RESULT)
    print(f"{message}, of commit {git('rev-parse', '--short', 'HEAD')}, is in {RESULT.relative_to(ROOT)}:")
    print((RESULT / SUMS).read_text(), end="")
    if how and not tagged(tag):
        git("tag", how, tag, "--message", message)
    following = [f"git push origin {tag}"]
    if tagged(tag):
        print(f"The tag {tag} is on this commit.")
    else:
        following.insert(0, f"git tag --annotate {tag} --message '{message}'    # or --sign")
    print("Next:", *(f"  {each}" for each in following), sep="\n")


if __name__ == "__main__":
    try:
        main()
    except ProblemError as error:
        end(error)
