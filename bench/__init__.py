"""Benchmarks side by side with peers, in one run: ``python -m bench``.

Every figure of Argosy stands beside a peer's that was measured in the same minutes, turn by
turn, on the same machine; only such ratios mean anything.  Nothing here asserts a time.
"""
