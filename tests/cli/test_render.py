"""``kv render``: the file follows the keys, atomically, and is left alone when anything is wrong."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from cli import render as module
from cli.render import Renderer, RenderError, SourceError, render
from cli.session import Session

TEMPLATE = "{% for s in ls('/s') %}{{ s.name }}={{ s.value }}\n{% endfor %}db={{ get('/db', 'none') }}\n"
TEXT = "a=1\nb=2\ndb=none\n"


class Keys:
    """A brain that is a table."""

    def __init__(self, **values: str) -> None:
        self.values = {"/" + key.replace("__", "/"): value for key, value in values.items()}
        self.revision = 10
        self.broken = False
        self.waited: list[tuple[str, int]] = []

    def list(self, prefix: str) -> tuple[int, dict[str, str]]:
        if self.broken:
            raise SourceError("not reachable")
        return self.revision, {k: v for k, v in self.values.items() if k.startswith(prefix)}

    def wait(self, prefix: str, after: int) -> bool:
        self.waited.append((prefix, after))
        return True


@pytest.fixture
def keys() -> Keys:
    """Two servers."""
    return Keys(s__b="2", s__a="1", other="x")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The file that is written."""
    return tmp_path / "out.cfg"


def _renderer(keys: Keys, tmp_path: Path, out: Path, text: str = TEMPLATE) -> Renderer:
    template = tmp_path / "template"
    template.write_text(text)
    return Renderer(keys, template, out)  # type: ignore[arg-type]


def _argv(*words: object) -> str:
    """A command line of this Python."""
    return " ".join([sys.executable, *map(str, words)])


