"""What is shipped: the wheel has the rooms and nothing else, and runs without the checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .test_tidy import ROOMS, ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `make test` has built, or one built now."""
    built = sorted((ROOT / "dist").glob("*.whl"))
    if not built:
        out = tmp_path_factory.mktemp("dist")
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(out), str(ROOT)],
            check=True, capture_output=True,
        )  # fmt: skip
        built = sorted(out.glob("*.whl"))
    return built[-1]


def test_the_wheel_holds_the_rooms_and_no_tests(wheel: Path) -> None:
    """Top-level names are a given, so they are pinned here."""
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(ROOMS)


def test_the_wheel_runs_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Unpacked elsewhere, the command line answers and the shim is there."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    assert (tmp_path / "runners" / "shim" / "__main__.py").exists()
    assert (tmp_path / "gateway" / "page" / "index.html").exists()
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import cli.main as m, importlib\n"
        "for module, _ in m.COMMANDS.values(): importlib.import_module(f'cli.{module}')\n"
        "print(m.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd="/", capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(tmp_path))
