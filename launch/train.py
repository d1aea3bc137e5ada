"""Train a face model, or go on where a killed run stopped.

python launch/train.py --config=configs/quickstart.py --workdir=/tmp/run
python launch/train.py --config=... --workdir=... --config.optim.lr=0.05
python launch/train.py --config=... --dry_run      # two steps, nothing is written
python launch/train.py --config=... --workdir=... --profile=10,20      # trace those

On several machines, on each: --coordinator=HOST:PORT --processes=N --process=I, or
--coordinator=auto on TPU VMs, GKE and SLURM.

Exits with 0 at the end of the config, with 75 where SIGTERM or Ctrl-C ended it earlier,
saved: the same command goes on. 1 is an error, told in one line.
"""

import sys

import jax
from absl import flags, logging
from ml_collections import config_flags

from jaxface import assembly, cli, experiment, parallel, places, processes, rehearsal

_CONFIG = config_flags.DEFINE_config_file("config", None, "A recipe of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints and logs go.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Take two steps and write nothing.")
_PROFILE = flags.DEFINE_list(
    "profile",
    [],
    "First,last of the steps to trace into WORKDIR/profile, counted from this start,"
    " whose first step compiles.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "host:port of process 0; auto where the cluster tells all."
)
_PROCESSES = flags.DEFINE_integer("processes", 1, "How many processes train.")
_PROCESS = flags.DEFINE_integer("process", 0, "Which of them this is.")
_JOIN = flags.DEFINE_integer(
    "join_timeout", 300, "Seconds to wait for the other processes.", lower_bound=1
)
_PEER = flags.DEFINE_integer(
    "peer_timeout", 100, "Seconds of silence that make a process dead.", lower_bound=10
)
_STALL = flags.DEFINE_float(
    "stall_timeout",
    1800.0,
    "Seconds without a step after which several processes end, 0 for ever; longer"
    " than compiling, an evaluation and a save.",
    lower_bound=0.0,
)


def main() -> None:
    """Build what the config says and train it."""
    cli.log_to_stderr(logging.WARNING if _PROCESS.value else logging.INFO)
    parallel.start(
        cpu_devices=_CONFIG.value.mesh.cpu_devices,
        coordinator=_COORDINATOR.value,
        processes=_PROCESSES.value,
        process=_PROCESS.value,
        join_seconds=_JOIN.value,
        peer_seconds=_PEER.value,
    )
    index = jax.process_index()  # only now may it be asked who we are
    if index != _PROCESS.value:
        cli.log_to_stderr(logging.WARNING)
    if not _DRY_RUN.value:
        cli.log_to_file(places.local(_WORKDIR.value) / "logs" / f"process-{index}.log")
    profile = window(_PROFILE.value)
    with processes.together(limit=_STALL.value) as beat:
        run = assembly.build(_CONFIG.value)
        if _DRY_RUN.value:
            print(rehearsal.text(rehearsal.take(run)))
            return
        state = experiment.train(run, _WORKDIR.value, beat=beat, profile=profile)
    if state.step < run.total:
        sys.exit(processes.AGAIN)


def window(given: list[str]) -> tuple[int, int] | None:
    """Return the first and last step to trace, None where none is.

    Raises:
        ValueError: anything but two numbers.
    """
    if not given:
        return None
    if len(given) != 2 or not all(map(str.isdecimal, given)):
        raise ValueError(f"--profile={','.join(given)}; wanted first,last, as in 10,20")
    return int(given[0]), int(given[1])


def check(values: dict) -> bool:
    """Tell whether the flags say where to train, if at all."""
    return values["dry_run"] or bool(values["workdir"])


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    flags.register_multi_flags_validator(
        ["workdir", "dry_run"], check, "--workdir is wanted, or --dry_run"
    )
    cli.run(main)
