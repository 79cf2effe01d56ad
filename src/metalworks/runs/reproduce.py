"""`metalworks reproduce`: repeat a run from its code, data and environment, and compare the scores."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from metalworks.errors import CommandError
from metalworks.runs import code, environment, record, scores
from metalworks.runs.data import DataCheckout
from metalworks.runs.find import HELP, connect, experiments, find, search
from metalworks.runs.record import Recorded
from metalworks.runs.scores import match
from metalworks.runs.start import OF_PREFECT, NotAgain, Start, parse

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

VARIABLE = "METALWORKS_REPRODUCES"
"""The MLflow plugin turns its value into the tag metalworks.reproduces, by which the new runs are found."""
MASKED = "***"
"""The plugin's replacement for a secret."""
NOT_INHERITED = {"PYTHONHOME", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "METALWORKS_FLOW_CODE"}
NOT_INHERITED |= {"METALWORKS_FLOW_CODE_SHA256"}
"""Variables that describe another run or other code."""
STARTED = "started"
"""File in the working folder, written when the command starts: from then on, the folder is kept after an error."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `metalworks reproduce`."""
    parser.add_argument("run", metavar="RUN", help=HELP)
    parser.add_argument("--experiment", help="look for a name only in this experiment")
    parser.add_argument("--directory", type=Path, help="folder to work in, and keep (default: temporary)")
    parser.add_argument(
        "--environment",
        choices=["recorded", "current"],
        default="recorded",
        help="build the recorded environment, or use the active one (default: %(default)s)",
    )
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        default=0.0,
        metavar="REL",
        help="relative difference up to which scores are equal",
    )
    parser.add_argument(
        "--score", action="append", metavar="NAME", help="compare only this score; repeat for more (default: all)"
    )


