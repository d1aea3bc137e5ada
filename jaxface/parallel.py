"""Where arrays live, and the two compilers of one step body.

The law of shares: `grads(state, batch)` is written for one device, returns sums of
device shares, reduces the replicated leaves itself and leaves class-sharded ones
alone. Then dense = jit = pmap, whatever the number of devices.

    mesh = make_mesh(axis="data")
    specs = state_specs(abstract_state, axis="data")
    step = compile_step(grads, update, specs=specs, mesh=mesh, axis="data")
    state, metrics = step(state, batch)
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxface.types import Sample

Axis = str | tuple[str, ...] | None
Step = Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]


def make_mesh(
    *, axis: str = "data", devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Return a one-axis mesh over the given devices, all of them by default."""
    chosen = jax.devices() if devices is None else list(devices)
    # Auto: the default of make_mesh, Explicit, would put shardings into types.
    return jax.make_mesh(
        (len(chosen),), (axis,), axis_types=(AxisType.Auto,), devices=chosen
    )


def state_specs(state: Any, *, axis: Axis) -> Any:
    """Return one PartitionSpec per leaf, by the leaf's path; first match wins.

    Everything under a `head` (weights, their moments, what a loss remembers of its
    classes) is sharded by class along its first dimension; scalars and all else are
    replicated.

    Args:
        state: tree of arrays or shapes.
        axis: mesh axis name(s) the classes are sharded over.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: P(axis) if of_classes(path, leaf) else P(), state
    )


def of_classes(path: Any, leaf: Any) -> bool:
    """Tell whether an array of the state has rows for classes, by its tree path."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    # A layer of the network may be called head too, so `params` goes first.
    if leaf.ndim == 0 or re.search(r"(^|/)(params|ema|batch_stats)/", name):
        return False
    return re.search(r"(^|/)head/", name) is not None


def take_rows(x: jax.Array, sample: Sample) -> jax.Array:
    """Copy the sampled classes' rows out of an array [classes * K, ...].

    Returns:
        [shards * k * K, ...] the K rows of each class; zeros for empty slots.
    """
    places = _rows_of(sample, x)
    return x.at[places].get(mode="fill", fill_value=0, unique_indices=True)


def put_rows(x: jax.Array, sample: Sample, rows: jax.Array) -> jax.Array:
    """Write what `take_rows` took back to its place; all other rows stay."""
    places = _rows_of(sample, x)
    return x.at[places].set(rows, mode="drop", unique_indices=True)


def _rows_of(sample: Sample, x: jax.Array) -> jax.Array:
    per_class = x.shape[0] // sample.classes
    first = sample.place.reshape(-1, 1) * per_class
    return (first + jnp.arange(per_class)[None, :]).reshape(-1)


def shardings(specs: Any, mesh: Mesh) -> Any:
    """Return the NamedSharding of every PartitionSpec of a tree."""
    return jax.tree.map(
        lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda s: isinstance(s, P)
    )


def dimension(spec: P) -> int | None:
    """Return which dimension a spec cuts; None where the array is whole."""
    return next((i for i, name in enumerate(spec) if name is not None), None)


def put_batch(batch: Any, *, mesh: Mesh, axis: Axis) -> Any:
    """Turn this process's slice of a batch into global arrays, split by example."""
    where = NamedSharding(mesh, P(axis))
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(where, x), batch
    )


def compile_step(
    grads: Callable[[Any, Any], tuple[Any, Any, dict[str, jax.Array]]],
    update: Callable[[Any, Any], Any],
    *,
    specs: Any,
    grad_specs: Any,
    mesh: Mesh,
    axis: Axis,
    how: str = "jit",
) -> Step:
    """Compile the two halves of a step for a mesh.

    Args:
        grads: (state, batch) -> (gradients, state, metrics), for one device.
        update: (gradients, state) -> state, plain Optax.
        specs: PartitionSpecs of the state.
        grad_specs: PartitionSpecs of the gradients.
        mesh: the devices.
        axis: mesh axis name(s) of the batch.
        how: "jit" (update sees global arrays) or "pmap" (update runs per device,
            so only element-wise optimizers are right).

    Returns:
        step(state, batch) -> (state, metrics); the state is donated. Both modes
        take and return the same global arrays.

    Raises:
        ValueError: unknown `how`, or pmap over several processes.
    """
    if how == "jit":
        # check_vma=True would add reductions of its own: another state, silently.
        sharded = jax.shard_map(
            grads,
            mesh=mesh,
            in_specs=(specs, P(axis)),
            out_specs=(grad_specs, specs, P()),
            check_vma=False,
        )

        def step(state: Any, batch: Any) -> Any:
            g, state, metrics = sharded(state, batch)
            return update(g, state), metrics

        places = (shardings(specs, mesh), NamedSharding(mesh, P()))
        return jax.jit(step, donate_argnums=0, out_shardings=places)

    def body(state: Any, batch: Any) -> Any:
        g, state, metrics = grads(state, batch)
        return update(g, state), metrics

    return compile_body(body, specs=specs, mesh=mesh, axis=axis, how=how)


