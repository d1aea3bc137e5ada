"""Which example stands where in the endless stream, and its random numbers.

The law: everything here is a pure function of (seed, position), so a position is
the whole state of an iterator, whatever the number of hosts. A position p belongs
to epoch p // n; each epoch is its own permutation of the n examples. Memory is
O(batch): a keyed permutation is computed, never stored.

    p = positions(step, batch_size=512, host=0, hosts=4)    # [128]
    i = examples(p, n=len(source), seed=0)                  # [128]
    u = uniform(p, seed=0, count=3, salt=1)                 # [128, 3]
"""

from __future__ import annotations

import numpy as np

_MASK = (1 << 64) - 1
_ROUNDS = 8
# Salts keep the uses of one seed apart.
_SHUFFLE, _SUBSTITUTE = 0x5EED, 0x5AFE


def positions(
    step: int, *, batch_size: int, host: int = 0, hosts: int = 1
) -> np.ndarray:
    """Return this host's slice of the global batch of a step.

    Args:
        step: 0, 1, 2, ...
        batch_size: examples of one step over all hosts.
        host: this host, 0 .. hosts - 1.
        hosts: how many hosts share the batch.

    Returns:
        [batch_size / hosts] int64, contiguous positions.

    Raises:
        ValueError: if the hosts cannot share the batch evenly.
    """
    if step < 0:
        raise ValueError(f"step {step}: wanted 0 or more")
    if not 0 <= host < hosts:
        raise ValueError(f"host {host} of {hosts}: wanted 0 .. {hosts - 1}")
    if batch_size < 1 or batch_size % hosts:
        raise ValueError(
            f"batch_size {batch_size} cannot be shared by {hosts} hosts: make it a"
            f" positive multiple of {hosts}"
        )
    share = batch_size // hosts
    first = step * batch_size + host * share
    return np.arange(first, first + share, dtype=np.int64)


def examples(positions: np.ndarray, *, n: int, seed: int) -> np.ndarray:
    """Return the example at each position: a permutation of 0 .. n - 1 per epoch.

    Args:
        positions: [B] int64, 0 or more.
        n: number of examples, 1 or more.
        seed: any integer.

    Returns:
        [B] int64 in 0 .. n - 1.
    """
    if n < 1:
        raise ValueError(f"a stream over {n} examples: wanted at least one")
    epoch, place = np.divmod(np.asarray(positions, np.int64), n)
    return _permuted(place, n=n, keys=_hash(epoch, seed=seed, salt=_SHUFFLE))


def ordered(
    rounds: np.ndarray,
    places: np.ndarray,
    *,
    n: int | np.ndarray,
    seed: int,
    salt: int,
    which: int | np.ndarray = 0,
) -> np.ndarray:
    """Return what stands at places of many orders, each of its own n things.

    Args:
        rounds: [B], every round is another order.
        places: [B] int64, 0 .. n - 1.
        n: how many things, for all or for each, 1 or more.
        seed: any integer.
        salt: keeps uses of the same seed apart.
        which: whose orders they are, for all or for each.

    Returns:
        [B] int64 in 0 .. n - 1: a permutation over the places of one round.
    """
    own = _hash(np.asarray(which), seed=seed, salt=salt)
    return _permuted(places, n=n, keys=_mix(own + np.asarray(rounds).astype(np.uint64)))


def uniform(
    positions: np.ndarray, *, seed: int, count: int, salt: int = 0
) -> np.ndarray:
    """Return `count` random numbers for each position, by counter, without state.

    Args:
        positions: [B] integers.
        seed: any integer.
        count: numbers per position.
        salt: keeps uses of the same seed and positions apart.

    Returns:
        [B, count] float64 in [0, 1), multiples of 2**-53.
    """
    key = _hash(positions, seed=seed, salt=salt)[:, None]  # [B, 1]
    word = _mix(key + np.arange(1, count + 1, dtype=np.uint64)[None])  # [B, count]
    return (word >> np.uint64(11)).astype(np.float64) * 2.0**-53


def substitute(position: int, attempt: int, *, n: int, seed: int) -> int:
    """Return the example that replaces an unreadable one at a position.

    Args:
        position: where in the stream.
        attempt: 1 for the first replacement, 2 if that is unreadable too, ...
        n: number of examples.
        seed: the stream's seed.

    Returns:
        An example, 0 .. n - 1; not always another one: ask for the next attempt.
    """
    u = uniform(
        np.array([position]), seed=seed, count=1, salt=_SUBSTITUTE + (attempt << 32)
    )
    return int(u[0, 0] * n)


def _permuted(
    places: np.ndarray, *, n: int | np.ndarray, keys: np.ndarray
) -> np.ndarray:
    """Permute 0 .. n - 1 by a key, elementwise: [B] of [B].

    A Feistel network permutes the smallest power of two that holds n; walking a
    value's cycle until it falls below n makes that a permutation of n (Black and
    Rogaway 2002, "Ciphers with arbitrary finite domains", method 2). The domain is
    below 2n, so two steps of the walk are expected.
    """
    value = np.asarray(places).astype(np.uint64)
    n = np.broadcast_to(np.asarray(n, np.int64), value.shape)
    keys = np.broadcast_to(keys, value.shape)
    # Their length; of fewer than 6 bits a network favours some orders.
    bits = np.maximum(6, np.frexp((n - 1).astype(float))[1]).astype(np.uint64)
    keys = _mix(keys[None] + np.arange(_ROUNDS, dtype=np.uint64)[:, None])  # [R, B]
    walking = np.arange(len(value))
    while len(walking):
        some = value[walking]
        value[walking] = _feistel(some, keys[:, walking], bits=bits[walking])
        walking = walking[value[walking] >= n[walking]]
    return value.astype(np.int64)


def _feistel(value: np.ndarray, keys: np.ndarray, *, bits: np.ndarray) -> np.ndarray:
    """Permute [B] values below 2**bits by keys [R, B]; each xor undoes itself."""
    low = bits >> np.uint64(1)
    widths = bits - low, low
    masks = [(np.uint64(1) << w) - np.uint64(1) for w in widths]
    halves = [value >> low, value & masks[1]]
    for r, key in enumerate(keys):
        mine, other = r % 2, 1 - r % 2
        halves[mine] ^= _mix(halves[other] ^ key) & masks[mine]
    return (halves[0] << low) | halves[1]


def _hash(values: np.ndarray, *, seed: int, salt: int) -> np.ndarray:
    """Return [B] uint64 from [B] integers, a seed and a salt."""
    values = np.asarray(values).astype(np.uint64)
    key = _mix(np.array([seed & _MASK], np.uint64))
    return _mix(_mix(key ^ np.array([salt & _MASK], np.uint64)) ^ values)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64 of an array (Steele, Lea and Flood 2014, fig. 17)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
