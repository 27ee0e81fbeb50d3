"""`python -m fuzz`: structured fuzzing of all readers of outside data.

--seconds: duration for each target. --targets: names, all by default. --seed: of the mutations; by default a new one
each time, which is printed. A payload that finds a defect is written into the target's corpus, which the tests run from
then on. Exit status 1 when a payload found a defect. A payload that ends the process is in the file that is printed
first.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import logging
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fuzz import CORPUS
from fuzz.mutation import mutated
from fuzz.targets import TARGETS, Target

# Seconds after which a payload counts as hanging its reader. The stacks are printed, and the run ends.
HANG_S = 60.0
# C++ code below a reader may end the process, and so does a hang; the payload file survives both.
UNDER_WAY = Path(tempfile.gettempdir()) / f"fuzz_payload_{os.getpid()}"


def main() -> int:
    """Fuzz; 1 when a target has a defect."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--targets", nargs="*", choices=sorted(TARGETS), default=sorted(TARGETS))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    for name in os.environ:
        if name.startswith("KLINESYNC_"):
            del os.environ[name]
    print(f"seed {arguments.seed}; the payload under way is in {UNDER_WAY}", flush=True)
    with UNDER_WAY.open("w+b") as file:
        failed = [
            name for name in arguments.targets if not fuzz(TARGETS[name], arguments.seconds, arguments.seed, file)
        ]
    UNDER_WAY.unlink()
    if failed:
        print(f"defects in {', '.join(failed)}; the payloads are in {CORPUS}", file=sys.stderr)
    return bool(failed)


def fuzz(target: Target, seconds: float, seed: int, under_way: BinaryIO) -> bool:
    """Whether no payload found a defect in so many seconds. `under_way` holds each payload while it is read."""
    rng, payloads = random.Random(f"{target.name} {seed}"), target.payloads()
    began_s, runs = time.monotonic(), 0
    for payload in _endless(rng, payloads):
        under_way.seek(0)
        under_way.truncate()
        under_way.write(payload)
        under_way.flush()
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        try:
            target.run(payload)
        except Exception:  # noqa: BLE001  # whatever a reader raises is what is looked for
            traceback.print_exc(limit=-6)
            path = CORPUS / target.name / f"found_{hashlib.sha256(payload).hexdigest()[:12]}"
            path.write_bytes(payload)
            print(f"{target.name}: {path.name} after {runs} payloads", flush=True)
            return False
        finally:
            faulthandler.cancel_dump_traceback_later()
        runs += 1
        if time.monotonic() - began_s > seconds:
            break
    print(f"{target.name}: {runs} payloads", flush=True)
    return True


def _endless(rng: random.Random, payloads: list[bytes]) -> Iterator[bytes]:
    yield from payloads
    while True:
        yield mutated(rng, payloads)


if __name__ == "__main__":
    sys.exit(main())
