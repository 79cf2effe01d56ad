"""Download a version's files in a separate process, which frees the memory of MLflow's client when it exits.

Run as `python -m metalworks.model_sync.download MODEL VERSION FOLDER`; errors go to standard error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

# By default, MLflow's client retries for minutes if the server is down, draws progress bars, and sends telemetry.
QUIET = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def main(argv: Sequence[str]) -> int:
    """Download; return 0, or 1 if the files are incomplete."""
    name, version, into = argv
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    uri = os.environ["MLFLOW_TRACKING_URI"]
    try:
        download_artifacts(artifact_uri=f"models:/{name}/{version}", dst_path=into, tracking_uri=uri, registry_uri=uri)
    except (MlflowException, OSError) as error:  # OSError: the connection or the disk
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    if not Path(into, "MLmodel").is_file():
        print("it has no file MLmodel, so it is not an MLflow model: log it with MLflow", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
