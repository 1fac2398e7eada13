"""The C++ package: cmake --install, find_package(uflow), the example programs, and that they find what Python finds."""

import io
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import uflow
from uflow import segmentation
from uflow.deploy import exported
from uflow.prediction import Prediction
from uflow.predictor import Predictor
from uflow.scoring import Blend, Evidence
from uflow.threshold import CalibratedThreshold

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs/guide/cpp.md"
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


# The calibrated test --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exported:
    """An exported folder, loaded, whose network gives the evidence of image i for one that starts with the value i."""

    folder: Path
    predictor: Predictor
    evidence: Evidence

    def images(self, size: tuple[int, int]) -> np.ndarray:
        """Images of the evidence, (N, H, W, 3): spots of colour, and the image's number in the upper left corner."""
        rng = np.random.default_rng(size)
        images = rng.integers(90, 110, (len(self.evidence.energies[0]), *size, 3), np.uint8)
        for number, image in enumerate(images):
            for _ in range(3):
                y, x = rng.integers(size[0]), rng.integers(size[1])
                image[y : y + size[0] // 4, x : x + size[1] // 4] += rng.integers(0, 80, 3, np.uint8)
            image[: size[0] // 4, : size[1] // 4] = number
        return images

    def predict(self, size: tuple[int, int]) -> list[Prediction]:
        """What Python says of each image, at some size."""
        return [self.predictor.predict(image) for image in self.images(size)]

    def arguments(
        self,
        workplace: Path,
        size: tuple[int, int],
        maps: list[np.ndarray] | None = None,
        images: np.ndarray | None = None,
    ) -> list[str]:
        """The program's, with the numbers that the Python of docs/guide/cpp.md prints; maps are written as files."""
        (source,) = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.M | re.S)
        printed = io.StringIO()
        with redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder.parent)
            patch.setattr(exported, "open_network", lambda *_: None)
            patch.setattr(exported, "check_graph", lambda _: None)
            exec(compile(source, str(GUIDE), "exec"), {})
        (workplace / "numbers.txt").write_text(printed.getvalue())
        files = [workplace / f"{i}.npy" for i in range(len(self.evidence.maps if maps is None else maps))]
        for file, values in zip(files, self.evidence.maps if maps is None else maps, strict=True):
            np.save(file, values)
        np.save(workplace / "images.npy", self.images(size) if images is None else images)
        return [str(workplace / name) for name in ("map.npy", "images.npy", "numbers.txt")] + list(map(str, files))


METADATA = {
    "kind": "uflow export",
    "version": exported.FORMAT_VERSION,
    "format": "onnx",
    "uflow": "",
    "opset": 18,
    "int8": None,
    "dynamic_size": False,
    "input": "image",
    "backbone": {"name": "made"},
    "record": {},
}


def write_folder(folder: Path, threshold: CalibratedThreshold, blend: Blend, maps: int) -> Path:
    """An exported folder of these numbers, whose network is not opened."""
    settings = {"blend": blend.to_dict(), "tile": False, "bit_depth": 16, "selected_on_test": False}
    folder.mkdir()
    (folder / "network.onnx").write_bytes(b"not opened")
    metadata = METADATA | {
        "files": {"network.onnx": exported.sha256(folder / "network.onnx")},
        "outputs": [""] * (maps + 1),
        "image_size": [56, 72],
        "strides": [4, 8, 16],
    }
    metadata |= {"latent_channels": [40, 40, 40], "predictor": {"threshold": threshold.to_dict(), **settings}}
    exported.write_metadata(folder, metadata)
    return folder


