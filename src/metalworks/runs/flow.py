"""Call a flow's function as its flow run did. Arguments: the entrypoint, and a JSON file with the parameters.

Runs by path with the interpreter of the flow's project, so it must not import the platform's packages.
"""

import asyncio
import inspect
import json
import sys
from pathlib import Path

from prefect.flows import Flow, load_flow_from_entrypoint


def main() -> None:
    """Call the flow and wait for it; an exception of the flow ends the program."""
    flow: Flow[..., object] = load_flow_from_entrypoint(sys.argv[1], use_placeholder_flow=False)
    returned = flow(**json.loads(Path(sys.argv[2]).read_text()))
    if inspect.isawaitable(returned):
        asyncio.run(_wait(returned))


async def _wait(returned: object) -> None:
    await returned  # type: ignore[misc]


if __name__ == "__main__":
    main()
