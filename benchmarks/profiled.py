"""Run a command, and become its profiler at a sign: the parent of a process may look into it without being root.

    python benchmarks/profiled.py COMMAND...

Prints the process id of the command, whose output follows. The first line on stdin is the arguments of py-spy as JSON;
without a line the command goes on, unprofiled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PY_SPY = Path(sys.executable).with_name("py-spy")


def main() -> None:
    """Start the command, wait for the sign, and go on as py-spy."""
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    print(command.pid, flush=True)
    line = sys.stdin.readline()
    if line:
        os.execv(PY_SPY, [str(PY_SPY), *json.loads(line), "--pid", str(command.pid)])


if __name__ == "__main__":
    main()
