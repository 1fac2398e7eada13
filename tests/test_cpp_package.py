"""The C++ package: cmake --install, find_package(uflow), the example program, and that it finds what Python finds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from uflow import segmentation

ROOT = Path(__file__).parent.parent
SCALES = [(48, 14, 18), (64, 7, 9)]  # channels, height, width
SIZE = 64


def tool(name: str) -> str | None:
    """The path of a program: beside this Python (pip installs cmake and ninja there), else on the path."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


@pytest.fixture(scope="module")
def segment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example program, built against the installed package."""
    cmake, compiler = tool("cmake"), os.environ.get("CXX") or tool("c++") or tool("g++") or tool("clang++")
    if cmake is None or compiler is None:
        pytest.skip(f"needs cmake (found: {cmake}) and a C++ compiler (found: {compiler})")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"] if tool("ninja") else []
    folder = tmp_path_factory.mktemp("cpp")
    prefix, built = folder / "prefix", folder / "example"

    def run(*command: str | Path) -> None:
        done = subprocess.run([cmake, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    run("-S", ROOT, "-B", folder / "core", *generator, "-DUFLOW_PYTHON=OFF")
    run("--install", folder / "core", "--prefix", prefix)
    run("-S", ROOT / "examples", "-B", built, *generator, f"-DCMAKE_PREFIX_PATH={prefix}", "-DCMAKE_BUILD_TYPE=Release")
    run("--build", built)
    installed = {path.relative_to(prefix).as_posix() for path in prefix.rglob("*") if path.is_file()}
    headers = {f"include/uflow/{path.name}" for path in (ROOT / "csrc/include/uflow").glob("*.hpp")}
    files = ("uflow-config.cmake", "uflow-config-version.cmake", "uflow-targets.cmake")
    assert installed == headers | {f"share/cmake/uflow/{name}" for name in files}
    return built / "segment"


@pytest.fixture(scope="module")
def energies() -> list[np.ndarray]:
    """Chi-square energies of two scales with a blob in each, (1, H, W)."""
    rng = np.random.default_rng(0)
    maps = [rng.chisquare(channels, (1, height, width)) for channels, height, width in SCALES]
    maps[0][0, 2:7, 3:8] *= 6
    maps[0][0, 10:13, 12:17] *= 9
    maps[1][0, 5:7, 6:9] *= 5
    return [energy.astype(np.float32) for energy in maps]


def arguments(folder: Path, energies: list[np.ndarray]) -> list[str]:
    """The example's arguments for energies written into `folder`."""
    args = [str(folder / "map.f32"), str(SIZE)]
    for i, (energy, (channels, height, width)) in enumerate(zip(energies, SCALES, strict=True)):
        energy.astype("float32").tofile(folder / f"{i}.f32")
        args += [str(folder / f"{i}.f32"), str(height), str(width), str(channels)]
    return args


def test_example_finds_what_python_finds(segment: Path, energies: list[np.ndarray], tmp_path: Path) -> None:
    args = arguments(tmp_path, energies)
    done = subprocess.run([segment, *args], capture_output=True, text=True, check=True)
    expected = segmentation.log_nfa_from_energies(energies, [channels for channels, _, _ in SCALES], size=SIZE)[0]
    found = np.fromfile(tmp_path / "map.f32", "float32").reshape(SIZE, SIZE)
    np.testing.assert_allclose(found, expected, rtol=1e-6)

    labels, count = segmentation.connected_components(expected < 0)
    assert count >= 2
    lines = [
        f"{(labels == i).sum()} pixels, lowest log10 NFA {expected[labels == i].min():.4g}" for i in range(1, count + 1)
    ]
    printed = done.stdout.splitlines()
    assert printed[-1] == f"{count} regions"
    for i, line in enumerate(printed[:-1]):
        before, value = line.rsplit(" ", 1)
        assert f"{before} {float(value):.4g}" == f"region {i + 1}: {lines[i]}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda args: args[:-1], "usage:"),
        (lambda args: [], "usage:"),
        (lambda args: [*args[:-1], "many"], "not a size"),
        (lambda args: [args[0], "0", *args[2:]], "not a size"),
        (lambda args: [*args[:-2], "8", args[-1]], "1.f32 is not a file of 56 float32 values"),
        (lambda args: [*args[:-2], "10", args[-1]], "1.f32 is not a file of 70 float32 values"),
        (lambda args: [*args[:-4], "nowhere.f32", *args[-3:]], "nowhere.f32 is not a file of"),
        (lambda args: [str(Path(args[0]).parent / "no" / "map.f32"), *args[1:]], "cannot write"),
    ],
)
def test_example_says_what_is_wrong(segment: Path, energies: list[np.ndarray], tmp_path: Path, change, message) -> None:
    done = subprocess.run([segment, *change(arguments(tmp_path, energies))], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("segment: ")
    assert message in line
