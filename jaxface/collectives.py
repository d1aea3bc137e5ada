"""What a compiled program sends between devices, read from its text.

The law: an instruction counts as often as it runs. Of the parts of an asynchronous
collective the first counts; the body of a loop counts as many times as the compiler
knows it turns, and one of unknown length is an error, not a guess.

    found = collectives.read(compiled.as_text())
    sum(c.wire_bytes for c in found)      # sent by each device in one step
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

_KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
    "collective-permute",
)
# `%x = f32[8]{0} all-gather(...)`, or `(f32[2], f32[8]) all-gather-start(...)`
_LINE = re.compile(
    rf"^(?:ROOT )?%?[\w.-]+ = (?P<shape>.+?) (?P<kind>{'|'.join(_KINDS)})"
    r"(?P<start>-start)?\("
)
_SHAPE = re.compile(r"\b([a-z]+\d+[a-z0-9]*|pred)\[([\d,]*)\]")
_HEAD = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) .*\{$")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|async_computation)=%?([\w.-]+)"
)
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_EITHER = re.compile(r"\b(?:true|false)_computation=%?([\w.-]+)")
_TURNS = re.compile(r'known_trip_count[^}]*?"?n"?\s*:\s*"?(\d+)')
_LISTED = re.compile(r"replica_groups=\{(\{[\d,]*\}(?:,\{[\d,]*\})*)?\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]")
# JAX 0.12: mesh['data'=2,'class'=4] {'class'}, or half of an axis, {'class':(1)2}
_ALONG = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
# TPU spreads one over the computations that run meanwhile; its first part says -1.
_LATER_PART = re.compile(r'"async_collective_fusion_config":\{"flag_start":"\d')
_COUNT = re.compile(r"\b(?:num_partitions|replica_count)=(\d+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction in which devices meet.

    Attributes:
        kind: "all-reduce", "all-gather", "reduce-scatter", "all-to-all", ...
        shapes: of what each device gets, as in "f32[4,256]".
        bytes: of the whole that a group works on: of an all-gather what comes out, of
            a reduce-scatter what goes in, else what each device has.
        group: how many devices meet.
        times: how often a step runs it.
    """

    kind: str
    shapes: tuple[str, ...]
    bytes: int
    group: int
    times: int = 1

    @property
    def wire_bytes(self) -> float:
        """Bytes that each device sends in a step, by ring algorithms.

        Patarasuk & Yuan 2009: (n-1)/n of the whole to gather or to scatter, and both
        for an all-reduce.
        """
        share = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}
        return self.times * self.bytes * factor.get(self.kind, share)


def read(text: str) -> list[Collective]:
    """List the collectives of a compiled program, in the order they are written.

    Args:
        text: what `jax.stages.Compiled.as_text` gives.

    Returns:
        One entry for each instruction that is run; none of those of a single device.

    Raises:
        ValueError: no entry computation, or a collective in a loop whose length the
            compiler does not tell.
    """
    bodies, entry = _computations(text)
    everyone = math.prod(int(n) for n in _COUNT.findall(text.partition("\n")[0]))
    found = []
    for line, times in _run(bodies, entry, 1):
        made = _collective(line, everyone)
        if made is None or made.group == 1:
            continue
        if times == 0:
            raise ValueError(
                f"a collective in a loop of unknown length, {line[:80]!r}; wanted"
                " lax.scan or lax.fori_loop of a fixed length"
            )
        found.append(dataclasses.replace(made, times=times))
    return found


def size_of(shape: str) -> int:
    """Return the bytes of a shape, or of several: "f32[4,256]" is 4096."""
    return sum(
        math.prod(int(d) for d in dims.split(",") if d) * _width(name)
        for name, dims in _SHAPE.findall(shape)
    )


def _width(name: str) -> int:
    """Bytes of an element; two of 4 bits in one are never sent here, so rounded up."""
    bits = re.match(r"[a-z]+(\d+)", name)
    return 1 if bits is None else max(1, int(bits.group(1)) // 8)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            lines = bodies.setdefault(head["name"], [])
            entry = head["name"] if head["entry"] else entry
        elif line.startswith("}"):
            lines = []
        else:
            lines.append(line.strip())
    if not entry:
        raise ValueError(
            f"no ENTRY computation in {text[:40]!r}; wanted compiled.as_text()"
        )
    return bodies, entry


def _run(
    bodies: dict[str, list[str]], name: str, times: int
) -> Iterator[tuple[str, int]]:
    """Yield (line, how often it runs) of a computation; 0 is unknown."""
    for line in bodies.get(name, ()):
        yield line, times
        turns = _TURNS.search(line)
        inside = times * (int(turns.group(1)) if turns else 0)
        loop = " while(" in line
        for called in _CALLED.findall(line):
            yield from _run(bodies, called, inside if loop else times)
        listed = _BRANCHES.search(line)
        branches = re.findall(r"[\w.-]+", listed.group(1)) if listed else ()
        choices = [
            list(_run(bodies, branch, times))
            for branch in (*branches, *_EITHER.findall(line))
        ]
        # Of branches one is run: the one that meets most is counted.
        yield from max(choices, key=_meetings, default=())


def _meetings(lines: list[tuple[str, int]]) -> int:
    return sum(times for line, times in lines if _LINE.match(line))


def _collective(line: str, everyone: int) -> Collective | None:
    match = _LINE.match(line)
    if not match or _LATER_PART.search(line):
        return None
    kind, group = match["kind"], _group(line, everyone)
    shapes = [f"{name}[{dims}]" for name, dims in _SHAPE.findall(match["shape"])]
    if match["start"] and kind == "all-gather":  # (what goes in, what comes out)
        shapes = shapes[len(shapes) // 2 :]
    if match["start"] and kind == "collective-permute":  # and two handles
        shapes = shapes[1:2]
    size = sum(map(size_of, shapes))
    if kind == "reduce-scatter":
        size *= group
    if kind == "collective-permute":
        group = max(group, 2)
    return Collective(kind, tuple(shapes), size, group)


def _group(line: str, everyone: int) -> int:
    iota, listed = _IOTA.search(line), _LISTED.search(line)
    if iota:
        return int(iota.group(2))
    if along := _ALONG.search(line):
        size = dict(re.findall(r"'([^']+)'=(\d+)", along.group(1)))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", along.group(2))
        return math.prod(int(part or size[axis]) for axis, part in axes)
    if listed and listed.group(1):
        return max(len(g.split(",")) for g in listed.group(1).split("},{"))
    return everyone
