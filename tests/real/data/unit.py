"""A unit for tests: does what its words say, one after another, and writes down what it was given.

usage: unit.py WORD...
  env FILE          write the environment and where it runs, as JSON
  mark FILE         add a line with the process id to FILE
  once FILE WORD..  the first time (FILE is not there yet) do what follows, else sleep for ever
  await FILE        wait until FILE is there
  notify TEXT       say this to NOTIFY_SOCKET (commas separate lines)
  daemon FILE       go on as a daemon, whose process id goes to FILE
  eat MB            take so much memory
  alone FILE        from here on hold FILE locked; if somebody does, say so in FILE.double
  count             print numbers from 1 on, fifty a second
  say TEXT | complain TEXT      on standard output, on standard error
  exit N | signal N | sleep | ignore (SIGTERM) | child FILE (a grandchild in a session of its own that
  ignores SIGTERM; its pid goes to FILE) | serve FLAG (HTTP on PORT: 200 while FLAG exists, else 500)
"""

import fcntl
import json
import os
import resource
import signal
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer


def forever() -> None:
    while True:
        time.sleep(1000)


def child(path: str) -> None:
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            append(path, str(os.getpid()))
            forever()
        os._exit(0)


def append(path: str, text: str) -> None:
    with open(path, "a") as file:
        file.write(text + "\n")


def notify(text: str) -> None:
    address = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect("\0" + address[1:] if address.startswith("@") else address)
        out.send(text.replace(",", "\n").encode())


def daemon(path: str) -> None:
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    append(path, str(os.getpid()))


def alone(path: str) -> None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    os.set_inheritable(handle, True)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        append(f"{path}.double", f"{os.getpid()} at {time.time()}")


def count() -> None:
    number = 0
    while True:
        number += 1
        print(number, flush=True)
        time.sleep(0.02)


def report(path: str) -> None:
    given = {
        "env": dict(os.environ), "cwd": os.getcwd(), "uid": os.getuid(), "gid": os.getgid(),
        "umask": os.umask(0), "nice": os.nice(0), "argv0": open("/proc/self/cmdline").read().split("\0")[0],
        "session": os.getsid(0) == os.getpid(), "groups": os.getgroups(),
        "nofile": resource.getrlimit(resource.RLIMIT_NOFILE), "core": resource.getrlimit(resource.RLIMIT_CORE),
        "oom": open("/proc/self/oom_score_adj").read().strip(), "cgroups": open("/proc/self/cgroup").read(),
        "no_new_privileges": "NoNewPrivs:\t1" in open("/proc/self/status").read(),
    }  # fmt: skip
    with open(path + ".new", "w") as file:
        json.dump(given, file)
    os.replace(path + ".new", path)


class Page(BaseHTTPRequestHandler):
    flag = ""

    def do_GET(self) -> None:
        self.send_response(200 if os.path.exists(self.flag) else 500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def serve(flag: str) -> None:
    Page.flag = flag
    HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Page).serve_forever()


words = sys.argv[1:]
while words:
    word = words.pop(0)
    if word == "env":
        report(words.pop(0))
    elif word == "mark":
        append(words.pop(0), str(os.getpid()))
    elif word == "once":
        path = words.pop(0)
        if os.path.exists(path):
            forever()
        append(path, "")
    elif word == "await":
        path = words.pop(0)
        while not os.path.exists(path):
            time.sleep(0.02)
    elif word == "notify":
        notify(words.pop(0))
    elif word == "daemon":
        daemon(words.pop(0))
    elif word == "alone":
        alone(words.pop(0))
    elif word == "count":
        count()
    elif word == "eat":
        eaten = bytearray(int(words.pop(0)) * 1024 * 1024)
        eaten[::4096] = bytes(len(eaten[::4096])).replace(b"\0", b"x")
    elif word == "say":
        print(words.pop(0), flush=True)
    elif word == "complain":
        print(words.pop(0), file=sys.stderr, flush=True)
    elif word == "exit":
        sys.exit(int(words.pop(0)))
    elif word == "signal":
        os.kill(os.getpid(), int(words.pop(0)))
        forever()
    elif word == "sleep":
        forever()
    elif word == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif word == "child":
        child(words.pop(0))
    elif word == "serve":
        serve(words.pop(0))
    else:
        sys.exit(f"unit.py: no word {word!r}")
