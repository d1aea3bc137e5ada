"""Kill a run again and again, in saves and out: it ends as if nobody had.

    python tests/chaos.py --kills=20 --processes=2
    python tests/chaos.py --kills=20 --processes=2,1 --devices=2,4,1

A run of the tiny recipe, with averaged weights, is killed (SIGKILL, all processes at
once) or told to stop (SIGTERM, exit code 75) at drawn moments and started again. In the
end its state, best step, notes and logs are compared with those of a run left alone.
With several numbers of processes, or of devices of each process, every start takes the
next of them and losses are compared, to 1e-9: sums in another order are other bits.
In float64 these stay small; in float32 they grow past that in some seventy steps.

Only what a signal ended is counted. A run that comes to its end before it was disturbed
so often has failed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import itertools
import json
import math
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

from jaxface import checkpoint, manifest

ROOT = pathlib.Path(__file__).parent.parent
ENDS = {
    -signal.SIGKILL: "SIGKILL",
    75: "SIGTERM, saved",
    # before the run listens the signal does what it always does
    -signal.SIGTERM: "SIGTERM",
    128 + signal.SIGTERM: "SIGTERM",  # as launch/local.py tells it
}
SECONDS = 900  # of one start, at most, on a busy machine
BEST = "unseen/accuracy"
CONFIG = f"--config={ROOT}/tests/tiny.py"
FLAGS = (
    *("--config.optim.ema=0.9", "--config.train.nonfinite=rollback"),
    "--config.log.csv=True",
)
QUICK = {
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": "--xla_backend_optimization_level=1",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def start(
    workdir: pathlib.Path, *, steps: int, layout: tuple[int, int], exact: bool
) -> subprocess.Popen:
    """Start a run as a user does, in a process group of its own."""
    processes, devices = layout
    line = [CONFIG, f"--workdir={workdir}", *FLAGS]
    line += [f"--config.mesh.cpu_devices={devices}"]
    line += [f"--config.train.length={steps} steps"]
    line += ["--config.model.dtype=float64"] * exact
    script = [sys.executable, "launch/train.py"]
    if processes > 1:
        script = [sys.executable, "launch/local.py", "-n", str(processes), "--"]
        script += ["launch/train.py"]
    with workdir.with_name(f"{workdir.name}.log").open("a") as said:
        return subprocess.Popen(
            [*script, *line],
            cwd=ROOT,
            env=os.environ | QUICK | {"JAX_ENABLE_X64": str(exact)},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )


def rows(workdir: pathlib.Path) -> int:
    log = workdir / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def halves(workdir: pathlib.Path) -> dict[int, pathlib.Path]:
    """Find the folders of saves that have not ended; a name may come again."""
    found = {}
    for half in workdir.glob("checkpoints/*tmp"):
        with contextlib.suppress(FileNotFoundError):  # has ended meanwhile
            found[half.stat().st_ino] = half
    return found


def come(
    workdir: pathlib.Path, moment: str, *, past: int, late: float, old: set[int]
) -> bool:
    """Tell whether a moment has come, in a run that began with so many rows.

    A start is over at the time `late`, or where it trains. Halves that an earlier kill
    has left, `old`, are no save of this run.
    """
    new = [half for key, half in halves(workdir).items() if key not in old]
    return {
        "starting": time.monotonic() > late or rows(workdir) > past,
        "training": rows(workdir) > past,
        "saving": bool(new) and rows(workdir) >= past,
        "sealing": any((half / manifest.NAME).exists() for half in new),
    }[moment]


def disturb(
    process: subprocess.Popen,
    workdir: pathlib.Path,
    draw: random.Random,
    *,
    old: set[int],
) -> tuple[str, int]:
    """Wait for a drawn moment and end the run; return the moment and the exit code."""
    moment = draw.choice(("starting", "training", "training", "saving", "sealing"))
    gentle = draw.random() < 0.3
    past = rows(workdir) + draw.randrange(6)
    late = time.monotonic() + draw.random() * 8
    deadline = time.monotonic() + SECONDS
    seen = {"past": past, "late": late, "old": old}
    while process.poll() is None and not come(workdir, moment, **seen):
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise TimeoutError(f"waited {SECONDS} s for {moment} in {workdir}")
        time.sleep(0.001)
    time.sleep(draw.random() * 0.01)
    if gentle:
        process.send_signal(signal.SIGTERM)
        process.wait(SECONDS)
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    assert code in (0, *ENDS), code
    return moment, code


def finish(process: subprocess.Popen, workdir: pathlib.Path) -> None:
    """Let a run come to its end."""
    try:
        code = process.wait(SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert code == 0, workdir.with_name(f"{workdir.name}.log").read_text()[-3000:]


def ended(workdir: pathlib.Path) -> dict[str, bytes]:
    """Return all that a run leaves which must not depend on who killed it."""
    found = {}
    folder = workdir / "checkpoints"
    with checkpoint.open_manager(folder, best=BEST, create=False) as manager:
        step = checkpoint.find(manager, "latest")
        for which in {step, checkpoint.find(manager, "best")}:
            saved = checkpoint.arrays(manager, which)
            leaves = _named(saved)
            like = {name: np.empty(x.shape, x.dtype) for name, x in leaves.items()}
            tree = _like(saved, like)
            whole = _named(checkpoint.restore(manager, which, like=tree))
            found |= {f"{which}/{k}": np.asarray(v).tobytes() for k, v in whole.items()}
            about = checkpoint.about(manager, which)
            found[f"{which}/about"] = json.dumps(about, sort_keys=True).encode()
    for name in ("metrics.jsonl", "metrics.csv", "config.json"):
        found[name] = (workdir / name).read_bytes()
    found["half"] = b" ".join(os.fsencode(x) for x in folder.glob("*tmp"))
    return found


def _named(tree):
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _like(tree, named):
    import jax

    return jax.tree_util.tree_map_with_path(
        lambda path, _: named[jax.tree_util.keystr(path)], tree
    )


def losses(workdir: pathlib.Path) -> np.ndarray:
    found = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return np.array([(row["step"], row["loss"]) for row in found if "loss" in row])


def run(
    root: pathlib.Path,
    *,
    kills: int,
    seed: int,
    processes: tuple[int, ...] = (1,),
    devices: tuple[int, ...] = (1,),
) -> dict:
    """Disturb a run so often; return what was done and what differs in the end."""
    draw, whole, killed = random.Random(seed), root / "whole", root / "killed"
    steps = 20 + 8 * kills  # more than pass between two of them
    exact = len({*processes}) > 1 or len({*devices}) > 1
    begin = functools.partial(start, steps=steps, exact=exact)
    turns = zip(itertools.cycle(processes), itertools.cycle(devices))
    finish(begin(whole, layout=next(turns)), whole)
    done: collections.Counter[str] = collections.Counter()
    ends: collections.Counter[str] = collections.Counter()
    for layout in itertools.islice(turns, kills):
        old = set(halves(killed))
        running = begin(killed, layout=layout)
        moment, code = disturb(running, killed, draw, old=old)
        if code == 0:
            break
        ends[ENDS[code]] += 1
        done[f"{moment}, {ENDS[code]}"] += 1
    finish(begin(killed, layout=next(turns)), killed)
    count = sum(ends.values())
    few = [f"the run came to its end after {count} of {kills}"] * (count < kills)
    found = {"steps": steps, "ended": count, "by": ends, "done": done}
    if exact:
        want, got = losses(whole), losses(killed)
        same = want.shape == got.shape
        apart = float(np.abs(got / want - 1).max()) if same else math.inf
        differ = ["losses"] * (apart > 1e-9)
        found["apart"] = apart
    else:
        want, got = ended(whole), ended(killed)
        differ = sorted(k for k in want | got if want.get(k) != got.get(k))
    return found | {"compared": len(want), "differ": few + differ}


def numbers(line: str) -> tuple[int, ...]:
    return tuple(map(int, line.split(",")))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=numbers, default=(1,), help="as 2,1")
    parser.add_argument(
        "--devices", type=numbers, default=(1,), help="of each process, as 8,2,4"
    )
    given = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        found = run(pathlib.Path(folder), **given)
    found["seconds"] = round(time.monotonic() - begun)
    print(json.dumps(found, indent=1))
    sys.exit(bool(found["differ"]))


if __name__ == "__main__":
    main()
