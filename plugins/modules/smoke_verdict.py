#!/usr/bin/python
# Copyright Metalworks. Apache-2.0.
"""Document the action plugin of the same name, which runs on the controller alone."""

DOCUMENTATION = r"""
module: smoke_verdict
short_description: Collect the checks of all hosts, write the verdict, and fail if a check failed
description:
  - Reads what M(metalworks.platform.smoke_host) returned on each host of the play.
  - Runs on the controller. Run it once per play.
options:
  path: {type: path, required: true, description: File to write the verdict to as JSON.}
  answer: {type: str, default: __smoke, description: Variable with the result of each host.}
  server: {type: str, default: '', description: Host that removed for good what clients can only hide.}
author: Metalworks (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Write the verdict
  run_once: true
  metalworks.platform.smoke_verdict:
    path: build/smoke.json
    server: services-1
"""

RETURN = r"""
msg: {type: str, returned: always, description: 'How many checks ran, and every one that failed.'}
"""
