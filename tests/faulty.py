"""Train as launch/train.py does, while something happens to the run or its disk.

    python tests/faulty.py FAULT STEP --config=... --workdir=...

The fault comes when a step is done and every save before it has ended; of several
processes only the first makes it, but for a signal. Mounts want a mount namespace of
their own: `unshare --mount python tests/faulty.py read-only ...`.
"""

import contextlib
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys

import jax

from jaxface.train import monitor, saver

AT = next(x.removeprefix("--workdir=") for x in sys.argv if x.startswith("--workdir="))


def mount(*words):
    """Lay something over the workdir; the files below are untouched."""
    subprocess.run(["mount", *words], check=True)


def read_only():
    mount("--bind", AT, AT)
    mount("--options", "remount,bind,ro", AT)


def full():
    """Continue in a copy on a small disk, and fill that up."""
    shutil.copytree(AT, f"{AT}-copy")
    mount("--types", "tmpfs", "--options", "size=2m", "none", AT)
    shutil.copytree(f"{AT}-copy", AT, dirs_exist_ok=True)
    with open(f"{AT}/filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def limited():
    """Write no large file in this process, as when the disk fills up during a save."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))


FAULTS = {
    "none": lambda: None,
    "signal": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "signal-one": lambda: jax.process_index() and FAULTS["signal"](),
    "full": full,
    "limited": limited,
    "read-only": read_only,
    "vanished": lambda: mount("--types", "tmpfs", "none", AT),
}


def main():
    _, fault, step, *flags = sys.argv
    begin, push = saver.Saver.save, monitor.Monitor.push

    def save(self, *args, **facts):
        begin(self, *args, **facts)
        self.settle()

    def pushed(self, done, metrics, **given):
        push(self, done, metrics, **given)
        all_of_them = fault.startswith("signal")
        if done == int(step) and (all_of_them or not jax.process_index()):
            FAULTS[fault]()

    saver.Saver.save, monitor.Monitor.push = save, pushed
    sys.argv = ["launch/train.py", *flags]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
