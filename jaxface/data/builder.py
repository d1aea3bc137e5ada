"""A TFDS builder over any source, for sets that one machine should not write alone.

`prepared` writes the same features faster on one machine, in order and resumably; this
runs on Apache Beam, whose runners (direct, Dataflow, Flink, Spark) do the distributing.

The law: every image of the source is written once, under its name, whatever the runner.

    faces = build(assembly.flow, "folder(path='faces')", name="faces", out="sets",
                  beam=["--runner=DirectRunner"])
    faces.as_data_source("train")[0]["image"]
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxface import types
from jaxface.data import prepared

_CHUNK = 256  # images of a unit of work


def build(
    open_source: Callable[[str], types.Source],
    line: str,
    *,
    name: str,
    out: str | os.PathLike[str],
    format: str = "array_record",
    beam: Sequence[str] | None = None,
) -> Any:
    """Write a source as `OUT/NAME/1.0.0` by TFDS's own builder.

    Args:
        open_source: makes the source of a line; a function that every worker can
            import, such as `assembly.flow`.
        line: the source, as every worker can open it.
        name: of the data set, in lower case.
        out: TFDS's `data_dir`.
        format: "array_record" or "tfrecord".
        beam: options of Beam's pipeline, such as `--runner=DataflowRunner`; None
            writes here and without Beam.

    Returns:
        The builder, a `tfds.core.GeneratorBasedBuilder`, its set written.

    Raises:
        ImportError: Beam is wanted and not installed.
        ValueError: an image that cannot be decoded.
    """
    import tensorflow_datasets as tfds

    options = None if beam is None else _options(beam)
    with tfds.core.registered.skip_registration():
        kind = _kind(tfds, open_source, line, name=name, with_beam=beam is not None)
    builder = kind(data_dir=os.fspath(out), file_format=format)
    config = tfds.download.DownloadConfig(beam_options=options, try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
    return builder


def _kind(
    tfds: Any,
    open_source: Callable[[str], types.Source],
    line: str,
    *,
    name: str,
    with_beam: bool,
) -> Any:
    """Return the builder's class: TFDS takes the set's name from it."""
    source = open_source(line)
    classes = source.classes if isinstance(source, types.Named) else None
    read = functools.partial(_examples, open_source, line)
    dataset = name

    class Builder(tfds.core.GeneratorBasedBuilder):
        name = dataset
        VERSION = tfds.core.Version(prepared.VERSION)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    prepared.features(source.num_classes, classes)
                ),
                metadata=tfds.core.MetadataDict(color=source.color),
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            del dl_manager  # nothing is downloaded
            starts = range(0, len(source), _CHUNK)
            if not with_beam:
                return {"train": (row for start in starts for row in read(start))}
            import apache_beam

            return {"train": apache_beam.Create(starts) | apache_beam.FlatMap(read)}

        def _generate_examples(self) -> Any:
            raise AssertionError("the splits are generators themselves")

    return Builder


@functools.lru_cache(maxsize=1)
def _opened(open_source: Callable[[str], types.Source], line: str) -> types.Source:
    """Return a worker's source, opened once."""
    return open_source(line)


def _examples(
    open_source: Callable[[str], types.Source], line: str, start: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (key, example) of the images of a unit of work."""
    source = _opened(open_source, line)
    for i in range(start, min(start + _CHUNK, len(source))):
        record, label = source.read(i)
        image, name = prepared.encoded(record, source.name(i)), source.name(i)
        yield name, {"image": image, "label": label, "name": name}


def _options(told: Sequence[str]) -> Any:
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ImportError(
            f"distributed writing needs Apache Beam ({error}): in an environment of its"
            " own, for its pins are old, pip install jaxface[beam]"
        ) from None
    return PipelineOptions(list(told))
