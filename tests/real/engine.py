"""A Docker engine of a test's own, started by hand and out of the way of the machine's.

It makes no firewall rules and no bridge, so it changes nothing for another engine here.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import docker
import docker.errors

from ..waiting import wait_until

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BUSYBOX = Path("/bin/busybox")
IMAGE = "argosy.test/box:1"
_APPLETS = ("sh", "sleep", "echo", "cat", "seq", "httpd", "kill", "true", "test", "touch", "wget", "tail", "head", "rm", "dd")


def missing() -> str:
    """Why no engine can be started here; empty if one can."""
    if not shutil.which("dockerd", path=SEARCH_PATH):
        return "the Debian package docker.io is not installed"
    if not BUSYBOX.exists():
        return "the Debian package busybox-static is not installed"
    if not shutil.which("iptables", path=SEARCH_PATH):
        return "the Debian package iptables is not installed"
    return "" if os.geteuid() == 0 else "an engine is started by root only"


class EngineHere:
    """One ``dockerd`` with directories of its own, and a runtime that outlives it as on a real machine."""

    def __init__(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="argosy-engine-"))
        self.url = f"unix://{self.dir}/engine.sock"
        self.process: subprocess.Popen[bytes] | None = None
        self.runtime: subprocess.Popen[bytes] | None = None
        (self.dir / "config.json").write_text("{}")

    def start(self) -> None:
        """Up and answering."""
        environment = {**os.environ, "PATH": SEARCH_PATH}
        address = f"{self.dir}/runtime.sock"
        with (self.dir / "log").open("ab") as log:
            if self.runtime is None:
                (self.dir / "runtime.toml").write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
                self.runtime = subprocess.Popen(
                    ["containerd", "--config", f"{self.dir}/runtime.toml", "--address", address,
                     "--root", f"{self.dir}/runtime-root", "--state", f"{self.dir}/runtime-state"],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                )  # fmt: skip
                wait_until("the runtime listens", lambda: Path(address).exists())
            self.process = subprocess.Popen(
                ["dockerd", "--data-root", f"{self.dir}/data", "--exec-root", f"{self.dir}/exec",
                 "--pidfile", f"{self.dir}/pid", "--host", self.url, "--config-file", f"{self.dir}/config.json",
                 "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
                 "--bridge=none", "--shutdown-timeout", "2", "--containerd", address],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            )  # fmt: skip
        wait_until("the engine answers", lambda: self.process and self.process.poll() is None and self._answers())

    def _answers(self) -> bool:
        connection = HTTPConnection("localhost", timeout=5)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(self.url.removeprefix("unix://"))
            connection.request("GET", "/_ping")
            return connection.getresponse().status == 200
        finally:
            connection.close()

    def client(self) -> Any:
        """For what a test does by itself."""
        return docker.APIClient(base_url=self.url, version="auto", timeout=30)

    def make_image(self) -> None:
        """An image of busybox, made from a tar."""
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            tar.add(BUSYBOX.resolve(), "bin/busybox")
            for name in _APPLETS:
                link = tarfile.TarInfo(f"bin/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
            for name in ("tmp", "etc", "www"):
                folder = tarfile.TarInfo(name)
                folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
                tar.addfile(folder)
        client = self.client()
        repository, _, tag = IMAGE.rpartition(":")
        client.import_image_from_data(data.getvalue(), repository=repository, tag=tag)
        client.close()

    def signal(self, number: int) -> None:
        """To the engine itself, not to the runtime below it."""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        """As a service manager stops it: its containers end with it."""
        if self.process is None:
            return
        self.signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(60)
        self.process = None

    def crash(self) -> None:
        """Killed: its containers outlive it, until the next engine ends them."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(60)
        self.process = None

    def remove_all(self) -> None:
        """No container is left."""
        client = self.client()
        for found in client.containers(all=True):
            try:
                client.remove_container(found["Id"], force=True, v=True)
            except docker.errors.APIError:
                continue
        client.close()

    def end(self) -> None:
        """Gone with its directories."""
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGCONT)
            try:
                self.remove_all()
            except docker.errors.DockerException:
                pass  # it never came up
        self.stop()
        if self.runtime is not None:
            self.runtime.terminate()
            self.runtime.wait(60)
        shutil.rmtree(self.dir, ignore_errors=True)
