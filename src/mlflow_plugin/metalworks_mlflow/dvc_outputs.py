"""A program for a Python that has DVC: prints what a project's outputs are on disk and whether the remote has them.

A line of JSON for each step, so that the first is not lost when the second takes too long.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    """Look at the project in the current folder."""
    sys.path.pop(0)  # this file's folder: its modules are none of DVC's
    answer, sys.stdout = sys.stdout, sys.stderr  # whatever DVC says goes elsewhere
    try:
        outputs = _outputs()
        facts = {_path(out): _on_disk(out) for out in outputs}
        print(json.dumps({"outputs": facts}), file=answer, flush=True)
        silent: set[str | None] = set()
        for out in outputs:
            if out.remote not in silent:  # one that does not answer is waited for once
                facts[_path(out)]["pushed"] = _pushed(out, facts[_path(out)]["md5"])
            if facts[_path(out)]["md5"] and facts[_path(out)]["pushed"] is None:
                silent.add(out.remote)
        print(json.dumps({"outputs": facts}), file=answer, flush=True)
    except Exception as error:  # of whatever version of DVC
        print(json.dumps({"error": f"DVC: {type(error).__name__}: {error}"[:500]}), file=answer, flush=True)
        return 1
    return 0


def _outputs() -> list[Any]:
    """Return the outputs that DVC keeps in its cache."""
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        repo = Repo(".")
    except SCMError:  # an archive of the code, without its repository
        repo = Repo(".", config={"core": {"no_scm": True}})
    return [out for out in repo.index.outs if out.use_cache and out.is_in_repo]


def _path(out: Any) -> str:
    return Path(out.fs_path).relative_to(out.repo.root_dir).as_posix()


def _on_disk(out: Any) -> dict[str, Any]:
    """Return what is there now; DVC remembers the hashes of files that did not change."""
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
    """Tell whether the remote has it: of a folder the list of its files, which DVC sends last. None: not known."""
    if md5 is None:
        return None
    try:
        remote = out.repo.cloud.get_remote_odb(name=out.remote, hash_name=out.hash_name)
        remote.fs.info(remote.oid_to_path(md5))
    except FileNotFoundError as error:
        # Of HTTP this also stands for a host that does not answer.
        answer = getattr(error.__cause__, "status", None)
        return False if answer == 404 or not remote.fs.protocol.startswith("http") else None
    except Exception:
        return None
    return True


if __name__ == "__main__":
    raise SystemExit(main())
