"""The web page, asked as a browser asks, and in a real one: it shows what is, and changes nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from gateway.page_door import LOOK_S, PARTS, ROWS_MAX, Look, picture

from ..answers import Answer
from ..waiting import wait_until
from .cluster import Cluster, request

#: Seconds for the browser to show the page once.
BROWSER_S = 60.0
SLEEP = "[Service]\nExecStart=/bin/sleep 1000\n"


@pytest.fixture(scope="module")
def shown(cluster: Cluster) -> Iterator[Cluster]:
    """Two units that run, one that fails, one that is nowhere."""
    cluster.submit("calm@", SLEEP)
    cluster.submit("broken", "[Service]\nExecStart=/bin/false\n")
    cluster.submit("homeless", SLEEP + "[X-Fleet]\nMachineMetadata=planet=mars\n")
    cluster.start("calm@1", "calm@2")
    cluster.ask("unit.start", units=["broken", "homeless"], no_block=True)
    wait_until("the failure", lambda: cluster.row("broken")["active"] == "failed")
    yield cluster
    cluster.destroy_all()


def get(cluster: Cluster, path: str, **headers: str) -> Answer:
    connection = HTTPConnection("127.0.0.1", cluster.client_port(2), timeout=10)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        return Answer.read(connection.getresponse())
    finally:
        connection.close()


def test_the_page_is_whole_and_takes_nothing_from_elsewhere(cluster: Cluster) -> None:
    """All that it names is there, and nothing is inline or of another host."""
    page = get(cluster, "/")
    assert page.status == 200 and page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "access-control-allow-origin" not in page.headers
    named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(named) >= 3 and all(name.startswith("/ui/") for name in named)
    for name in named:
        assert get(cluster, name).status == 200, name
    assert "style=" not in page.text and "<script>" not in page.text


def test_what_is_shown_is_what_is(shown: Cluster) -> None:
    """Machines, units with those in trouble first, and nothing that changes while nothing happens."""
    look = wait_until("a calm look", lambda: _look(shown))
    assert sorted(m["name"] for m in look["machines"]) == ["m1", "m2", "m3"]
    assert look["cluster"]["leader"] == shown.leader()
    rows = {row["unit"]: row for row in look["units"]}
    assert look["units"][0]["unit"] == "broken.service" and look["units"][1]["unit"] == "homeless.service"
    assert rows["calm@1.service"]["active"] == "active" and rows["calm@1.service"]["machine"]
    assert (look["wanted"], look["units_in_all"], look["counts"]["active"]) == (4, 4, 2)
    first = get(shown, "/ui/v1/overview")
    again = get(shown, "/ui/v1/overview", If_None_Match=first.headers["etag"])
    assert (again.status, again.text) == (304, "")


def _look(cluster: Cluster) -> Any:
    look = get(cluster, "/ui/v1/overview").json()
    settled = not look["trouble"] and look["units_in_all"] == 4 and "activating" not in look["counts"]
    return look if settled else None


def test_a_unit_says_why_and_what_happened_goes_on_where_it_was(shown: Cluster) -> None:
    """One unit; the past from a revision on."""
    why = get(shown, "/ui/v1/unit?name=homeless.service").json()
    assert why["reason"] == "no machine qualifies" and "planet" in why["machines"]["m1"]
    past = get(shown, "/ui/v1/events").json()
    assert any(row["unit"] == "broken.service" for row in past["rows"])
    assert get(shown, f"/ui/v1/events?since={past['revision']}").json()["rows"] == []


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [("/ui/v1/unit?name=none.service", 404, "none.service"), ("/ui/v1/unit", 400, "name"), ("/ui/v1/events?since=x", 400, "revision"),
     ("/ui/other", 404, "no such page"), ("/ui/../etc/passwd", 404, "no such page")],
)  # fmt: skip
def test_bad_questions_get_a_sentence(cluster: Cluster, path: str, status: int, told: str) -> None:
    answer = get(cluster, path)
    assert answer.status == status and told in answer.text


def test_the_page_changes_nothing(cluster: Cluster) -> None:
    """Other methods are refused."""
    for method in ("POST", "PUT", "DELETE"):
        answer = request(cluster.client_port(1), method, "/ui/v1/overview", {"x": "y"})
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


def _browser() -> str:
    found = shutil.which("chromium")
    if found is None:
        reason = "chromium is missing; as root: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def _shown_by_browser(cluster: Cluster, folder: Path) -> str:
    """What the page has become after a few seconds; nothing may have been complained of."""
    done = subprocess.run(
        [_browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'browser'}", "--enable-logging=stderr",
         "--virtual-time-budget=3000", "--dump-dom", f"http://127.0.0.1:{cluster.client_port(3)}/"],
        capture_output=True, text=True, timeout=BROWSER_S, check=False,
    )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    assert not complaints, complaints
    return done.stdout


def test_a_browser_shows_it(shown: Cluster, tmp_path: Path) -> None:
    """In Chromium: cards of machines with their units in their colours, the homeless one apart, what happened."""

    def seen() -> str:
        dom = _shown_by_browser(shown, tmp_path)
        return dom if "unit ok" in dom and "<b>broken.service" in dom and ">live<" in dom else ""

    dom = wait_until("the page", seen)
    for machine in ("m1", "m2", "m3"):
        assert f"<span>{machine}</span>" in dom
    assert re.search(r'class="unit ok"[^>]*>calm@1<', dom) and re.search(r'class="unit bad"[^>]*>broken<', dom)
    assert dom.count("★ leader") == 1
    nowhere = dom[dom.index("<span>nowhere</span>") :]
    assert re.search(r'class="unit bad"[^>]*>homeless<', nowhere)


# -- without a cluster -----------------------------------------------------------------------------


class Control:
    """Answers verbs when it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Callable[[Any, BaseException | None], None]]] = []

    def ask_back(self, command: Any, then: Callable[[Any, BaseException | None], None]) -> None:
        self.asked.append((command.verb, then))

    def answer(self) -> None:
        asked, self.asked = self.asked, []
        for _, then in asked:
            then(None, TimeoutError("no leader"))


def test_one_look_serves_all_who_ask_meanwhile() -> None:
    """Those who ask while a look is under way, or just after it, share it."""
    control, now, got = Control(), [100.0], []
    look = Look(control, lambda: now[0])
    for _ in range(3):
        look.get(lambda body, tag: got.append(tag))
    assert len(control.asked) == len(PARTS) and not got
    control.answer()
    look.get(lambda body, tag: got.append(tag))
    assert len(set(got)) == 1 and len(got) == 4 and not control.asked
    now[0] += LOOK_S
    look.get(lambda body, tag: got.append(tag))
    assert len(control.asked) == len(PARTS)


def test_a_part_that_is_not_had_is_named_and_rows_have_a_limit() -> None:
    """Without a leader the rest is shown; those in trouble are never cut off."""
    row = {"machine": "m1", "desired": "launched", "active": "active", "sub": "running", "health": "none", "restarts": 0,
           "hash": "", "result": "success", "ports": {}}  # fmt: skip
    units = [{**row, "unit": f"u{n}"} for n in range(ROWS_MAX + 5)] + [{**row, "unit": "z", "health": "failing"}]
    shown = picture({**dict.fromkeys(PARTS), "units": units})
    assert shown["trouble"] == ["cluster", "locks", "machines", "rollouts"]
    assert len(shown["units"]) == ROWS_MAX and shown["units"][0]["unit"] == "z"
    assert shown["units_in_all"] == ROWS_MAX + 6 and shown["counts"] == {"active": ROWS_MAX + 5, "failing": 1}
