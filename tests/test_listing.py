"""Which files are images: links, results of earlier runs, what is left out; and what must not be learnt."""

import os
from pathlib import Path

import pytest

from conftest import one_line
from uflow.images import list_good_sources
from uflow.listing import RESULTS_FILE, list_good_images, list_images


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def names(paths: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    make(tmp_path, "elsewhere/a.png", "elsewhere/deep/b.png")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/monday").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/deep/round").symlink_to(tmp_path / "parts")  # and back to where it began
    found = ["monday/a.png", "monday/deep/b.png"]
    assert names(list_images(tmp_path / "parts"), tmp_path / "parts") == found
    assert set(found) <= set(names(list_images(f"{tmp_path}/parts/**"), tmp_path / "parts"))


def test_a_file_given_in_two_ways_is_one_and_a_link_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "store/1f3a.png")
    (tmp_path / "part.png").symlink_to(tmp_path / "store/1f3a.png")
    monkeypatch.chdir(tmp_path)
    assert list_images(["part.png", tmp_path / "part.png"]) == [tmp_path / "part.png"]
    assert len(list_images(["part.png", "store"])) == 2


def test_images_that_a_folder_hides_below_it_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "a.png", "deep/notes.txt")
    list_images(tmp_path)
    assert not caplog.messages
    make(tmp_path, "deep/er/b.png")
    assert names(list_images(tmp_path), tmp_path) == ["a.png"]
    assert f"(such as deep/er/b.png) are left out; '{tmp_path}/**' takes all" in caplog.text


@pytest.mark.parametrize("below", ["results", "results/lot", "."])
def test_results_of_an_earlier_run_are_no_images(tmp_path: Path, below: str, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "lots/1/a.png", "lots/1/a_mask_of_paint.png", "lots/1/b_mask.png")
    results = [f"{below}/a{ending}.png" for ending in ("_mask", "_map", "_overlay")]
    make(tmp_path / "lots/1", *results, f"{below.split('/')[0]}/{RESULTS_FILE}")
    kept = ["1/a.png", "1/a_mask_of_paint.png", "1/b_mask.png"][: 2 if below == "." else 3]
    found = [path for path in kept if not path.startswith("1/a") or below != "results/lot"] and kept
    assert names(list_images(f"{tmp_path}/lots/**"), tmp_path / "lots") == found
    assert names(list_images(tmp_path / "lots/1"), tmp_path / "lots") == found
    assert "uflow predict wrote them" in caplog.text
    assert len(list_images(tmp_path / "lots/1" / results[0])) == 1  # named in full


def test_truth_of_a_test_set_is_no_result(tmp_path: Path) -> None:
    """A list of results above a data set says nothing about the masks in it."""
    make(tmp_path, RESULTS_FILE, "data/ground_truth/crack/0_mask.png")
    assert len(list_images(tmp_path / "data/ground_truth/crack")) == 1


@pytest.mark.parametrize(
    ("files", "give"),
    [
        (["train/good/0.png", "test/good/0.png", "test/crack/0.png", "ground_truth/crack/0_mask.png"], "train/good"),
        (["train/good/0.png", "test/good/0.png"], "train/good"),
        (["tile/train/good/0.png", "tile/test/crack/0.png", "wood/train/good/0.png"], "tile/train/good"),
        (["good/0.png", "scratch/0.png"], "good"),
        (["Images/Normal/0.png", "Images/Anomaly/0.png"], "Images/Normal"),
        (["0/0.png", "Ground_Truth/0.png"], None),
    ],
)
def test_a_folder_that_holds_more_than_good_images_is_not_learnt(
    tmp_path: Path, files: list[str], give: str | None
) -> None:
    make(tmp_path, *files)
    wanted = "give the folder of good images" if give is None else f"give {tmp_path / give},"
    for list_them in (list_good_images, list_good_sources):
        with pytest.raises(ValueError, match="holds more than good images to learn from") as error:
            list_them(tmp_path)
        assert wanted in one_line(error)
        with pytest.raises(ValueError, match="holds more than good images to learn from"):
            list_them(f"{tmp_path}/**/*.png")
    assert len(list_images(tmp_path)) == len(files)  # to be judged they are welcome
    if give is not None:
        assert list_good_images(tmp_path / give)
        assert list_good_images(str(tmp_path / give / "*.png"))


def test_sub_folders_of_good_images_are_learnt(tmp_path: Path) -> None:
    make(tmp_path, "monday/0.png", "tuesday/0.png", "good/ok/0.png")
    assert len(list_good_images(tmp_path / "monday")) == 1
    assert len(list_good_images([tmp_path / "monday", tmp_path / "tuesday"])) == 2
    make(tmp_path / "days", "monday/0.png", "tuesday/0.png")
    assert len(list_good_images(tmp_path / "days")) == 2
    assert list_good_sources([tmp_path]) == [tmp_path]  # a list is what its owner says


def test_many_files_take_no_time(tmp_path: Path) -> None:
    make(tmp_path, *(f"{i % 7}/{i}_mask.png" for i in range(300)))
    before = os.times().user
    assert len(list_images(tmp_path)) == 300
    assert os.times().user - before < 2  # seconds
