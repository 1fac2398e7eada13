"""What uflow computes and writes for a tiny data set, to be compared with the golden files of before a change.

    python tests/frozen.py --write          rewrites tests/golden/{frozen.npz,frozen.json,json_keys.json,help/}
    python tests/frozen.py --write FOLDER   writes them to another folder

Pure moves and renames leave all of it equal, byte for byte. Where a change is wanted, rewrite, and the commit says so.
Images go through the network one at a time: a stream's batches depend on timing, and float32 rounding on the batch.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GOLDEN = Path(__file__).parent / "golden"


# Names in uflow: all that a renaming has to change in this file -------------------------------------------------------


def fit(images: Path, epochs: int, settings: dict[str, Any], **options: Any) -> Any:
    from uflow import Detector
    from uflow.recipe import TrainingSettings

    return Detector.fit(
        images,
        backbone="efficientnet_lite0",
        image_size=64,
        flow_steps=2,
        settings=TrainingSettings(epochs=epochs, batch_size=4, **settings),
        device="cpu",
        progress=False,
        **options,
    )


def save(detector: Any, path: Path) -> None:
    detector.save(path)


def load(path: Path) -> Any:
    import uflow

    return uflow.load(path, "cpu", runtime="torch" if (path / "network.pt2").exists() else None)


def predict(predictor: Any, image: Path) -> Any:
    return predictor.predict(image)


def calibrate(predictor: Any, images: Path, alpha: float) -> None:
    predictor.calibrate(images, alpha, batch_size=1)


def evaluate(predictor: Any, root: Path, **options: Any) -> dict[str, Any]:
    from uflow.evaluate.datasets import find_categories
    from uflow.evaluate.evaluation import evaluate_predictor

    (dataset,) = find_categories(root)
    return evaluate_predictor(predictor, dataset, batch_size=1, **options).to_dict()


def export(detector: Any, folder: Path, format: str) -> None:
    from uflow.deploy.export import export as write

    write(detector, folder, format)


def write_comparison(folder: Path) -> Path:
    """The file of `uflow compare`, of made figures: its processes take long."""
    from uflow.evaluate import rivals as compare

    figures = ("pixel_auroc", "aupro", "image_auroc", "miou", "iou_defective", "pixel_f1", "miou_fair", "miou_best")
    costs = ("good_flagged", "defective_flagged", "fit_s", "fit_cpu_s", "predict_ms", "predict_cpu_ms", "memory_mb")
    numbers = {name: 0.5 + i for i, name in enumerate((*figures, *costs))}
    done = compare.Result("tile", "uflow", 0, 2, **numbers)
    failed = compare.Result("tile", "fre", 0, None, failure="KeyError: made")
    compare._write([done, failed], compare.Settings("efficientnet_lite0"), folder)
    return folder / "comparison.json"


def command_names() -> list[str]:
    """ "train", "weights", "weights fetch", ..."""
    import typer

    from uflow.cli import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    below = [f"{name} {each}" for name, command in commands.items() for each in getattr(command, "commands", ())]
    return sorted([*commands, *below])


def command_line(*arguments: object) -> str:
    """What `uflow ARGUMENTS` prints, in this process."""
    from uflow.cli import main

    out, before = io.StringIO(), sys.argv
    sys.argv = ["uflow", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as err:
            main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = before
    if code:
        raise RuntimeError(f"uflow {' '.join(sys.argv[1:])} ended with {code}: {err.getvalue()}")
    return out.getvalue()


# Data -----------------------------------------------------------------------------------------------------------------

SIZES = [(64, 80), (72, 64), (80, 80), (64, 96)]


def make_data(root: Path) -> Path:
    """A category in the MVTec layout: 14 good images to train on, 2 good ones and 2 with a defect to test."""
    rng = np.random.default_rng(7)
    for folder in ("train/good", "test/good", "test/square", "ground_truth/square"):
        (root / folder).mkdir(parents=True)

    def texture(height: int, width: int) -> np.ndarray:
        y, x = np.mgrid[:height, :width]
        wave = (3 * x + 5 * y + int(rng.integers(40))) % 40 + (7 * y) % 23  # integers: the same on every machine
        grey = 80 + wave + rng.integers(-9, 10, (height, width))
        return np.stack([grey, grey + 10, grey - 20], axis=2).astype(np.uint8)

    for i in range(14):
        Image.fromarray(texture(*SIZES[i % 4])).save(root / f"train/good/{i:02}.png")
    for i in range(2):
        Image.fromarray(texture(*SIZES[i])).save(root / f"test/good/{i}.png")
        size = SIZES[2 + i]
        image, mask = texture(*size), np.zeros(size, np.uint8)
        mask[16:48, 20 + 8 * i : 56] = 255
        image[mask > 0] = (240, 30, 30) if i else (10, 10, 200)
        Image.fromarray(image).save(root / f"test/square/{i}.png")
        Image.fromarray(mask).save(root / f"ground_truth/square/{i}_mask.png")
    return root


# What is frozen -------------------------------------------------------------------------------------------------------


class Frozen:
    """Arrays (whole, or every third pixel and a digest of all of it), and values with a JSON form."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.arrays: dict[str, np.ndarray] = {}
        self.values: dict[str, Any] = {}

    def predictions(self, name: str, predictor: Any, images: list[Path]) -> None:
        for path in images:
            found, key = predict(predictor, path), f"{name}/{path.parent.name}{path.stem}"
            for field in ("anomaly_map", "log_nfa"):
                self.arrays[f"{key}/{field}"] = getattr(found, field)[::3, ::3]
                self.values[f"{key}/{field}"] = digest(getattr(found, field))
            self.arrays[f"{key}/mask"] = found.mask
            self.values[f"{key}/image"] = digest(found.image)
            regions = [region.to_dict() for region in found.regions]
            self.values[f"{key}/regions"] = plain(regions, self.root)
            self.values[f"{key}/score"] = {"score": found.score, "is_anomalous": found.is_anomalous}
            self.values[f"{key}/to_dict"] = plain(found.to_dict(), self.root)

    def model(self, name: str, path: Path) -> None:
        """The tensors of a file, and its header but for times and versions."""
        from safetensors.numpy import load_file

        for tensor, values in sorted(load_file(path).items()):
            wide = values.astype(np.float64)
            about = {"mean": float(wide.mean()), "deviation": float(wide.std())}
            self.values[f"{name}/tensors/{tensor}"] = {**digest(values), **about}
        self.values[f"{name}/header"] = plain(header(path), self.root)


