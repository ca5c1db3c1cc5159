"""Fixtures of the tests that set our ``etcd`` beside Debian's."""

from __future__ import annotations

from .servers import _nothing_is_left, pair

__all__ = ["_nothing_is_left", "pair"]
