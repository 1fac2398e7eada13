"""The published protocol as a whole: 15 tiny categories in the published layout, one command, killed, and resumed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import texture
from made_nets import weights_file
from uflow import cli
from uflow.evaluate import published
from uflow.recipe import PAPER_TRAINING

pytestmark = pytest.mark.usefixtures("one_thread")


def make_mvtec(root: Path) -> Path:
    """MVTec AD in miniature: names and folders are its own."""
    rng = np.random.default_rng(0)
    for name in published.MVTEC_AD:
        for folder in ("train/good", "test/good", "test/broken", "ground_truth/broken"):
            (root / name / folder).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(texture(rng, (40, 40))).save(root / name / f"train/good/{i:03}.png")
        Image.fromarray(texture(rng, (40, 40))).save(root / name / "test/good/000.png")
        image, mask = texture(rng, (40, 40)), np.zeros((40, 40), np.uint8)
        mask[8:24, 12:30] = 255
        image[mask > 0] = 250
        Image.fromarray(image).save(root / name / "test/broken/000.png")
        Image.fromarray(mask).save(root / name / "ground_truth/broken/000_mask.png")
    return root


def test_the_paper_as_a_whole_goes_on_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = make_mvtec(tmp_path / "mvtec_ad"), tmp_path / "results"
    tiny = [
        "--backbone",
        "test_vit",
        "--image-size",
        64,
        "--epochs",
        1,
        "--weights",
        weights_file(tmp_path, "test_vit"),
    ]
    published_options = ["--recipe", "paper", "--select-on-test", "--select-by", "miou", "--tail", "chernoff-unguarded"]
    arguments = [*map(str, ["study", data, "--output", output, "--device", "cpu", *published_options, *tiny])]

    written = "evaluations/[!.]*.json"  # no file that is being written
    said = tmp_path / "said.txt"
    with said.open("w") as file:
        killed = subprocess.Popen([sys.executable, "-m", "uflow", *arguments], stdout=file, stderr=file)
    waited_until = time.monotonic() + 300
    while len(list(output.glob(written))) < 2:
        assert killed.poll() is None, said.read_text()
        assert time.monotonic() < waited_until
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    done = {path.name: path.read_bytes() for path in output.glob(written)}
    assert 2 <= len(done) < 15

    monkeypatch.setattr(sys, "argv", ["uflow", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out = "".join(capsys.readouterr())  # what is said of each category goes beside the results
    assert not ended.value.code, out
    assert out.count("already evaluated") == len(done)
    assert out.count("trained, evaluated") in (15 - len(done), 14 - len(done))  # one model may have been there
    assert all((output / "evaluations" / name).read_bytes() == content for name, content in done.items())

    for name in published.MVTEC_AD:
        record = json.loads((output / f"evaluations/{name}.json").read_bytes())
        trained = record["trained_with"]
        _, batch_size, rate = PAPER_TRAINING[name]
        assert (trained["settings"]["batch_size"], trained["settings"]["learning_rate"]) == (batch_size, rate)
        assert (trained["held_out"], trained["alpha"], trained["tail"]) == (0, None, "chernoff-unguarded")
        assert (record["selected_by"], record["evaluation"]["protocol"]) == ("miou", "paper")
    page = (output / "results.md").read_text()
    assert "NOT A FAIR FIGURE: each epoch chosen by mIoU on the test set" in page
    tables = page.split("\n## Beside the literature\n")[1]
    for title in ("Pixel AUROC", "AUPRO", "mIoU at the best threshold"):
        rows = [
            line.split("|") for line in tables.split(f"### {title}\n")[1].split("###")[0].splitlines() if "|" in line
        ]
        assert [row[1].strip() for row in rows[2:]] == [*published.MVTEC_AD, "mean of 15"]
        assert all(row[2].strip() != "-" for row in rows[2:])
        assert rows[0][3].strip() == "*U-Flow*"
    summary = json.loads((output / "results.json").read_bytes())
    assert [len(mean["categories"]) for mean in summary["means"]] == [5, 10, 15]
