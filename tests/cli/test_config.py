"""A host's configuration: flag before variable before file, and every mistake in one answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli.config import KEYS, ConfigError, HostConfig, load, parse_metadata, split_address

ENOUGH = {"name": "m1", "data-dir": "/data"}


def _file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "host.toml"
    path.write_text(text)
    return str(path)


def _problems(path: str | None, flags: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, flags)
    return caught.value.problems


#: Per key: TOML, variable, flag, each with the value that it stands for.
FORMS: dict[str, tuple[tuple[str, Any], tuple[str, Any], tuple[Any, Any]]] = {
    "name": (('"a"', "a"), ("b", "b"), ("c", "c")),
    "data-dir": (('"/a"', "/a"), ("/b", "/b"), ("/c", "/c")),
    "transport": (('"1.1.1.1:1"', "1.1.1.1:1"), ("1.1.1.1:2", "1.1.1.1:2"), ("1.1.1.1:3", "1.1.1.1:3")),
    "client": (
        ('["127.0.0.1:1", "docker0:2"]', ["127.0.0.1:1", "docker0:2"]),
        ("127.0.0.1:3,127.0.0.1:4", ["127.0.0.1:3", "127.0.0.1:4"]),
        (("127.0.0.1:5",), ["127.0.0.1:5"]),
    ),
    "grpc": (('"127.0.0.1:1"', "127.0.0.1:1"), ("127.0.0.1:2", "127.0.0.1:2"), ("127.0.0.1:3", "127.0.0.1:3")),
    "bootstrap": (("true", True), ("yes", True), (True, True)),
    "join": (('["h:1"]', ["h:1"]), ("h:2,h:3", ["h:2", "h:3"]), (["h:4"], ["h:4"])),
    "metadata": (('{ z = "a" }', {"z": "a"}), ("z=b,y=c", {"z": "b", "y": "c"}), ({"z": "d"}, {"z": "d"})),
    "role": (('"agent"', "agent"), ("voter", "voter"), ("agent", "agent")),
    "insecure": (("true", True), ("1", True), (True, True)),
    "advertise": (('"a"', "a"), ("b", "b"), ("c", "c")),
    "resync": (("true", True), ("1", True), (True, True)),
    "slot-devices": (('["/dev/a", "/dev/b"]', ["/dev/a", "/dev/b"]), ("/dev/c,/dev/d", ["/dev/c", "/dev/d"]), (("/dev/e", "/dev/f"), ["/dev/e", "/dev/f"])),
    "reboot-command": (('"a b"', "a b"), ("c", "c"), ("d", "d")),
    "engine": (('"unix:///a"', "unix:///a"), ("unix:///b", "unix:///b"), ("tcp://c:1", "tcp://c:1")),
}  # fmt: skip


@pytest.mark.parametrize("key", FORMS)
def test_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Every key can be given in all three places; a flag beats a variable, which beats the file."""
    (toml, from_file), (variable, from_variable), (flag, from_flag) = FORMS[key]
    rest = "\n".join(f'{k} = "{v}"' for k, v in ENOUGH.items() if k != key)
    path = _file(tmp_path, f"{rest}\n{key} = {toml}\n")
    attribute = key.replace("-", "_")
    assert getattr(load(path, {}), attribute) == from_file
    monkeypatch.setenv("ARGOSY_" + attribute.upper(), variable)
    assert getattr(load(path, {}), attribute) == from_variable
    assert getattr(load(path, {key: flag}), attribute) == from_flag
    assert getattr(load(path, {key: None}), attribute) == from_variable, "a flag that was not given is none"


def test_every_key_is_tested_above() -> None:
    """A new key gets its line in the table (a token alone is no configuration)."""
    assert set(FORMS) | {"token"} == set(KEYS)


def test_a_variable_can_take_back_what_the_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """False is a value, too."""
    path = _file(tmp_path, 'name = "a"\ndata-dir = "/d"\ninsecure = true\n')
    monkeypatch.setenv("ARGOSY_INSECURE", "false")
    assert load(path, {}).insecure is False


def test_defaults() -> None:
    """What a host does when only its name and directory are given."""
    assert load(None, ENOUGH) == HostConfig(
        name="m1", data_dir="/data", transport="127.0.0.1:7001", client=["127.0.0.1:4001"], role="voter"
    )


