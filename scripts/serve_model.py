"""Serve a folder that `mlflow.….save_model` wrote, on this machine: for tests and measurements, without a platform.

The model's environment is this interpreter's, unless --python names another. Everything else is as on a host.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from metalworks.inference import supervisor


def settings_for(folder: Path, model: Path, port: int, python: str, service: str = "model") -> dict[str, str]:
    """Return the environment variables of a service that serves `model`, with its files in `folder`."""
    version = folder / "versions" / "1"
    version.mkdir(parents=True, exist_ok=True)
    link = version / "model"
    if not link.exists():
        link.symlink_to(model.resolve())
    card = {"name": service, "version": "1", "alias": "champion", "source": str(model), "created": 0}
    (version / "model.json").write_text(json.dumps(card))
    wanted = {"version": "1", "path": str(version), "python": python, "environment": ""}
    (folder / "wanted.json").write_text(json.dumps({"champion": wanted, "shadow": None, "canary": None}))
    names = {"SERVICE": service, "WANTED": folder / "wanted.json", "PORT": port}
    names |= {"RUNTIME": folder / "run", "STATE": folder / "state"}
    return {f"METALWORKS_INFERENCE_{name}": str(value) for name, value in names.items()}


def main() -> int:
    """Serve until told to end; settings of the environment (METALWORKS_INFERENCE_…) count as well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder with the file MLmodel")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=1, help="HTTP processes (default: %(default)s)")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the model's environment")
    arguments = parser.parse_args()
    if not (arguments.model / "MLmodel").is_file():
        parser.error(f"{arguments.model} has no file MLmodel: it is no MLflow model")
    with tempfile.TemporaryDirectory() as folder:
        given = settings_for(Path(folder), arguments.model, arguments.port, arguments.python)
        given["METALWORKS_INFERENCE_WORKERS"] = str(arguments.workers)
        os.environ.update({name: value for name, value in given.items() if name not in os.environ})
        return supervisor.main()


if __name__ == "__main__":
    sys.exit(main())
