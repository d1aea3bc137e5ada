"""Make batches for a trainer on another machine; see `jaxface/data/service.py`.

    head -c 32 /dev/urandom | base64 > key.txt          # the same file everywhere
    python launch/serve.py --config=RECIPE --address=0.0.0.0:7070 --key=key.txt
    python launch/train.py --config=RECIPE --workdir=/tmp/run \
      --config.data.service="workers(('a:7070', 'b:7070'), key='key.txt')"

Recipe and paths are the trainer's. Anybody who has the key gets the images, which are
not encrypted on the way: serve in a network you trust.
"""

from absl import flags
from ml_collections import config_flags

from jaxface import assembly, cli
from jaxface.data import service

_CONFIG = config_flags.DEFINE_config_file("config", None, "The trainer's recipe.")
_ADDRESS = flags.DEFINE_string("address", "127.0.0.1:7070", "host:port to listen at.")
_KEY = flags.DEFINE_string("key", None, "File with the secret.")


def main() -> None:
    """Serve until killed."""
    cli.log_to_stderr()
    c = _CONFIG.value
    c.mesh.devices = 1  # what trains is elsewhere
    run = assembly.build(c, for_training=False)
    known = service.secret(_KEY.value)
    listener = service.listen(_ADDRESS.value)
    print(f"{len(run.source):,} images at {_ADDRESS.value}", flush=True)
    service.serve(listener, known, run.served)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "key"])
    cli.run(main)
