"""Other projects' weights give the same embeddings here: twins in PyTorch, by name."""

import functools
import importlib
import pathlib
import pkgutil

import jax
import numpy as np
import pytest

from jaxface import convert
from jaxface.convert import names, network

torch = pytest.importorskip("torch", reason="twins need pip install jaxface[peers]")

import twins  # noqa: E402  torch first: twins are made of it

KEYS = pathlib.Path(twins.__file__).parent / "keys"
TWINS = {
    (module.name, port): twin
    for module in pkgutil.iter_modules(twins.__path__)
    for port, twin in importlib.import_module(f"twins.{module.name}").TWINS.items()
}
every = pytest.mark.parametrize("key", TWINS, ids="-".join)


def port_of(key):
    family, _ = network.family_of(TWINS[key].line)
    return family.PORTS[key[1]]


def shapes_by_port(line, port):
    """Names and shapes that a port gives to a network of ours."""
    net, out = network.Network(line), {}
    for layer in net.layers:
        for suffix, path in layer.arrays.items():
            shape = network.their_shape(net, path, layer, port)
            out[names.their_name(layer, suffix, port)] = shape
    return out


def shapes_in_file(name):
    first, *lines = (KEYS / name).read_text().splitlines()
    assert first.startswith("# source: "), f"{name} does not say where it is from"
    rows = (line.split() for line in lines)
    return {
        key: () if shape == "-" else tuple(map(int, shape.split(",")))
        for key, shape in rows
    }


@functools.cache
def pair(key):
    """A small twin with random weights and statistics, and what it converts to."""
    torch.manual_seed(0)
    twin = TWINS[key].small()
    for name, value in [*twin.named_parameters(), *twin.named_buffers()]:
        if value.is_floating_point() and name not in port_of(key).constants:
            low = 0.5 if name.endswith("running_var") else -0.5
            with torch.no_grad():
                noise = torch.empty_like(value).uniform_(low, low + 1.0)
                value.copy_(noise if "running" in name else value + 0.3 * noise)
    tensors = {k: v.numpy().copy() for k, v in twin.state_dict().items()}
    return twin, tensors, convert.from_tensors(TWINS[key].line, tensors, port=key[1])


def images(key):
    shape = (4, *network.Network(TWINS[key].line).shape)
    x = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    return x, torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def exact(ours, theirs, name, floor=0.0):
    """Equal to 1e-6 of the largest value; a gradient that is zero but for rounding
    (of a bias before a norm) needs the floor."""
    atol = max(1e-6 * np.abs(theirs).max(), floor)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, err_msg=name)


@every
def test_port_twin_and_published_keys_agree(key):
    twin, port = TWINS[key], port_of(key)
    with torch.device("meta"):
        state = twin.full().state_dict()
    published = shapes_in_file(twin.keys)
    assert {k: tuple(v.shape) for k, v in state.items()} == published
    skipped = {k for k in published if k in port.constants or port.skips(k)}
    kept = {k: v for k, v in published.items() if k not in skipped}
    kept = {k: v for k, v in kept.items() if not k.endswith("num_batches_tracked")}
    assert shapes_by_port(twin.full_line, port) == kept


@every
def test_same_weights_give_the_same_embeddings(key):
    twin, _, found = pair(key)
    x, torch_x = images(key)
    twin.eval()
    with torch.no_grad():
        want = twin(torch_x)
    got = jax.jit(network.Network(TWINS[key].line).model.apply)(found.variables, x)
    atol = TWINS[key].tolerance * np.abs(want.numpy()).max()
    np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=atol)


@pytest.mark.slow  # gradients of whole networks, compiled in float64
@pytest.mark.parametrize(
    "key", [k for k, twin in TWINS.items() if twin.gradients], ids="-".join
)
def test_training_gives_the_same_statistics_and_gradients(key):
    twin, tensors, found = pair(key)
    net, (x, torch_x) = network.Network(TWINS[key].line), images(key)
    weight = np.random.default_rng(1).normal(size=(len(x), net.model.dim))
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda a: a.astype(float), found.variables)
        model = net.model.clone(dtype="float64")
        keys = jax.random.split(jax.random.key(0), len(x))

        def loss(params):
            y, new = model.apply(
                {**variables, "params": params},
                x.astype(float),
                train=True,
                keys=keys,
                mutable=["batch_stats"],
            )
            return (y * weight).sum(), (y, new)

        grads, (y, new) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    twin.double().train().zero_grad()
    out = twin(torch_x.double())
    (out * torch.from_numpy(weight)).sum().backward()
    state = {k: v.detach().numpy().copy() for k, v in twin.state_dict().items()}
    theirs = {k: v.grad.numpy() for k, v in twin.named_parameters() if v.requires_grad}
    twin.float().load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()})

    exact(y, out.detach().numpy(), "embedding")
    ours = network.flatten({"params": grads, **new})
    largest = max(np.abs(g).max() for g in theirs.values())
    for layer in net.layers:
        for suffix, path in layer.arrays.items():
            name = found.origin[path]
            got = network.to_theirs(np.asarray(ours[path]), path, layer, port_of(key))
            if suffix == "running_var":
                # torch keeps the unbiased variance, larger by N / (N - 1)
                before = 0.9 * tensors[name].astype(float)
                ratio = (got - before) / (state[name] - before)
                assert np.ptp(ratio) < 1e-6, name
                assert 1 - 1 / len(x) - 1e-6 < ratio.mean() < 1, name
            elif suffix == "running_mean":
                exact(got, state[name], name)
            else:
                exact(got, theirs[name], name, floor=1e-9 * largest)


@every
def test_round_trip_is_exact(key):
    twin, tensors, found = pair(key)
    back = convert.to_torch(found.line, found.variables, port=key[1])
    wanted = {k: v for k, v in tensors.items() if not port_of(key).skips(k)}
    assert back.keys() == wanted.keys()
    for name, array in wanted.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(back[name], array, err_msg=name)
    twin.load_state_dict(
        {k: torch.from_numpy(np.array(v)) for k, v in back.items()}, strict=False
    )


@every
def test_order_of_layers_says_the_same_as_names(key):
    _, tensors, found = pair(key)
    try:
        again = convert.from_tensors(TWINS[key].line, tensors, port="order")
    except convert.MismatchError:
        pytest.skip("layers of theirs run in another order than they are listed")
    assert again.origin == found.origin
