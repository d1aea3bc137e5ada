"""Write any source as a TFDS data set on Apache Beam, for sets of many millions.

    pip install jaxface[beam]      # in an environment of its own: Beam's pins are old
    python launch/build.py --source="folder(path='faces.tar')" --name=faces --out=sets \
      --beam=--runner=DirectRunner --beam=--direct_num_workers=2

Every --beam is an option of Beam's pipeline: DataflowRunner, FlinkRunner, SparkRunner
and theirs. On one machine `launch/prepare.py` is faster, checks, and goes on where it
was stopped.
"""

from absl import flags

from jaxface import assembly, cli
from jaxface.data import builder, prepared

_SOURCE = flags.DEFINE_string("source", None, "A line, such as folder(path='faces').")
_NAME = flags.DEFINE_string("name", None, "Of the data set, in lower case.")
_OUT = flags.DEFINE_string("out", None, "TFDS's data_dir.")
_FORMAT = flags.DEFINE_enum("format", "array_record", prepared.FORMATS, "Of the files.")
_BEAM = flags.DEFINE_multi_string("beam", [], "An option of Beam's pipeline.")


def main() -> None:
    """Build, and say where and how many."""
    cli.log_to_stderr()
    made = builder.build(
        assembly.flow,
        _SOURCE.value,
        name=_NAME.value,
        out=_OUT.value,
        format=_FORMAT.value,
        beam=_BEAM.value or ["--runner=DirectRunner"],
    )
    count = made.info.splits["train"].num_examples
    print(f"{made.data_dir}: {count} images")


if __name__ == "__main__":
    flags.mark_flags_as_required(["source", "name", "out"])
    cli.run(main)
