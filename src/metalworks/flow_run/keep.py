"""Supervise a flow's process: forward the worker's signals, run the hooks, end what it leaves behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from metalworks.flow_run.api import Api, ApiError
from metalworks.flow_run.end import end
from metalworks.flow_run.group import MARK, RunGroup

STOP_SECONDS = 15.0
"""A flow that was told to stop is killed after this time. The worker kills its keeper 30 s after the signal."""
HOOK_SECONDS = 27.0
"""All hooks of a run have this time, counted from the signal or, without one, from the end of the flow's process."""
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
Tell = Callable[[str], None]


class Keeper:
    """Supervises the process of one flow run."""

    def __init__(self, run: str, group: RunGroup, line: Sequence[str], variables: Mapping[str, str]) -> None:
        """Store the command line and the environment of the flow's process; start nothing yet."""
        self.run, self.group, self.line = run, group, list(line)
        self.variables = {**variables, MARK: group.mark}
        self.stopped_at: float | None = None
        self.told_alone = False
        """The worker sent the signal, to this process only. systemd signals all processes of a worker that it stops."""

    def _start(self, line: Sequence[str], given: int | None = None) -> int:
        """Start a process of the run; `given` becomes its standard input."""
        child = os.fork()
        if child:
            return child
        try:
            os.setsid()
            self.group.enter()
            if given is not None:
                os.dup2(given, 0)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            os.execve(line[0], list(line), self.variables)
        except OSError as error:
            os.write(2, f"{line[0]} cannot be started: {error}\n".encode())
        os._exit(126)

    def _wait(self, child: int, deadline: float | None) -> int | None:
        """Wait for a process; return its exit status, or None if it was killed. Forward the worker's signal once."""
        killed = False
        while True:
            ended = {}
            while True:  # orphans of the run are children of this process, too
                try:
                    process, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if not process:
                    break
                ended[process] = status
            if child in ended:
                return None if killed else os.waitstatus_to_exitcode(ended[child])
            if deadline is not None and time.monotonic() >= deadline and not killed:
                os.kill(child, signal.SIGKILL)
                killed = True
            seconds = 1.0 if deadline is None else max(0.0, min(1.0, deadline - time.monotonic())) or 0.1
            told = signal.sigtimedwait(SIGNALS, seconds)
            if told is None or told.si_signo == signal.SIGCHLD or self.stopped_at is not None:
                continue
            self.stopped_at = time.monotonic()
            deadline = self.stopped_at + STOP_SECONDS
            if told.si_pid > 1:
                self.told_alone = True
                os.kill(child, signal.SIGTERM)

    def keep(self, tell: Tell) -> int:
        """Run the flow's process to its end. Return the exit status for the worker, 0 if the end is reported."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        status = self._wait(self._start(self.line), None)
        reason = self._reason(status)
        left = self.group.end()
        if left:
            tell(f"Ended {left} process{'es' if left > 1 else ''} that the flow left behind.")
        reported = (status != 0 or self.told_alone) and self._unreported(tell, reason)
        self.group.end()
        self.group.remove()
        if reported:
            return 0
        if status is None:
            return 128 + signal.SIGKILL
        return 128 - status if status < 0 else status

    def _reason(self, status: int | None) -> str:
        """Return why the flow's process ended, for a process that could not report it."""
        if self.group.out_of_memory():
            return "The run needed more memory than its limit (job variable memory_limit), and the kernel ended it."
        if status is None:
            return f"The flow did not stop within {STOP_SECONDS:.0f} s and was killed."
        if status < 0:
            return f"The flow's process was ended by {signal.Signals(-status).name}."
        return f"The flow's process ended with exit status {status}."

    def _unreported(self, tell: Tell, reason: str) -> bool:
        """Report a crash and run the hooks that the flow's process could not report or run itself.

        Return whether the end is reported. The worker reports the end of a cancelled run, after this process.
        """
        if "METALWORKS_FLOW_CODE" not in self.variables:
            return False  # a flow of the worker's own environment, whose hooks the worker can run
        if self.stopped_at is not None and not self.told_alone:
            return False  # systemd stops the worker: its runs are put back on schedule
        began = self.stopped_at if self.stopped_at is not None else time.monotonic()
        try:
            api = Api(self.variables)
            state = (api.ask("GET", f"/flow_runs/{self.run}")["state"] or {}).get("type")
            if state == "CANCELLING":
                self._hooks("cancellation", reason, began, tell)
            elif state in ("PENDING", "RUNNING"):  # a flow that has reported its end has run its hooks
                reported = end(api, self.run, reason, again=False) == "Crashed"
                self._hooks("crashed", reason, began, tell)
                return reported
        except ApiError as error:
            tell(f"Could not read or report the run's state, so its hooks may not have run: {error}")
        return False

    def _hooks(self, kind: str, reason: str, began: float, tell: Tell) -> None:
        tell(f"If the flow has on_{kind} hooks, they run now.")
        with Path(__file__).with_name("hooks.py").open("rb") as program:
            child = self._start([self.line[0], "-", kind, reason], program.fileno())
            if self._wait(child, began + HOOK_SECONDS) is None:
                tell(f"Stopped the flow's hooks: they have {HOOK_SECONDS:.0f} s together with the end of the flow.")
