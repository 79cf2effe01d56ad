"""Print the state of a project's DVC outputs: what is on disk, and whether the remote has it.

Runs with a Python that has DVC. Prints a line of JSON after each step, so that the first result is not lost if the
second step takes too long.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    """Inspect the project in the current folder."""
    sys.path.pop(0)  # this file's folder: DVC must not import its modules
    answer, sys.stdout = sys.stdout, sys.stderr  # keep DVC's output apart
    try:
        outputs = _outputs()
        facts = {_path(out): _on_disk(out) for out in outputs}
        print(json.dumps({"outputs": facts}), file=answer, flush=True)
        silent: set[str | None] = set()
        for out in outputs:
            if out.remote not in silent:  # wait only once for a remote that does not respond
                facts[_path(out)]["pushed"] = _pushed(out, facts[_path(out)]["md5"])
            if facts[_path(out)]["md5"] and facts[_path(out)]["pushed"] is None:
                silent.add(out.remote)
        print(json.dumps({"outputs": facts}), file=answer, flush=True)
    except Exception as error:  # any version of DVC may raise anything
        print(json.dumps({"error": f"DVC: {type(error).__name__}: {error}"[:500]}), file=answer, flush=True)
        return 1
    return 0


def _outputs() -> list[Any]:
    """Return the outputs that DVC keeps in its cache."""
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        repo = Repo(".")
    except SCMError:  # the code is not in a Git repository
        repo = Repo(".", config={"core": {"no_scm": True}})
    return [out for out in repo.index.outs if out.use_cache and out.is_in_repo]


def _path(out: Any) -> str:
    return Path(out.fs_path).relative_to(out.repo.root_dir).as_posix()


def _on_disk(out: Any) -> dict[str, Any]:
    """Return the output's state on disk; DVC caches the hashes of unchanged files."""
    recorded = out.hash_info.value if out.hash_info else None
    try:
        md5 = out.get_hash().value
        size = (out.meta if md5 == recorded else out.get_meta()).size
    except (FileNotFoundError, NotADirectoryError):
        md5 = size = None
    clean = None if md5 is None or recorded is None else md5 == recorded
    name = out.remote or out.repo.config["core"].get("remote")
    remote = out.repo.config["remote"].get(name, {}).get("url")
    return {"md5": md5, "size": size, "remote": remote, "clean": clean, "pushed": None, "recorded": recorded}


def _pushed(out: Any, md5: str | None) -> bool | None:
    """Tell whether the remote has an output (of a folder: its file list, which DVC pushes last); None if unknown."""
    if md5 is None:
        return None
    try:
        remote = out.repo.cloud.get_remote_odb(name=out.remote, hash_name=out.hash_name)
        remote.fs.info(remote.oid_to_path(md5))
    except FileNotFoundError as error:
        # With HTTP, this is also raised for a host that does not respond.
        answer = getattr(error.__cause__, "status", None)
        return False if answer == 404 or not remote.fs.protocol.startswith("http") else None
    except Exception:
        return None
    return True


if __name__ == "__main__":
    raise SystemExit(main())