def digest(array: np.ndarray) -> dict[str, Any]:
    sha256 = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return {"sha256": sha256, "dtype": str(array.dtype), "shape": list(array.shape)}


def header(path: Path) -> dict[str, Any]:
    """The JSON of a safetensors file of uflow."""
    import safetensors

    with safetensors.safe_open(path, framework="np") as file:
        return json.loads(file.metadata()["uflow"])


VARYING = {"seconds", "uflow", "weights_source", "files", "time", "model_sha256"}


def plain(value: Any, root: Path) -> Any:
    """As read from JSON, with paths below `root` and without what differs from run to run."""
    if isinstance(value, dict):
        return {key: plain(v, root) for key, v in value.items() if key not in VARYING}
    if isinstance(value, list | tuple):
        return [plain(v, root) for v in value]
    return value.replace(str(root), "ROOT") if isinstance(value, str) else value


TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
BY_MACHINE = {"caches"}  # keys below them are those of the machine


def keys(content: Any, where: str = "", found: dict[str, set[str]] | None = None) -> dict[str, set[str]]:
    """Each path in a JSON ("images[].score"), and the types of what is there."""
    found = {} if found is None else found
    kind = TYPES.get(type(content)) or ("object" if isinstance(content, dict) else "array")
    found.setdefault(where or ".", set()).add(kind)
    if isinstance(content, dict) and where.rpartition(".")[2] not in BY_MACHINE:
        for key, value in content.items():
            keys(value, f"{where}.{key}", found)
    if isinstance(content, list):
        for value in content:
            keys(value, f"{where}[]", found)
    return found


def machine() -> str:
    """Where rounding is the same; another string is compared with a tolerance."""
    import torch

    cpu = {"processor": platform.processor() or platform.machine()}
    with contextlib.suppress(OSError):
        lines = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()]
        info = {name.strip(): value.strip() for name, value in lines}
        cpu = {name: info.get(name, "") for name in ("model name", "cpu family", "model", "stepping")}
    packages = [f"{name} {version(name)}" for name in ("torch", "numpy", "pillow", "timm")]
    packages += [f"{name} {version(name)}" for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name)]
    capability = torch.backends.cpu.get_cpu_capability()
    return ", ".join([*cpu.values(), capability, platform.system(), *packages])


def has_onnx() -> bool:
    return all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime")))


def help_written_by() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("typer", "rich"))


