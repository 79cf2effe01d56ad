"""The docs site: every page is in the menu, links are valid, and hosts get it whole and once."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.common import ProblemError
from scripts.docs import site as docs_site
from tests.unit.repository import ROOT, load

module = load("plugins/modules/docs_site.py")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a copy of the site's sources, for tests that break them."""
    folder = tmp_path / "repository"
    docs_site.stage(ROOT, folder)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the site, built once."""
    folder = tmp_path_factory.mktemp("docs")
    assert docs_site.build(ROOT, folder / "pages", folder / "site").returncode == 0
    return folder / "site"


def digests(site: Path) -> dict[str, str]:
    files = [path for path in site.rglob("*") if path.is_file()]
    return {str(path.relative_to(site)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def complaints(repository: Path) -> str:
    """Return the output of a build that must fail."""
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


def test_pages_load_nothing_from_another_server(site: Path) -> None:
    loads = re.compile(r"""<(?:script|link|img)\b[^>]*\b(?:src|href)=["']?((?:https?:)?//[^"' >]+)""")
    styles = re.compile(r"""(?:url\(|@import )\s*["']?((?:https?:)?//[^"')]+)""")
    pages = [*site.rglob("*.html")]
    assert len(pages) > 20
    assert [found for page in pages for found in loads.findall(page.read_text())] == []
    styled = [file for kind in ("*.css", "*.svg") for file in site.rglob(kind)]
    assert [found for file in styled for found in styles.findall(file.read_text())] == []


def test_the_scripts_of_the_theme_work_on_every_page(site: Path) -> None:
    """Its table of contents looks headings up by selectors, in which an id that begins with a digit is an error."""
    assert "hljs" not in (site / "js/darkmode.js").read_text()
    pages = {page: page.read_text() for page in site.rglob("*.html")}
    assert [(page, found) for page, text in pages.items() for found in re.findall(r'href="#(\d[^"]*)', text)] == []


def test_search_shows_titles_as_they_are(site: Path) -> None:
    """MkDocs escapes titles in the index, and the search page escapes them again."""
    index = json.loads((site / "search/search_index.json").read_text())
    assert [each["title"] for each in index["docs"] if re.search(r"&\w+;", each["title"])] == []


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


def test_a_page_missing_in_the_menu_fails(repository: Path) -> None:
    (repository / "docs/unlisted.md").write_text("# Unlisted\n")
    assert "docs/unlisted.md" in complaints(repository)


def test_a_missing_page_fails(repository: Path) -> None:
    (repository / "docs/glossary.md").unlink()
    assert "docs/glossary.md" in complaints(repository)


# -- For hosts


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an archive that is built from two files instead of the pages."""

    def build(root: Path, pages: Path, site: Path) -> SimpleNamespace:
        (site / "search").mkdir(parents=True)
        (site / "index.html").write_text("<h1>Docs</h1>")
        (site / "search/search_index.json").write_text("{}")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(docs_site, "ARCHIVES", tmp_path / "archives")
    monkeypatch.setattr(docs_site, "build", build)
    return docs_site.archive()


def test_the_archive_holds_the_site_and_is_built_once(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(archive) as packed:
        files = {name for name in packed.namelist() if not name.endswith("/")}
    assert files == {"index.html", "search/search_index.json"}
    assert [path.name for path in archive.parent.iterdir()] == ["docs.zip"]
    monkeypatch.setattr(docs_site, "build", None)  # it would fail
    assert docs_site.archive() == archive


@pytest.mark.parametrize("changed", ["docs/install.md", "examples/flights/README.md", "roles/base/vars/main.yml"])
def test_a_page_that_changes_makes_another_release(
    repository: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    for path in ("mkdocs.yml", "scripts/docs/site.py"):
        (repository / path).parent.mkdir(parents=True, exist_ok=True)
        (repository / path).write_bytes((ROOT / path).read_bytes())
    monkeypatch.setattr(docs_site, "ROOT", repository)
    monkeypatch.setattr(docs_site, "CONFIG", repository / "mkdocs.yml")
    monkeypatch.setattr(docs_site, "THEME", repository / "scripts/docs/theme")
    monkeypatch.setattr(docs_site, "__file__", str(repository / "scripts/docs/site.py"))
    before = docs_site.digest()
    assert docs_site.digest() == before
    with (repository / changed).open("a") as page:
        page.write("\n")
    assert docs_site.digest() != before


def test_a_site_that_does_not_build_leaves_no_archive(
    archive: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(docs_site, "ARCHIVES", tmp_path / "others")
    failed = SimpleNamespace(returncode=1, stdout="WARNING - a dead link", stderr="")
    monkeypatch.setattr(docs_site, "build", lambda *_: failed)
    with pytest.raises(ProblemError, match="a dead link"):
        docs_site.archive()
    assert [path.name for path in (tmp_path / "others").iterdir()] == [".lock"]


def test_a_controller_without_mkdocs_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(docs_site, "version", version)
    with pytest.raises(ProblemError, match="make environment"):
        docs_site.digest()


def test_a_host_gets_a_release_whole_and_keeps_no_other(archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    assert not module.is_current(folder, "one")
    module.install(folder, "one", str(archive))
    assert module.is_current(folder, "one")
    page = folder / "current/index.html"
    assert (page.read_text(), page.stat().st_mode & 0o777) == ("<h1>Docs</h1>", 0o644)
    (folder / "releases/.two.new/half").mkdir(parents=True)  # of a killed run
    assert not module.is_current(folder, "one")
    module.install(folder, "two", str(archive))
    assert module.is_current(folder, "two")
    assert [path.name for path in (folder / "releases").iterdir()] == ["two"]
    assert sorted(path.name for path in folder.iterdir()) == ["current", "releases"]


def test_a_link_that_was_changed_is_mended_without_the_archive(archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    module.install(folder, "one", str(archive))
    (folder / "current").unlink()
    (folder / "current").symlink_to("/nowhere")
    assert not module.is_current(folder, "one")
    module.install(folder, "one", "")
    assert module.is_current(folder, "one")
