"""datasets.py: every layout, made here as it is published."""

import csv
import json
import re
import shutil
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import one_line
from uflow.evaluate import datasets
from uflow.evaluate.datasets import LAYOUTS, Dataset, Sample, find_categories, read_mvtec
from uflow.images import image_size

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[..., 0].copy()


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


@pytest.fixture
def category(tmp_path: Path) -> Path:
    root = tmp_path / "parts" / "nut"
    for name in ("train/good/1.png", "train/good/0.png", "test/good/0.png", "test/bent/1.jpg", "test/bent/0.png"):
        save(root / name, RGB)
    save(root / "ground_truth/bent/0_mask.png", GREY)
    save(root / "ground_truth/bent/1.png", GREY)
    return root


def test_read_mvtec(category: Path) -> None:
    dataset = read_mvtec(category)
    assert dataset.train == [category / "train/good/0.png", category / "train/good/1.png"]
    assert dataset.test == [
        Sample(category / "test/bent/0.png", "bent", (category / "ground_truth/bent/0_mask.png",)),
        Sample(category / "test/bent/1.jpg", "bent", (category / "ground_truth/bent/1.png",)),
        Sample(category / "test/good/0.png", "good"),
    ]
    assert [sample.is_anomalous for sample in dataset.test] == [True, True, False]
    assert read_mvtec(str(category)) == dataset


