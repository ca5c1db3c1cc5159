"""The files of ``deploy/`` with Debian's real Prometheus and three real hosts.

Rules load, targets are up, and every query of the dashboard and of the rules finds data.
Nothing here waits for a time: a query is asked again until it has an answer or is overdue.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..real.cluster import Cluster, Writer, port_offset
from ..waiting import wait_until
from .prometheus import Prometheus, QueryError, running

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "argosy.json"
ROWS = ["Brain", "Actors", "Transport", "Fleet", "Locks", "Processes"]
#: Within this many seconds of the first scrape every query has data.
DATA_S = 25.0
#: What Grafana would fill in.
VARIABLES = {
    "$__rate_interval": "10s", "$__interval": "1s", "$__range": "1m", "$cluster": "test",
    "$instance": ".*", "${datasource}": "prometheus",
}  # fmt: skip
#: Says something only once a unit was moved from a lost machine.
AFTER_A_LOSS = "argosy_scheduler_recovery_seconds_bucket"
#: The comparison that ends a line of a rule's expression.
COMPARISON = re.compile(r"\s*(?:==|!=|>=|<=|>|<)\s*-?[0-9.e]+$", re.IGNORECASE)
NAME = re.compile(r"\b((?:argosy|etcd|process)_[a-z0-9_]+|up)\b(?:\{([^}]*)\})?")

WEB = """
[Service]
ExecStart=/usr/bin/env python3 -m http.server --bind 127.0.0.1 ${PORT}
Restart=always

[X-Argosy]
Port=http
HealthCheck=http://:PORT/
HealthInterval=500ms
"""
SLEEPER = """
[Service]
ExecStart=/bin/sleep 100000
"""

pytestmark = pytest.mark.timeout(150)


def _needs(*programs: str) -> None:
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        reason = f"{', '.join(missing)} missing; as root: apt-get install prometheus"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def test_promtool_accepts_configuration_and_rules() -> None:
    """As they lie there, before anything runs."""
    _needs("promtool")
    for check in (["config", "prometheus.yml"], ["rules", "alerts.yml"]):
        done = subprocess.run(
            ["promtool", "check", *check], cwd=DEPLOY, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def _alert_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return panels


def _dashboard_queries() -> list[str]:
    board = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    found += [note["expr"] for note in board["annotations"]["list"] if "expr" in note]
    return found


def _bare(expression: str) -> list[str]:
    """The sides of an alert's expression, each without the comparison that ends it."""
    sides = re.split(r"^\s*(?:and|or|unless)\s*$", expression, flags=re.MULTILINE)
    return [COMPARISON.sub("", side.strip()) for side in sides]


def test_every_alert_compares_and_explains() -> None:
    """One comparison ends each side; summary and description are there; no name is used twice."""
    rules = _alert_rules()
    names = [rule["alert"] for rule in rules]
    assert len(names) == len(set(names))
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description"}
        for side in re.split(r"^\s*and\s*$", rule["expr"], flags=re.MULTILINE):
            assert COMPARISON.search(side.strip()), f"{rule['alert']}: {side!r} ends in no comparison"


