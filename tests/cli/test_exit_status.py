"""Exit statuses: 0 done, 1 failed, 2 wrong usage or input, 3 not reachable, 4 timed out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli import main as entrance
from cli import session
from transport.client import ClientTimeout, UnreachableError
from transport.router import RemoteError

STATUS = {"leader": "m1"}


class FakeClient:
    """Stands for the link to a host: answers with a value, or raises."""

    answers: dict[str, Any] = {}
    asked: list[tuple[str, dict[str, Any]]] = []

    def __init__(self, endpoints: list[str], credentials: Any) -> None:
        self.endpoints = endpoints

    def ask(self, command: Any, timeout: float) -> Any:
        FakeClient.asked.append((command.verb, command.args))
        answer = FakeClient.answers[command.verb]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def _fake_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "Client", FakeClient)
    FakeClient.answers = {"raft.status": STATUS}
    FakeClient.asked = []


def _run(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    """The program's exit status for these words."""
    monkeypatch.setattr("sys.argv", ["argosy", *args])
    try:
        entrance.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"revision": 7}, 0),
        (RemoteError("bad_request", "a sentence"), 2),
        (RemoteError("BadRequest", "a sentence"), 2),
        (RemoteError("unit_file", "a sentence"), 2),
        (RemoteError("too_large", "a sentence"), 2),
        (RemoteError("lock_group", "a sentence"), 2),
        (RemoteError("missing", "a sentence"), 1),
        (RemoteError("failed", "a sentence"), 1),
        (RemoteError("lock_token", "a sentence"), 1),
        (RemoteError("anything else", "a sentence"), 1),
        (RemoteError("no_leader", "a sentence"), 3),
        (RemoteError("link_lost", "a sentence"), 3),
        (RemoteError("timeout", "a sentence"), 4),
        (UnreachableError("a sentence"), 3),
        (ClientTimeout("a sentence"), 4),
    ],
)
def test_status_of_an_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: Any, status: int
) -> None:
    """A refusal is one sentence on standard error; nothing on standard output."""
    FakeClient.answers["kv.put"] = answer
    assert _run(monkeypatch, "kv", "put", "/a", "1") == status
    shown = capsys.readouterr()
    assert shown.out == ""
    if status:
        assert shown.err.startswith("argosy: ")
        assert shown.err.rstrip().endswith("a sentence")
        assert len(shown.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("status", "leader"), [(3, ""), (4, "m1")], ids=["without a leader", "with a leader"]
)
def test_no_answer_without_a_leader_is_no_quorum(
    monkeypatch: pytest.MonkeyPatch, status: int, leader: str
) -> None:
    """A host that does not answer in time is asked whether it knows a leader: that is the reason."""
    FakeClient.answers |= {"kv.put": ClientTimeout("no answer"), "raft.status": {"leader": leader}}
    assert _run(monkeypatch, "kv", "put", "/a", "1") == status


@pytest.mark.parametrize(
    "words",
    [
        [], ["nonsense"], ["kv"], ["kv", "put", "/a"], ["kv", "put", "/a", "1", "--nonsense"],
        ["unit", "start"], ["lock", "set-max", "many"], ["--timeout", "0", "version"],
        ["--context", "/no/such/file", "kv", "get", "/a"], ["actor", "tell", "m1/raft", "{"],
        ["unit", "submit", "/no/such/file"], ["check-config", "/no/such/file"], ["local", "kill", "m1"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_is_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str]
) -> None:
    """Whatever is wrong with the words themselves, before a host is asked."""
    monkeypatch.chdir(tmp_path)
    status = _run(monkeypatch, *words)
    shown = capsys.readouterr()
    if words in ([], ["kv"]):
        assert "Usage:" in shown.out + shown.err  # no command: what there is
    else:
        assert status == 2
        assert shown.err
    assert "Traceback" not in shown.err
    assert FakeClient.asked == []


def test_not_true_is_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A key that is not there, a unit that does not run, a lock that is held."""
    FakeClient.answers |= {
        "kv.get": None,
        "kv.del": {"revision": 3, "deleted": 0},
        "lock.acquire": {"granted": False, "position": 0, "holders": ["other"]},
        "unit.status": {"rows": [{"active": "failed"}], "why": {"reason": "it failed"}, "log": []},
    }
    assert _run(monkeypatch, "kv", "get", "/a") == 1
    assert capsys.readouterr().err == "argosy: no key /a\n"
    assert _run(monkeypatch, "kv", "del", "/a") == 1
    assert _run(monkeypatch, "lock", "acquire", "m1") == 1
    assert "held by other" in capsys.readouterr().err
    assert _run(monkeypatch, "lock", "acquire", "m1", "--json") == 1
    assert json.loads(capsys.readouterr().out)["granted"] is False
    assert _run(monkeypatch, "unit", "status", "a") == 1


def test_an_http_endpoint_serves_keys_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Inside a unit the endpoint is an HTTP door; what it cannot do is said, not tried."""
    monkeypatch.setenv("ARGOSY_ENDPOINT", "http://127.0.0.1:1")
    assert _run(monkeypatch, "unit", "list") == 2
    assert "serves keys only" in capsys.readouterr().err
    assert _run(monkeypatch, "kv", "get", "/a") == 3
    assert "http://127.0.0.1:1" in capsys.readouterr().err


def test_context_and_endpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--endpoint`` goes before ``ARGOSY_ENDPOINT``, that before the context, that before the default."""
    context = tmp_path / "context.toml"
    context.write_text('endpoints = ["c:1", "d:2"]\n')

    def endpoints(text: str, file: str) -> list[str]:
        made = session.Session(file, text).client()
        assert isinstance(made, FakeClient)
        return made.endpoints

    assert endpoints("", "") == ["127.0.0.1:7001"]
    assert endpoints("", str(context)) == ["c:1", "d:2"]
    assert endpoints("e:3,f:4", str(context)) == ["e:3", "f:4"]
    context.write_text('endpoints = ["c:1"]\nca = "/no/such/ca"\n')
    assert _run(monkeypatch, "--context", str(context), "unit", "list") == 2
    assert "ca = /no/such/ca does not exist" in capsys.readouterr().err
    context.write_text("endpoints = [")
    assert _run(monkeypatch, "--context", str(context), "unit", "list") == 2
    assert str(context) in capsys.readouterr().err


def test_a_control_actor_that_is_being_restarted_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """``not_found`` is for a moment only: the command goes on when the actor is back."""
    answers = iter([RemoteError("not_found", "no actor control"), {"revision": 1}])

    class Restarting(FakeClient):
        def ask(self, command: Any, timeout: float) -> Any:
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

    monkeypatch.setattr(session, "Client", Restarting)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert _run(monkeypatch, "kv", "put", "/a", "1") == 0


def test_json_is_what_was_answered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``--json`` prints the answer and nothing else, bytes as text."""
    rows = [{"group": "default", "max": 1, "holders": [], "queue": [], "available": 1}]
    FakeClient.answers |= {"lock.status": rows, "kv.get": {"key": "/a", "value": b"\xc3\xa9\xff"}}
    assert _run(monkeypatch, "lock", "status", "--json") == 0
    assert json.loads(capsys.readouterr().out) == rows
    assert _run(monkeypatch, "kv", "get", "/a", "--json") == 0
    assert json.loads(capsys.readouterr().out)["value"] == "\u00e9\ufffd"
