"""``argosy unit exec``: a command inside a unit, from another machine, with pipes and with a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..waiting import wait_until
from .cluster import Cluster, alive, argosy_command, environment, port_offset, processes_of, request

FILE = """[Service]
ExecStart=/bin/sleep 1000
Environment=COLOUR=green
WorkingDirectory=/usr
Restart=always
RestartSec=50ms
User=nobody
[X-Fleet]
MachineMetadata=name=m3
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three machines; commands are given to the first, the unit runs on the third."""
    with port_offset() as offset:
        made = Cluster(tmp_path_factory.mktemp("cluster"), offset)
        try:
            made.create({"m3": {"name": "m3"}})
            made.up()
            made.submit("u.service", FILE if os.getuid() == 0 else FILE.replace("User=nobody\n", ""))
            made.start("u")
            yield made
        finally:
            made.down()


class Screen:
    """A terminal on which ``argosy unit exec`` runs."""

    def __init__(self, cluster: Cluster, *command: str) -> None:
        self.text = ""
        self.pid, self.handle = pty.fork()
        if self.pid == 0:
            words = [argosy_command(), "--context", str(cluster.context), "unit", "exec", *command]
            os.execve(words[0], words, environment(cluster.home))

    def type(self, text: str) -> None:
        os.write(self.handle, text.encode())

    def await_(self, pattern: str) -> str:
        def look() -> str | None:
            if select.select([self.handle], [], [], 0)[0]:
                try:
                    self.text += os.read(self.handle, 65536).decode("utf-8", "replace")
                except OSError:
                    pass
            found = re.search(pattern, self.text)
            return found.group(0) if found else None

        try:
            return wait_until(f"{pattern!r} on the screen", look)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.text!r}") from None

    def end(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        os.close(self.handle)
        return os.waitstatus_to_exitcode(status)


def _left(cluster: Cluster) -> list[Path]:
    return list((cluster.dir / "m3" / "units" / "u.service").glob("exec.*"))


def test_a_command_runs_as_one_of_the_unit(cluster: Cluster) -> None:
    """Its user, directory and environment; its output apart, its exit status."""
    script = 'echo "$COLOUR $ARGOSY_MACHINE $(pwd) $(id -un)"; echo wrong >&2; exit 7'
    done = cluster.argosy("unit", "exec", "u", "--", "/bin/sh", "-c", script)
    assert done.returncode == 7, done.stderr
    user = "nobody" if os.getuid() == 0 else subprocess.check_output(["id", "-un"], text=True).strip()
    assert done.stdout == f"green m3 /usr {user}\n"
    assert done.stderr == "wrong\n"
    assert not _left(cluster)


def test_input_goes_in_and_all_of_the_output_comes_out(cluster: Cluster) -> None:
    """Ten megabytes there and back: nothing is lost, and the end of the input is one."""
    data = os.urandom(10_000_000)
    words = [argosy_command(), "--context", str(cluster.context), "unit", "exec", "u", "--", "cat"]
    done = subprocess.run(words, input=data, capture_output=True, env=environment(cluster.home), timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == data


def test_what_cannot_run_says_why(cluster: Cluster) -> None:
    """No such program, no such unit, a unit that does not run."""
    done = cluster.argosy("unit", "exec", "u", "--", "no-such-program")
    assert (done.returncode, "no such program" in done.stderr) == (127, True), done.stderr
    done = cluster.argosy("unit", "exec", "nothing", "--", "true")
    assert (done.returncode, "no unit is called nothing.service" in done.stderr) == (1, True), done.stderr
    cluster.submit("idle.service", "[Service]\nExecStart=/bin/true\n")
    done = cluster.argosy("unit", "exec", "idle", "--", "true")
    assert (done.returncode, "idle.service does not run" in done.stderr) == (1, True), done.stderr


def test_a_terminal(cluster: Cluster) -> None:
    """A shell that has job control, the size of the window, and Ctrl-C for what runs in it."""
    screen = Screen(cluster, "u", "--", "/bin/sh")
    screen.await_(r"[$#] ")
    screen.type("stty size; tty; echo $((6 * 7)).\r")
    screen.await_(r"\n24 80\r\n/dev/pts/\d+\r\n42\.")
    screen.type("sleep 500; echo after=$?\r")
    wait_until("the shell waits for it", lambda: any(process.command.strip() == "sleep 500" for process in processes_of(cluster.dir / "m3")))
    screen.type("\x03")
    screen.type("echo and on\r")
    screen.await_(r"(\n|[^o] )and on\r")  # the echo of what was typed is "echo and on"
    screen.type("exit 5\r")
    assert screen.end() == 5


def test_a_session_does_not_hold_up_its_unit(cluster: Cluster) -> None:
    """An interactive shell ignores SIGTERM; the restart does not wait for it."""
    before = int(cluster.row("u.service")["pid_or_container"])
    screen = Screen(cluster, "u", "--", "/bin/bash")
    screen.await_(r"[$#] ")
    screen.type("trap '' HUP TERM; echo $((40 + 2)).\r")
    screen.await_(r"[\r\n]42\.")
    began = time.monotonic()
    cluster.ok("unit", "restart", "u")
    assert time.monotonic() - began < 15
    assert int(cluster.row("u.service")["pid_or_container"]) != before
    assert screen.end() == 128 + signal.SIGKILL


def test_nothing_is_left_of_a_session_whose_operator_is_gone(cluster: Cluster) -> None:
    """It is ended when nobody has fetched from it for a while."""
    words = [argosy_command(), "--context", str(cluster.context), "unit", "exec", "u", "--",
             "/bin/sh", "-c", "echo $$; sleep 600"]  # fmt: skip
    operator = subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment(cluster.home))
    assert operator.stdout is not None
    inside = int(operator.stdout.readline())
    assert alive(inside)
    operator.kill()
    operator.wait()
    operator.stdout.close()
    wait_until("it is ended", lambda: not alive(inside), 60)
    assert not _left(cluster)


def test_a_session_outlives_the_shim_and_ends_with_its_guard(cluster: Cluster) -> None:
    """It goes on where another process took over; and nobody is left waiting for a command that is gone."""
    words = [argosy_command(), "--context", str(cluster.context), "unit", "exec", "u", "--", "/bin/sh", "-c", "echo up; read x; echo $x; read y; exit 7"]
    file = cluster.dir / "m3" / "units" / "u.service" / "state.json"
    for both in (False, True):
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE, text=True,
                              env=environment(cluster.home)) as operator:  # fmt: skip
            assert operator.stdout is not None and operator.stdin is not None
            assert operator.stdout.readline() == "up\n"
            shim = json.loads(file.read_text())["shim"]["pid"]
            if both:  # it is the guard of the one before, and has none
                os.kill(shim, signal.SIGKILL)
                _, said = operator.communicate(timeout=40)
                assert (operator.returncode, "its shim ended" in said) == (255, True), said
                break
            os.kill(shim, signal.SIGKILL)
            wait_until("its guard", lambda shim=shim: json.loads(file.read_text())["shim"]["pid"] != shim)  # type: ignore[misc]
            operator.stdin.write("still here\n")
            operator.stdin.flush()
            assert operator.stdout.readline() == "still here\n"
            operator.stdin.write("bye\n")
            operator.stdin.flush()
            operator.communicate(timeout=40)
            assert operator.returncode == 7
    wait_until("the unit is back", lambda: cluster.row("u.service")["active"] == "active")


def test_a_session_of_a_host_that_was_killed_is_ended_by_the_next(cluster: Cluster) -> None:
    """Nobody could fetch from it any more: it would run as long as the unit does."""
    words = [argosy_command(), "--context", str(cluster.context), "unit", "exec", "u", "--",
             "/bin/sh", "-c", "trap '' HUP; echo $$; sleep 600"]  # fmt: skip
    with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          env=environment(cluster.home)) as operator:  # fmt: skip
        assert operator.stdout is not None
        inside = int(operator.stdout.readline())
        old = cluster.kill_host("m3")
        cluster.await_new_host("m3", old)
        wait_until("it is ended", lambda: not alive(inside))
        operator.kill()
    assert cluster.row("u.service")["active"] == "active"


def test_what_is_no_session_is_refused_with_a_sentence(cluster: Cluster) -> None:
    """A size, words and input of a wrong kind; a command that a shim would not read; an integer for a secret."""
    asked = {"unit": "u.service", "argv": ["/bin/true"], "size": None}
    wrong = [
        ("unit.enter", {**asked, "size": [1]}, "two numbers"), ("unit.enter", {**asked, "argv": "x"}, "list of words"),
        ("unit.enter", {**asked, "argv": ["\u00e9" * 100_000] * 15}, "command_bytes_max"),
        ("unit.exchange", {"unit": "u.service", "machine": "m3", "session": "x", "wait": float("nan")}, "a number of seconds"),
        ("secret.set", {"name": "zeros", "value": 7}, "bytes"),
    ]  # fmt: skip
    for verb, args, told in wrong:
        with pytest.raises(Exception, match=told):
            cluster.ask(verb, **args)
    assert not cluster.ask("secret.list")
    wait_until("what the sessions before this left to be gone", lambda: not _left(cluster))


def test_secrets_are_in_no_snapshot_of_an_open_door(cluster: Cluster) -> None:
    """Any process of the host could read them there; the operator's own command still has them."""
    door = cluster.client_port(1)
    assert request(door, "POST", "/v3/maintenance/snapshot", b"{}").status == 200
    cluster.ask("secret.set", name="word", value=b"not-for-everybody")
    answer = request(door, "POST", "/v3/maintenance/snapshot", b"{}")
    assert answer.status == 403 and "cluster snapshot save" in answer.text
    cluster.ok("cluster", "snapshot", "save", str(cluster.dir / "saved"))
    cluster.ask("secret.delete", name="word")