def test_dashboard_is_in_order() -> None:
    """What Grafana relies on: ids, one grid without overlaps, the data source by variable."""
    board = json.loads(DASHBOARD.read_text())
    assert [v["name"] for v in board["templating"]["list"]] == ["datasource", "cluster", "instance"]
    assert board["schemaVersion"] >= 36
    panels = _panels()
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == ROWS
    ids = [panel["id"] for panel in panels]
    assert len(ids) == len(set(ids))
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24, panel["title"]
        for x in range(grid["x"], grid["x"] + grid["w"]):
            for y in range(grid["y"], grid["y"] + grid["h"]):
                other = taken.setdefault((x, y), panel["title"])
                assert other == panel["title"], f"{other!r} and {panel['title']!r} overlap"
        if panel["type"] == "row":
            continue
        assert panel["description"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert references and len(references) == len(set(references))


# -- with everything running ---------------------------------------------------------------------


@dataclass(frozen=True)
class Watched:
    """A cluster, and the Prometheus that watches it."""

    cluster: Cluster
    prometheus: Prometheus


def _configuration(folder: Path, cluster: Cluster) -> Path:
    """A copy of the real one: other ports, a second instead of fifteen."""
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    (job,) = config["scrape_configs"]
    (hosts,) = job["static_configs"]
    offset = cluster.offset
    hosts["targets"] = [re.sub(r"\d+$", lambda m: str(int(m[0]) + offset), t) for t in hosts["targets"]]
    hosts["labels"]["cluster"] = "test"
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    for name in config["rule_files"]:
        shutil.copy(DEPLOY / name, folder / name)
    return path


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Three hosts with two units, a held lock, some writing, and Prometheus beside them."""
    _needs("prometheus", "promtool")
    folder = tmp_path_factory.mktemp("prometheus")
    with port_offset() as offset:
        cluster = Cluster(folder, offset)
        try:
            cluster.up()
            cluster.submit("web@", WEB)
            cluster.submit("sleeper", SLEEPER)
            cluster.start("web@1", "sleeper")
            taken = cluster.ask("lock.acquire", group="", machine="m1", reason="test", wait=0)
            assert taken["granted"]
            ports = [cluster.client_port(n) for n in (1, 2, 3)]
            with Writer(ports, "/prometheus"), running(folder, _configuration(folder, cluster)) as server:
                yield Watched(cluster, server)
        finally:
            cluster.down()


@pytest.mark.usefixtures("watched")
def test_configuration_that_runs_is_valid(watched: Watched) -> None:
    """The copy that Prometheus was started with, too."""
    config = watched.cluster.home / "prometheus.yml"
    done = subprocess.run(
        ["promtool", "check", "config", str(config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_targets_are_up(watched: Watched) -> None:
    """All three hosts answer the scrape, and nothing else is scraped."""

    def healthy() -> list[dict[str, Any]] | None:
        targets = watched.prometheus.get("targets")["activeTargets"]
        well = [t for t in targets if t["health"] == "up" and not t["lastError"]]
        return well if len(well) == len(targets) == 3 else None

    targets = wait_until("three healthy targets", healthy, DATA_S)
    assert {t["labels"]["job"] for t in targets} == {"argosy"}
    assert {t["labels"]["cluster"] for t in targets} == {"test"}


def test_metrics_page_is_well_formed(watched: Watched) -> None:
    """``promtool check metrics`` has nothing to say about any host's page."""
    for number in (1, 2, 3):
        page = watched.cluster.http(number, "GET", "/metrics")
        assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
        done = subprocess.run(
            ["promtool", "check", "metrics"], input=page.text, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_loaded_and_evaluate(watched: Watched) -> None:
    """Every rule of the file is there and was evaluated without an error."""
    wanted = sorted(rule["alert"] for rule in _alert_rules())

    def evaluated() -> list[dict[str, Any]] | None:
        rules = watched.prometheus.rules()
        bad = [f"{rule['name']}: {rule['lastError']}" for rule in rules if rule["health"] == "err"]
        assert not bad, bad
        return rules if rules and all(rule["health"] == "ok" for rule in rules) else None

    rules = wait_until("every rule to be evaluated", evaluated, DATA_S)
    assert sorted(rule["name"] for rule in rules) == wanted


def _await_data(prometheus: Prometheus, queries: dict[str, str]) -> None:
    """Ask every query until it has finite data; fail with those that have none at the deadline."""
    open_ = dict(queries)

    def found() -> bool:
        for name, query in list(open_.items()):
            try:
                if prometheus.numbers(query):
                    del open_[name]
            except QueryError as error:
                pytest.fail(f"{name}: {error}")
        if open_:
            raise ValueError(f"no data: {open_}")
        return True

    wait_until("every query to find data", found, DATA_S)


def _filled(query: str) -> str:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    assert "$" not in query, f"a variable is not filled in: {query}"
    return query


def test_every_query_of_the_dashboard_finds_data(watched: Watched) -> None:
    """Each panel shows something on a cluster that works; a comparison may select nothing."""
    queries = {}
    for query in _dashboard_queries():
        if AFTER_A_LOSS not in query:
            queries[query] = COMPARISON.sub("", _filled(query))
    assert len(queries) > 60
    _await_data(watched.prometheus, queries)
    chosen = [_filled(q) for q in _dashboard_queries() if q.endswith("== 1")]
    assert chosen and all(len(watched.prometheus.query(q)) == 1 for q in chosen), "one leads, one schedules"


def test_every_query_of_the_rules_finds_data(watched: Watched) -> None:
    """Without its comparison each side of each rule has a value to compare."""
    queries = {}
    for rule in _alert_rules():
        for position, side in enumerate(_bare(rule["expr"])):
            queries[f"{rule['alert']} {position}"] = side
    _await_data(watched.prometheus, queries)


def test_every_metric_and_label_in_the_files_exists(watched: Watched) -> None:
    """A name that nobody serves, or a label value that never occurs, would never alert."""
    missing = set()
    texts = [_filled(q) for q in _dashboard_queries()] + [rule["expr"] for rule in _alert_rules()]
    for text in texts:
        for name, labels in NAME.findall(text):
            selector = f"{name}{{{labels}}}" if labels else name
            if not watched.prometheus.query(selector):
                missing.add(selector)
    assert not missing


def _alerts(prometheus: Prometheus, state: str) -> set[str]:
    return {a["metric"]["alertname"] for a in prometheus.query(f'ALERTS{{alertstate=~"{state}"}}')}


def test_a_healthy_cluster_raises_no_alert(watched: Watched) -> None:
    """None fires, and none is about to for long (one scrape may be late on a busy machine)."""
    wait_until("the rules' own series", lambda: len(watched.prometheus.query("up")) == 3, DATA_S)

    def calm() -> bool:
        firing = _alerts(watched.prometheus, "firing")
        assert not firing, firing
        return not _alerts(watched.prometheus, "pending")

    wait_until("no alert that is about to fire", calm, DATA_S)


def test_a_lost_machine_shows(watched: Watched) -> None:
    """Alerts say so, and its unit's way to another machine is timed; last, because it stays off."""
    cluster, prometheus = watched.cluster, watched.prometheus
    leader = cluster.leader()
    victim = next(row["machine"] for row in cluster.units() if row["machine"] != leader)
    cluster.local("kill", victim)
    wanted = {"ArgosyHostDown", "ArgosyQuorumMarginLost"}

    def raised() -> bool:
        return wanted <= _alerts(prometheus, "pending|firing")

    wait_until("alerts about the lost machine", raised, DATA_S)
    margin = _bare(next(r["expr"] for r in _alert_rules() if r["alert"] == "ArgosyQuorumMarginLost"))[0]
    assert prometheus.numbers(margin) == [0.0]
    queries = {q: _filled(q) for q in _dashboard_queries() if AFTER_A_LOSS in q}
    assert queries
    _await_data(prometheus, queries)
