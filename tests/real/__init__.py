"""Tests of whole clusters: real host processes, real units, real faults."""
