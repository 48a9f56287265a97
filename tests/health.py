"""Waits for servers that tests start."""

import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path


def wait_until_healthy(server: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    """Waits until the server answers at `address`; fails with the end of its log if it exits or never answers."""
    for _ in range(600):
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(address, timeout=5).read()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-2000:])
