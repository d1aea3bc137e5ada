"""What pip installs is the package as it lies here, pages and all."""

import pathlib
import shutil
import subprocess
import sys
import zipfile

ROOT = pathlib.Path(__file__).parent.parent


def test_the_wheel_holds_every_file_of_the_package(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    no = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "jaxface", tmp_path / "jaxface", ignore=no)
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    packed = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("jaxface/")}
    here = (p for p in (tmp_path / "jaxface").rglob("*") if p.is_file())
    assert packed == {p.relative_to(tmp_path).as_posix() for p in here}
    assert "jaxface/pages/report.html" in packed
