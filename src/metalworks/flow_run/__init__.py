"""Run a Prefect flow run with its project's code and locked environment.

This is the command of the work pools. A worker starts it in an empty folder with these variables:

- ``METALWORKS_FLOW_CODE``: ``s3://bucket/project/commit.tar.gz``, the project at one commit, with uv.lock and
  pyproject.toml, or requirements.txt, at its root. A deployment sets it; without it the flow runs in the worker's own
  environment.
- ``METALWORKS_FLOW_CODE_SHA256``: digest of that archive, optional. With it, the archive is verified, and fetched
  once per host instead of once per run.
- ``METALWORKS_FLOW_CACHE``: folder on the host for archives and environments.

The code is unpacked into the run's folder. The environment is built once per host and shared by all commits with the
same lock file. It holds everything except the project itself, which is imported from the run's folder.
"""

from metalworks.flow_run.run import main

__all__ = ["main"]
