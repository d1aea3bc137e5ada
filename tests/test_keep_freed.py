"""With devices of the CPU, a step's memory is the next one's: no page is new, and
where the kernel lends huge ones those that are new are few."""

import pathlib
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, threading
from jaxface import parallel
{start}
def touch():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * size  # 64 MB, 15,625 pages; not NumPy, which asks for huge ones
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
faults, size = [], 64_000_000
for _ in range(3):
    thread = threading.Thread(target=touch)
    thread.start(); thread.join()
print(*faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc only")
@pytest.mark.parametrize("devices", [0, 1])
def test_freed_memory_is_kept_where_the_cpu_computes(devices):
    code = FAULTS.format(start=f"parallel.start(cpu_devices={devices})")
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    first, *later = (int(n) for n in run.stdout.split())
    assert all((n < 1000) == bool(devices) for n in later), run.stdout
    lent = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if lent.exists() and "[madvise]" in lent.read_text():
        assert (first < 1000) == bool(devices), run.stdout
