"""The project's steps: python -m flights <step>."""

from __future__ import annotations

import argparse
import json
import os
from importlib import import_module
from pathlib import Path

from flights.errors import FlightsError


def main() -> None:
    """Run one step. Only its module is imported, because importing mlflow and prefect takes seconds."""
    parser = argparse.ArgumentParser(prog="python -m flights", description=__doc__)
    steps = parser.add_subparsers(required=True, metavar="step")

    def step(name: str, function: str, text: str) -> argparse.ArgumentParser:
        command = steps.add_parser(name, help=text, description=text)
        command.set_defaults(function=function)
        return command

    step("prepare", "flights.prepare:prepare", "build features of the months in params.yaml (called by `dvc repro`)")
    step("train", "flights.train:train", "train and record every model in params.yaml")
    step("compare", "flights.compare:compare", "compare this commit's models and register the best one")
    predict = step("predict", "flights.predict:check", "send rows to the model in service, and check its predictions")
    predict.add_argument("--url", required=True, help="URL of the model in service")
    served = step("served", "flights.predict:wait", "wait until the champion is in service")
    served.add_argument("--url", required=True, help="URL of the service")
    served.add_argument("--timeout", type=int, default=600, help="maximum seconds (default: %(default)s)")
    retrain = step("retrain", "flights.retrain:retrain", "retrain with new months, ahead of the schedule")
    retrain.add_argument("--timeout", type=int, default=900, help="maximum seconds (default: %(default)s)")
    retrain.add_argument("--wait", action="store_true", help="wait for a run that the schedule or an event starts")
    history = step("history", "flights.history:history", "print what retraining decided about each version, as JSON")
    history.add_argument("--plot", type=Path, metavar="SVG", help="also write a picture")
    drift = step("drift", "flights.drift:report", "compare the service's requests with the prepared months")
    drift.add_argument("--service", default="delay", help="name of the service (default: %(default)s)")
    drift.add_argument("--days", type=int, default=7, help="how many days back (default: %(default)s)")
    state = step("state", "flights.state:state", "print code, data, models, versions, service and deployment, as JSON")
    state.add_argument("--url", required=True, help="URL of the model in service")

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    arguments = vars(parser.parse_args())
    module, name = arguments.pop("function").split(":")
    try:
        result = getattr(import_module(module), name)(**arguments)
    except FlightsError as error:
        raise SystemExit(str(error)) from error
    if result is not None:
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
