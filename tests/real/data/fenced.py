"""A unit that must never run twice: says in one shared file that it runs, with its fence number.

usage: fenced.py FILE [stubborn]     (stubborn: it ignores SIGTERM)
"""

import os
import signal
import sys
import time

if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
who = " ".join(os.environ[name] for name in ("ARGOSY_UNIT", "ARGOSY_FENCE", "ARGOSY_MACHINE"))
while True:
    os.write(file, f"{who} {time.monotonic_ns()}\n".encode())
    time.sleep(0.02)
