"""The demo's containers: an engine to run them in, and an image made from what this machine has.

No registry is asked: the image holds busybox, HAProxy with its libraries, and a few scripts.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import docker
import docker.errors
import requests

DEFAULT = "unix:///var/run/docker.sock"
IMAGE = "argosy.example/picture:1"
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Seconds an engine of the demo's own has to start, and to end.
START_S_MAX = 60.0
END_S_MAX = 30.0
_APPLETS = ("sh", "cat", "cmp", "echo", "httpd", "kill", "mv", "printf", "sed", "sleep", "sort", "timeout", "tr", "wget")


class EngineError(Exception):
    """There is no engine, or no image can be made; the text says what is missing."""


def find(wanted: str, folder: Path) -> tuple[str, Engine | None]:
    """The address of an engine, and the one that was started for it.

    ``wanted``: an address, or ``docker`` for the machine's own; where that one does not answer
    one is started by root, with its files below ``folder``.
    """
    url = os.environ.get("DOCKER_HOST", DEFAULT) if wanted == "docker" else wanted
    if answers(url):
        return url, None
    if wanted != "docker":
        raise EngineError(f"no engine answers at {url}")
    if os.geteuid() != 0:
        raise EngineError(f"no engine answers at {url}; only root may start one")
    if not shutil.which("dockerd", path=SEARCH_PATH):
        raise EngineError(f"no engine answers at {url}, and none is installed (apt-get install docker.io iptables)")
    started = Engine(folder)
    return started.url, started


def answers(url: str) -> bool:
    """Whether an engine is there."""
    try:
        client = docker.APIClient(base_url=url, version="auto", timeout=5)
    except (docker.errors.DockerException, requests.RequestException):
        return False
    client.close()
    return True


class Engine:
    """A ``dockerd`` for one demo: its own files, the usual bridge, no rules in the firewall."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._data = folder / "data"
        # sockets have short paths; and the same each time, for the hosts' configuration names it
        self._run = Path("/run/argosy-demo-" + hashlib.sha256(str(folder).encode()).hexdigest()[:12])
        self._run.mkdir(mode=0o700, exist_ok=True)
        self.url = f"unix://{self._run}/engine.sock"
        self._had_bridge = Path("/sys/class/net/docker0").exists()
        (folder / "engine.json").write_text("{}")
        with open(folder / "engine.log", "ab") as log:
            self._process = subprocess.Popen(
                ["dockerd", "--data-root", str(self._data), "--exec-root", f"{self._run}/exec",
                 "--pidfile", f"{self._run}/engine.pid", "--host", self.url, "--config-file", f"{folder}/engine.json",
                 "--iptables=false", "--ip6tables=false", "--ip-masq=false"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "PATH": SEARCH_PATH},
            )  # fmt: skip
        try:
            self._await_answer(f"dockerd did not start; {folder}/engine.log says why")
        except BaseException:
            self.end()
            raise

    def _await_answer(self, why_not: str) -> None:
        deadline = time.monotonic() + START_S_MAX
        while not answers(self.url):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise EngineError(why_not)
            time.sleep(0.1)

    def end(self) -> None:
        """Stop it, and with it its containers; the bridge goes if it came with it."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(END_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        left = [["umount", f"{self._run}/exec/netns/default"], ["umount", str(self._data)]]
        if not self._had_bridge:
            left.append(["ip", "link", "delete", "docker0"])
        for command in left:
            subprocess.run(command, check=False, capture_output=True, env={"PATH": SEARCH_PATH})
        shutil.rmtree(self._run, ignore_errors=True)


def remove_containers(url: str, cluster: str) -> None:
    """What a cluster that has been stopped left in an engine."""
    client = docker.APIClient(base_url=url, version="auto", timeout=60)
    try:
        for found in client.containers(all=True, filters={"label": f"argosy.cluster={cluster}"}):
            client.remove_container(found["Id"], force=True, v=True)
    except docker.errors.APIError as error:
        raise EngineError(f"containers of the demo are left at {url}: {error.explanation}") from None
    finally:
        client.close()


def make_image(url: str, folder: Path) -> None:
    """Import the picture's image; ``folder`` holds its scripts."""
    busybox, haproxy = (shutil.which(name, path=SEARCH_PATH) for name in ("busybox", "haproxy"))
    if busybox is None or haproxy is None:
        raise EngineError("the image needs busybox and HAProxy (apt-get install busybox-static haproxy)")
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for path in {busybox, haproxy}:
            tar.add(os.path.realpath(path), f"bin/{Path(path).name}")
        for library in libraries(haproxy):
            tar.add(os.path.realpath(library), library.lstrip("/"))
        for name in _APPLETS:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        temporary = tarfile.TarInfo("tmp")
        temporary.type, temporary.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(temporary)
        tar.add(folder, "picture")
    repository, _, tag = IMAGE.rpartition(":")
    client = docker.APIClient(base_url=url, version="auto", timeout=120)
    try:
        client.import_image_from_data(data.getvalue(), repository=repository, tag=tag)
    finally:
        client.close()


def libraries(program: str) -> list[str]:
    """The files that a program is linked with; none if it is static."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False, env={"PATH": SEARCH_PATH})
    return re.findall(r"(/\S+) \(0x", done.stdout)
