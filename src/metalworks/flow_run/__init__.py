"""Run one Prefect flow run in its own project's code and locked environment.

The command of the work pools. A worker starts it in an empty folder with these variables:

- ``METALWORKS_FLOW_CODE``: ``s3://bucket/project/commit.tar.gz``, the project at one commit with uv.lock and
  pyproject.toml, or else requirements.txt, at its root; a deployment sets it. Without it the flow runs in the
  worker's own environment.
- ``METALWORKS_FLOW_CODE_SHA256``: digest of that archive, optional. With it the archive is verified, and fetched
  once per host instead of once per run.
- ``METALWORKS_FLOW_CACHE``: folder on the host for archives and environments.

The code is unpacked into the run's folder. The environment is shared by all commits that lock the same, is built
once per host, and holds everything but the project itself, which is imported from the run's folder.
"""

from metalworks.flow_run.run import main

__all__ = ["main"]
