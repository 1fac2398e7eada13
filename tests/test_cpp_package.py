"""The C++ package: cmake --install, find_package(uflow), the example programs, and that they find what Python finds."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from uflow import segmentation
from uflow import threshold as calibration

ROOT = Path(__file__).parent.parent
SCALES = [(48, 14, 18), (64, 7, 9)]  # channels, height, width
SIZE = 64


def tool(name: str) -> str | None:
    """The path of a program: beside this Python (pip installs cmake and ninja there), else on the path."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the example programs, built against the installed package."""
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
    return built


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


def test_example_finds_what_python_finds(examples: Path, energies: list[np.ndarray], tmp_path: Path) -> None:
    args = arguments(tmp_path, energies)
    done = subprocess.run([examples / "segment", *args], capture_output=True, text=True, check=True)
    expected = segmentation.log_nfa_from_energies(energies, [channels for channels, _, _ in SCALES], size=SIZE)[0]
    found = np.fromfile(tmp_path / "map.f32", "float32").reshape(SIZE, SIZE)
    np.testing.assert_allclose(found, expected, rtol=1e-6)

    regions = segmentation.regions(expected < 0, expected, expected)
    assert len(regions) >= 2
    printed = done.stdout.splitlines()
    assert printed[-1] == f"{len(regions)} regions"
    for line, region in zip(printed[:-1], regions, strict=True):
        top, left, bottom, right = region.bbox
        before, value = line.rsplit(" ", 1)
        assert before == (
            f"{region.area} pixels in rows {top} to {bottom - 1}, columns {left} to {right - 1}, lowest log10 NFA"
        )
        assert float(value) == pytest.approx(region.log_nfa, rel=1e-5)


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
def test_example_says_what_is_wrong(
    examples: Path, energies: list[np.ndarray], tmp_path: Path, change, message
) -> None:
    says(examples / "segment", change(arguments(tmp_path, energies)), message)


def says(program: Path, args: list[str], message: str) -> None:
    done = subprocess.run([program, *args], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{program.name}: ")
    assert message in line


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray], np.ndarray]:
    """A model.json, (2, h, w) energies that it is for, of which the first are good, and their log NFA."""
    rng = np.random.default_rng(3)
    shapes = [(14, 18), (7, 9), (4, 5)]
    good = [(1.3 * rng.chisquare(40, (21, *shape))).astype(np.float32) for shape in shapes]
    background, joint, minima = calibration.fit([e[1:] for e in good], [(60, 80)] * 20)
    shift = calibration.conformal_shift(minima, 0.05) + 3
    energies = [np.stack([e[0], e[1]]) for e in good]
    energies[0][1, 3:8, 4:9] *= 6
    saved = {
        "background": [asdict(b) for b in background],
        "joint": asdict(joint),
        "shift": shift,
    }
    path = tmp_path_factory.mktemp("exported") / "model.json"
    path.write_text(json.dumps({"version": 1, "segmentation": saved}))
    return path, energies, calibration.log_nfa(energies, background, joint, (60, 80), shift)


def exported_arguments(model: Path, energies: list[np.ndarray], folder: Path) -> list[str]:
    """The arguments for energies written into `folder`, with the numbers that the command of docs/cpp.md prints."""
    command = re.search(r"python3 -c '(.*)' exported/model.json", (ROOT / "docs/cpp.md").read_text())
    assert command
    done = subprocess.run([sys.executable, "-c", command[1], model], capture_output=True, text=True, check=True)
    for i, energy in enumerate(energies):
        np.save(folder / f"{i}.npy", energy)
    files = [str(folder / f"{i}.npy") for i in range(len(energies))]
    return [str(folder / "map.npy"), "60", "80", *done.stdout.split(), *files]


def test_exported_equals_python(examples: Path, calibrated, tmp_path: Path) -> None:
    model, energies, expected = calibrated
    done = subprocess.run(
        [examples / "exported", *exported_arguments(model, energies, tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = np.load(tmp_path / "map.npy")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found < 0, expected < 0)
    assert [(image < 0).any() for image in expected] == [False, True]
    words = re.fullmatch(r"lowest log10 NFA (\S+), (\d+) pixels\n", done.stdout)
    assert words
    assert float(words[1]) == pytest.approx(expected.min(), rel=1e-5)
    assert int(words[2]) == (expected < 0).sum()
    # A batch of one, and a map without a batch, give the same
    for one in ([e[1:] for e in energies], [e[1] for e in energies]):
        subprocess.run(
            [examples / "exported", *exported_arguments(model, one, tmp_path)], capture_output=True, check=True
        )
        assert np.load(tmp_path / "map.npy").tobytes() == found[1:].tobytes()


def test_exported_says_what_is_wrong(examples: Path, calibrated, tmp_path: Path) -> None:
    model, energies, _ = calibrated
    args = exported_arguments(model, energies, tmp_path)
    for position, value, message in [
        (1, "none", "not a number for its place: none"),
        (2, "-3", "not a number for its place: -3"),
        (3, "nan", "not a number for its place: nan"),
        (4, "0", "not a number for its place: 0"),
        (5, "3x", "not a number for its place: 3x"),
        (0, str(tmp_path / "no" / "map.npy"), "cannot write"),
        (-1, str(tmp_path / "nowhere.npy"), "nowhere.npy is not a .npy file"),
    ]:
        changed = list(args)
        changed[position] = value
        says(examples / "exported", changed, message)
    says(examples / "exported", args[:-1], "usage:")
    says(examples / "exported", [], "usage:")
    for wrong, message in [
        (energies[2].astype(np.float64), "2.npy is not a .npy file (1.0) of float32"),
        (np.asfortranarray(energies[2]), "2.npy is not a .npy file"),
        (energies[2][0, 0], "2.npy is not a .npy file"),
        (energies[2][:, :0], "2.npy is not a .npy file"),
        (energies[2][:1], "2.npy is of another batch size"),
        (energies[2] * np.float32(np.nan), "an energy is not finite"),
    ]:
        says(examples / "exported", exported_arguments(model, [*energies[:2], wrong], tmp_path), message)
    whole = (tmp_path / "0.npy").read_bytes()
    for part in (whole[:-4], whole + b"0000", whole[:9], b"", whole[1:]):
        (tmp_path / "0.npy").write_bytes(part)
        says(examples / "exported", args, "0.npy is not a .npy file")
