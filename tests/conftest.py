"""Fixtures that several test files share: a tiny data set, a detector trained on it, and the folder of real images."""

import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

# The networks are tiny, and so are torch's gains of several threads; beside other work these wait for each other, and a
# training takes ten times as long. Processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SETTINGS = {"epochs": 3, "batch_size": 4, "learning_rate": 3e-3}


def texture(rng: np.random.Generator, size: tuple[int, int] = (80, 96)) -> np.ndarray:
    """A grey grating with noise, (H, W, 3) uint8."""
    y, x = np.mgrid[: size[0], : size[1]]
    wave = 110 + 40 * np.sin(0.5 * x + rng.uniform(0, 6)) * np.cos(0.3 * y) + rng.normal(0, 6, size)
    return np.repeat(wave.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    """The text of an error, which is one line."""
    text = str(error.value)
    assert "\n" not in text
    return text


def call_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Call `uflow` in this process; returns its exit code, standard output and standard error."""
    from uflow import cli

    monkeypatch.setattr(sys, "argv", ["uflow", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return (end.value.code or 0, *capsys.readouterr())


def stream_threads() -> list[str]:
    """Names of the threads of streams that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("uflow")]


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    """Fail where a condition does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set in the MVTec layout: 30 good images to train on, 4 good and 4 with a pale square to test."""
    root = tmp_path_factory.mktemp("data") / "grating"
    rng = np.random.default_rng(0)
    for folder in ("train/good", "test/good", "test/square", "ground_truth/square"):
        (root / folder).mkdir(parents=True)
    for i in range(30):
        Image.fromarray(texture(rng)).save(root / f"train/good/{i:02}.png")
    for i in range(4):
        Image.fromarray(texture(rng)).save(root / f"test/good/{i:02}.png")
        image, mask = texture(rng), np.zeros((80, 96), np.uint8)
        mask[20:50, 30:60] = 255
        image[mask > 0] = image[mask > 0] // 2 + 90
        Image.fromarray(image).save(root / f"test/square/{i:02}.png")
        Image.fromarray(mask).save(root / f"ground_truth/square/{i:02}_mask.png")
    return root


@pytest.fixture(scope="session")
def detector(dataset: Path):
    """A detector trained for a few seconds on `dataset`; tests must not change it."""
    import uflow
    from uflow.training import TrainingSettings

    settings = TrainingSettings(epochs=6, batch_size=4, augment=False, memory_size=2000)
    return uflow.Detector.fit(
        dataset / "train/good", image_size=128, settings=settings, alpha=0.2, device="cpu", progress=False
    )


@pytest.fixture(scope="session")
def served_model(detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`detector` as an exported folder, which is quick to load; tests must not change it."""
    pytest.importorskip("onnxruntime")
    from uflow.deploy.export import export

    path = tmp_path_factory.mktemp("served") / "tile_onnx"
    export(detector, path)
    return path


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread of torch for a module of small tensors: threads would only wait for one another."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """Ray on this machine, with two processors."""
    ray = pytest.importorskip("ray", reason='needs Ray: pip install "uflow-ad[ray]"')
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray's name); at its 15 they starve beside other tests
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="WARNING")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def weights_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a module's files of made weights are."""
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def resnet18_file(weights_folder: Path) -> Path:
    """Made weights of a ResNet-18."""
    from made_nets import weights_file

    return weights_file(weights_folder, "resnet18")


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder with magnetic_tile, cookie and hazelnut_toy."""
    folder = os.environ.get("UFLOW_DATA")
    if not folder:
        pytest.skip(
            "needs real images: set UFLOW_DATA to a folder that holds magnetic_tile/, cookie/ and hazelnut_toy/"
        )
    return Path(folder)


@pytest.fixture(scope="session")
def magnetic_tile(real_images: Path):
    """A detector trained on magnetic_tile for half the default's epochs (minutes); tests must not change it."""
    import uflow
    from uflow.training import TrainingSettings

    folder, settings = real_images / "magnetic_tile/train/good", TrainingSettings(epochs=8)
    return uflow.Detector.fit(folder, image_size=256, settings=settings, device="cpu", progress=False)


@pytest.fixture(scope="session")
def made_pages() -> ModuleType:
    """benchmarks/pages.py, which makes images and cards for pages."""
    path = Path(__file__).parent.parent / "benchmarks/pages.py"
    spec = importlib.util.spec_from_file_location("made_pages", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def browser(made_pages: ModuleType) -> Iterator[Any]:
    """A Chromium of this machine, driven by playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs a browser's driver: pip install playwright")
    path = made_pages.find_browser()
    if path is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # refused to root
        browser = driver.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()
