"""Time answers of `mlflow models serve` for one DICOM file per request, with several clients at a time, on the loopback interface.

    python -m benchmarks.serve [--model artifacts/registration/model] [--sizes 160 2048] [--clients 1 2 4] [--requests 100]

The files are phantoms with the given numbers of rows and columns. docs/serving.md quotes the output.
"""

import argparse
import base64
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.timing import elapsed, heading, row
from components.params import Params
from components.simulate import run as simulate

START_SECONDS = 180.0


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("artifacts/registration/model"), help="a packed model")
    parser.add_argument("--sizes", type=int, nargs="+", default=[160, 2048], help="rows and columns of the files")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4], help="requests at a time")
    parser.add_argument("--requests", type=int, default=100, help="requests per line of the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bodies = {size: request(phantom(Path(scratch, str(size)), size)) for size in options.sizes}
        with serve(options.model, Path(scratch)) as address:
            heading("pixels of the file, clients", "ms, median", "ms, 95 %", "images/s")
            for size, body in bodies.items():
                times(address, body, 1, 10)  # the first answers are slower
                for clients in options.clients:
                    started = time.perf_counter()
                    seconds = times(address, body, clients, options.requests)
                    rate = options.requests / (time.perf_counter() - started)
                    slow = statistics.quantiles(seconds, n=20)[-1]
                    row(f"{size} x {size}, {clients}", f"{1000 * statistics.median(seconds):.0f}", f"{1000 * slow:.0f}", f"{rate:.1f}")


def phantom(folder: Path, size: int) -> Path:
    """Make a DICOM file."""
    params = Params.model_validate({"simulate": {"patients": 1, "size": size}})
    simulate.run(out=str(folder), **params.arguments("simulate"))
    return min(folder.rglob("*.dcm"))


def request(file: Path) -> bytes:
    """Return the body of a request for one file."""
    content = base64.b64encode(file.read_bytes()).decode()
    return json.dumps({"dataframe_split": {"columns": ["dicom"], "data": [[content]]}}).encode()


def ask(address: str, body: bytes) -> list[dict[str, float]]:
    """Return the rows of the answer; raises HTTPError if the server refuses."""
    asked = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})  # noqa: S310 - loopback
    with urllib.request.urlopen(asked, timeout=60) as answer:  # noqa: S310
        predictions: list[dict[str, float]] = json.loads(answer.read())["predictions"]
        return predictions


def times(address: str, body: bytes, clients: int, count: int) -> list[float]:
    """Return the seconds of each request, of which `clients` are under way at a time."""
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(lambda _: elapsed(partial(ask, address, body), time.perf_counter), range(count)))


@contextmanager
def serve(model: Path, folder: Path, command: list[str] | None = None) -> Iterator[str]:
    """Run a server of a packed model and provide its address; `folder` gets its log.

    Args:
        model: folder of the packed model.
        folder: working folder of the server.
        command: the command line without the port; None: that of `mlflow models serve` with this environment.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = command or ["mlflow", "models", "serve", "--model-uri", str(model.absolute()), "--env-manager", "local"]
    environment = {
        **os.environ,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port)], cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait(server, f"http://127.0.0.1:{port}/ping", folder / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait(server: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < until:
        try:
            urllib.request.urlopen(address, timeout=5).close()  # noqa: S310 - loopback
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the server does not answer:\n{log.read_text()[-2000:]}")


if __name__ == "__main__":
    main()
