"""Turn another project's weights into a workdir, or ours into a file for PyTorch.

    python launch/convert.py --source=backbone.pth --model=iresnet.r50 --out=/tmp/r50
    python launch/evaluate.py --workdir=/tmp/r50 --pack=lfw.bin
    python launch/convert.py --workdir=/tmp/run --to=torch --out=ours.safetensors

The source may be a .pth, .pt, .ckpt, .safetensors, .onnx, .h5 or .keras file; nothing
in it is executed. OUT/convert.json says which of its tensors became which array.
"""

import json
import pathlib
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from jaxface import (
    assembly,
    atomic,
    checkpoint,
    cli,
    config,
    convert,
    experiment,
    foreign,
)
from jaxface.foreign import onnx_graph, safetensor

_SOURCE = flags.DEFINE_string("source", None, "Another project's file of weights.")
_MODEL = flags.DEFINE_string("model", None, "Ours, such as mobilefacenet(dim=192).")
_PORT = flags.DEFINE_string(
    "port", "", "Whose names: arcface_torch, ..., or order; empty tries each."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "A run of ours, for --to.")
_STEP = flags.DEFINE_string("step", "best", "best, latest or a step's number.")
_TO = flags.DEFINE_enum("to", None, ["torch"], "Write WORKDIR's weights for torch.")
_OUT = flags.DEFINE_string("out", None, "A new workdir; with --to, a .safetensors.")


def main() -> None:
    """Read, match, write."""
    cli.log_to_stderr()
    if _TO.value:
        if not _WORKDIR.value:
            raise ValueError("--to=torch wants --workdir, the run to take weights from")
        weights_out()
        return
    if not (_SOURCE.value and _MODEL.value):
        raise ValueError("wanted --source and --model, or --workdir and --to=torch")
    weights_in()


def weights_in() -> None:
    """Make the workdir of a model whose weights are --source."""
    out = pathlib.Path(_OUT.value).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out={out} is there already; name a new folder")
    tensors = foreign.read(_SOURCE.value)
    try:
        found = convert.from_tensors(
            _MODEL.value,
            tensors,
            port=_PORT.value,
            channels_last=foreign.flattens_rows(_SOURCE.value),
        )
    except convert.MismatchError as error:
        logging.info("looking for a variant that fits ...")
        others = convert.variants(_MODEL.value, tensors, port=_PORT.value)
        advice = f"; it fits --model={' or '.join(others)}" if others else ""
        raise ValueError(f"{_SOURCE.value}: {error}{advice}") from None
    net = convert.Network(found.line)
    report: dict[str, Any] = {
        "source": str(_SOURCE.value),
        "model": found.line,
        "matched by": found.how,
        "left out": list(found.left),
        "names": found.origin,
    }
    if foreign.kind_of(_SOURCE.value) == ".onnx":
        report["cosine with the graph"] = agreement(net, found)
    c = settings(found.line, net)
    notes = {}
    if found.folded:
        notes = {"trainable": False, "why": "BatchNorm is folded into its convolutions"}
    manager = checkpoint.open_manager(out / "checkpoints")
    checkpoint.save(
        manager,
        0,
        found.variables,
        position=0,
        shape=net.shape,
        config_text=config.dumps(c),
        notes=notes | {"converted": {k: report[k] for k in ("source", "matched by")}},
    )
    manager.close()
    atomic.write(out / "convert.json", json.dumps(report, indent=1))
    atomic.write(out / "config.json", config.dumps(c))
    tell(found, net, report)


def settings(line: str, net: convert.Network) -> Any:
    """Return a config that evaluates the model on square rgb images of any size."""
    c, model = config.base(), net.model
    H, W, _ = net.shape
    fit = f"resize({max(H, W)})"
    if H != W:  # 112x96 is 112x112 without its sides, not squeezed
        fit += f"|center_crop(({H}, {W}))"
    swap = "bgr|" if model.color == "bgr" else ""
    scaled = f"{swap}normalize(mean={model.mean}, std={model.std})"
    c.model.name = line
    c.data.ops = f"decode|{fit}|flip|{scaled}"
    c.data.eval_ops = f"decode|{fit}|{scaled}"
    return c


def agreement(net: convert.Network, found: convert.Converted) -> float:
    """Compare with the graph of an ONNX file on one image of noise.

    Raises:
        ValueError: the same weights give another embedding.
    """
    x = np.random.default_rng(0).uniform(-1, 1, (1, *net.shape)).astype(np.float32)
    ours = np.asarray(jax.jit(net.model.apply)(found.variables, x)).ravel()
    theirs = onnx_graph.forward(_SOURCE.value, x.transpose(0, 3, 1, 2)).ravel()
    cosine = float(ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs))
    if not cosine > 0.9999:
        raise ValueError(
            f"the weights fit, but the embedding of a test image has a cosine of"
            f" {cosine:.4f} with the graph's: another activation or order of layers."
            " Try other arguments of --model, such as activation='relu6'"
        )
    return cosine


def tell(found: convert.Converted, net: convert.Network, report: Any) -> None:
    """Say what was done, and what is left for the user to know."""
    count = sum(np.size(a) for a in jax.tree.leaves(found.variables["params"]))
    print(f"{found.line}: {count:,} parameters, matched by {found.how!r}")
    model = net.model
    print(f"images: {net.shape}, {model.color}, (x - {model.mean}) / {model.std}")
    if found.how == "order":
        print(
            "no port knows these names: layers were matched by order and shape, and"
            " color, mean and std are the model's own; give others in --model"
        )
    if found.left:
        print(f"left out, {len(found.left)} tensors: {', '.join(found.left[:4])} ...")
    if found.folded:
        print("not for training: BatchNorm is folded into its convolutions")
    if "cosine with the graph" in report:
        print(f"cosine with the graph: {report['cosine with the graph']:.6f}")
    print(f"python launch/evaluate.py --workdir={_OUT.value} --pack=lfw.bin")


def weights_out() -> None:
    """Write a run's weights under the names of another project."""
    out = pathlib.Path(_OUT.value)
    if out.suffix != ".safetensors":
        raise ValueError(f"--out={out}: wanted a .safetensors; torch reads them too")
    c = experiment.saved_config(_WORKDIR.value)
    run = assembly.build(c, for_training=False)
    step, variables = experiment.restore(run, _WORKDIR.value, step=_STEP.value)
    if c.model.lora:
        variables["params"] = run.model.merge(variables["params"])
    family, call = convert.family_of(c.model.name)
    port = _PORT.value
    if not port:
        if not family.PORTS:
            raise ValueError(f"no other project's names are known for {call.name}")
        port = next(iter(family.PORTS))
    tensors = convert.to_torch(c.model.name, variables, port=port)
    safetensor.write(out, tensors)
    logging.info("step %d of %s", step, _WORKDIR.value)
    print(f"{out}: {len(tensors)} tensors, named as {port} does")


if __name__ == "__main__":
    flags.mark_flag_as_required("out")
    cli.run(main)
