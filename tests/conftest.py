"""Eight CPU devices, a compilation cache, and no silent broadcasting."""

import gc
import os
import pathlib
from importlib import metadata

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Small nets run for a moment: compiling them is nearly all, and half as much in haste.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    # jaxlib 0.11 and later have no other emitters
    + " --xla_cpu_use_fusion_emitters=false"
    * metadata.version("jaxlib").startswith("0.10."),
)

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent
REAL = ROOT.parent / "shared" / "data"

# Tracing makes millions of small objects, which the collector would look through.
gc.freeze()
gc.set_threshold(200_000, 50, 50)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough", action="store_true", help="run tests marked thorough too"
    )


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    if not config.getoption("thorough"):
        left = [item for item in items if "thorough" in item.keywords]
        items[:] = [item for item in items if "thorough" not in item.keywords]
        config.hook.pytest_deselected(items=left)
    if REAL.is_dir():
        return
    skip = pytest.mark.skip(reason=f"real faces are not at {REAL}")
    for item in items:
        if "real_data" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real faces and protocols (tests using it are `real_data`)."""
    return REAL
