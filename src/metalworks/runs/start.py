"""Parse the command that started a run, and repeat it in another clone."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from metalworks.errors import CommandError

INTERACTIVE = {"ipykernel_launcher", "ipykernel", "colab_kernel_launcher", "IPython", "ipython", "ipython3", "notebook"}
INTERACTIVE |= {"jupyter", "jupyter-lab", "jupyter-notebook", "jupyterlab", "pdb", "idlelib"}
INTERACTIVE |= {"jupyter_client", "jupyter_server", "bpython", "ptpython", "debugpy"}
OF_PREFECT = "prefect.engine"
"""Asks the Prefect server what to run; to reproduce a flow run, call its function instead."""


@dataclass(frozen=True)
class Start:
    """A command without its interpreter."""

    options: list[str] = field(default_factory=list)
    """Options of the interpreter."""
    module: str = ""
    script: str = ""
    """Path from the project's folder in the clone, where the command starts."""
    program: str = ""
    """Name of a console script in the environment."""
    arguments: list[str] = field(default_factory=list)

    @property
    def shown(self) -> list[str]:
        """Return the command as you would type it."""
        what = ["-m", self.module] if self.module else [self.script or self.program]
        return ["python", *self.options, *what, *self.arguments]

    def line(self, environment: Path) -> list[str]:
        """Return the command line in an environment. Raises CommandError if the program is missing there."""
        python = [str(environment / "bin/python"), *self.options]
        if self.module:
            return [*python, "-m", self.module, *self.arguments]
        if self.script:
            return [*python, self.script, *self.arguments]
        program = environment / "bin" / self.program
        if not program.exists():
            raise CommandError(f"the environment has no program {self.program}: no recorded package provides it.")
        return [*python, str(program), *self.arguments]


class NotAgain(Exception):
    """The command cannot be repeated; the message says why."""


def parse(line: list[str], project: Path, clone: Path) -> Start:
    """Return how to start the recorded command in a clone. Raises NotAgain."""
    first, *rest = line
    if not re.fullmatch(r"(python|pypy)[0-9.]*", Path(first).name):
        return _file(first, first, [], rest, project, clone)
    options: list[str] = []
    while rest:
        part = rest.pop(0)
        if part == "-" or not part.startswith("-"):
            break
        letter, value = _letters(part)
        if letter == "c":
            raise NotAgain("its code was an argument (`python -c`): put it into a file of the repository")
        if letter == "m":
            module = value or (rest.pop(0) if rest else "")
            if module.split(".")[0] in INTERACTIVE:
                raise NotAgain(
                    f"it was an interactive session ({module}): put the code into a script or module of the repository"
                )
            if part[1:-1] and not value:
                options.append(part[:-1])  # as in -um
            return Start(options, module=module, arguments=rest)
        options.append(part)
        if (letter in ("W", "X") and not value) or part == "--check-hash-based-pycs":
            options.append(rest.pop(0) if rest else "")
    else:
        raise NotAgain("it was an interactive session (python): put the code into a script or module of the repository")
    if part == "-":
        raise NotAgain("its code came from standard input: put it into a file of the repository")
    return _file(part, first, options, rest, project, clone)


def _letters(option: str) -> tuple[str, str]:
    """Return the letter of a Python option that takes a value, and the attached value, if any."""
    if not option.startswith("--"):
        for position, letter in enumerate(option[1:], 1):
            if letter in "cmWX":
                return letter, option[position + 1 :]
    return "", ""


def _file(name: str, interpreter: str, options: list[str], arguments: list[str], project: Path, clone: Path) -> Start:
    """Return how to start a script of the repository, or a program that a package provides."""
    path = Path(name)
    if path.name in INTERACTIVE:
        raise NotAgain(f"it was an interactive session ({path.name}): put the code into a script of the repository")
    program = Start(options, program=path.name, arguments=arguments)
    if path.parent == Path(interpreter).parent and path.parent.name == "bin":
        return program
    script = inside(path, project, clone)
    if script is not None and script.is_file():
        return Start(options, script=os.path.relpath(script, project), arguments=arguments)
    if path.parent.name == "bin" or name == interpreter:
        return program
    if not clone.exists():  # the missing clone is reported already
        return Start(options, script=name, arguments=arguments)
    raise NotAgain(f"{name} is not in the repository: commit it")


def inside(path: Path, project: Path, clone: Path) -> Path | None:
    """Return the path in this clone that corresponds to one in another clone, by its last parts, or None."""
    relative = path.relative_to("/") if path.is_absolute() else path
    starts = range(len(relative.parts)) if path.is_absolute() else range(1)
    for start in starts:
        for folder in (project, clone):
            found = folder.joinpath(*relative.parts[start:])
            if found.exists() and found.resolve().is_relative_to(clone.resolve()):
                return found
    return None
