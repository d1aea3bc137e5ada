"""Make batches for trainers on other machines by tf.data service.

    line="--config=RECIPE --config.data.service=a:7070"          # the same everywhere
    python launch/serve.py $line --dispatch       # on machine a, which hands out steps
    python launch/serve.py $line                  # on every further one, at any time
    python launch/train.py $line --workdir=/tmp/run

Paths are the trainer's too. Workers may be ended and started at any time; a step that
is lost with one is made by the trainer. Whoever reaches the ports gets the images,
and makes TensorFlow do what it likes: let nobody but these machines reach them.
"""

import socket

from absl import app, flags
from ml_collections import config_flags

from jaxface import assembly, cli, parallel

_CONFIG = config_flags.DEFINE_config_file("config", None, "The trainer's recipe.")
_DISPATCH = flags.DEFINE_bool("dispatch", False, "Hand out steps too: on one machine.")
_ADDRESS = flags.DEFINE_string(
    "address", None, "host:port of this worker for trainers; else its name and 7071."
)


def main() -> None:
    """Serve until killed."""
    cli.log_to_stderr()
    c = _CONFIG.value
    dispatcher = c.data.service
    if not dispatcher:
        raise app.UsageError("--config.data.service is empty; wanted host:port")
    parallel.keep_freed()
    c.mesh.devices = 1  # what trains is elsewhere
    run = assembly.build(c, for_training=False)
    from jaxface.data import service  # with TensorFlow, which takes seconds

    dispatching = service.dispatch(dispatcher) if _DISPATCH.value else None
    address = _ADDRESS.value or f"{socket.gethostname()}:7071"
    worker = service.Worker(run.maker(), dispatcher=dispatcher, address=address)
    print(f"{len(run.source):,} images for {dispatcher} at {address}", flush=True)
    (dispatching or worker).join()


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    cli.run(main)
