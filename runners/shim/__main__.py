"""Run by path, as ``python -I -S runners/shim DIRECTORY LEASE_FILE|-`` (DIRECTORY: the unit's own)."""

import os
import sys

# the folder that holds ``runners``, last, instead of this one: its modules are known as runners.shim.*
sys.path[:] = [*sys.path[1:], os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]

from runners.shim.guard import main  # noqa: E402 - it is found only now

if __name__ == "__main__":
    main()
