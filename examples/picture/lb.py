"""A load balancer: HAProxy (or a small proxy) that follows the announced API servers.

``argosy kv render`` writes the configuration from the brain and says when it changed; this
program starts the proxy on it and passes the news on.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
argosy = shutil.which("argosy") or str(Path(sys.executable).with_name("argosy"))
haproxy = shutil.which("haproxy") or ("/usr/sbin/haproxy" if os.path.exists("/usr/sbin/haproxy") else "")
work = Path(tempfile.mkdtemp(prefix="lb-"))
os.environ["LB_DIR"] = str(work)
config = work / "haproxy.cfg"
render = [argosy, "kv", "render", str(HERE / "haproxy.cfg.j2"), str(config)]

subprocess.run([*render, "--once"], check=True)
if haproxy:
    command = [haproxy, "-W", "-db", "-f", str(config)]
    check = ["--check", f"{haproxy} -c -q -f {{}}"]
    news = signal.SIGUSR2
else:
    command = [sys.executable, "-u", str(HERE / "small_proxy.py"), str(config), os.environ["PORT"]]
    check = []
    news = signal.SIGHUP
proxy = subprocess.Popen(command)
follower = subprocess.Popen([*render, *check, "--splay", "0.05", "--exec", f"kill -{news.value} {proxy.pid}"])


def stop(*_: object) -> None:
    follower.terminate()
    proxy.terminate()


signal.signal(signal.SIGTERM, stop)
status = proxy.wait()
follower.terminate()
shutil.rmtree(work, ignore_errors=True)
sys.exit(0 if status in (0, 143, -15) else 1)
