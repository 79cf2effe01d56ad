"""requirements.txt as people record them, and where uv takes the packages from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metalworks.requirement_files import Index, RequirementsError, misplaced, read, site_indexes


def written(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "requirements.txt").write_text(text)
    return folder / "requirements.txt"


@pytest.mark.parametrize(
    ("lines", "indexes"),
    [
        (["--extra-index-url https://own/simple"], ["https://own/simple"]),
        (["--extra-index-url=https://own/simple # ours"], ["https://own/simple"]),
        (["-i https://own/simple"], ["https://own/simple"]),
        (["--index-url https://a/", "--extra-index-url https://b/"], ["https://b/", "https://a/"]),
        # A stranger may have published the name of a private package on PyPI, so PyPI comes last.
        (["-i https://own/", "--extra-index-url https://pypi.org/simple"], ["https://own/", "https://pypi.org/simple"]),
        # Variables are those of the author's machine; the site has logins of its own.
        (["--extra-index-url https://${USER}:${TOKEN}@own/simple"], ["https://own/simple"]),
        (["--extra-index-url \\", "  https://own/simple"], ["https://own/simple"]),
    ],
)
def test_indexes(lines: list[str], indexes: list[str], tmp_path: Path) -> None:
    found = read(written(tmp_path / "model", "\n".join([*lines, "a==1"])), tmp_path)
    assert found.lines == ["a==1"]
    assert found.sources.variables([])["UV_INDEX"].split() == indexes


def test_the_sites_indexes_are_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_INDEX", raising=False)
    file = tmp_path / "package-indexes.json"
    assert site_indexes(file) == []
    file.write_text(json.dumps([{"url": "https://own/", "packages": ["acme-*"]}, {"url": "https://mirror/"}]))
    found = read(written(tmp_path, "--extra-index-url https://b/\n--extra-index-url https://mirror/\n"), tmp_path)
    assert found.sources.variables(site_indexes(file)) == {
        "UV_INDEX": "https://own/ https://mirror/ https://b/",
    }


def test_other_options(tmp_path: Path) -> None:
    text = "--no-index\n--pre\n-f https://h/links\n--find-links wheels\n--prefer-binary\na\n"
    (tmp_path / "model/wheels").mkdir(parents=True)
    found = read(written(tmp_path / "model", text), tmp_path)
    assert found.lines == ["--prefer-binary", "a"]
    variables = found.sources.variables([])
    assert variables["UV_FIND_LINKS"] == "https://h/links,model/wheels"
    assert (variables["UV_NO_INDEX"], variables["UV_PRERELEASE"]) == ("true", "allow")


@pytest.mark.parametrize(
    "line",
    ["code/a-1.0.whl", "./code/a-1.0.whl", "file:code/a-1.0.whl", "a @ file:code/a-1.0.whl", "a @ code/a-1.0.whl"],
)
def test_a_wheel_beside_the_file(line: str, tmp_path: Path) -> None:
    file = written(tmp_path / "model", f"{line} ; python_version > '3'\nb==1 \\\n --hash=sha256:00\n")
    (tmp_path / "model/code").mkdir()
    (tmp_path / "model/code/a-1.0.whl").touch()
    found = read(file, tmp_path)
    assert found.lines == ["./model/code/a-1.0.whl ; python_version > '3'", "b==1 --hash=sha256:00"]
    assert found.files == [tmp_path / "model/code/a-1.0.whl"]


def test_included_files(tmp_path: Path) -> None:
    file = written(tmp_path, "-r more/b.txt\n-c constraints.txt\na\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/b.txt").write_text("--extra-index-url https://own/\nb\n")
    (tmp_path / "constraints.txt").write_text("-r more/b.txt\na<2\n")
    found = read(file, tmp_path)
    assert (found.lines, found.constraints) == (["b", "a"], ["b", "a<2"])


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("-r ../secret", "includes secret, which is outside of its folder"),
        ("-c {tmp}/secret", "includes secret, which is outside of its folder"),
        ("-r gone.txt", r"includes gone\.txt, which is missing"),
        ("-r requirements.txt", "includes itself"),
    ],
)
def test_files_of_the_host_are_not_read(line: str, error: str, tmp_path: Path) -> None:
    """Otherwise the error in the registry would quote them, such as the file with the indexes' passwords."""
    (tmp_path / "secret").write_text("machine own login ci password s3cret\n")
    file = written(tmp_path / "model", line.format(tmp=tmp_path))
    with pytest.raises(RequirementsError, match=error) as refused:
        read(file, tmp_path)
    assert "s3cret" not in str(refused.value)


def test_a_package_of_an_index_comes_from_it_alone() -> None:
    lock = (
        "acme-scale==99.0 \\\n    --hash=sha256:00\n    # from https://pypi.org/simple\n"
        "acme-base==1.0 \\\n    --hash=sha256:00\n    # from https://own/simple/\n"
        "six==1.0\n    # from https://pypi.org/simple\n./model/code/x.whl \\\n    --hash=sha256:00\n"
    )
    site = [Index("https://ci:pw@own/simple", ("Acme_*",))]
    assert misplaced(lock, site) == [
        "acme-scale 99.0 would come from https://pypi.org/simple, but the site takes acme-scale from "
        "https://own/simple alone"
    ]
    assert misplaced(lock, [Index("https://own/simple")]) == []