def compile_body(
    body: Step, *, specs: Any, mesh: Mesh, axis: Axis, how: str = "jit"
) -> Step:
    """Compile a step whose update, too, is written for one device.

    Args:
        body: (state, batch) -> (state, metrics), its optimizer element-wise, since it
            sees only this device's rows of the head.
        specs: PartitionSpecs of the state.
        mesh: the devices.
        axis: mesh axis name(s) of the batch.
        how: "jit" or "pmap".

    Returns:
        As `compile_step`.

    Raises:
        ValueError: unknown `how`, or pmap over several processes.
    """
    if how == "jit":
        sharded = jax.shard_map(
            body,
            mesh=mesh,
            in_specs=(specs, P(axis)),
            out_specs=(specs, P()),
            check_vma=False,
        )
        places = (shardings(specs, mesh), NamedSharding(mesh, P()))
        return jax.jit(sharded, donate_argnums=0, out_shardings=places)
    if how == "pmap":
        return _pmap_step(body, specs=specs, mesh=mesh, axis=axis)
    raise ValueError(f"mesh.how is {how!r}; wanted 'jit' or 'pmap'")


def _pmap_step(body: Step, *, specs: Any, mesh: Mesh, axis: Axis) -> Step:
    if jax.process_count() > 1:
        raise ValueError("mesh.how='pmap' runs in one process; use 'jit' for several")
    n = mesh.size
    # The same specs, in pmap's words: P() -> None, P(axis) -> 0, P(None, axis) -> 1.
    axes = jax.tree.map(dimension, specs, is_leaf=lambda s: isinstance(s, P))

    def split(tree: Any) -> Any:
        def one(x: jax.Array, a: int | None) -> jax.Array:
            if a is None:
                return x
            return x.reshape(*x.shape[:a], n, x.shape[a] // n, *x.shape[a + 1 :])

        return jax.tree.map(one, tree, axes, is_leaf=lambda x: x is None)

    def join(tree: Any) -> Any:
        def one(x: jax.Array, a: int | None) -> jax.Array:
            if a is None:
                return x
            return x.reshape(*x.shape[:a], -1, *x.shape[a + 2 :])

        return jax.tree.map(one, tree, axes, is_leaf=lambda x: x is None)

    mapped = jax.pmap(
        body,
        axis_name=axis,
        in_axes=(axes, 0),
        out_axes=(axes, None),
        devices=list(mesh.devices.flat),
    )
    split_state = jax.jit(split)
    join_state = jax.jit(join, out_shardings=shardings(specs, mesh))

    def step(state: Any, batch: Any) -> Any:
        batch = jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), batch)
        state, metrics = mapped(split_state(state), batch)
        return join_state(state), metrics

    return step


def axis_size(axis: Axis) -> int:
    """Return the number of devices along an axis; 1 where there is none."""
    return 1 if axis is None else jax.lax.axis_size(axis)


def axis_index(axis: Axis) -> jax.Array | int:
    """Return this device's place along an axis; 0 where there is none."""
    return 0 if axis is None else jax.lax.axis_index(axis)


def psum(x: Any, axis: Axis) -> Any:
    """Sum a tree over an axis; the tree itself where there is none."""
    return x if axis is None else jax.lax.psum(x, axis)


def rest(axis: Axis, of: Axis) -> Axis:
    """Return the mesh axes of `axis` that `of` has not; None where it has all."""
    names = (axis,) if isinstance(axis, str) else axis or ()
    less = (of,) if isinstance(of, str) else of or ()
    return tuple(name for name in names if name not in less) or None


