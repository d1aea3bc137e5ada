"""A run of ours and PyTorch's from the same weights on the same batches: one curve."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxface import convert, parallel
from jaxface.convert import network
from jaxface.losses import softmax
from jaxface.train import optim
from jaxface.train import step as steps

torch = pytest.importorskip("torch", reason="twins need pip install jaxface[peers]")

from twins import iresnet  # noqa: E402  torch first: twins are made of it

TWIN = iresnet.TWINS["arcface_torch"]
C, B, STEPS = 10, 16, 300
M, SCALE, RATE, DECAY = 0.2, 16.0, 0.01, 5e-4


def batches(shape):
    """Ten noisy pictures' batches, the same ones each time."""
    rng = np.random.default_rng(0)
    faces = rng.uniform(-1, 1, (C, *shape))
    for step in range(STEPS):
        label = rng.integers(C, size=B, dtype=np.int32)
        noise = rng.normal(size=(B, *shape))
        yield {
            "image": (faces[label] + noise).astype(np.float32),
            "label": label,
            "position": np.arange(step * B, (step + 1) * B, dtype=np.uint32),
        }


def ours(found):
    """Return (the first class weights [C, D], the losses [STEPS])."""
    model, shape = network.Network(TWIN.line).model, network.Network(TWIN.line).shape
    loss = softmax.Loss(num_classes=C, margin=f"cosface(m={M})", scale=SCALE)
    tx = optim.sgd(lr=lambda _: RATE, weight_decay=DECAY)
    init = functools.partial(steps.init_state, seed=0, shape=shape, num_classes=C)
    state = jax.jit(functools.partial(init, model, loss, tx))()
    mesh = parallel.make_mesh(axis="data", devices=jax.devices()[:1])
    specs = parallel.state_specs(state, axis="data")
    state = state.replace(
        params=found.variables["params"], batch_stats=found.variables["batch_stats"]
    )
    head = np.array(state.head["kernel"])[:C]
    step = parallel.compile_step(
        steps.make_grads(model, loss, axis="data"),
        steps.make_update(tx),
        specs=specs,
        grad_specs={"params": P(), "head": P("data"), "margin": P()},
        mesh=mesh,
        axis="data",
    )
    state = jax.device_put(state, parallel.shardings(specs, mesh))
    losses = []
    for batch in batches(shape):
        placed = parallel.put_batch(batch, mesh=mesh, axis="data")
        state, metrics = step(state, placed)
        losses.append(metrics["loss"])
    return head, np.array(losses)


def theirs(net, head):
    """Return the losses [STEPS] of PyTorch's step, decaying what ours decays."""
    head = torch.nn.Parameter(torch.from_numpy(head))
    some = [p for p in net.parameters() if p.requires_grad]
    groups = [
        {"params": [*(p for p in some if p.ndim > 1), head], "weight_decay": DECAY},
        {"params": [p for p in some if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=0.9)
    unit, losses = torch.nn.functional.normalize, []
    for batch in batches(network.Network(TWIN.line).shape):
        label = torch.from_numpy(batch["label"]).long()
        e = net.train()(torch.from_numpy(batch["image"].transpose(0, 3, 1, 2).copy()))
        margin = M * torch.nn.functional.one_hot(label, C)
        z = SCALE * (unit(e) @ unit(head).T - margin)
        loss = torch.nn.functional.cross_entropy(z, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


@pytest.mark.slow
def test_the_loss_falls_as_in_pytorch():
    torch.manual_seed(0)
    net = TWIN.small()
    tensors = {k: v.numpy().copy() for k, v in net.state_dict().items()}
    found = convert.from_tensors(TWIN.line, tensors, port="arcface_torch")
    head, a = ours(found)
    b = theirs(net, head)
    np.testing.assert_allclose(a[:5], b[:5], rtol=1e-4)
    assert a[-50:].mean() < a[0] / 4
    smooth = np.ones(25) / 25
    band = np.abs(np.convolve(a - b, smooth, "valid"))
    assert band.max() < 2e-3 * a[0]