def make(folder: Path) -> None:
    """Compute all of it, here and now; `run` is what sets the environment for it."""
    import torch

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "help", ignore_errors=True)
    (folder / "help").mkdir()
    (folder / "help/uflow.txt").write_text(command_line("--help"), encoding="utf-8")
    for name in command_names():
        text = command_line(*name.split(), "--help")
        (folder / f"help/{name.replace(' ', '_')}.txt").write_text(text, encoding="utf-8")

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary).resolve()
        os.chdir(root)
        frozen = Frozen(root)
        written = _models(root, frozen)
        os.chdir(folder)
    keyed = {}
    for name, contents in written.items():
        found: dict[str, set[str]] = {}
        for content in contents:
            keys(content, "", found)
        keyed[name] = {where: " | ".join(sorted(kinds)) for where, kinds in sorted(found.items())}
    frozen.values |= {"machine": machine(), "help_written_by": help_written_by()}
    np.savez_compressed(folder / "frozen.npz", **frozen.arrays)
    for name, content in (("frozen", frozen.values), ("json_keys", keyed)):
        if name == "frozen":  # a line an entry: a difference shows where it is
            lines = [f"{json.dumps(key)}: {json.dumps(content[key], sort_keys=True)}" for key in sorted(content)]
            text = "{\n" + ",\n".join(lines) + "\n}"
        else:
            text = json.dumps(content, indent=1, sort_keys=True)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _models(root: Path, frozen: Frozen) -> dict[str, list[Any]]:  # noqa: PLR0915 (a list of what is frozen)
    """Fit, predict, export, evaluate; the JSONs that were written."""
    data = make_data(root / "grain")
    train, tests = data / "train/good", sorted(data.glob("test/*/*.png"))

    def read(name: str) -> list[Any]:
        return [json.loads((root / name).read_bytes())]

    state = root / "training.state"
    detector = fit(train, 2, {}, state_file=state)
    paper = fit(train, 2, {"augment": False, "memory_size": 0}, alpha=None)
    variants = {"default": detector, "tile": fit(train, 1, {}, alpha=0.3, tile=True), "paper": paper}
    for name, one in variants.items():
        save(one, root / f"{name}.uflow")
        frozen.model(name, root / f"{name}.uflow")
        frozen.predictions(name, one, tests)
    written = {f"model file, {name}": [header(root / f"{name}.uflow")] for name in variants}
    written["training state"] = [header(state)]

    frozen.predictions("loaded", load(root / "default.uflow"), tests[-1:])
    again = load(root / "paper.uflow")
    calibrate(again, train, 0.3)
    save(again, root / "calibrated.uflow")
    frozen.model("calibrated", root / "calibrated.uflow")
    frozen.predictions("calibrated", again, tests)

    for format in ("torch", "onnx"):
        if format == "torch" or has_onnx():
            export(detector, root / f"exported_{format}", format)
            frozen.predictions(f"exported_{format}", load(root / f"exported_{format}"), tests)
            written[f"export, {format}"] = read(f"exported_{format}/model.json")
            content = {key: value for key, value in written[f"export, {format}"][0].items() if key != "sha256"}
            frozen.values[f"exported_{format}/model.json"] = plain(content, root)

    from uflow.evaluate.protocols import Protocol

    for protocol in ("paper", "native"):
        figures = evaluate(detector, data, protocol=Protocol(protocol, size=64), fair=protocol == "native")
        for curve in ("roc", "pro"):  # hundreds of points
            points = np.array(figures.pop(curve))
            frozen.arrays[f"evaluate_{protocol}/{curve}"] = points[:: max(1, len(points) // 50)]
            frozen.values[f"evaluate_{protocol}/{curve}"] = digest(points)
        frozen.values[f"evaluate_{protocol}/figures"] = plain(figures, root)

    command_line("predict", "default.uflow", data / "test", "--output", "results", "--device", "cpu")
    written["predict, predictions.jsonl"] = list(map(json.loads, open("results/predictions.jsonl")))  # noqa: PTH123, SIM115
    command_line("evaluate", "default.uflow", data, "--output", "one.json", "--device", "cpu")
    written["evaluate, one file"] = read("one.json")
    command_line("evaluate", "default.uflow", data, "--output", "many", "--device", "cpu")
    written["evaluate, evaluations/CATEGORY.json"] = read("many/evaluations/grain.json")
    written["evaluate, results.json"] = read("many/results.json")
    small = ("--shape", "8x8x8", "--size", "16", "--batch", "1", "--repeats", "1", "--threads", "1")
    command_line("benchmark", *small, "--json", "speed.json")
    written["benchmark"] = read("speed.json")
    (root / "comparison").mkdir()
    write_comparison(root / "comparison")
    written["compare"] = read("comparison/comparison.json")
    return written


def run(folder: Path) -> None:
    """`make` in a process of its own, with one thread and a terminal of 100 columns without colours."""
    ours = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    ours |= {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "LINES": "50", "NO_COLOR": "1", "TERM": "dumb"}
    colours = {"FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"}
    env = {name: value for name, value in os.environ.items() if name not in colours} | ours
    done = subprocess.run(
        [sys.executable, __file__, "--here", str(folder.resolve())], env=env, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"frozen.py failed:\n{done.stderr[-4000:]}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        run(Path(sys.argv[2]) if sys.argv[2:] else GOLDEN)
    elif sys.argv[1:2] == ["--here"]:  # what `run` starts
        make(Path(sys.argv[2]))
    else:
        sys.exit(__doc__)
