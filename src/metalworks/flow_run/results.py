"""The block that Prefect stores flows' results and caches in: the bucket, where every host finds them.

Prefect's own default is a folder of each host. A flow run uses the block, which metalworks.flow_run.block makes on the
server, if its project has `s3fs`: with that Prefect reads and writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

TYPE, NAME = "remote-file-system", "flow-results"
BLOCK = f"{TYPE}/{NAME}"
URL = "METALWORKS_FLOW_RESULTS"
"""Where the results are: s3://bucket/prefix. Set for the service that makes the block, and for workers."""
SETTINGS = ("PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK", "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK")
LIBRARY = "s3fs"


def storage(variables: Mapping[str, str], packages: Iterable[str]) -> dict[str, str]:
    """Return the variables by which a flow run of these packages stores its results in the bucket."""
    if not variables.get(URL) or LIBRARY not in packages or any(variables.get(name) for name in SETTINGS):
        return {}
    return {SETTINGS[0]: BLOCK}
