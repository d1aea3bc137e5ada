"""Start n processes on this machine, joined by jax.distributed.

    python launch/local.py -n 2 -- launch/train.py --config=... --workdir=/tmp/run

Ctrl-C and SIGTERM reach all of them. When one fails, the others have --grace seconds to
end by themselves, as they do when they notice; then they are killed. The exit code is
that of the first to fail, 128 + n where signal n ended it. 75, where a signal ended the
run early and it was saved, is no failure: the others get there too.
"""

import argparse
import signal
import socket
import subprocess
import sys
import time

AGAIN = 75  # as jaxface.processes has it, which would be slow to import


def main() -> int:
    """Start the processes and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=2, help="how many processes")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds, see above")
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
    return wait(running, grace=given.grace)


def forward(running: list[subprocess.Popen[bytes]], number: int) -> None:
    """Send a signal to every process."""
    for process in running:
        if process.poll() is None:
            process.send_signal(number)


def wait(running: list[subprocess.Popen[bytes]], *, grace: float) -> int:
    """Return 0 or 75 when all end so, or the first failure, when the others ended."""
    while not any(map(failed, codes(running))):
        if None not in codes(running):
            return max(code or 0 for code in codes(running))
        time.sleep(0.1)
    first = next(i for i, code in enumerate(codes(running)) if failed(code))
    say(first, running[first].returncode, "the first to end")
    deadline = time.monotonic() + grace
    while None in codes(running) and time.monotonic() < deadline:
        time.sleep(0.1)
    for i, process in enumerate(running):
        if process.poll() is None:
            process.kill()
            say(i, process.wait(), f"killed after {grace:g} s of grace")
        elif process.returncode and i != first:
            say(i, process.returncode, "after it")
    return shell_code(running[first].returncode)


def failed(code: int | None) -> bool:
    """Tell whether a process ended otherwise than it may."""
    return code not in (None, 0, AGAIN)


def codes(running: list[subprocess.Popen[bytes]]) -> list[int | None]:
    """Return the exit codes, None of those that run."""
    return [process.poll() for process in running]


def say(i: int, code: int, how: str) -> None:
    """Tell how a process ended."""
    print(f"local: process {i} ended with {shell_code(code)}, {how}", file=sys.stderr)


def shell_code(code: int) -> int:
    """Return an exit code as shells count it: 128 + n for signal n."""
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main())
