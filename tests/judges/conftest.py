"""Fixtures of the tests that set our ``etcd`` beside Debian's."""

from __future__ import annotations

from .servers import pair

__all__ = ["pair"]
