"""The bytes that devices send, by hand and from programs whose sizes are known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxface import collectives, hardware, parallel

N = 8
HAND = """HloModule step, is_scheduled=true, replica_count=1, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (t: (s32[], f32[10])) -> (s32[], f32[10]) {
  %x = f32[10]{0} get-tuple-element(%t), index=1
  %ar = f32[10]{0} all-reduce(%x), channel_id=1, replica_groups={}, to_apply=%add
  ROOT %out = (s32[], f32[10]{0}) tuple(%i, %ar)
}

%few (x: f32[4]) -> f32[4] {
  ROOT %p = f32[4]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
}

%many (x: f32[4]) -> f32[4] {
  %p = f32[4]{0} all-to-all(%x), replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %q = f32[4]{0} all-to-all(%p), replica_groups={{0,1,2,3}}, dimensions={0}
}

%started (x: bf16[8,2]) -> bf16[32,2] {
  %g = bf16[32,2]{1,0:T(8)} all-gather(%x), channel_id=1, replica_groups={{0,1,2,3}},\
 backend_config={"async_collective_fusion_config":{"flag_start":"-1","flag_end":"-1"}}
  ROOT %c = bf16[32,2]{1,0} custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%ended (x: bf16[8,2]) -> bf16[32,2] {
  ROOT %g2 = bf16[32,2]{1,0} all-gather(%x), channel_id=1, replica_groups={{0,1,2,3}},\
 backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}
}

ENTRY %main (x: f32[10], y: bf16[8,2]) -> f32[10] {
  %w = (s32[], f32[10]{0}) while(%t), condition=%c, body=%body,\
 backend_config={"known_trip_count":{"n":"5"},"known_init_step":{"init":"0"}}
  %start = (f32[3]{0}, f32[12]{0}) all-gather-start(%x), replica_groups=[2,2]<=[4]
  %done = f32[12]{0} all-gather-done(%start)
  %rs = (f32[6]{0}, s8[2]{0}) reduce-scatter(%a, %b), replica_groups={{0,1},{2,3}}
  %if = f32[4]{0} conditional(%p, %x, %x), branch_computations={%few, %many}
  %f = bf16[32,2]{1,0} fusion(%y), kind=kCustom, calls=%started
  %g = bf16[32,2]{1,0} fusion(%f), kind=kCustom, calls=%ended
  ROOT %own = f32[10]{0} all-reduce(%x), replica_groups={{0},{1},{2},{3}}, to_apply=%add
}
"""


def test_a_program_by_hand():
    found = collectives.read(HAND)
    told = [(c.kind, c.bytes, c.group, c.times, c.wire_bytes) for c in found]
    assert told == [
        ("all-reduce", 40, 4, 5, 5 * 2 * 0.75 * 40),
        ("all-gather", 48, 2, 1, 24),
        ("reduce-scatter", 2 * (24 + 2), 2, 1, 26),
        ("all-to-all", 16, 4, 1, 12),
        ("all-to-all", 16, 4, 1, 12),
        ("all-gather", 128, 4, 1, 96),
    ]
    assert found[2].shapes == ("f32[6]", "s8[2]")


@pytest.mark.parametrize(
    ("axes", "group"),
    [("'data'", 2), ("'class'", 4), ("'data','class'", 8), ("'class':(1)2", 2)],
)
def test_groups_along_axes_of_a_mesh(axes, group):  # as JAX 0.12 writes them
    line = f"replica_groups=mesh['data'=2,'class'=4] {{{axes}}}, dimensions={{0}}"
    found = collectives.read(HAND.replace("replica_groups=[2,2]<=[4]", line))
    assert found[1].kind == "all-gather"
    assert found[1].group == group


def test_a_loop_of_unknown_length_is_an_error():
    turns = '"known_trip_count":{"n":"5"}'
    with pytest.raises(ValueError, match="unknown length"):
        collectives.read(HAND.replace(turns, '"other":{"n":"5"}'))
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives.read("func.func public @main()")


@pytest.mark.parametrize(
    ("shape", "size"),
    [("f32[4,256]", 4096), ("(bf16[3], pred[2])", 8), ("s32[]", 4), ("f8e4m3fn[5]", 5)],
)
def test_sizes_of_shapes(shape, size):
    assert collectives.size_of(shape) == size


def spread(body, shape, out):
    mesh = parallel.make_mesh(axis="data", devices=jax.devices()[:N])
    f = jax.shard_map(
        body, mesh=mesh, in_specs=P("data"), out_specs=out, check_vma=False
    )
    text = jax.jit(f).lower(jax.ShapeDtypeStruct(shape, jnp.float32)).compile()
    return [
        (c.kind, c.bytes, c.group, c.times) for c in collectives.read(text.as_text())
    ]


def test_programs_of_known_sizes():
    def meet(x):  # [2, 10]
        return jax.lax.psum(x, "data"), parallel.gather(x, "data")

    assert sorted(spread(meet, (2 * N, 10), (P(), P()))) == [
        ("all-gather", 4 * 2 * N * 10, N, 1),
        ("all-reduce", 4 * 2 * 10, N, 1),
    ]

    def scatter(x):  # [16, 10] -> [2, 10]
        return jax.lax.psum_scatter(x, "data", tiled=True)

    ((kind, size, group, _),) = spread(scatter, (16 * N, 10), P("data"))
    # The CPU may reduce all of it and slice: the same bytes of the whole.
    assert kind in ("reduce-scatter", "all-reduce")
    assert (size, group) == (4 * 16 * 10, N)


def test_a_scan_counts_as_often_as_it_turns():
    def turns(x):
        step = lambda carry, _: (jax.lax.psum(carry * 0.5, "data"), None)  # noqa: E731
        return jax.lax.scan(step, x, None, length=7)[0]

    found = spread(turns, (4 * N,), P("data"))
    assert sum(times for *_, times in found) == 7


def test_a_roofline_by_hand():
    chip = hardware.Chip(1e9, 100.0, 50.0, 10.0, 2.0, "a book")
    told = {"flops": 200.0, "moved": 30.0, "sent": 4.0}
    assert hardware.seconds(chip, **told, dtype="bfloat16") == (2.0, 3.0, 2.0)
    assert hardware.seconds(chip, **told, dtype="float32") == (4.0, 3.0, 2.0)
