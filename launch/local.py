"""Start n processes on this machine, joined by jax.distributed.

    python launch/local.py -n 2 -- launch/train.py --config=... --workdir=/tmp/run

Ctrl-C and SIGTERM reach all of them; when one fails, the others are stopped and the
first failure's exit code is returned. 75, where a signal ended the run early and it was
saved, is no failure: the others get there too.
"""

import argparse
import signal
import socket
import subprocess
import sys
import time

STOPPED = 75  # as jaxface.cli has it, which would be slow to import


def main() -> int:
    """Start the processes and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=2, help="how many processes")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- script flags")
    given = parser.parse_args()
    command = [part for part in given.command if part != "--"]
    if not command or given.n < 1:
        parser.error("wanted: -n 2 -- launch/train.py --config=... --workdir=...")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    joined = [f"--coordinator=127.0.0.1:{port}", f"--processes={given.n}"]
    running = [
        subprocess.Popen([sys.executable, *command, *joined, f"--process={i}"])
        for i in range(given.n)
    ]
    signal.signal(signal.SIGTERM, lambda *_: forward(running, signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells all of them
    return wait(running)


def forward(running: list[subprocess.Popen[bytes]], number: int) -> None:
    """Send a signal to every process."""
    for process in running:
        if process.poll() is None:
            process.send_signal(number)


def wait(running: list[subprocess.Popen[bytes]]) -> int:
    """Return 0 or 75 when all end so, or the first failure, ending the others."""
    while True:
        codes = [process.poll() for process in running]
        failed = [code for code in codes if code and code != STOPPED]
        if failed:
            forward(running, signal.SIGTERM)
            return abs(failed[0])
        if None not in codes:
            return max(code or 0 for code in codes)
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