def pmean(x: Any, axis: Axis) -> Any:
    """Average a tree over an axis; the tree itself where there is none."""
    return x if axis is None else jax.lax.pmean(x, axis)


def pmax(x: jax.Array, axis: Axis) -> jax.Array:
    """Take the maximum over an axis, without a gradient."""
    x = jax.lax.stop_gradient(x)
    return x if axis is None else jax.lax.pmax(x, axis)


def gather(x: jax.Array, axis: Axis) -> jax.Array:
    """Concatenate the devices' slices along dimension 0."""
    return x if axis is None else jax.lax.all_gather(x, axis, tiled=True)


def keep_freed() -> bool:
    """Have the C library keep the memory of a step on the CPU for the next step.

    glibc gives large blocks back to the kernel, which clears every page of them before
    it lends them again: a fifth of a step's time. One heap for all threads that never
    shrinks, as mallopt(3) describes, and of huge pages where the kernel has them for
    those who ask, which spares the processor looking up addresses.

    Returns:
        Whether the C library is one that can.
    """
    if sys.platform == "win32":  # has no library of that name
        return False
    libc = ctypes.CDLL(None)
    mallopt = getattr(libc, "mallopt", None)
    never_mmap, never_trim, one_heap = (-4, 0), (-1, -1), (-8, 1)
    kept = mallopt is not None and all(
        mallopt(*how) for how in (never_mmap, never_trim, one_heap)
    )
    if kept:
        _ask_for_huge_pages(libc)
    return kept


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Ask where the heap will grow: half as far as there is memory, untouched yet."""
    huge = 2**21
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    libc.malloc.restype = ctypes.c_void_p
    at = libc.malloc(ctypes.c_size_t(size))
    if at:  # else addresses are limited, and there are pages of 4 KB
        first = at + -at % huge
        whole = (at + size - first) // huge * huge
        at_first, length = ctypes.c_void_p(first), ctypes.c_size_t(whole)
        libc.madvise(at_first, length, mmap.MADV_HUGEPAGE)
        libc.free(ctypes.c_void_p(at))


def start(
    *,
    cpu_devices: int = 0,
    coordinator: str = "",
    processes: int = 1,
    process: int = 0,
    join_seconds: int = 300,
    peer_seconds: int = 100,
) -> None:
    """Set up devices and processes; call it before anything touches a device.

    Args:
        cpu_devices: split the CPU into so many devices, one for each core is fastest,
            and see `keep_freed`; 0 leaves it whole.
        coordinator: "host:port" of process 0; "auto" where the cluster tells all
            (TPU VMs, GKE, SLURM, Open MPI); empty for a single process.
        processes: how many processes the run has.
        process: which of them this is.
        join_seconds: how long to wait for the others at the start.
        peer_seconds: a process that is silent for so long is taken for dead, and all
            the others are ended.

    Raises:
        ValueError: "auto" where no cluster is known, or a process that is none.
        ConnectionError: the others did not come.
    """
    if cpu_devices:
        jax.config.update("jax_num_cpu_devices", cpu_devices)
        keep_freed()
    if not coordinator:
        if processes != 1 or process != 0:
            raise ValueError(
                f"process {process} of {processes} without a coordinator; wanted"
                " --coordinator=HOST:PORT of process 0, or auto"
            )
        return
    # It would keep SIGTERM to itself until `stopping.on_signals`, which does its work.
    jax.config.update("jax_enable_preemption_service", False)
    told: dict[str, Any] = {
        "initialization_timeout": join_seconds,
        "heartbeat_timeout_seconds": peer_seconds,
    }
    try:
        if coordinator == "auto":
            jax.distributed.initialize(**told)
        else:
            jax.distributed.initialize(coordinator, processes, process, **told)
    except jax.errors.JaxRuntimeError as error:
        raise ConnectionError(
            f"process {process} of {processes} and the others at {coordinator} did"
            f" not meet within {join_seconds} s; start all of them, with the same"
            f" --coordinator, and see that its port is open: {error}"
        ) from None
    except ValueError as error:
        if coordinator != "auto":
            raise
        raise ValueError(
            f"--coordinator=auto, and no TPU VM, GKE, SLURM or Open MPI is seen here"
            f" ({error}); give --coordinator=HOST:PORT --processes=N --process=I"
        ) from None
