"""Print what a unit costs, as JSON: seconds from start to answer, MB of all its processes, requests per second."""

import http.client
import json
import os
import subprocess
import sys
import time
from pathlib import Path

unit, port, engine = sys.argv[1], int(sys.argv[2]), sys.argv[3]


def answers() -> bool:
    """Tell whether the port answers."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except OSError:
        return False


def megabytes() -> float:
    """Return the memory of the unit's processes and of the engine's for it; shared pages count in part."""
    marks, total = [f" {port} ", f"metalworks-{unit}"], 0
    if engine == "docker":  # which has a process of its own for each container
        query = ["docker", "ps", "--no-trunc", "--quiet", "--filter", f"name=metalworks-{unit}"]
        marks.append(subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip())
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text().replace("\0", " ")
            if any(mark in words for mark in marks) and int(process.name) != os.getpid():
                lines = (process / "smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except OSError:  # it has ended
            continue
    return total / 1024


subprocess.run(["systemctl", "stop", unit], check=True)
began = time.monotonic()
subprocess.run(["systemctl", "start", unit], check=True)
while not answers():
    time.sleep(0.01)
started = time.monotonic() - began
count, began = 500, time.monotonic()
for _ in range(count):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/data")
    connection.getresponse().read()
rate = count / (time.monotonic() - began)
print(json.dumps({"start": round(started, 2), "MB": round(megabytes(), 1), "requests/s": round(rate)}))
