"""What the third-party suites run with: packages of their own, and the ``etcd`` that is judged.

The packages lie in a virtual environment below ``.cache/judges/``, made at the first need
and kept for as long as the list below stays the same.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "judges"
#: Names the binary to judge, instead of the ``etcd`` beside this interpreter.
BINARY_VARIABLE = "ARGOSY_JUDGE_ETCD"
#: Builds the one package that comes as source only.
BUILDER = "setuptools==80.9.0"
#: Everything, so that a suite that fails tomorrow fails because of us.
REQUIREMENTS = (
    "python-etcd==0.4.5", "etcd3gw==2.7.0",
    "certifi==2026.10.18", "cffi==2.1.1", "charset-normalizer==3.5.2", "cryptography==50.0.2",
    "debtcollector==3.1.0", "dnspython==2.9.2", "fixtures==4.3.2", "futurist==3.5.0", "idna==3.20",
    "iniconfig==2.3.1", "mock==5.2.0", "oslotest==6.1.1", "packaging==26.3", "pbr==7.1.3",
    "pluggy==1.7.0", "pycparser==3.12", "Pygments==2.21.0", "pyOpenSSL==26.4.0", "pytest==9.2.0",
    "pytest-timeout==2.4.0", "requests==2.34.2", "testtools==2.9.1", "typing_extensions==4.16.0",
    "urllib3==1.26.20", "wrapt==2.5.2",
)  # fmt: skip
#: python-etcd's suite imports one name of ``nose``, which no Python since 3.10 can install.
NOSE_TOOLS = "def nottest(function):\n    return function\n"
#: python-etcd3, whose messages were made for an older protobuf than its neighbours take.
REQUIREMENTS_OF_V3 = (
    "etcd3==0.12.0", "attrs==26.1.0", "grpcio==1.85.3", "hypothesis==5.41.5", "iniconfig==2.3.1", "mock==5.2.0",
    "packaging==26.4", "pluggy==1.7.0", "protobuf==3.20.3", "Pygments==2.21.0", "pytest==9.2.0", "pytest-timeout==2.4.0",
    "six==1.17.0", "sortedcontainers==2.4.0", "tenacity==6.3.1", "typing_extensions==4.16.0",
)  # fmt: skip
#: Its tests are in its source distribution alone; this is the package that they become.
V3_SUITE = "python_etcd3_tests"
_INSTALL_S_MAX = 240.0
_FOREIGN = ("ARGOSY_", "ETCD_", "ETCDCTL_", "PYTEST_", "TOOZ_")


def _recipe(requirements: tuple[str, ...]) -> str:
    listed = "\n".join((BUILDER, *requirements, NOSE_TOOLS, sys.version, sys.base_prefix))
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


@contextmanager
def _alone() -> Iterator[None]:
    """One session at a time makes the environment."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _run(*command: str | Path) -> None:
    done = subprocess.run(
        [str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=_INSTALL_S_MAX, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"


def _make(folder: Path, python: Path, requirements: tuple[str, ...]) -> None:
    _run(sys.executable, "-m", "venv", folder)
    pip = (python, "-m", "pip", "install", "-q", "--no-input", "--disable-pip-version-check")
    _run(*pip, BUILDER)
    _run(*pip, "--no-build-isolation", "--use-pep517", *requirements)
    (packages,) = folder.glob("lib/python*/site-packages")
    if requirements is REQUIREMENTS_OF_V3:
        _unpack_tests(folder, python, packages / V3_SUITE)
    else:
        (packages / "nose").mkdir()
        (packages / "nose" / "__init__.py").touch()
        (packages / "nose" / "tools.py").write_text(NOSE_TOOLS)


def _unpack_tests(folder: Path, python: Path, target: Path) -> None:
    """Fetch the source distribution, and keep its tests."""
    _run(python, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation", "--no-binary", ":all:",
         "-d", folder / "source", REQUIREMENTS_OF_V3[0])  # fmt: skip
    (archive,) = (folder / "source").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder / "source", filter="data")
    (tests,) = (folder / "source").glob("*/tests")
    shutil.move(tests, target)


@functools.cache
def python_of_judges(requirements: tuple[str, ...] = REQUIREMENTS) -> Path:
    """The interpreter that sees the suites, made when it is not there yet."""
    folder = CACHE / _recipe(requirements)
    python, finished = folder / "bin" / "python", folder / "finished"
    with _alone():
        if not finished.exists():
            shutil.rmtree(folder, ignore_errors=True)
            _make(folder, python, requirements)
            finished.touch()
    return python


def etcd_under_test() -> Path:
    """The binary that is judged."""
    beside = Path(sys.executable).with_name("etcd")
    binary = Path(os.environ.get(BINARY_VARIABLE) or beside).absolute()
    assert os.access(binary, os.X_OK), f"{binary} cannot be run: pip install -e ., or set {BINARY_VARIABLE}"
    return binary


def variables(folder: Path, **more: str) -> dict[str, str]:
    """An environment in which ``etcd`` is the one under test, and temporary files go below ``folder``.

    A real etcd of 3.4 speaks v2 only when it is told to; ours always does.
    """
    programs, scratch = folder / "bin", folder / "tmp"
    programs.mkdir(exist_ok=True)
    scratch.mkdir(exist_ok=True)
    if not (programs / "etcd").exists():
        (programs / "etcd").symlink_to(etcd_under_test())
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
    path = f"{programs}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return {**kept, "PATH": path, "TMPDIR": str(scratch), "ETCD_ENABLE_V2": "true", **more}