def test_every_mistake_at_once_with_its_line(tmp_path: Path) -> None:
    """File, line, key, what is accepted, and the nearest known word: all problems in one answer."""
    path = _file(tmp_path, 'nme = "a"\ntransport = 7001\nclient = ["127.0.0.1"]\nbootstrap = "yes"\nrole = "votter"\n')
    found = _problems(path, {"join": ["nowhere"], "metadata": {"k": 3}})
    assert found == [
        f"{path}:1: unknown key 'nme' (did you mean name?)",
        f"{path}:2: transport is a text, not 7001",
        f"{path}:4: bootstrap is a boolean (true or false), not 'yes'",
        "--name: a host needs a name",
        "--data-dir: a host needs a directory of its own",
        "--role: 'votter' is not one of voter, agent (did you mean voter?)",
        "--client: '127.0.0.1' is not HOST:PORT or INTERFACE:PORT",
        "--join: 'nowhere' is not HOST:PORT or INTERFACE:PORT",
        "metadata.k: text, not 3",
    ]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('name = "a"\nbootstrap = perhaps\n', "(at line 2, column"),
        ('name = "a"\nname = "b"\n', "(at line 2"),
        ("= 1\n", "line 1"),
    ],
)
def test_bad_toml_names_the_place(tmp_path: Path, text: str, part: str) -> None:
    """What the parser says, with the file in front."""
    path = _file(tmp_path, text)
    (problem,) = _problems(path, {})
    assert problem.startswith(f"{path}: ")
    assert part in problem


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing, a directory, or not text: named."""
    assert _problems(str(tmp_path / "none"), {}) == [f"{tmp_path / 'none'}: No such file or directory"]
    assert _problems(str(tmp_path), {}) == [f"{tmp_path}: Is a directory"]
    path = tmp_path / "latin"
    path.write_bytes(b'name = "\xff"\n')
    (problem,) = _problems(str(path), {})
    assert problem.startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ({"bootstrap": True, "join": ["h:1"]}, "--bootstrap and --join exclude each other"),
        ({"token": "x"}, "--token: only with --join ADDR"),
        ({"name": "-a"}, "letters, digits, '.' and '-'"),
        ({"name": "a" * 64}, "at most 63"),
        ({"name": "a b"}, "letters, digits"),
        ({"transport": "h:0"}, "is not HOST:PORT"),
        ({"transport": "h:65536"}, "is not HOST:PORT"),
        ({"transport": ":1"}, "is not HOST:PORT"),
        ({"client": ["127.0.0.1:4001", "h"]}, "--client: 'h'"),
        ({"grpc": "x"}, "--grpc: 'x'"),
    ],
)
def test_rules_between_values(flags: dict[str, Any], part: str) -> None:
    """One sentence per rule that is broken."""
    (problem,) = _problems(None, {**ENOUGH, **flags})
    assert part in problem


def test_bad_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable's mistake is told like a flag's."""
    monkeypatch.setenv("ARGOSY_INSECURE", "perhaps")
    monkeypatch.setenv("ARGOSY_METADATA", "zone=a,novalue")
    found = _problems(None, ENOUGH)
    assert set(found) == {"ARGOSY_INSECURE: 'perhaps' is not true or false", "--metadata: 'novalue' is not KEY=VALUE"}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:4001", ("127.0.0.1", 4001)),
        ("docker0:4001", ("docker0", 4001)),
        ("[::1]:4001", ("::1", 4001)),
        ("host.example:65535", ("host.example", 65535)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    """A host's name or number, or an interface, and a port."""
    problems: list[str] = []
    assert split_address(text, "--x", problems) == address
    assert problems == []


def test_metadata_words() -> None:
    """``KEY=VALUE``; a value may hold an equals sign, a key may not be anything."""
    problems: list[str] = []
    assert parse_metadata(("zone=a", "note=a=b"), problems) == {"zone": "a", "note": "a=b"}
    assert problems == []
    assert parse_metadata(("zone", "=a", "zone=", "a b=c"), problems) == {}
    assert len(problems) == 4


def test_slots_are_two_devices_and_a_command_is_one(tmp_path: Path) -> None:
    """Each mistake has its sentence."""
    flags = dict(ENOUGH)
    assert "two of them" in _problems(None, {**flags, "slot-devices": ["/dev/a"]})[0]
    assert "two of them" in _problems(None, {**flags, "slot-devices": ["/dev/a", "/dev/a"]})[0]
    assert "'sda' is not the path" in _problems(None, {**flags, "slot-devices": ["sda", "/dev/b"]})[0]
    assert "No closing quotation" in _problems(None, {**flags, "reboot-command": "a 'b"})[0]
