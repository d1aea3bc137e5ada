"""Train a face model, or go on where a killed run stopped.

python launch/train.py --config=configs/quickstart.py --workdir=/tmp/run
python launch/train.py --config=... --workdir=... --config.optim.lr=0.05

Exits with 0 at the end of the config, with 75 where SIGTERM or Ctrl-C ended it earlier,
saved: the same command goes on. 1 is an error, told in one line.
"""

import sys

from absl import flags, logging
from ml_collections import config_flags

from jaxface import assembly, cli, experiment, parallel

_CONFIG = config_flags.DEFINE_config_file("config", None, "A recipe of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints and logs go.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of process 0.")
_PROCESSES = flags.DEFINE_integer("processes", 1, "How many processes train.")
_PROCESS = flags.DEFINE_integer("process", 0, "Which of them this is.")


def main() -> None:
    """Build what the config says and train it."""
    cli.log_to_stderr(logging.WARNING if _PROCESS.value else logging.INFO)
    parallel.start(
        cpu_devices=_CONFIG.value.mesh.cpu_devices,
        coordinator=_COORDINATOR.value,
        processes=_PROCESSES.value,
        process=_PROCESS.value,
    )
    run = assembly.build(_CONFIG.value)
    state = experiment.train(run, _WORKDIR.value)
    if state.step < run.total:
        sys.exit(cli.STOPPED)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)