def _tolerance(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError("must be a relative difference from 0 to 1, such as 1e-6")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Repeat the run; return 0 if its scores are equal, 1 if not."""
    from mlflow.exceptions import MlflowException

    inherited = dict(os.environ)
    client = connect()
    try:
        old = record.read(client, find(client, arguments.run, arguments.experiment))
        folder = _folder(arguments.directory, old)
        try:
            equal = Reproduction(client, old, folder, arguments, inherited).run()
        except BaseException as error:
            if not (folder / STARTED).exists():
                shutil.rmtree(folder)
            elif isinstance(error, CommandError):
                raise CommandError(f"{error}\nCode and data are kept in {folder}.") from error
            raise
    except MlflowException as error:
        raise CommandError(f"MLflow: {error.message}") from error
    if equal and arguments.directory is None:
        shutil.rmtree(folder)
    else:
        _tell(f"Code, data and command are in {folder}.")
    return 0 if equal else 1


def _tell(text: str) -> None:
    print(text, flush=True)


def _folder(wanted: Path | None, old: Recorded) -> Path:
    """Return an empty folder to work in."""
    if wanted is not None:
        if wanted.exists() and (not wanted.is_dir() or any(wanted.iterdir())):
            raise CommandError(f"{wanted} is not an empty folder: choose another one.")
        wanted.mkdir(parents=True, exist_ok=True)
        return wanted.resolve()
    above = environment.cache_folder() / "reproduce"
    above.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{old.id[:8]}-", dir=above))


class Reproduction:
    """The reproduction of a run in a separate folder."""

    def __init__(
        self,
        client: MlflowClient,
        old: Recorded,
        folder: Path,
        arguments: argparse.Namespace,
        inherited: dict[str, str],
    ) -> None:
        """Take the run, the folder and the arguments; `inherited` are the variables that the command gets."""
        self.client, self.old, self.folder, self.inherited = client, old, folder, inherited
        self.clone = folder / "code"
        self.project = self.clone / old.tags.get(record.FOLDER, "")
        self.built = arguments.environment == "recorded"
        self.keep = arguments.directory is not None
        self.scores: list[str] = arguments.score or sorted(old.metrics)
        self.tolerance: float = arguments.tolerance
        self.data = DataCheckout(old, self.clone, self.project)
        self.missing: list[str] = []

    def run(self) -> bool:
        """Check, repeat the run, and tell whether its scores are equal."""
        _tell(f"Run {self.old.title} in experiment {self.old.experiment} ({self.old.id})")
        self._check_scores()
        cloned = self._check_code()
        self._check_data(cloned)
        start = self._check_start()
        python, packages = self._check_environment()
        if self.missing:
            raise CommandError("\n  - ".join([f"cannot reproduce run {self.old.title}:", *self.missing]))
        if self.data.outputs:
            _tell(f"Pulling data: {', '.join(self.data.wanted)}.")
            self.data.pull()
        place = self._environment(python, packages)
        variables = self._variables(place, packages)
        line = start.line(place) if start else self._flow(place)
        before = {run.info.run_id for run in self._made()}
        (self.folder / STARTED).touch()
        _tell(f"Starting: {' '.join(start.shown if start else [self.old.tags[record.ENTRYPOINT]])}")
        for part in start.arguments if start else []:
            if part.startswith("/"):
                _tell(f"The argument {part} is an absolute path: it is used as it is on this machine.")
        done = subprocess.run(line, cwd=self.project, env=variables, stdin=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise CommandError(f"the command exited with {done.returncode}: see its output above.")
        made = [run for run in self._made() if run.info.run_id not in before]
        new = record.read(self.client, match(self.old, made))
        return scores.show(self.old, new, self.scores, self.tolerance)

    def _check_scores(self) -> None:
        status = self.old.run.info.status
        if status != "FINISHED":
            self.missing.append(f"scores: the run did not finish; its state is {status}")
        if not self.old.metrics:
            self.missing.append("scores: the run has none, so there is nothing to compare")
        elif unknown := sorted(set(self.scores) - set(self.old.run.data.metrics)):
            self.missing.append(
                f"scores: the run has no {', '.join(unknown)}, only {', '.join(sorted(self.old.metrics))}"
            )

    def _check_code(self) -> bool:
        """Clone the code; tell whether that succeeded."""
        lacking, tags = code.check(self.old), self.old.tags
        self.missing += lacking
        if not code.places(self.old):
            return False
        _tell(f"Fetching commit {tags[record.COMMIT][:10]} of {tags[record.REMOTE]}.")
        problem = code.fetch(tags[record.REMOTE], tags[record.COMMIT], self.clone, keep=self.keep)
        if problem is None and not self.project.is_dir():
            problem = f"code: the commit has no folder {tags[record.FOLDER]}"
        if problem is not None:
            self.missing.append(problem)
            shutil.rmtree(self.clone, ignore_errors=True)
        return problem is None

    def _check_data(self, cloned: bool) -> None:
        if cloned:
            self.missing += self.data.prepare()
            return
        for path, data in self.data.wanted.items():
            if data.pushed is False:
                self.missing.append(f"data: {path} ({data.md5}) was not pushed when the run started")

    def _check_start(self) -> Start | None:
        """Return how to start the command; None if it is a flow run, or cannot be started."""
        tags = self.old.tags
        if tags.get(record.FLOW_RUN) and tags.get(record.ENTRYPOINT):
            text = tags.get(record.FLOW_PARAMETERS, "")
            if self.old.flow_parameters is None:
                self.missing.append("command: the flow run's parameters are not recorded, or not readable")
            elif MASKED in text:
                self.missing.append(f"command: a secret among the flow run's parameters was masked: {text}")
            file, colon, _ = tags[record.ENTRYPOINT].rpartition(":")
            if self.clone.exists() and colon and file.endswith(".py") and not (self.project / file).is_file():
                self.missing.append(f"command: the commit does not contain the flow's file {file}")
            return None
        line = self.old.command
        if line is None:
            self.missing.append("command: it is not recorded, or not readable")
            return None
        if any(MASKED in part for part in line):
            self.missing.append(f"command: a secret in it was masked: {' '.join(line)}: pass it by a variable")
        try:
            start = parse(line, self.project, self.clone)
        except NotAgain as reason:
            self.missing.append(f"command: {reason}")
            return None
        if start.module == OF_PREFECT:
            self.missing.append("command: it is a flow run, but its entrypoint is not recorded")
        return start

    def _check_environment(self) -> tuple[Path | None, environment.Packages]:
        """Return the Python for the environment, or None to use the active one, and the packages to install."""
        packages = environment.Packages()
        if self.clone.exists() and self.old.requirements is not None:
            packages = environment.sort_out(self.old.requirements, self.project, self.clone)
        if not self.built:
            return None, packages
        python, lacking = environment.check(self.old)
        self.missing += [*lacking, *packages.missing]
        return python, packages

    def _environment(self, python: Path | None, packages: environment.Packages) -> Path:
        if python is not None:
            here, then = environment.version(python).split()[0], self.old.tags.get(record.PYTHON)
            if here != then:
                _tell(f"Using Python {here}, because this machine does not have {then}.")
            folders = (self.project, self.clone)
            settings, sources = environment.indexes(*folders), environment.sources(*folders)
            return environment.build(python, packages.lines, _tell, settings, sources)
        place = environment.current()
        _tell(f"Using the environment {place} as it is.")
        for text in environment.differences(place, self.old):
            _tell(f"  {text}")
        return place

    def _variables(self, place: Path, packages: environment.Packages) -> dict[str, str]:
        """Return the command's variables: the caller's, changed to use the reproduced code and environment."""
        kept = {
            name: value
            for name, value in self.inherited.items()
            if name not in NOT_INHERITED and not name.startswith("METALWORKS_GIT_")
        }
        return {
            **kept,
            "VIRTUAL_ENV": str(place),
            "PATH": f"{place}/bin:{kept.get('PATH', os.defpath)}",
            "PYTHONPATH": environment.python_path(self.project, packages.folders, kept.get("PYTHONPATH", "")),
            "MLFLOW_EXPERIMENT_ID": str(self.old.run.info.experiment_id),  # unless the code sets another
            VARIABLE: self.old.id,
        }

    def _flow(self, place: Path) -> list[str]:
        """Return the command line that calls the flow. Its parameters are in a file: they may be long, or private.

        The program gets a separate folder, because Python puts that folder first on the import path.
        """
        folder = self.folder / "flow"
        folder.mkdir()
        program = shutil.copy(Path(__file__).with_name("flow.py"), folder)
        parameters = folder / "parameters.json"
        parameters.write_text(json.dumps(self.old.flow_parameters))
        return [f"{place}/bin/python", str(program), self.old.tags[record.ENTRYPOINT], str(parameters)]

    def _made(self) -> list[Run]:
        """Return the runs that reproduce this one, in any experiment, since the code may choose one."""
        condition = f"tags.`{record.REPRODUCES}` = '{self.old.id}'"
        return search(self.client, list(experiments(self.client)), condition)
