"""What operators may ask for, one module per group; importing this registers all verbs."""

from . import (
    actors,
    cluster,
    events,
    keys,
    locks,
    machines,
    plans,
    releases,
    rollouts,
    secrets,
    sessions,
    units,
)

__all__ = ["actors", "cluster", "events", "keys", "locks", "machines", "plans", "releases", "rollouts", "secrets", "sessions", "units"]
