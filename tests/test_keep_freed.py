"""With devices of the CPU, a step's memory is the next one's: no page is new."""

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


def printed(code, devices):
    """The words that a process with so many devices of the CPU prints."""
    code = code.format(start=f"parallel.start(cpu_devices={devices})")
    line = [sys.executable, "-c", code]
    return subprocess.check_output(line, text=True).split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc only")
@pytest.mark.parametrize("devices", [0, 1])
def test_freed_memory_is_kept_where_the_cpu_computes(devices):
    _, *later = printed(FAULTS, devices)
    assert [int(n) < 1000 for n in later] == [bool(devices)] * 2, later


ASKED = """
import ctypes, re
from jaxface import parallel
{start}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
at = libc.malloc(64_000_000) + 32_000_000
for line in open("/proc/self/smaps"):
    if area := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
        first, end = (int(x, 16) for x in area.groups())
    if line.startswith("VmFlags:") and first <= at < end:
        print("hg" in line.split())
"""


@pytest.mark.skipif(
    not pathlib.Path("/sys/kernel/mm/transparent_hugepage").exists(),
    reason="no huge pages",
)
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc only")
@pytest.mark.parametrize("devices", [0, 1])
def test_huge_pages_are_asked_for_where_the_cpu_computes(devices):
    assert printed(ASKED, devices) == [str(bool(devices))]
