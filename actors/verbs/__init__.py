"""What operators may ask for, one module per group; importing this registers all verbs."""

from . import actors, cluster, keys, locks, machines, rollouts, secrets, sessions, units

__all__ = ["actors", "cluster", "keys", "locks", "machines", "rollouts", "secrets", "sessions", "units"]
