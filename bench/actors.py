"""Actors beside Pykka's own: messages from another thread, starting, and memory."""

from __future__ import annotations

import json
import subprocess
import sys

from .hosts import ROOT
from .lab import Lab, median
from .table import Row

_PEER = "Pykka ThreadingActor"


def _child(kind: str, work: str, count: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.actor_child", kind, work, str(count)], cwd=ROOT, capture_output=True,
        text=True, timeout=180, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(
            done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "the child failed"
        )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _turns(
    lab: Lab, work: str, ours: int, theirs: int
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Fresh processes in turn."""
    first, second = [], []
    for _ in range(lab.effort.actor_runs):
        first.append(_child("argosy", work, ours))
        second.append(_child("pykka", work, theirs))
    return first, second


def tell(lab: Lab) -> list[Row]:
    """To the last message handled."""
    ours, theirs = _turns(lab, "tell", lab.effort.messages, lab.effort.messages)
    a, b = median([run["per_s"] for run in ours]), median([run["per_s"] for run in theirs])
    return [
        Row(
            "actor tell from another thread, to the last handled", f"{a:,.0f}/s", f"{_PEER} {b:,.0f}/s",
            f"{a / b:.1f}x", ">= 10x", a / b >= 10, data={"argosy": ours, "pykka": theirs},
        )
    ]  # fmt: skip


def start(lab: Lab) -> list[Row]:
    """Supervised and named, to the last ``on_start``; resident memory of each."""
    ours, theirs = _turns(lab, "start", lab.effort.actors, lab.effort.threads)
    a, b = median([run["per_s"] for run in ours]), median([run["per_s"] for run in theirs])
    ours_kib = median([run["bytes_each"] for run in ours]) / 1024
    theirs_kib = median([run["bytes_each"] for run in theirs]) / 1024
    data = {"argosy": ours, "pykka": theirs}
    return [
        Row(
            "actor start", f"{a:,.0f}/s", f"{_PEER} {b:,.0f}/s", f"{a / b:.1f}x", ">= 20x", a / b >= 20,
            data=data,
        ),
        Row(
            "actor memory", f"{ours_kib:.1f} KiB each", f"{_PEER} {theirs_kib:.1f} KiB each",
            f"{ours_kib / theirs_kib:.2f}x", "<= 3 KB each", ours_kib * 1024 <= 3000,
        ),
    ]  # fmt: skip