def _script(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_written_when_the_text_changes_only(keys: Keys, tmp_path: Path, out: Path) -> None:
    """Sorted names and values; the command after it runs once for each change."""
    log = tmp_path / "log"
    note = _argv(_script(tmp_path, "note.py", f"open({str(log)!r}, 'a').write('x')"))
    renderer = _renderer(keys, tmp_path, out)
    assert renderer.update("", note)
    assert out.read_text() == TEXT
    before = out.stat()
    keys.values["/other"] = "y"
    keys.revision += 1
    assert not renderer.update("", note)
    assert out.stat().st_ino == before.st_ino
    assert log.read_text() == "x"
    keys.values["/db"] = "there"
    assert renderer.update("", note)
    assert out.read_text() == "a=1\nb=2\ndb=there\n"
    assert log.read_text() == "xx"


def test_replaced_in_one_step(keys: Keys, tmp_path: Path, out: Path) -> None:
    """Another file takes the place of the old one, complete and with its mode; whoever has the old
    one open goes on reading it; nothing is left beside it."""
    out.write_text("old")
    out.chmod(0o640)
    with out.open() as reader:
        assert _renderer(keys, tmp_path, out).update("", "")
        assert reader.read() == "old"
    assert out.read_text() == TEXT
    assert stat.S_IMODE(out.stat().st_mode) == 0o640
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.cfg", "template"]


def test_check_sees_the_new_text_before_it_is_in_place(keys: Keys, tmp_path: Path, out: Path) -> None:
    """``{}`` is the new file; the old one is still there meanwhile."""
    out.write_text("old")
    seen = tmp_path / "seen"
    script = _script(
        tmp_path, "check.py",
        f"import sys; open({str(seen)!r}, 'w').write(open(sys.argv[1]).read() + open({str(out)!r}).read())",
    )
    assert _renderer(keys, tmp_path, out).update(_argv(script, "{}"), "")
    assert seen.read_text() == TEXT + "old"


@pytest.mark.parametrize("check", [_argv("-c", "raise SystemExit(3)"), "/no/such/program {}"])
def test_failed_check_leaves_everything(keys: Keys, tmp_path: Path, out: Path, check: str) -> None:
    """The old file stays, the command is not run, and no other file is left."""
    out.write_text("old")
    before = out.stat()
    mark = tmp_path / "mark"
    with pytest.raises(RenderError, match="the check failed"):
        _renderer(keys, tmp_path, out).update(check, f"/usr/bin/touch {mark}")
    assert out.read_text() == "old"
    assert (out.stat().st_ino, out.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.cfg", "template"]


def test_brain_that_is_away_leaves_the_file(keys: Keys, tmp_path: Path, out: Path) -> None:
    """No answer is no empty list."""
    renderer = _renderer(keys, tmp_path, out)
    renderer.update("", "")
    keys.broken = True
    with pytest.raises(SourceError):
        renderer.update("", "")
    assert out.read_text() == TEXT


def test_never_back_to_an_older_state(
    keys: Keys, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that has just been started may answer with the past; only if it stays so it is believed."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    renderer = _renderer(keys, tmp_path, out)
    renderer.update("", "")
    known = keys.values

    def refused() -> None:
        keys.revision, keys.values = 3, {}
        with pytest.raises(SourceError, match="revision 3, 10 was seen"):
            renderer.update("", "")

    refused()
    now[0] += module.OLDER_S_MAX - 1
    refused()
    keys.revision, keys.values = 10, known
    assert not renderer.update("", "")  # it has caught up, so the time starts anew
    now[0] += module.OLDER_S_MAX
    refused()
    assert out.read_text() == TEXT
    now[0] += module.OLDER_S_MAX
    assert renderer.update("", "")
    assert out.read_text() == "db=none\n"


def test_waits_for_what_was_asked_for(keys: Keys, tmp_path: Path, out: Path) -> None:
    """One prefix, or what several have in common, from the revision that was shown."""
    one = _renderer(keys, tmp_path, out, "{{ names('/services/api') }}")
    one.update("", "")
    one.wait()
    two = _renderer(keys, tmp_path, out, "{{ names('/services/api') }}{{ get('/services/lb') }}")
    two.update("", "")
    two.wait()
    assert keys.waited == [("/services/api", 10), ("/services", 10)]


@pytest.mark.parametrize(
    ("text", "place", "part"),
    [
        ("line\n{{ nothing }}\n", ":2: ", "'nothing' is undefined"),
        ("{{ ls('/s')[9].name }}", ":1: ", "no element 9"),
        ("\n\n{{ 1 / 0 }}", ":3: ", "division by zero"),
        ("{{ get('no/slash') }}", ":1: ", "starts with /"),
        ("{{ ''.__class__.__mro__ }}", ":1: ", "unsafe"),
    ],
)
def test_template_that_fails_leaves_the_file(
    keys: Keys, tmp_path: Path, out: Path, text: str, place: str, part: str
) -> None:
    """File, line and reason; a later value may come right, so what to wait for is still known."""
    out.write_text("old")
    with pytest.raises(RenderError) as caught:
        _renderer(keys, tmp_path, out, text).update("", "")
    assert str(caught.value).startswith(f"{tmp_path / 'template'}{place}")
    assert part in str(caught.value)
    assert out.read_text() == "old"


def test_syntax_error_in_a_template(keys: Keys, tmp_path: Path, out: Path) -> None:
    """Said at once, with file and line."""
    with pytest.raises(RenderError, match=r"template:2: "):
        _renderer(keys, tmp_path, out, "fine\n{% for %}\n")


def test_folder_that_is_not_there(keys: Keys, tmp_path: Path) -> None:
    """Named."""
    with pytest.raises(RenderError, match="No such file or directory"):
        _renderer(keys, tmp_path, tmp_path / "none" / "out").update("", "")


def test_environment_is_at_hand(keys: Keys, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``env.NAME`` is a variable of the process."""
    monkeypatch.setenv("PORT", "8080")
    _renderer(keys, tmp_path, out, "bind {{ env.PORT }}").update("", "")
    assert out.read_text() == "bind 8080"


def test_once(
    keys: Keys, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--once`` says how it went: 0 written, 1 left as it is, 2 a bad template, 3 no brain."""
    monkeypatch.setattr(module, "TransportKeys", lambda session: keys)
    monkeypatch.setattr(module, "RETRY_S", 0.001)
    template = tmp_path / "template"
    template.write_text(TEMPLATE)
    session = Session(timeout=0.01)

    def once(check: str = "") -> int:
        try:
            return render(session, template, out, check, "", True, 0.0)
        except SystemExit as end:
            return int(end.code or 0)

    assert once() == 0
    assert out.read_text() == TEXT
    keys.values["/s/c"] = "3"
    assert once("/bin/false") == 1
    assert out.read_text() == TEXT
    keys.broken = True
    assert once() == 3
    template.write_text("{% if %}")
    assert once() == 2
    shown = capsys.readouterr().err
    assert "the check failed" in shown
    assert "the brain did not answer: not reachable" in shown
    assert f"{template}:1: " in shown
    assert os.listdir(tmp_path).count("out.cfg.new") == 0
