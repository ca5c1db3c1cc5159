"""The suite catches planted bugs: each with one known seed, and again for a client's eyes alone."""

from __future__ import annotations

#: mutant -> (seed, words of what is found) with all invariants
CAUGHT = {
    "vote_without_sync": (0, "speaks of its vote"),
    "ack_without_sync": (0, "acknowledges"),
    "read_without_quorum": (3, "was answered with revision"),
    "apply_before_commit": (0, "is beyond commit"),
}