def test_read_mvtec_errors(category: Path) -> None:
    cases = [
        (category / "gone", "no such folder: '.*gone'"),
        (category.parent, r"has no folder train/good: give one of the categories in it \(nut\)"),
        (category / "train/good", f"has no folder train/good: give {category}"),
        (category / "ground_truth", "has no folder train/good: give .*nut"),
    ]
    for root, message in cases:
        with pytest.raises(FileNotFoundError, match=message) as error:
            read_mvtec(root)
        one_line(error)
    (category / "ground_truth/bent/1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"bent/1\.jpg has no mask: expected .*ground_truth/bent/1_mask\.png"):
        read_mvtec(category)
    (category / "test").rename(category / "untested")
    with pytest.raises(FileNotFoundError, match="has no folder test: give the folder of one category"):
        read_mvtec(category)
    (category / "test").mkdir()
    with pytest.raises(ValueError, match="test has no sub-folders"):
        read_mvtec(category)
    (category / "test" / "good").mkdir()
    with pytest.raises(ValueError, match=r"no images in .*test/good"):
        read_mvtec(category)


@pytest.mark.parametrize(
    ("name", "train", "good", "defective", "empty"),
    [("magnetic_tile", 700, 252, 392, 4), ("hazelnut_toy", 28, 6, 17, 0)],
)
def test_real_data_sets(real_images: Path, name: str, train: int, good: int, defective: int, empty: int) -> None:
    dataset = read_mvtec(real_images / name)
    assert len(dataset.train) == train
    assert sum(not sample.is_anomalous for sample in dataset.test) == good
    bad = [sample for sample in dataset.test if sample.is_anomalous]
    assert len(bad) == defective
    masks = [sample.truth(image_size(sample.path)) for sample in bad]
    assert sum(not mask.any() for mask in masks) == empty  # the data set itself has a few defects without a mark


def test_find_categories_mvtec(category: Path) -> None:
    for junk in ("__MACOSX/nut", "nut/test/__MACOSX", "nut/test/.cache"):
        (category.parent / junk).mkdir(parents=True)
    (category.parent / "readme.txt").write_text("about")
    assert find_categories(category) == [read_mvtec(category)]
    assert find_categories(category.parent) == [read_mvtec(category)]
    assert find_categories(str(category.parent), layout="mvtec") == [read_mvtec(category)]


# ---- every other layout: made as it is published, found, read


Make = Callable[[Path], Path]
MARK = np.zeros((6, 9), np.uint8)
MARK[1:3, 2:5] = 255
OTHER = np.zeros((6, 9), np.uint8)
OTHER[4, 4:8] = 255
NONE = np.zeros((6, 9), np.uint8)


def images(root: Path, *names: str) -> None:
    for name in names:
        save(root / name, RGB)


def relative(paths: Iterable[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def defects(dataset: Dataset, root: Path) -> dict[str, str]:
    return {sample.path.relative_to(root).as_posix(): sample.defect for sample in dataset.test}


def make_mvtec(folder: Path) -> Path:
    root = folder / "mvtec_anomaly_detection"
    for name in ("bottle", "wood"):
        images(root / name, "train/good/000.png", "train/good/001.png", "test/good/000.png", "test/hole/000.png")
        save(root / name / "ground_truth/hole/000_mask.png", MARK)
        for file in ("readme.txt", "license.txt"):
            (root / name / file).write_text("about")
    return root


def make_loco(folder: Path) -> Path:
    root = folder / "mvtec_loco_anomaly_detection"
    for name in ("juice_bottle", "pushpins"):
        images(root / name, "train/good/000.png", "validation/good/000.png", "test/good/000.png")
        images(root / name, "test/logical_anomalies/000.png", "test/structural_anomalies/000.png")
        save(root / name / "ground_truth/logical_anomalies/000/000.png", MARK // 255 * 254)
        save(root / name / "ground_truth/logical_anomalies/000/001.png", OTHER // 255 * 3)
        save(root / name / "ground_truth/structural_anomalies/000/000.png", MARK)
        (root / name / "defects_config.json").write_text("[]")
    return root


def make_ad2(folder: Path) -> Path:
    root = folder / "mvtec_ad_2"
    for name in ("can", "vial"):
        images(root / name, "train/good/000_regular.png", "validation/good/000_regular.png")
        images(root / name, "test_public/good/000_regular.png", "test_public/bad/000_overexposed.png")
        save(root / name / "test_public/ground_truth/bad/000_overexposed_mask.png", MARK)
        images(root / name, "test_private/000.png", "test_private_mixed/000.png")
    return root


def make_visa(folder: Path) -> Path:
    root = folder / "VisA_20220922"
    rows = ["object,split,label,image,mask"]
    for name in ("candle", "pcb1"):
        data = f"{name}/Data"
        for split, number in (("train", "0000"), ("train", "0002"), ("test", "0001")):
            images(root, f"{data}/Images/Normal/{number}.JPG")
            rows.append(f"{name},{split},normal,{data}/Images/Normal/{number}.JPG,")
        images(root, f"{data}/Images/Anomaly/000.JPG")
        save(root / data / "Masks/Anomaly/000.png", MARK // 255 * 2)  # the kind of defect
        rows.append(f"{name},test,anomaly,{data}/Images/Anomaly/000.JPG,{data}/Masks/Anomaly/000.png")
        (root / name / "image_anno.csv").write_text("image,label,mask\n")
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join(rows) + "\n")
    (root / "split_csv/2cls_fewshot.csv").write_text(rows[0] + "\n")
    (root / "LICENSE-DATASET").write_text("CC BY 4.0")
    return root


def make_btad(folder: Path) -> Path:
    root = folder / "BTech_Dataset_transformed"
    for name, image, mask in (("01", "bmp", "png"), ("02", "png", "png"), ("03", "bmp", "bmp")):
        images(root / name, f"train/ok/0000.{image}", f"train/ok/0001.{image}")
        images(root / name, f"test/ok/0002.{image}", f"test/ko/0003.{image}")
        save(root / name / f"ground_truth/ko/0003.{mask}", MARK)
    return root


def make_kolektor_sdd(folder: Path) -> Path:
    root = folder / "KolektorSDD"
    for item in ("kos01", "kos02", "kos03", "kos10"):
        for part in range(3):
            images(root, f"{item}/Part{part}.jpg")
            save(root / f"{item}/Part{part}_label.bmp", MARK if part == 1 else NONE)
    return root


def make_kolektor_sdd2(folder: Path) -> Path:
    root = folder / "KolektorSDD2"
    for name, mask in (("train/10000", NONE), ("train/10001", MARK), ("test/20000", NONE), ("test/20001", MARK)):
        images(root, f"{name}.png")
        save(root / f"{name}_GT.png", mask)
    images(root, "train/10000_GT(1).png")
    return root


def make_lgg(folder: Path) -> Path:
    root = folder / "kaggle_3m"
    for patient in ("TCGA_CS_4941_19960909", "TCGA_CS_4942_19970222", "TCGA_DU_5849_19950405", "TCGA_HT_8563_19981209"):
        for number in (1, 2, 10):
            images(root, f"{patient}/{patient}_{number}.tif")
            save(root / patient / f"{patient}_{number}_mask.tif", MARK if number == 2 else NONE)
    (root / "data.csv").write_text("Patient,RNASeqCluster\n")
    (root / "README.md").write_text("about")
    return root


def make_shanghaitech(folder: Path) -> Path:
    root = folder / "shanghaitech"
    images(root, "training/frames/01_001/0.jpg", "training/frames/01_001/10.jpg", "training/frames/01_001/2.jpg")
    images(root, *(f"testing/frames/{video}/{i:03}.jpg" for video in ("01_0014", "12_0142") for i in range(3)))
    for kind in ("videos", "frames"):
        (root / "training" / kind).mkdir(exist_ok=True)
    for kind in ("test_frame_mask", "test_pixel_mask"):
        (root / "testing" / kind).mkdir()
    for video in ("01_0014", "12_0142"):
        np.save(root / f"testing/test_frame_mask/{video}.npy", np.array([0, 1, 0], np.int8))
        np.save(root / f"testing/test_pixel_mask/{video}.npy", np.stack([NONE, MARK // 255, OTHER // 255]))
    return root


def make_folder(folder: Path) -> Path:
    root = folder / "bolts"
    images(root, *(f"Good/{i}.PNG" for i in range(7)), "scratch/0.png", "dent/a/0.jpg")
    return root


def make_list(folder: Path) -> Path:
    root = folder / "lines"
    images(root, *(f"{i}.png" for i in range(5)))
    save(root / "3_mask.png", MARK)
    rows = [
        "0.png,train,good,",
        "1.png,Train,OK,",
        "2.png,test,normal,",
        "3.png,test,dent,3_mask.png",
        "4.png,test,cut",
    ]
    (root / "parts.csv").write_text("\ufeffpath,split,label,mask\n" + "\n".join(rows) + "\n\n", encoding="utf-8")
    return root / "parts.csv"


MAKERS: dict[str, Make] = {
    "mvtec": make_mvtec,
    "mvtec-loco": make_loco,
    "mvtec-ad2": make_ad2,
    "visa": make_visa,
    "btad": make_btad,
    "kolektor-sdd": make_kolektor_sdd,
    "kolektor-sdd2": make_kolektor_sdd2,
    "lgg-mri": make_lgg,
    "shanghaitech": make_shanghaitech,
    "folder": make_folder,
    "list": make_list,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_found_by_looking(tmp_path: Path, layout: str) -> None:
    root = MAKERS[layout](tmp_path)
    found = find_categories(root)
    assert found == find_categories(str(root), layout)
    assert [dataset.layout for dataset in found] == [layout] * len(found)
    claims = [name for name in LAYOUTS if datasets.LAYOUTS[name].units(root)]
    general = {"mvtec-loco": {"mvtec", "folder"}, "mvtec": {"folder"}, "btad": {"folder"}}  # looked for later
    assert claims[0] == layout
    assert set(claims[1:]) == general.get(layout, set())
    for dataset in found:  # what every reader promises
        assert dataset.train
        assert {sample.is_anomalous for sample in dataset.test} == {True, False}
        assert not set(dataset.train) & {sample.path for sample in dataset.test}
        for path in (*dataset.train, *(sample.path for sample in dataset.test)):
            shape = image_size(path)
            assert shape == (6, 9)
        for sample in dataset.test:
            truth = sample.truth((6, 9))
            if not sample.is_anomalous:
                assert truth is not None
                assert truth.dtype == np.bool_
                assert not truth.any()
            elif layout not in ("folder", "list"):
                assert truth is not None
                assert (truth >= (MARK > 0)).all()
                assert truth.sum() == MARK.astype(bool).sum() + (4 if sample.defect == "logical_anomalies" else 0)

    # what archives, systems and people leave there changes nothing
    home = root if root.is_dir() else root.parent
    for folder in [home, *(path for path in home.rglob("*") if path.is_dir())]:
        for junk in (".DS_Store", "._000.png", "Thumbs.db", "README.txt"):
            (folder / junk).write_text("junk")
    shutil.copytree(home, home.parent / "copy")
    shutil.move(home.parent / "copy", home / "__MACOSX")
    (home / ".cache").mkdir()
    assert find_categories(root) == found
    if root.is_dir():  # one folder higher, as archives unpack
        assert [dataset.name for dataset in find_categories(tmp_path)] == [dataset.name for dataset in found]


@pytest.mark.parametrize("layout", ["mvtec", "mvtec-loco", "mvtec-ad2", "visa", "btad"])
def test_one_category_of_many(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = MAKERS[layout](tmp_path)
    found = find_categories(root)
    assert len(found) == (3 if layout == "btad" else 2)
    for dataset in found:
        assert find_categories(root / dataset.name) == [dataset]
        assert find_categories(root / dataset.name, layout) == [dataset]
        monkeypatch.chdir(root / dataset.name)
        assert [here.name for here in find_categories(".")] == [dataset.name]


def test_mvtec_loco(tmp_path: Path) -> None:
    root = make_loco(tmp_path)
    juice, pushpins = find_categories(root)
    assert (juice.name, pushpins.name) == ("juice_bottle", "pushpins")
    assert relative(juice.train, root / "juice_bottle") == ["train/good/000.png", "validation/good/000.png"]
    logical = next(sample for sample in juice.test if sample.defect == "logical_anomalies")
    assert [mask.name for mask in logical.masks] == ["000.png", "001.png"]
    np.testing.assert_array_equal(logical.truth((6, 9)), (MARK > 0) | (OTHER > 0))  # small values too
    shutil.rmtree(root / "pushpins/ground_truth/structural_anomalies/000")
    with pytest.raises(FileNotFoundError, match=r"000\.png has no mask: expected .*structural_anomalies/000/000\.png"):
        find_categories(root)


def test_mvtec_ad2_leaves_private_images_alone(tmp_path: Path) -> None:
    root = make_ad2(tmp_path)
    can = find_categories(root)[0]
    assert defects(can, root / "can") == {
        "test_public/bad/000_overexposed.png": "bad",
        "test_public/good/000_regular.png": "good",
    }
    assert len(can.train) == 2
    shutil.rmtree(root / "can/validation")
    assert len(find_categories(root)[0].train) == 1


def test_visa(tmp_path: Path) -> None:
    root = make_visa(tmp_path)
    candle, _ = find_categories(root)
    assert relative(candle.train, root / "candle/Data/Images") == ["Normal/0000.JPG", "Normal/0002.JPG"]
    assert defects(candle, root / "candle/Data/Images") == {"Normal/0001.JPG": "good", "Anomaly/000.JPG": "anomaly"}
    np.testing.assert_array_equal(candle.test[1].truth((6, 9)), MARK > 0)  # the file holds 0 and 2
    shutil.rmtree(root / "pcb1")  # a part of the data set is enough
    assert find_categories(root) == [candle]
    (root / "candle/Data/Masks/Anomaly/000.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1cls\.csv, line 5: no such file: .*Masks/Anomaly/000\.png"):
        find_categories(root)
    shutil.rmtree(root / "candle")
    with pytest.raises(ValueError, match="lists no image of a folder in"):
        find_categories(root)
    shutil.rmtree(root / "split_csv")
    with pytest.raises(
        FileNotFoundError, match=r"not in the layout visa: no split_csv/1cls\.csv; found LICENSE-DATASET"
    ):
        find_categories(root, "visa")


def test_btad(tmp_path: Path) -> None:
    root = make_btad(tmp_path)
    names = [dataset.name for dataset in find_categories(root)]
    assert names == ["01", "02", "03"]
    third = find_categories(root)[2]
    assert defects(third, root / "03") == {"test/ko/0003.bmp": "ko", "test/ok/0002.bmp": "good"}
    assert third.test[0].masks == (root / "03/ground_truth/ko/0003.bmp",)
    shutil.rmtree(root / "02/ground_truth/ko")
    with pytest.raises(FileNotFoundError, match=r"02 has no ground_truth/ko \(read as btad\)"):
        find_categories(root)
    with pytest.raises(
        FileNotFoundError, match=r"02 is not in the layout btad: no ground_truth/ko; found .*test, train"
    ):
        find_categories(root / "02", "btad")


def test_kolektor_sdd_is_split_by_item(tmp_path: Path) -> None:
    root = make_kolektor_sdd(tmp_path)
    (dataset,) = find_categories(root)
    assert relative(dataset.train, root) == ["kos01/Part0.jpg", "kos01/Part2.jpg", "kos03/Part0.jpg", "kos03/Part2.jpg"]
    tested = {
        f"{item}/Part{part}.jpg": "defect" if part == 1 else "good" for item in ("kos02", "kos10") for part in range(3)
    }
    assert defects(dataset, root) == tested
    (root / "kos03/Part0_label.bmp").unlink()
    with pytest.raises(FileNotFoundError, match=r"kos03/Part0\.jpg has no mask: expected .*Part0_label"):
        find_categories(root)


def test_kolektor_sdd2(tmp_path: Path) -> None:
    root = make_kolektor_sdd2(tmp_path)
    (dataset,) = find_categories(root)
    assert relative(dataset.train, root) == ["train/10000.png"]
    assert defects(dataset, root) == {"test/20000.png": "good", "test/20001.png": "defect"}
    save(root / "train/10001_GT.png", MARK // 255)  # neither empty nor a mask: a training image must not slip through
    with pytest.raises(ValueError, match=r"10001_GT\.png has values 0 to 1, none above 127"):
        find_categories(root)
    (root / "train/10001_GT.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot read .*10001_GT\.png: the file is empty"):
        find_categories(root)


def test_lgg_mri_is_split_by_patient(tmp_path: Path) -> None:
    root = make_lgg(tmp_path)
    (dataset,) = find_categories(root)
    first, second = "TCGA_CS_4941_19960909", "TCGA_CS_4942_19970222"
    assert relative(dataset.train, root)[:2] == [f"{first}/{first}_1.tif", f"{first}/{first}_10.tif"]
    assert list(defects(dataset, root).items())[:3] == [
        (f"{second}/{second}_1.tif", "good"),
        (f"{second}/{second}_2.tif", "tumour"),
        (f"{second}/{second}_10.tif", "good"),
    ]
    assert not {path.parent for path in dataset.train} & {sample.path.parent for sample in dataset.test}
    again = "TCGA_CS_4941_20000101"  # the first patient once more
    shutil.copytree(root / first, root / again)
    for path in list((root / again).iterdir()):
        path.rename(path.with_name(path.name.replace(first, again)))
    assert sum(path.parent.name == again for path in find_categories(root)[0].train) == 2
    mask = root / f"{second}/{second}_2_mask.tif"
    mask.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{second}_2\.tif has no mask: expected .*_2_mask\.tif"):
        find_categories(root)
    for path in (root / second).iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=f"no images in .*{second}"):
        find_categories(root)


def test_shanghaitech(tmp_path: Path) -> None:
    root = make_shanghaitech(tmp_path)
    (dataset,) = find_categories(root)
    assert relative(dataset.train, root / "training/frames/01_001") == ["0.jpg", "2.jpg", "10.jpg"]
    assert [sample.defect for sample in dataset.test] == ["good", "abnormal", "good"] * 2
    odd = dataset.test[4]
    assert (odd.path.parent.name, odd.path.name, odd.frame) == ("12_0142", "001.jpg", 1)
    np.testing.assert_array_equal(odd.truth((6, 9)), MARK > 0)
    with pytest.raises(ValueError, match=r"12_0142\.npy are 6x9 pixels \(height x width\), the image is 9x6"):
        odd.truth((9, 6))

    save(root / "testing/frames/12_0142/003.jpg", RGB)
    with pytest.raises(ValueError, match=r"12_0142 has 4 frames, its frame mask is \(3,\), its pixel mask \(3, 6, 9\)"):
        find_categories(root)
    (root / "testing/test_pixel_mask/12_0142.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"cannot read .*test_pixel_mask/12_0142\.npy") as error:
        find_categories(root)
    one_line(error)
    (root / "testing/test_frame_mask/12_0142.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"12_0142 has no mask: expected .*test_frame_mask/12_0142\.npy"):
        find_categories(root)
    shutil.rmtree(root / "training/frames")
    with pytest.raises(FileNotFoundError, match=r"no folders in training/frames: .*ffmpeg -i") as error:
        find_categories(root)
    one_line(error)


def test_shanghaitech_reads_one_frame_of_a_video(tmp_path: Path) -> None:
    path = tmp_path / "video.npy"
    np.lib.format.open_memmap(path, "w+", np.uint8, (40, 512, 512))[7, 3, 4] = 1  # 10 MB
    sample = Sample(tmp_path / "007.jpg", "abnormal", (path,), above=0, frame=7)
    tracemalloc.start()
    truth = sample.truth((512, 512))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert truth is not None
    assert np.argwhere(truth).tolist() == [[3, 4]]
    assert peak < 4 * 512 * 512


def test_plain_folder(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    (dataset,) = find_categories(root)
    assert dataset.name == "bolts"
    assert relative(dataset.train, root) == [f"Good/{i}.PNG" for i in (1, 2, 3, 4, 6)]
    tested = {"Good/0.PNG": "good", "Good/5.PNG": "good", "dent/a/0.jpg": "dent", "scratch/0.png": "scratch"}
    assert defects(dataset, root) == tested
    assert [sample.truth((6, 9)) is None for sample in dataset.test] == [False, False, True, True]

    save(root / "ground_truth/dent/0.png", MARK)  # masks where there are some
    np.testing.assert_array_equal(find_categories(root)[0].test[2].truth((6, 9)), MARK > 0)
    images(root / "dent", "a/1.jpg")
    with pytest.raises(FileNotFoundError, match=r"dent/a/1\.jpg has no mask"):
        find_categories(root)
    shutil.rmtree(root / "ground_truth")

    images(tmp_path / "nuts", "ok/0.png", "ok/1.png", "bad/0.png")  # two categories
    assert [dataset.name for dataset in find_categories(tmp_path)] == ["bolts", "nuts"]


@pytest.mark.parametrize("learn", ["train", "train/normal"])
def test_plain_folder_with_a_split(tmp_path: Path, learn: str) -> None:
    root = tmp_path / "set" / "bolts"
    images(root, f"{learn}/0.png", f"{learn}/1.png", "test/ok/0.png", "test/bent/0.png", "test/bent/1.png")
    (dataset,) = find_categories(root)
    assert dataset.layout == "folder"
    assert relative(dataset.train, root) == [f"{learn}/0.png", f"{learn}/1.png"]
    assert defects(dataset, root) == {"test/ok/0.png": "good", "test/bent/0.png": "bent", "test/bent/1.png": "bent"}
    assert find_categories(root.parent) == [dataset]


def test_mvtec_without_masks_is_a_plain_folder(category: Path) -> None:
    shutil.rmtree(category / "ground_truth")
    (dataset,) = find_categories(category)
    assert dataset.layout == "folder"
    assert dataset.train == [category / "train/good/0.png", category / "train/good/1.png"]
    assert [sample.truth((6, 9)) is None for sample in dataset.test] == [False, True, True]


def test_nothing_to_test(tmp_path: Path) -> None:
    images(tmp_path, "flat/0.png", "flat/1.png", "alone/ok/0.png", "alone/ok/1.png")
    with pytest.raises(ValueError, match=r"flat holds images alone, taken as good ones: there is nothing to test"):
        find_categories(tmp_path / "flat")
    with pytest.raises(ValueError, match=r"alone holds good images alone: there is nothing to test"):
        find_categories(tmp_path / "alone")
    images(tmp_path, "alone/bad/0.png")
    (tmp_path / "alone/ok/1.png").unlink()
    with pytest.raises(ValueError, match=r"alone has no good images to train on"):
        find_categories(tmp_path / "alone")
    (tmp_path / "alone/bad/0.png").unlink()
    with pytest.raises(ValueError, match=r"no images in .*alone/bad"):
        find_categories(tmp_path / "alone")


def test_no_layout_fits(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no data set found in .*empty; looked for .*; found nothing") as error:
        find_categories(tmp_path / "empty")
    assert all(name in one_line(error) for name in LAYOUTS)
    for i in range(12):
        (tmp_path / f"empty/{i:02}").mkdir()
    with pytest.raises(FileNotFoundError, match=r"found 00, 01, .*, 07 and 4 more$"):
        find_categories(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: '.*gone'"):
        find_categories(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"there is no layout 'mvtek': choose one of .*mvtec, visa") as error:
        find_categories(tmp_path, "mvtek")
    assert all(name in one_line(error) for name in LAYOUTS)
    for layout in LAYOUTS:
        with pytest.raises(FileNotFoundError, match=rf"empty is not in the layout {layout}: no .*; found 00") as error:
            find_categories(tmp_path / "empty", layout)
        one_line(error)
    notes = tmp_path / "notes.txt"
    notes.write_text("no list")
    with pytest.raises(FileNotFoundError, match=r"no data set found in .*notes\.txt"):
        find_categories(notes)


def test_a_folder_too_low_is_told(tmp_path: Path) -> None:
    root = make_mvtec(tmp_path) / "wood"
    for below in ("test", "train", "ground_truth", "train/good"):
        with pytest.raises((FileNotFoundError, ValueError), match=f"; {root} is in the layout mvtec: give that"):
            find_categories(root / below)


def test_a_category_that_lacks_a_part_is_not_passed_over(tmp_path: Path) -> None:
    root = make_mvtec(tmp_path)
    (root / "wood/test").rename(root / "wood/tests")
    with pytest.raises(FileNotFoundError, match=r"wood has no test \(read as mvtec\)"):
        find_categories(root)


def test_categories_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    root = make_btad(tmp_path)
    shutil.rmtree(root / "02/ground_truth")
    shutil.rmtree(root / "03/train/ok")
    (root / "03/train/ok").mkdir()
    failed: dict[str, str] = {}
    assert [dataset.name for dataset in find_categories(root, failed=failed)] == ["01"]
    assert list(failed) == ["02", "03"]
    assert failed["02"].endswith("02 has no ground_truth/ko (read as btad)")
    assert "no images in" in failed["03"]
    with pytest.raises(ValueError, match="no images in"):  # of one category there is nothing else to go on with
        find_categories(root / "03", failed=failed)


def test_the_documentation_names_every_layout() -> None:
    text = (Path(__file__).parent.parent / "docs" / "guide" / "datasets.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([\w-]+)` \| .* \| .* \|", text, flags=re.M)
    assert sorted(named[: len(LAYOUTS)]) == sorted(LAYOUTS)
    assert all(name in text.partition("## The published data sets")[0] for name in LAYOUTS)


# ---- lists


def test_categories_that_cannot_be_read_are_named_where_asked(category: Path, tmp_path: Path) -> None:
    shutil.copytree(category, category.parent / "bolt")
    (category / "ground_truth/bent/1.png").unlink()
    failed: dict[str, str] = {}
    assert [dataset.name for dataset in find_categories(category.parent, failed=failed)] == ["bolt"]
    assert list(failed) == ["nut"]
    assert "bent/1.jpg has no mask" in failed["nut"]
    for root in (category, category.parent):
        with pytest.raises(FileNotFoundError, match="has no mask"):
            find_categories(root, failed={} if root == category else None)


def test_list(tmp_path: Path) -> None:
    file = make_list(tmp_path)
    (dataset,) = find_categories(file)
    assert dataset.name == "parts"
    assert relative(dataset.train, file.parent) == ["0.png", "1.png"]
    assert defects(dataset, file.parent) == {"2.png": "good", "3.png": "dent", "4.png": "cut"}
    good, dent, cut = (sample.truth((6, 9)) for sample in dataset.test)
    assert good is not None
    np.testing.assert_array_equal(dent, MARK > 0)
    assert cut is None  # nothing says where it is

    rows = list(csv.DictReader(file.read_text(encoding="utf-8-sig").splitlines()))
    (file.parent / "parts.json").write_text(json.dumps(rows))
    assert find_categories(file.parent / "parts.json") == [dataset]
    for row, category in zip(rows + rows, ["nut"] * 5 + ["bolt"] * 5, strict=True):
        row["category"] = category
    both = [
        {**row, "category": name, "path": str(file.parent / row["path"])} for name in ("nut", "bolt") for row in rows
    ]
    (file.parent / "both.json").write_text(json.dumps(both))
    bolt, nut = find_categories(file.parent / "both.json")
    assert (bolt.name, nut.name) == ("bolt", "nut")
    assert bolt.train == nut.train == dataset.train


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gone.png,test,good,", r"line 7: no such file: .*gone\.png"),
        ("5.png,test,dent,gone.png", r"line 7: no such file: .*gone\.png"),
        ("5.png,val,good,", "line 7: the split must be train or test, not 'val'"),
        ("5.png,train,dent,", "line 7: an image to train on must be good, not 'dent'"),
        ("5.png,test,,", "line 7: no label$"),
        ("5.png", "line 7: no split$"),
        ("5.png,test,good,,,", "line 7: more fields than the header names"),
        ("0.png,test,good,", r"line 7: .*0\.png is listed twice"),
        ('5.png,test,"good', "line 7: unexpected end of data"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, line: str, message: str) -> None:
    file = make_list(tmp_path)
    images(file.parent, "5.png")
    file.write_text(file.read_text().rstrip() + "\n" + line + "\n")
    with pytest.raises((ValueError, FileNotFoundError), match=rf"parts\.csv, {message}") as error:
        find_categories(file)
    one_line(error)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", b"", r"list\.csv lists nothing"),
        ("list.csv", b"path,split,label\n", r"list\.csv lists nothing"),
        ("list.csv", b"file,split,label\na,b,c\n", "line 2: no path among the columns file, split, label"),
        ("list.csv", b"path,split,label\n\xff\xfe,train,good\n", r"cannot read .*list\.csv: .*utf-8"),
        ("list.csv", b"path,split,label\nlist.csv,train,good\n", r"list\.csv has nothing to test"),
        ("list.csv", b"path,split,label\nlist.csv,test,good\n", r"list\.csv has no good images to train on"),
        ("list.json", b"{", r"cannot read .*list\.json: .*line 1"),
        ("list.json", b"[" * 100_000, r"cannot read .*list\.json: it is no JSON"),
        ("list.json", b'{"path": 1}', r"cannot read .*list\.json: it should be a list of objects"),
        ("list.json", b'[{"path": "list.json", "split": null}]', r"list\.json, entry 1: no split$"),
    ],
)
def test_a_bad_list(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        find_categories(tmp_path / name)
    one_line(error)
