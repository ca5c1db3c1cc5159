"""Drop-ins are read as if written at the end of the file; aliases name a unit."""

from __future__ import annotations

import json

import pytest

from actors.brain_client import UNITS
from actors.wanted import Known
from brain.store import Item
from fleet import dropins, unitfile
from fleet.syntax import UnitFileError

MAIN = "[Service]\nExecStart=/bin/one\nEnvironment=A=1\nRestart=no \\"


def test_a_drop_in_adds_and_resets() -> None:
    """In the order of their names, whatever their folders; a continuation ends with its file."""
    parts = [("x/u.service.d/20-b.conf", "[Service]\nExecStart=\nExecStart=/bin/two\n"),
             ("y/u.service.d/10-a.conf", "# first\n\n[Service]\nEnvironment=A=2 B=3\nExecStart=/bin/none")]  # fmt: skip
    text, _ = dropins.merge("u.service", MAIN, parts)
    spec, _ = unitfile.load("u.service", text)
    assert [command.words for command in spec.exec_start] == [("/bin/two",)]
    assert spec.environment == {"A": "2", "B": "3"}
    assert spec.restart == "no"
    assert text.index("10-a.conf") < text.index("20-b.conf")


def test_without_drop_ins_a_file_stays_as_it_is() -> None:
    """Byte for byte."""
    assert dropins.merge("u.service", MAIN, [])[0] == MAIN


def test_a_problem_is_shown_where_it_is() -> None:
    """In the drop-in and its own line; in the file, too; and what is accepted and ignored."""
    parts = [("u.service.d/a.conf", "[Service]\nIOWeight=3\nRestrat=always\n")]
    text, origins = dropins.merge("u.service", "[Service]\nExecStart=/bin/one\nBad=1\n", parts)
    problems, notes = unitfile.verify("u.service", text, "u.service", origins)
    assert [(p.file, p.line) for p in problems] == [("u.service", 3), ("u.service.d/a.conf", 3)]
    assert any(note.startswith("u.service.d/a.conf:2: IOWeight") for note in notes), notes


def test_a_drop_in_without_a_section_is_refused() -> None:
    """It would go on with whatever section the file ended in."""
    with pytest.raises(UnitFileError, match="a.conf:2: is before the first section"):
        dropins.merge("u.service", MAIN, [("a.conf", "# x\nRestart=always\n")])
    with pytest.raises(UnitFileError, match="dropins_max"):
        dropins.merge("u.service", MAIN, [(f"{n}.conf", "") for n in range(dropins.DROPINS_MAX + 1)])


def known(**files: str) -> Known:
    """What is stored, from files by name (``_at_`` for @)."""
    out = {}
    for name, text in files.items():
        unit = name.replace("_at_", "@") + ".service"
        value = json.dumps({"content": text, "hash": "", "desired": "inactive"}).encode()
        out[UNITS + unit.encode()] = Item(value, 1, 1, 1, 0, 0)
    return Known(out)


def test_aliases() -> None:
    """Of a unit, of a template, of an instance; in what other units say of it."""
    start = "[Service]\nExecStart=/bin/x\n"
    stored = known(
        db=start + "[Install]\nAlias=pg.service sql.service\n", web_at_=start + "[Install]\nAlias=www@.service\n",
        user="[Unit]\nAfter=pg.service\nWants=www@3.service\n" + start,
    )  # fmt: skip
    assert stored.aliases == {"pg.service": "db.service", "sql.service": "db.service", "www@.service": "web@.service"}
    assert stored.canonical("sql.service") == "db.service"
    assert stored.canonical("www@7.service") == "web@7.service"
    assert stored.canonical("other.service") == "other.service"
    spec = stored.spec("user.service")
    assert spec is not None
    assert spec.related == {"After": ["db.service"], "Wants": ["web@3.service"]}


@pytest.mark.parametrize(
    ("unit", "alias", "text"),
    [("a.service", "b.timer", "ends in .service"), ("a@.service", "b.service", "is a template"), ("a.service", "b@@.service", "a name is")],
)
def test_an_alias_that_cannot_be(unit: str, alias: str, text: str) -> None:
    """Of another kind, or not of the shape of the unit's own."""
    with pytest.raises(UnitFileError, match=text):
        unitfile.load(unit, f"[Service]\nExecStart=/bin/x\n[Install]\nAlias={alias}\n")
