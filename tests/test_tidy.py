"""The house rules that a machine can check: who imports whom, and which calls go where."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.main import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
#: Each room may import the rooms listed for it; see docs/architecture.md.
ROOMS: dict[str, set[str]] = {
    "metrics": set(),
    "kernel": {"metrics"},
    "brain": {"kernel"},
    "fleet": set(),
    "transport": {"kernel", "metrics"},
    "runners": {"fleet", "kernel", "metrics"},
    "actors": {"brain", "fleet", "runners", "transport", "kernel", "metrics"},
    "gateway": {"actors", "brain", "fleet", "runners", "transport", "kernel", "metrics"},
    "cli": {"gateway", "actors", "brain", "fleet", "runners", "transport", "kernel", "metrics"},
}
OUTSIDE = {"time", "random", "socket", "os", "threading", "asyncio", "subprocess", "secrets", "uuid"}
#: Rooms without a clock, a socket or a random source; time comes through ports.
PURE = {"brain": set[str](), "fleet": set[str](), "actors": set[str]()}
#: Modules of ``kernel`` that are the real world's side of a port.
ADAPTERS = {"kernel/dispatch.py", "kernel/actor.py", "kernel/future.py", "kernel/mailbox.py",
            "kernel/current.py", "kernel/supervision.py", "kernel/sim.py"}  # fmt: skip
LINES_MAX = 1000
FUNCTION_LINES_MAX = 75


def modules(room: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / room).rglob("*.py")):
        yield path, ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_imports_go_one_way(room: str) -> None:
    """cli -> gateway -> actors -> {brain, fleet, runners, transport} -> kernel -> metrics."""
    for path, tree in modules(room):
        foreign = {name for name in imported(tree) if name in ROOMS and name != room}
        assert foreign <= ROOMS[room], f"{path.relative_to(ROOT)} imports {foreign - ROOMS[room]}"


def test_the_brain_takes_only_the_codec_from_the_kernel() -> None:
    """No actors in the pure core."""
    for path, tree in modules("brain"):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kernel"):
                taken = {f"{node.module}.{alias.name}" for alias in node.names}
                assert taken <= {"kernel.cbor", "kernel.cbor.DecodeError"}, path


@pytest.mark.parametrize("room", sorted(PURE))
def test_pure_rooms_know_nothing_of_the_outside(room: str) -> None:
    """The brain, the fleet and the actors get time, chance, disk and net from their ports."""
    for path, tree in modules(room):
        outside = set(imported(tree)) & OUTSIDE
        assert not outside, f"{path.relative_to(ROOT)} imports {outside}"


def test_the_kernel_touches_the_world_only_in_its_adapters() -> None:
    """Everything else in the kernel runs the same in the simulator."""
    for path, tree in modules("kernel"):
        name = str(path.relative_to(ROOT))
        if name not in ADAPTERS:
            assert not set(imported(tree)) & OUTSIDE, name


def calls(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_no_pickle_no_eval_no_shell(room: str) -> None:
    """Law 4: nothing is executed that came in as data, and no shell reads a built string."""
    for path, tree in modules(room):
        assert not set(imported(tree)) & {"pickle", "marshal", "shelve"}, path
        for line, name in calls(tree):
            assert name not in ("eval", "exec", "os.system", "os.popen"), f"{path}:{line}"
        text = path.read_text()
        assert not re.search(r"shell\s*=\s*True", text), path


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_files_and_functions_stay_readable(room: str) -> None:
    """A long file is a question; beyond these lengths it is an answer."""
    for path, tree in modules(room):
        assert len(path.read_text().splitlines()) <= LINES_MAX, path
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length <= FUNCTION_LINES_MAX, f"{path}:{node.lineno} {node.name}: {length} lines"


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_every_module_says_what_it_is_for(room: str) -> None:
    """One paragraph at the top of each file."""
    for path, tree in modules(room):
        if path.name != "__init__.py":
            assert ast.get_docstring(tree), path


def test_no_file_is_unused() -> None:
    """Each module is imported by another one, or is an entrance."""
    entrances = {"cli.main", "cli.etcd", "runners.shim.__main__", "runners.container_guard", "runners.simulated", "kernel.sim"}
    names: set[str] = {f"cli.{module}" for module, _ in COMMANDS.values()}
    for room in ROOMS:
        for path, tree in modules(room):
            package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1])
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom):
                    parts = package.split(".")
                    base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
                    module = ".".join(filter(None, [base, node.module]))
                    names.add(module)
                    names.update(f"{module}.{alias.name}" for alias in node.names)
                elif isinstance(node, ast.Import):
                    names.update(alias.name for alias in node.names)
    for room in ROOMS:
        for path, _ in modules(room):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            if path.name != "__init__.py" and name not in entrances:
                assert name in names, f"nobody imports {name}"


def test_message_numbers_are_unique_and_stable() -> None:
    """What crosses hosts has a number that is never given to another type."""
    import actors.company  # noqa: F401 - these two register everything
    import gateway.relay  # noqa: F401
    from transport.codec import _by_number

    known = {10: "Message", 20: "KeepAlive", 21: "Forward", 22: "ReadIndex", 23: "SnapshotChunk",
             24: "ForwardedChange", 25: "TimeToLive", 26: "StateHash",
             27: "Quarantine", 28: "StillMember", 30: "Command",
             40: "AgentPropose", 41: "AgentRange", 42: "AgentFollow", 43: "AgentStatus",
             45: "RelayOpen", 46: "RelayMore", 47: "RelayBody", 48: "RelayClose"}  # fmt: skip
    assert {number: kind.cls.__name__ for number, kind in _by_number.items()} == known


def test_dependencies_are_explained() -> None:
    """docs/dependencies.md says why each one is there."""
    text = (ROOT / "docs" / "dependencies.md").read_text()
    listed = re.search(r"dependencies = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.S)
    assert listed is not None
    for name in re.findall(r'"([A-Za-z0-9_-]+)', listed.group(1)):
        assert f"`{name}`" in text, f"docs/dependencies.md does not explain {name}"


def test_the_table_of_states_in_the_docs_is_the_code() -> None:
    """docs/units.md draws the state machine that runs."""
    from fleet.service import ACTIVE, TRANSITIONS

    text = (ROOT / "docs" / "units.md").read_text()
    for sub, after in TRANSITIONS.items():
        row = f"| {sub.value} | {ACTIVE[sub]} | {', '.join(a.value for a in after)} |"
        assert row in text, row


def test_the_docs_have_every_key_of_unit_files() -> None:
    """docs/units.md is the whole reference."""
    from fleet import container, timer
    from fleet.keys import IGNORED, KEYS

    words = set(re.findall(r"[\w-]+", (ROOT / "docs" / "units.md").read_text()))
    for section, keys in KEYS.items():
        for key in {*keys, *IGNORED.get(section, ())}:
            assert key in words or re.sub("^(Condition|Assert)", "", key) in words, f"docs/units.md does not tell of {key}="
    for key in {*container.KEYS, *container.IGNORED, *timer.KEYS["Timer"], *timer.IGNORED["Timer"]}:
        assert key in words, f"docs/units.md does not tell of {key}="
