"""Foreign sets, written independently of our readers, to the letter of the formats."""

import struct

MAGIC = 0xCED7230A
WORD = struct.pack("<I", MAGIC)


def frame(kind, content):
    """One frame, padded."""
    length = struct.pack("<I", (kind << 29) + len(content))
    return WORD + length + content + b"\0" * ((4 - len(content) % 4) % 4)


def frames(record):
    """A record as dmlc-core writes it: word by word, cut at the magic number."""
    parts, rest = [b""], record
    while rest:
        word, rest = rest[:4], rest[4:]
        if word == WORD:
            parts.append(b"")
        else:
            parts[-1] += word
    if len(parts) == 1:
        return frame(0, record)
    kinds = [1] + [2] * (len(parts) - 2) + [3]
    return b"".join(frame(k, p) for k, p in zip(kinds, parts, strict=True))


def header(labels, key=0):
    """IRHeader: one label in it, or a list after it."""
    if isinstance(labels, list):
        values = struct.pack(f"<{len(labels)}f", *labels)
        return struct.pack("<IfQQ", len(labels), 0.0, key, 0) + values
    return struct.pack("<IfQQ", 0, labels, key, 0)


def write_set(folder, found, *, classes=None, name="train"):
    """Write {key: record} in this order, with index and property."""
    folder.mkdir(exist_ok=True)
    lines, content = [], b""
    for key, record in found.items():
        lines.append(f"{key}\t{len(content)}\n")
        content += frames(record)
    (folder / f"{name}.rec").write_bytes(content)
    (folder / f"{name}.idx").write_text("".join(lines))
    if classes:
        (folder / "property").write_text(f"{classes},112,112")
    return folder


def insightface(people, *, as_list=False, labels=None):
    """{key: record}: images, then record 0, then identities, as face2rec2 writes."""
    found, ranges = {}, []
    for label, images in enumerate(people):
        start = len(found) + 1
        for image in images:
            told = labels[label] if labels else label
            head = header([float(told), 1.0] if as_list else told, len(found) + 1)
            found[len(found) + 1] = head + image
        ranges.append([start, len(found) + 1])
    n = len(found)
    found[0] = header([n + 1, n + 1 + len(people)])
    for k, ends in enumerate(ranges):
        found[n + 1 + k] = header(ends, n + 1 + k)
    return found
