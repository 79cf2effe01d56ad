"""Run ansible-playbook in a process that has loaded Ansible already, for tests that run many small plays.

Each play runs Ansible's own program in a fork of a process (`multiprocessing`'s fork server) that loads Ansible and
packs each module only once. ansible.cfg and the environment are read when Ansible is loaded, so they stay as they were
at the first play.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import tempfile
import threading
from pathlib import Path
from unittest.mock import patch

from scripts.common import ROOT

CONTEXT = multiprocessing.get_context("forkserver")
# The processes are started from pytest, and each would import it again.
CONTEXT.set_forkserver_preload(["ansible.cli.playbook", "pytest"])
STARTS = threading.Lock()


def _play(argv: list[str], outputs: tuple[Path, Path], status: Path) -> None:
    """Run ansible-playbook in this process, with its output, errors and exit code in these files."""
    from ansible.cli.playbook import PlaybookCLI

    os.chdir(ROOT)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    try:
        PlaybookCLI.cli_executor(argv)
    except SystemExit as ended:
        status.write_text(str(ended.code or 0))


def ansible_playbook(*arguments: str | int | Path) -> subprocess.CompletedProcess[str]:
    """Run playbooks in the repository's root; the caller decides what a failure means."""
    argv = ["ansible-playbook", *map(str, arguments)]
    with tempfile.TemporaryDirectory(prefix="metalworks-play-") as folder:
        outputs = Path(folder, "stdout"), Path(folder, "stderr")
        status = Path(folder, "status")
        child = CONTEXT.Process(target=_play, args=(argv, outputs, status))
        # For the fork server alone: later programs of this process may have to run without this repository's settings.
        with STARTS, patch.dict(os.environ, ANSIBLE_CONFIG=str(ROOT / "ansible.cfg")):
            child.start()
        child.join()
        # multiprocessing's own exit code is 255 if a thread that starts a process meanwhile has looked for ended ones.
        code = int(status.read_text()) if status.exists() else child.exitcode or 1
        printed, complained = (path.read_text(errors="replace") if path.exists() else "" for path in outputs)
    return subprocess.CompletedProcess(argv, code, printed, complained)
