"""Parquet files with encoded images, as Hugging Face lays data sets out.

The image is a struct {bytes, path} or bytes, the label an integer (with names in the
metadata that `datasets` writes) or text.

The law: a row is read with its row group, so reading in order is cheap and reading at
random costs a group for every image; train from the prepared form of the same.

    faces = Source("faces/data", split="train")      # train-00000-of-00002.parquet ...
    encoded, label = faces.read(0)
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
import threading
from concurrent import futures
from typing import Any

import numpy as np

from jaxface.data import layout

_MAX_GROUP = 2 << 30  # bytes of a row group: it is held in memory whole


class Source:
    """Encoded images with labels in Parquet files.

    Attributes:
        color: "rgb", or what the caller says.
        num_classes: C.
        classes: [C] names, where the files tell them; labels that are text are
            sorted, and text is what the classes are called.
        labels: [n] int32.
    """

    classes: tuple[str, ...]

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        split: str = "train",
        image: str = "image",
        label: str = "label",
        color: str = "rgb",
        groups: int = 8,
    ):
        """Read the metadata and the labels.

        Args:
            path: a file, a pattern of files, or a directory with `SPLIT*.parquet` at
                any depth.
            split: of a directory.
            image: the column of images.
            label: the column of labels.
            color: channel order the images decode to.
            groups: row groups held in memory at most.

        Raises:
            FileNotFoundError: nothing is there, or shards are missing.
            ValueError: no Parquet files of such columns, or labels that cannot be.
        """
        pa, pq = _pyarrow()
        self.color, self._pa, self._pq, self._image = color, pa, pq, image
        place = pathlib.Path(path)
        pattern = f"**/{split}*.parquet"
        if place.is_dir():
            found, told = sorted(place.glob(pattern)), f"{path}/{pattern}"
        else:
            found, told = sorted(place.parent.glob(place.name)), str(path)
        self._files = layout.complete([str(p) for p in found], told)
        self._metadata, columns = [], []
        for file in self._files:
            metadata, column = self._opened(file, label)
            self._metadata.append(metadata)
            columns.append(column)
        self._place = [
            (file, group)
            for file, metadata in enumerate(self._metadata)
            for group in range(metadata.num_row_groups)
        ]
        rows = [self._metadata[f].row_group(g).num_rows for f, g in self._place]
        self._ends = np.cumsum(rows, dtype=np.int64)
        self._label(np.concatenate(columns), label)
        self._lock, self._groups = threading.Lock(), groups
        self._held: collections.OrderedDict[int, futures.Future[Any]]
        self._held = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> tuple[bytes, int]:
        """Return (encoded bytes, label) of image i.

        Raises:
            OSError: if its row group cannot be read, or has only a path of it.
        """
        group, row = self._locate(i)
        image = self._column(group)[row].as_py()
        if image is None:
            raise OSError(
                f"{self.name(i)} holds no bytes, perhaps a path only; wanted the image"
                " within: `datasets` writes it with push_to_hub or embed_external_files"
            )
        return image, int(self.labels[i])

    def name(self, i: int) -> str:
        """Return the file of image i, its row group and its row there."""
        group, row = self._locate(i)
        file, k = self._place[group]
        return f"{self._files[file]}[{k}][{row}]"

    def _locate(self, i: int) -> tuple[int, int]:
        """Return (row group, row in it) of image i."""
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} wanted; there are 0 .. {len(self) - 1}")
        group = int(np.searchsorted(self._ends, i, side="right"))
        return group, int(i - (self._ends[group - 1] if group else 0))

    def _opened(self, file: str, label: str) -> tuple[Any, np.ndarray]:
        """Return (metadata, column of labels) of a file whose columns are right."""
        pa = self._pa
        try:
            with self._parquet(file) as opened:
                schema, metadata = opened.schema_arrow, opened.metadata
                for name in (self._image, label):
                    if name not in schema.names:
                        raise ValueError(
                            f"{file} has no column {name!r}; it has"
                            f" {', '.join(schema.names[:20])}"
                        )
                kind = schema.field(self._image).type
                if pa.types.is_struct(kind):
                    fields = [kind.field(k).name for k in range(kind.num_fields)]
                    kind = kind.field("bytes").type if "bytes" in fields else kind
                if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
                    raise ValueError(
                        f"{file}: column {self._image!r} is {kind}; wanted binary, or"
                        " struct<bytes: binary, path: string>"
                    )
                self._check_size(file, metadata)
                labels = opened.read(columns=[label]).column(label)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is no whole Parquet file: {error}") from None
        if labels.null_count or len(labels) != metadata.num_rows:
            raise ValueError(
                f"{file}: {len(labels) - labels.null_count} labels for"
                f" {metadata.num_rows} rows"
            )
        self._names(schema, label)
        return metadata, labels.to_numpy()

    def _check_size(self, file: str, metadata: Any) -> None:
        rows = 0
        for k in range(metadata.num_row_groups):
            group = metadata.row_group(k)
            rows += group.num_rows
            if not 0 <= group.total_byte_size <= _MAX_GROUP or group.num_rows < 0:
                raise ValueError(
                    f"{file}: row group {k} is of {group.total_byte_size} bytes; wanted"
                    f" at most {_MAX_GROUP}: write it with smaller ones"
                )
        if rows != metadata.num_rows:
            raise ValueError(
                f"{file}: {rows} rows in its row groups, {metadata.num_rows} in all"
            )
        size = os.path.getsize(file)
        if rows > size:  # a label takes memory even where runs of it take none here
            raise ValueError(
                f"{file}: {rows} rows in {size} bytes; wanted at least a byte for each"
            )

    def _names(self, schema: Any, label: str) -> None:
        """Take the names of a ClassLabel from what `datasets` keeps in the schema."""
        told = (schema.metadata or {}).get(b"huggingface", b"{}")
        try:
            feature = (
                json.loads(told).get("info", {}).get("features", {}).get(label, {})
            )
            names = tuple(feature.get("names") or ())
        except (ValueError, AttributeError, TypeError, RecursionError):
            names = (0,)  # said below
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"{self._files[0]}: its huggingface metadata is not one")
        known = getattr(self, "classes", names)
        if names != known or len(set(names)) != len(names):
            raise ValueError(
                f"{self._files[0]} and its shards name {len(known)} and {len(names)}"
                " classes unlike each other"
            )
        if names:
            self.classes = names

    def _label(self, found: np.ndarray, name: str) -> None:
        """Set labels, classes and their number from the column [n]."""
        if not len(found):
            raise ValueError(f"{self._files[0]}: no rows; wanted at least one")
        if found.dtype == object and all(isinstance(f, str) for f in found):
            texts, found = np.unique(found.astype(str), return_inverse=True)
            self.classes = tuple(texts.tolist())
        if not np.issubdtype(found.dtype, np.integer):
            raise ValueError(
                f"{self._files[0]}: column {name!r} is {found.dtype}; wanted whole"
                " numbers or text"
            )
        names = getattr(self, "classes", None)
        count = None if names is None else len(names)
        layout.check_labels(found, count, f"{self._files[0]} and its shards")
        self.labels = found.astype(np.int32)
        self.num_classes = int(self.labels.max()) + 1 if count is None else count

    def _parquet(self, file: str, metadata: Any = None) -> Any:
        limit = max(os.path.getsize(file), 1)
        return self._pq.ParquetFile(
            file,
            metadata=metadata,
            memory_map=True,
            page_checksum_verification=True,
            thrift_string_size_limit=limit,
            thrift_container_size_limit=limit,
        )

    def _column(self, group: int) -> Any:
        """Return the images of a row group; one thread reads it for all."""
        with self._lock:
            held = self._held.get(group)
            mine = held is None
            if held is None:
                held = self._held[group] = futures.Future()
            self._held.move_to_end(group)
            while len(self._held) > self._groups:
                self._held.popitem(last=False)
        if mine:
            try:
                held.set_result(self._read_group(group))
            except BaseException as error:
                held.set_exception(error)  # or those who wait would wait for ever
                with self._lock:
                    self._held.pop(group, None)
                raise
        return held.result()

    def _read_group(self, group: int) -> Any:
        file, k = self._place[group]
        path = self._files[file]
        try:
            with self._parquet(path, self._metadata[file]) as opened:
                column = self._decoded(opened, k)
        except (
            self._pa.ArrowException,
            OSError,
            IndexError,
            UnicodeDecodeError,
        ) as error:
            raise OSError(f"{path}: row group {k}: {error}") from None
        if len(column) != self._metadata[file].row_group(k).num_rows:
            raise OSError(f"{path}: row group {k} has {len(column)} images")
        return column

    def _decoded(self, opened: Any, group: int) -> Any:
        """Return a row group's images, decoded within a bound.

        A value that a dictionary holds once may stand in every row, so what a group
        declares says little about what it becomes; no value is longer than all that
        is encoded, so some rows at a time are.
        """
        told = opened.metadata.row_group(group)
        step = max(1, _MAX_GROUP // max(told.total_byte_size, 1))
        chunks, size = [], 0
        for batch in opened.iter_batches(
            min(step, max(told.num_rows, 1)), row_groups=[group], columns=[self._image]
        ):
            column = batch.column(0)
            if self._pa.types.is_struct(column.type):
                column = column.field("bytes")
            chunks.append(column)
            size += column.nbytes
            if size > _MAX_GROUP:
                raise OSError(
                    f"more than {_MAX_GROUP} bytes once decoded; wanted at most that:"
                    " write it with smaller row groups"
                )
        if not chunks:
            raise OSError("no rows")
        return self._pa.chunked_array(chunks)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            f"Parquet needs pyarrow ({error}): pip install jaxface[parquet]"
        ) from None
    return pa, pq
