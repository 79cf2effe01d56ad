"""Documentation of the options that module_utils/systemd_units.py reads."""

from __future__ import annotations


class ModuleDocFragment:
    """Fragments by name; the first is what modules extend by default."""

    DOCUMENTATION = r"""
options:
  units:
    description: Services to run, all the time or by a schedule.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {type: str, required: true, description: Name of the unit without C(.service).}
      description: {type: str, description: What C(systemctl status) shows. Defaults to the name.}
      user: {type: str, required: true, description: System user of the process. Created if it does not exist.}
      group: {type: str, description: Group of the process and of its environment file. Defaults to the user's name.}
      command: {type: str, required: true, description: Command line. Give the program's absolute path.}
      prestart:
        type: list
        elements: str
        default: []
        description: Commands to run before the process starts, with its user and environment.
      environment:
        type: dict
        default: {}
        description: Environment of the process. Put secrets here; only root and the group can read the file.
      after:
        type: list
        elements: str
        default: [network-online.target]
        description: Units that the service wants, and starts after.
      service:
        type: dict
        default: {}
        description: More settings for the C([Service]) section. A list becomes several lines.
      health_url: {type: str, default: "", description: URL that answers 200 once the service works.}
      health_socket: {type: str, default: "", description: Unix socket to send the health request to.}
      health_timeout: {type: int, default: 120, description: Seconds to wait until the service is healthy.}
      restart_on:
        type: list
        elements: path
        default: []
        description: Files and folders, besides unit and environment, whose changes restart the service.
      schedule:
        type: dict
        description:
          - Makes the unit a task that a timer C(<name>.timer) starts and that runs to its end, in place of a service
            that runs all the time. Nothing starts it now, waits for its health or restarts it, and a change applies
            from the next start on. Allow for a long run in O(units[].service) with C(TimeoutStartSec); systemd sets
            no limit.
          - A schedule that systemd cannot read, or that never comes again, is refused before anything is changed.
        suboptions:
          calendar:
            type: str
            required: true
            description: When to start it, such as C(daily) or C(Mon 04:00), as C(systemd-analyze calendar) reads it.
          random_delay:
            type: str
            default: "0"
            description: Longest time to wait before a start, such as C(1h). Spreads the starts of many hosts.
          persistent:
            type: bool
            default: true
            description: Whether to make up for a start that the host missed while it was off.
          then:
            type: str
            default: ""
            description: Name of a unit, without C(.service), to start after each run, also after one that failed.
  family:
    type: str
    default: ""
    description: Pattern of unit names such as C(demo-*). Services of this collection that match and are not in O(units)
      are removed.
"""
