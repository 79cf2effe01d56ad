"""Call a flow's function as its flow run did: ENTRYPOINT and a file with its parameters as JSON.

Run by path with the interpreter of the flow's project, so it imports nothing of ours.
"""

import asyncio
import inspect
import json
import sys
from pathlib import Path

from prefect.flows import Flow, load_flow_from_entrypoint


def main() -> None:
    """Call the flow and wait for its end; an exception of the flow ends the program."""
    flow: Flow[..., object] = load_flow_from_entrypoint(sys.argv[1], use_placeholder_flow=False)
    returned = flow(**json.loads(Path(sys.argv[2]).read_text()))
    if inspect.isawaitable(returned):
        asyncio.run(_wait(returned))


async def _wait(returned: object) -> None:
    await returned  # type: ignore[misc]


if __name__ == "__main__":
    main()