@pytest.fixture(scope="module", params=[2, 1, 0], ids=["two distances", "one distance", "latents alone"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A threshold learnt from made evidence, and evidence of good and of defective images, the first good."""
    rng = np.random.default_rng(3)
    shapes = [(14, 18), (7, 9), (4, 5)]

    def made(count: int) -> Evidence:
        """Neighbouring cells are alike, as in real evidence."""
        common = rng.gamma(20, 1 / 20, (count, 7, 9)).repeat(2, 1).repeat(2, 2)
        fields = [common[:, :: 14 // h, :: 18 // w][:, :h, :w] for h, w in shapes]
        energies = [field * rng.chisquare(40, field.shape) for field in fields]
        distances = [field * rng.gamma(4, size=field.shape) for field in (fields[0], fields[0])[: request.param]]
        return Evidence([e.astype(np.float32) for e in energies], [d.astype(np.float32) for d in distances])

    def defect(image: int, rows: slice, columns: slice, energy: float, distance: float) -> None:
        for values, (height, width) in zip(bad.energies, shapes, strict=True):  # the cells that it touches
            down = slice(rows.start * height // 14, -(-rows.stop * height // 14))
            across = slice(columns.start * width // 18, -(-columns.stop * width // 18))
            values[image, down, across] *= energy
        for k, values in enumerate(bad.distances):
            values[image, rows, columns] *= distance * (1 + 0.1 * k)

    good, bad = [made(1) for _ in range(24)], made(8)
    ring = [(slice(3, 5), slice(3, 12)), (slice(8, 10), slice(3, 12)), (slice(3, 10), slice(3, 5))]
    for rows, columns in [*ring, (slice(3, 10), slice(10, 12))]:
        defect(1, rows, columns, 5, 6)  # closed: its hole is filled
    defect(2, slice(6, 9), slice(7, 11), 9, 0.01)  # the latents alone see it
    defect(3, slice(6, 7), slice(2, 16), 4, 8)  # a scratch
    defect(4, slice(0, 4), slice(0, 4), 6, 9)  # two at the border, and a faint one beside a strong one
    defect(4, slice(10, 14), slice(14, 18), 4, 5)
    defect(5, slice(2, 12), slice(2, 9), 2, 2.5)
    defect(5, slice(5, 8), slice(11, 15), 9, 20)
    defect(6, slice(0, 14), slice(0, 18), 5, 8)  # all of the image
    defect(7, slice(9, 10), slice(9, 10), 1e4, 30)  # beyond what the anomaly map can tell in float32
    threshold = CalibratedThreshold.from_good_images(good, 0.1)
    assert 0.1 < threshold.exponent < 0.9
    blend = Blend.from_good_images(good)
    folder = write_folder(tmp_path_factory.mktemp("exported") / "tile.uflow", threshold, blend, len(bad.maps))
    unused = np.zeros((1, 1, 1), np.float32)  # the network's own anomaly map

    def run(images: np.ndarray) -> list[np.ndarray]:
        return [*(values[images[:, 0, 0, 0]] for values in bad.maps), unused]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exported, "open_network", lambda *_: run)
        patch.setattr(exported, "check_graph", lambda _: None)
        predictor = uflow.load(folder)
    assert isinstance(predictor, Predictor)
    return Exported(folder, predictor, bad)


def run_exported(examples: Path, args: list[str]) -> tuple[np.ndarray, str]:
    done = subprocess.run([examples / "exported", *args], capture_output=True, text=True, check=True)
    return np.load(args[0]), done.stdout


@pytest.mark.parametrize("size", [(56, 72), (60, 80), (33, 47), (14, 18), (131, 90)])
def test_exported_equals_python(examples: Path, model: Exported, size: tuple[int, int], tmp_path: Path) -> None:
    predictions = model.predict(size)
    found, printed = run_exported(examples, model.arguments(tmp_path, size))
    assert found.dtype == np.float32
    assert found.shape == (len(predictions), *size)
    for image, prediction in zip(found, predictions, strict=True):
        np.testing.assert_array_equal(image < 0, prediction.mask)
        # numpy's logarithm of float32 rounds otherwise: measured 2e-6
        np.testing.assert_allclose(image, prediction.log_nfa, rtol=1e-6, atol=5e-6)
    assert [prediction.is_anomalous for prediction in predictions] == [False] + [True] * (len(predictions) - 1)
    words = re.fullmatch(r"lowest log10 NFA (\S+), (\d+) pixels\n", printed)
    assert words
    assert float(words[1]) == pytest.approx(min(p.log_nfa.min() for p in predictions), rel=1e-5)
    assert int(words[2]) == sum(np.count_nonzero(p.mask) for p in predictions)


def test_one_image_is_as_in_a_batch(examples: Path, model: Exported, tmp_path: Path) -> None:
    found, _ = run_exported(examples, model.arguments(tmp_path, (60, 80)))
    images = model.images((60, 80))
    for at in (slice(1, 2), 1):  # with and without a batch
        maps = [values[at] for values in model.evidence.maps]
        alone, _ = run_exported(examples, model.arguments(tmp_path, (60, 80), maps, images[at]))
        assert alone.tobytes() == found[1:2].tobytes()


def test_exported_says_what_is_wrong(examples: Path, model: Exported, tmp_path: Path) -> None:
    maps = model.evidence.maps
    args = model.arguments(tmp_path, (60, 80))
    for position, value, message in [
        (1, str(tmp_path / "none.npy"), "none.npy is not a .npy file (1.0) of uint8 (batch, height, width, 3)"),
        (2, str(tmp_path / "nowhere.txt"), "nowhere.txt is not four lines of numbers"),
        (0, str(tmp_path / "no" / "map.npy"), "cannot write"),
        (-1, str(tmp_path / "nowhere.npy"), "nowhere.npy is not a .npy file"),
    ]:
        changed = list(args)
        changed[position] = value
        says(examples / "exported", changed, message)
    says(examples / "exported", args[:-1], "one file is needed for each number")
    says(examples / "exported", [*args, args[-1]], "one file is needed for each number")
    says(examples / "exported", args[:3], "usage:")
    for images in (np.zeros((8, 6, 7, 4), np.uint8), np.zeros((8, 6, 7, 3), np.float32), np.zeros((6, 7), np.uint8)):
        changed = model.arguments(tmp_path, (60, 80), images=images)
        says(examples / "exported", changed, "images.npy is not a .npy file (1.0) of uint8")
    says(
        examples / "exported",
        model.arguments(tmp_path, (60, 80), images=model.images((60, 80))[:3]),
        "0.npy is of another batch size",
    )
    args = model.arguments(tmp_path, (60, 80))
    says(examples / "exported", [], "usage:")
    for wrong, message in [
        (maps[-1].astype(np.float64), ".npy is not a .npy file (1.0) of float32"),
        (np.asfortranarray(maps[-1]), ".npy is not a .npy file"),
        (maps[-1][0, 0], ".npy is not a .npy file"),
        (maps[-1][:, :0], ".npy is not a .npy file"),
        (maps[-1][:1], ".npy is of another batch size"),
        (maps[-1] * np.float32(np.nan), ".npy holds a value that is not finite"),
    ]:
        changed = model.arguments(tmp_path, (60, 80), [*maps[:-1], wrong])
        says(examples / "exported", changed, f"{len(maps) - 1}{message}")
    whole = (tmp_path / "0.npy").read_bytes()
    for part in (whole[:-4], whole + b"0000", whole[:9], b"", whole[1:]):
        (tmp_path / "0.npy").write_bytes(part)
        says(examples / "exported", args, "0.npy is not a .npy file")


def test_exported_reads_no_other_numbers(examples: Path, model: Exported, tmp_path: Path) -> None:
    args = model.arguments(tmp_path, (60, 80))
    numbers = tmp_path / "numbers.txt"
    lines = [line.split() for line in numbers.read_text().splitlines()]
    for row, column, value, message in [
        (0, 0, "nan", "is not four lines of numbers"),
        (0, 1, "3x", "is not four lines of numbers"),
        (0, 1, "0", "out of range"),
        (0, 2, "-1", "out of range"),
        (0, 3, "1.01", "out of range"),
        (1, 2, "0", "out of range"),
        (2, 1, "-2", "out of range"),
        (1, 0, "", "does not hold 4, 3, 1 or more"),
        (0, 0, "1 2", "does not hold 4, 3, 1 or more"),
    ]:
        changed = [list(line) for line in lines]
        changed[row][column] = value
        numbers.write_text("".join(" ".join(line) + "\n" for line in changed))
        says(examples / "exported", args, message)
    numbers.write_text("1 2\n")
    says(examples / "exported", args, "is not four lines of numbers")


# Maps of any model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "count", "out"),
    [((20, 24), 25, (20, 24)), ((20, 24), 24, (100, 90)), ((5, 7), 9, (5, 7)), ((1, 6), 3, (2, 3))],
)
def test_maps_equal_python(
    examples: Path, tmp_path: Path, size: tuple[int, int], count: int, out: tuple[int, int]
) -> None:
    """Learnt and judged in C++ as `uflow.Threshold` does it: masks pixel by pixel, p-values exactly."""
    rng = np.random.default_rng(count)
    good, new = (rng.gamma(2, size=(n, *size)).astype(np.float32) - 3 for n in (count, 6))
    new[1, : size[0] // 2 + 1, 1:3] += 9
    new[2, -1:, :] += 4
    new[3] *= 3
    alpha = 0.25
    threshold = uflow.Threshold.from_good_maps(good, alpha)
    good.tofile(tmp_path / "good.f32")
    new.tofile(tmp_path / "new.f32")
    files = [str(tmp_path / f"{name}.f32") for name in ("good", "new")]
    args = [str(tmp_path / "map.f32"), *map(str, out), str(alpha), *map(str, size), *files]
    done = subprocess.run([examples / "maps", *args], capture_output=True, text=True, check=True)
    found = np.fromfile(tmp_path / "map.f32", "float32").reshape(-1, *out)
    lines = done.stdout.splitlines()
    judged = [threshold.apply(values, out) for values in new]
    assert any(each.is_anomalous for each in judged)
    for image, line, expected in zip(found, lines, judged, strict=True):
        np.testing.assert_array_equal(image < 0, expected.mask)
        np.testing.assert_allclose(image, expected.log_nfa, rtol=1e-5, atol=2e-5)
        words = re.fullmatch(r"p-value (\S+), lowest log10 NFA (\S+), (\d+) pixels", line)
        assert words
        assert float(words[1]) == pytest.approx(expected.p_value, rel=1e-5)
        assert int(words[3]) == np.count_nonzero(expected.mask)


def test_maps_says_what_is_wrong(examples: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((4, 3, 5)).astype(np.float32)
    values.tofile(tmp_path / "good.f32")
    file = str(tmp_path / "good.f32")
    args = [str(tmp_path / "map.f32"), "3", "5", "0.2", "3", "5", file, file]
    for position, value, message in [
        (1, "0", "not a size"),
        (3, "2", "alpha is a probability"),
        (4, "7", "good.f32 is not a file of maps of 35 float32 values"),
        (6, "nowhere.f32", "nowhere.f32 is not a file of maps"),
        (0, str(tmp_path / "no" / "map.f32"), "cannot write"),
    ]:
        changed = list(args)
        changed[position] = value
        says(examples / "maps", changed, message)
    says(examples / "maps", args[:-1], "usage:")
    for wrong, message in [(values * 0, "do not vary"), (values * np.nan, "not finite")]:
        wrong.astype(np.float32).tofile(file)
        says(examples / "maps", args, message)


# The page -------------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_program() -> None:
    page = GUIDE.read_text().partition("## From an exported model")[2].partition("\n## ")[0]
    program = "\n".join(line.strip() for line in (ROOT / "examples/exported.cpp").read_text().splitlines())
    blocks = re.findall(r"^```cpp\n(.*?)^```", page, re.M | re.S)
    assert len(blocks) == 2
    for part in "\n\n".join(block.rstrip() for block in blocks).split("\n\n"):
        assert "\n".join(line.strip() for line in part.splitlines()) in program


def test_the_page_names_each_header_once() -> None:
    table = re.findall(r"^\| `.*", GUIDE.read_text(), re.M)
    named = [name for row in table for name in re.findall(r"`(\w+\.hpp)`", row.split("|")[1])]
    assert sorted(named) == sorted(path.name for path in (ROOT / "csrc/include/uflow").glob("*.hpp"))
