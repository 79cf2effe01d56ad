"""Releases that fail: MLflow's lock with one more package, which spoils what the others install."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

HEAD = "@head@"
HALF_WAY = f'''"""A migration that destroys data, commits that, and fails."""

from alembic import op

revision, down_revision, branch_labels, depends_on = "5ab07a6e0001", "{HEAD}", None, None


def upgrade():
    with op.get_context().autocommit_block():
        op.execute("DELETE FROM params")
        op.execute("ALTER TABLE runs RENAME COLUMN name TO name_of_run")
    op.execute("SELECT 1 / 0")


def downgrade():
    pass
'''
ANSWERS_500 = '''"""Makes MLflow answer 500 to everything below /api; /health stays well."""

import flask

dispatch = flask.Flask.full_dispatch_request


def fail(self):
    broken = flask.request.path.startswith("/api/")
    return flask.Response("sabotaged", 500) if broken else dispatch(self)


flask.Flask.full_dispatch_request = fail
'''


def wheel(folder: Path, files: dict[str, str]) -> Path:
    """Make a wheel with these files."""
    info = "sabotage-1.0.dist-info"
    files = {
        **files,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: sabotage\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "sabotage-1.0-py3-none-any.whl"
    with zipfile.ZipFile(place, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]))
    return place


def lock(folder: Path, good: Path, place: str, files: dict[str, str]) -> Path:
    """Write a lock with the good one's packages and a wheel that lies at `place` on the host; return its path."""
    digest = hashlib.sha256(wheel(folder, files).read_bytes()).hexdigest()
    path = folder / "requirements.txt"
    path.write_text(f"{good.read_text()}sabotage @ file://{place} --hash=sha256:{digest}\n")
    return path
