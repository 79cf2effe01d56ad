"""The docs site: every page is in its menu, every link leads somewhere, and it needs no other server."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from scripts.docs import site as docs_site
from tests.unit.repository import ROOT


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of everything that the site is made of, for tests that break it."""
    folder = tmp_path / "repository"
    docs_site.stage(ROOT, folder)
    return folder


def digests(site: Path) -> dict[str, str]:
    files = [path for path in site.rglob("*") if path.is_file()]
    return {str(path.relative_to(site)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def complaints(repository: Path) -> str:
    """What the build says of pages that must not pass."""
    done = docs_site.build(repository, repository.with_name("pages"), repository.with_name("site"))
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_site_is_built_without_a_warning_and_the_same_twice(tmp_path: Path) -> None:
    sites = [tmp_path / "first", tmp_path / "second"]
    for site in sites:
        done = docs_site.build(ROOT, tmp_path / "pages", site)
        assert done.returncode == 0, done.stdout + done.stderr
    assert digests(sites[0]) == digests(sites[1])
    assert {"index.html", "docs/install.html", "search/search_index.json", "roles/base/vars/main.yml"} <= {
        *digests(sites[0])
    }


def test_pages_load_nothing_from_another_server(tmp_path: Path) -> None:
    assert docs_site.build(ROOT, tmp_path / "pages", tmp_path / "site").returncode == 0
    loads = re.compile(r"""<(?:script|link|img)\b[^>]*\b(?:src|href)=["']?((?:https?:)?//[^"' >]+)""")
    styles = re.compile(r"""(?:url\(|@import )\s*["']?((?:https?:)?//[^"')]+)""")
    pages = [*(tmp_path / "site").rglob("*.html")]
    assert len(pages) > 20
    assert [found for page in pages for found in loads.findall(page.read_text())] == []
    assert [found for file in (tmp_path / "site").rglob("*.css") for found in styles.findall(file.read_text())] == []


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("[gone](docs/gone.md)", "docs/gone.md"),
        ("[gone](roles/gone/main.yml)", "roles/gone/main.yml"),
        ("[gone](docs/install.md#gone)", "#gone"),
        ("[outside](../outside.md)", "../outside.md"),
        ("[absolute](/docs/install.md)", "/docs/install.md"),
    ],
)
def test_a_dead_link_fails(repository: Path, link: str, said: str) -> None:
    with (repository / "README.md").open("a") as page:
        page.write(f"\n{link}\n")
    assert said in complaints(repository)


def test_a_page_in_no_menu_fails(repository: Path) -> None:
    (repository / "docs/unlisted.md").write_text("# Unlisted\n")
    assert "docs/unlisted.md" in complaints(repository)


def test_a_page_that_is_gone_fails(repository: Path) -> None:
    (repository / "docs/glossary.md").unlink()
    assert "docs/glossary.md" in complaints(repository)
