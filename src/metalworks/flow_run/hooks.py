"""Run a flow's hooks for a state that its own process cannot report any more.

Runs with the Python of the flow's environment, in the folder of its code, given through standard input, and so uses
nothing but the standard library and the Prefect of that environment: ``python - cancellation|crashed [REASON]``.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any
from uuid import UUID


def hooks_of(flow: Any, kind: str) -> list[Any]:
    """Return the flow's hooks of a kind."""
    return list((flow.on_cancellation_hooks if kind == "cancellation" else flow.on_crashed_hooks) or [])


def main() -> None:
    """Run one hook after the other; what goes wrong in one is in the run's log and does not keep the next."""
    from prefect.flow_engine import load_flow, load_flow_run
    from prefect.logging.loggers import flow_run_logger
    from prefect.states import Cancelling, Crashed

    kind, reason = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    run = load_flow_run(flow_run_id=UUID(os.environ["PREFECT__FLOW_RUN_ID"]))
    log = flow_run_logger(flow_run=run)
    try:
        flow = load_flow(run)
    except Exception:
        log.warning("The flow could not be loaded to run its on_%s hooks.", kind, exc_info=True)
        return
    if kind == "cancellation":
        state: Any = Cancelling(message="Flow run was cancelled.")
    else:
        state = Crashed(message=reason or "Flow run process was killed.")
    for hook in hooks_of(flow, kind):
        name = getattr(hook, "__name__", repr(hook))
        log.info("Running hook %r in response to entering state %r", name, state.name)
        try:
            result = hook(flow, run, state)
            if asyncio.iscoroutine(result):
                asyncio.run(result)
        except Exception:
            log.error("An error was encountered while running hook %r", name, exc_info=True)
        else:
            log.info("Hook %r finished running successfully", name)


if __name__ == "__main__":
    main()
