"""Every kind of image file and array is read right, or refused in one line; masks; sizes; digests."""

import io
import logging
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from conftest import one_line
from uflow import grey_levels, images
from uflow.features import image_tensor
from uflow.images import (
    as_source,
    batches,
    digest,
    image_size,
    is_one_image,
    list_images,
    list_sources,
    read_image,
    read_mask,
    resize_image,
    resize_mask,
)

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[..., 0].copy()


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grey_levels, "_said", set())


def save(path: Path, image: np.ndarray | Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


# ---- finding images


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", ".hidden.png", "deep/c.tif", "deep/er/d.webp", ".cache/e.png", "notes.txt"):
        path = tmp_path / "parts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "parts"


def names(paths: list[Path], tree: Path) -> list[str]:
    return [path.relative_to(tree).as_posix() for path in paths]


def test_list_images_of_a_folder_takes_what_is_directly_in_it(tree: Path) -> None:
    assert names(list_images(tree), tree) == ["a.JPG", "b.png"]
    assert list_images(str(tree)) == list_images(tree)


def test_list_images_descends_where_there_are_only_folders(tree: Path) -> None:
    (tree / "a.JPG").unlink()
    (tree / "b.png").unlink()
    assert names(list_images(tree), tree) == ["deep/c.tif", "deep/er/d.webp"]


def test_list_images_of_patterns_files_and_lists(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names(list_images(f"{tree}/*"), tree) == ["a.JPG", "b.png"]
    assert names(list_images(f"{tree}/**/*.tif"), tree) == ["deep/c.tif"]
    assert names(list_images(f"{tree}/**"), tree) == ["a.JPG", "b.png", "deep/c.tif", "deep/er/d.webp"]
    assert names(list_images([tree / "deep", f"{tree}/b.*", tree / "b.png"]), tree) == ["b.png", "deep/c.tif"]
    assert list_images(tree / "notes.txt") == [tree / "notes.txt"]  # named in full: reading it says what is wrong
    monkeypatch.chdir(tree)
    assert list_images("*.png") == [Path("b.png")]


def test_list_images_takes_a_name_with_brackets_literally(tmp_path: Path) -> None:
    path = save(tmp_path / "lot[1]" / "x[2].png", RGB)
    assert list_images(path) == [path]
    assert list_images(tmp_path / "lot[1]") == [path]


def test_list_images_errors(tree: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: '.*nowhere'") as error:
        list_images(tree / "nowhere")
    one_line(error)
    for nothing in ("", f"{tree}/*.bmp"):
        with pytest.raises(FileNotFoundError):
            list_images(nothing)
    (tree / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no images in .*empty \(\.png \.jpg .* are looked for\)") as error:
        list_images(tree / "empty")
    one_line(error)
    with pytest.raises(ValueError, match="no images given"):
        list_images([])


# ---- reading images: files


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff", ".webp"])
def test_rgb_files(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == ".webp" else {}
    image = read_image(save(tmp_path / f"x{suffix}", RGB, **options))
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, RGB)


def test_grey_is_repeated_and_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = read_image(save(tmp_path / "x.png", GREY))
    np.testing.assert_array_equal(image, np.repeat(GREY[..., None], 3, axis=2))
    read_image(save(tmp_path / "x.jpg", RGB))
    assert not caplog.messages


def write_16_bit_rgb(path: Path, values: np.ndarray) -> Path:
    """A 16-bit RGB PNG by hand: Pillow reads them but cannot write them."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def palette(with_transparency: bool) -> Image.Image:
    image = Image.fromarray(RGB).quantize(8)
    if with_transparency:
        image.info["transparency"] = bytes([0, 128] + [255] * 6)
    return image


def conversions(folder: Path) -> dict[str, tuple[Path, np.ndarray]]:
    """For each kind of file: where it is, and the RGB it stands for."""
    sixteen = (GREY.astype(np.uint16) * 257).clip(0, 65400)
    deep = (RGB.astype(np.uint16) << 8) | 7
    alpha = np.dstack([RGB, GREY])
    grey_alpha = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(RGB[..., 1])])
    cmyk = Image.fromarray(RGB).convert("CMYK")
    flat, clear = palette(False), palette(True)
    bilevel = Image.fromarray(GREY > 99)
    thrice = np.repeat(GREY[..., None], 3, axis=2)
    return {
        "16-bit I;16": (save(folder / "sixteen.png", sixteen), np.minimum(thrice, 254)),
        "16-bit I;16 tiff": (save(folder / "sixteen.tif", sixteen), np.minimum(thrice, 254)),
        "16-bit I": (save(folder / "int.tif", sixteen.astype(np.int32)), np.minimum(thrice, 254)),
        "16-bit RGB": (write_16_bit_rgb(folder / "deep.png", deep), RGB),
        "alpha RGBA": (save(folder / "rgba.png", alpha), RGB),
        "alpha LA": (save(folder / "la.png", grey_alpha), thrice),
        "CMYK": (save(folder / "cmyk.tif", cmyk), np.asarray(cmyk.convert("RGB"))),
        "palette": (save(folder / "p.png", flat), np.asarray(flat.convert("RGB"))),
        "palette clear": (save(folder / "clear.png", clear), np.asarray(flat.convert("RGB"))),
        "1-bit": (save(folder / "one.png", bilevel), np.where(thrice > 99, 255, 0)),
    }


KINDS = "16-bit I;16, 16-bit I;16 tiff, 16-bit I, 16-bit RGB, alpha RGBA, alpha LA, CMYK, palette, palette clear, 1-bit"


@pytest.mark.parametrize("kind", KINDS.split(", "))
def test_conversions_are_right_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    path, expected = conversions(tmp_path)[kind]
    word = kind.split()[0]
    for _ in range(3):
        np.testing.assert_array_equal(read_image(path), expected)
    said = [record for record in caplog.records if word in record.getMessage()]
    assert len(said) == 1
    assert said[0].name == "uflow"
    assert said[0].levelno == logging.WARNING
    assert path.name in said[0].getMessage()


def test_only_the_first_frame(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "pages.tif"
    Image.fromarray(RGB).save(path, save_all=True, append_images=[Image.fromarray(255 - RGB)])
    np.testing.assert_array_equal(read_image(path), RGB)
    assert "several frames: the first is used" in caplog.text


def test_orientation_is_left_as_stored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees to look at"
    np.testing.assert_array_equal(read_image(save(tmp_path / "x.png", RGB, exif=exif)), RGB)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9])
def test_cut_short_files(tmp_path: Path, suffix: str, share: float) -> None:
    whole = save(tmp_path / f"whole{suffix}", RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=f"cannot read .*cut{suffix}: ") as error:
        read_image(path)
    one_line(error)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_a_broken_checksum(tmp_path: Path) -> None:
    content = bytearray(save(tmp_path / "x.png", RGB).read_bytes())
    content[45] ^= 255
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*x\.png"):
        read_image(tmp_path / "x.png")


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"cannot read .*notes\.png: its content is no known image format"):
        read_image(tmp_path / "notes.png")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.png: the file is empty"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(FileNotFoundError, match=r"no such file: .*gone\.png"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="is a folder"):
        read_image(tmp_path)


def test_the_limit_of_pixels_is_ours_and_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "huge.png", RGB)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's own limit, and its warning, have no say
    monkeypatch.setattr(images, "_max_pixels", RGB[..., 0].size)
    np.testing.assert_array_equal(read_image(path), RGB)
    assert Image.MAX_IMAGE_PIXELS == 10
    images.set_max_pixels(RGB[..., 0].size - 1)
    for read in (read_image, image_size):
        with pytest.raises(
            ValueError, match=r"huge\.png: 6x9 are 54 pixels, .* limit of 53; raise it by --max-pixels"
        ) as error:
            read(path)
        one_line(error)
    for count in (0, float("nan")):
        with pytest.raises(ValueError, match=f"a whole number from 1 on, got {count}"):
            images.set_max_pixels(count)  # type: ignore[arg-type]


@pytest.mark.parametrize("bit_depth", [0, 7, 17, 99, 2**70, -8, True, 9.5, "12", None])
def test_what_is_no_bit_depth(bit_depth: object, tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", RGB, RGB[..., 0].astype(np.uint16)):
        with pytest.raises(ValueError, match="bit_depth is a number of bits from 8 to 16, got ") as error:
            read_image(source, bit_depth=bit_depth)  # type: ignore[arg-type]
        one_line(error)


@pytest.mark.parametrize("format", ["EPS", "GIF", "PPM", "PCX"])
def test_other_formats_are_refused_before_they_are_decoded(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **_: started.append(arguments))  # such as Ghostscript
    path = tmp_path / "part.png"
    Image.fromarray(RGB).save(path, format)
    for read in (read_image, image_size):
        with pytest.raises(ValueError, match=r"part\.png: its content is no known image format \(PNG, JPEG, ") as error:
            read(path)
        one_line(error)
    with Image.open(path) as image, pytest.raises(ValueError, match=f"the format {format} is not read"):
        read_image(image)
    assert not started


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "part.png")
    for source in (tmp_path / "part.png", Path("/dev/zero")):
        for read in (read_image, image_size, list_images):
            with pytest.raises(ValueError, match="it is no regular file but a device, a pipe or a socket") as error:
                read(source)
            one_line(error)
    with pytest.raises(ValueError, match="no images in"):
        list_images(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", RGB)
    path.chmod(0)
    with pytest.raises(ValueError, match=r"cannot read .*x\.png: Permission denied"):
        read_image(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((4, 5), 0.5, np.float32), "32-bit floats"),
        (np.full((4, 5), 70000, np.int32), r"32-bit integers \(70000..70000\) do not fit 16 bits"),
        (np.full((4, 5), -1, np.int32), r"\(-1..-1\)"),
    ],
)
def test_files_whose_white_is_unknown(tmp_path: Path, values: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=rf"x\.tif: .*{message}") as error:
        read_image(save(tmp_path / "x.tif", values))
    one_line(error)


# ---- reading images: PIL images and arrays


def test_pil_images() -> None:
    np.testing.assert_array_equal(read_image(Image.fromarray(RGB)), RGB)
    np.testing.assert_array_equal(read_image(Image.fromarray(GREY))[..., 2], GREY)
    with pytest.raises(ValueError, match="the PIL image: it is empty, 0x3 pixels"):
        read_image(Image.new("RGB", (3, 0)))
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "png")
    cut = Image.open(io.BytesIO(buffer.getvalue()[:-3000]))
    with pytest.raises(ValueError, match="cannot read the PIL image: "):
        read_image(cut)


def test_arrays(caplog: pytest.LogCaptureFixture) -> None:
    np.testing.assert_array_equal(read_image(RGB), RGB)
    np.testing.assert_array_equal(read_image(RGB[::-1, ::2]), RGB[::-1, ::2])
    for grey in (GREY, GREY[..., None]):
        np.testing.assert_array_equal(read_image(grey), np.repeat(GREY[..., None], 3, axis=2))
    assert not caplog.messages
    for _ in range(2):
        np.testing.assert_array_equal(read_image(np.dstack([RGB, GREY])), RGB)
        np.testing.assert_array_equal(read_image(RGB.astype(np.uint16) * 257), RGB)
    assert len(caplog.messages) == 2
    assert read_image(np.array([[0, 128, 129, 65535]], np.uint16))[0, :, 0].tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (RGB / 255.0, "float64; pass uint8"),
        (np.full((4, 4, 3), np.nan, np.float32), r"shape \(4, 4, 3\) holds NaN or infinite"),
        (np.full((4, 4), np.inf), "NaN or infinite"),
        (GREY > 99, "the image array is bool; pass uint8"),
        (RGB.astype(np.int64), "int64; pass uint8"),
        (RGB.astype(complex), "complex128"),
        (RGB[:0], r"empty: its shape is \(0, 9, 3\)"),
        (RGB.transpose(2, 0, 1), r"not \(3, 6, 9\)"),
        (RGB[None], r"not \(1, 6, 9, 3\)"),
        (RGB[..., :2], r"not \(6, 9, 2\)"),
        (GREY[0], r"not \(9,\)"),
    ],
)
def test_bad_arrays(array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_image(array)
    one_line(error)


@pytest.mark.parametrize("thing", [None, 3, [RGB]])
def test_other_things_are_no_images(thing: object) -> None:
    with pytest.raises(TypeError, match="must be a path, a PIL image, a numpy array, bytes, an open"):
        read_image(thing)


# ---- resizing


@pytest.mark.parametrize("size", [(32, 24), (100, 150), (61, 83)])
def test_resize_image_equals_torchvision(size: tuple[int, int]) -> None:
    transforms = pytest.importorskip("torchvision.transforms.functional")
    image = RNG.integers(0, 256, (61, 83, 3), dtype=np.uint8)
    expected = np.asarray(transforms.resize(Image.fromarray(image), list(size)))
    resized = resize_image(image, size)
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, expected)
    tensor = image_tensor(resized[None])[0].numpy()
    np.testing.assert_allclose(tensor, transforms.to_tensor(resized).numpy(), rtol=0, atol=1e-7)


def test_image_size_is_that_of_the_image_read(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "rgb.png")
    for image in (RGB, GREY, Image.fromarray(RGB), tmp_path / "rgb.png", str(tmp_path / "rgb.png")):
        assert image_size(image) == read_image(image).shape[:2]
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read .*broken\.png: its content is no known image format"):
        image_size(tmp_path / "broken.png")


def test_resize_mask_is_bilinear_then_above_one_half() -> None:
    mask = np.zeros((8, 8), bool)
    mask[:, :4] = True
    np.testing.assert_array_equal(resize_mask(mask, (4, 4)), np.tile([True, True, False, False], (4, 1)))
    np.testing.assert_array_equal(resize_mask(mask, (8, 8)), mask)
    stripe = np.zeros((512, 512), bool)
    stripe[:, 100] = True  # half a pixel wide once it is halved: not above one half
    assert not resize_mask(stripe, (256, 256)).any()
    assert resize_mask(np.ones((5, 7), bool), (3, 2)).all()


def test_resize_errors() -> None:
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\) uint8, not \(6, 9\) uint8"):
        resize_image(GREY, (2, 2))
    with pytest.raises(ValueError, match=r"both at least 1, not \(0, 4\)"):
        resize_image(RGB, (0, 4))
    with pytest.raises(ValueError, match=r"below 2\^31 pixels, .*, not \(65536, 32768\)"):
        resize_image(RGB, (2**16, 2**15))
    with pytest.raises(ValueError, match=r"must be \(H, W\) bool, not \(6, 9\) uint8"):
        resize_mask(GREY, (2, 2))


# ---- masks


def test_read_mask(tmp_path: Path) -> None:
    values = np.array([[0, 127, 128, 255]], np.uint8)
    path = save(tmp_path / "mask.png", values)
    assert read_mask(path).tolist() == [[False, False, True, True]]
    assert read_mask(path, (1, 4)).dtype == np.bool_
    assert read_mask(save(tmp_path / "rgb.png", np.dstack([values] * 3))).tolist() == [[False, False, True, True]]
    assert read_mask(save(tmp_path / "one.png", values > 127)).tolist() == [[False, False, True, True]]
    assert not read_mask(save(tmp_path / "none.png", 0 * values)).any()
    with pytest.raises(ValueError, match=r"mask\.png is 1x4 pixels \(height x width\), its image is 6x9") as error:
        read_mask(path, (6, 9))
    one_line(error)
    with pytest.raises(ValueError, match=r"ones\.png has values 0 to 1, none above 127: write defects as 255"):
        read_mask(save(tmp_path / "ones.png", values // 255))


MARK = np.where(np.arange(64).reshape(8, 8) % 8 < 3, 255, 0).astype(np.uint8)
PLAIN, OPAQUE = np.zeros_like(MARK), np.full_like(MARK, 255)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.dstack([OPAQUE, OPAQUE, OPAQUE, MARK]), "an alpha channel that is not opaque"),
        (np.dstack([PLAIN, PLAIN, PLAIN, MARK]), "an alpha channel that is not opaque"),
        (np.dstack([MARK, MARK, MARK, 255 - MARK]), "an alpha channel that is not opaque"),
        (np.dstack([PLAIN, MARK, PLAIN]), "has colours"),
        (np.where(MARK > 0, 255, 200).astype(np.uint8), "values 200 to 255, all above 127"),
        (MARK // 255, "values 0 to 1, none above 127"),
        (MARK.astype(np.uint16) // 255, "values 0 to 1, none above 32639"),
    ],
)
def test_masks_of_which_it_is_open_what_they_mark_are_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=rf"the mask .*x\.png.*{message}") as error:
        read_mask(save(tmp_path / "x.png", values))
    one_line(error)


def test_masks_of_which_it_is_clear_what_they_mark_are_read(tmp_path: Path) -> None:
    blurred = np.asarray(Image.fromarray(MARK).resize((80, 80), Image.Resampling.BILINEAR))
    for values in (MARK, np.dstack([MARK] * 3), np.dstack([MARK, MARK, MARK, OPAQUE]), MARK.astype(np.uint16) * 257):
        np.testing.assert_array_equal(read_mask(save(tmp_path / "x.png", values)), MARK > 0)
    assert read_mask(save(tmp_path / "x.jpg", np.dstack([blurred] * 3))).mean() == pytest.approx((MARK > 0).mean(), 0.1)
    small = MARK.astype(np.uint16) // 255
    np.testing.assert_array_equal(read_mask(save(tmp_path / "x.png", small), above=0), MARK > 0)
    assert read_mask(save(tmp_path / "x.png", OPAQUE)).all()


# ---- lists, batches, digests


def test_sources_are_the_files_of_a_folder_or_what_a_list_holds(tree: Path) -> None:
    assert list_sources(tree) == list_images(tree)
    assert list_sources(str(tree / "*")) == list_images(tree)
    given = ["x.png", tree / "b.png", "x.png"]
    assert list_sources(given) == given  # in their order, each as often as it is there
    assert list_sources([]) == []
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        list_sources("nowhere")


def test_batches_read_no_further_than_they_must() -> None:
    taken: list[int] = []
    source = (taken.append(i) or i for i in range(7))
    found = batches(source, 3)
    assert next(found) == [0, 1, 2]
    assert taken == [0, 1, 2]
    assert list(found) == [[3, 4, 5], [6]]
    assert list(batches([], 3)) == []


def test_digests_tell_contents_and_order_and_not_places(tmp_path: Path) -> None:
    first, second = save(tmp_path / "a.png", RGB), save(tmp_path / "b.png", 255 - RGB)
    copies = [tmp_path / "other" / path.name for path in (first, second)]
    for path, twin in zip((first, second), copies, strict=True):
        twin.parent.mkdir(exist_ok=True)
        twin.write_bytes(path.read_bytes())
    assert digest([first, str(second)]) == digest(copies)
    assert digest(copies[::-1]) != digest(copies)
    assert digest(copies).startswith("2 ")
    assert digest([RGB]) == digest([Image.fromarray(RGB)]) != digest([first])  # pixels, and not a file's bytes


# Bytes, open files, tensors; blue first -------------------------------------------------------------------------------


@pytest.fixture
def colours() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (5, 7, 3), np.uint8)


def test_bytes_and_open_files_are_read_as_their_path_is(colours: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(colours).save(path)
    content = path.read_bytes()
    for source in (content, bytearray(content), memoryview(content), io.BytesIO(content)):
        np.testing.assert_array_equal(read_image(source), colours)
    with path.open("rb") as file:
        assert as_source(file) == content
    with path.open("rb") as file:
        assert is_one_image(file)
        np.testing.assert_array_equal(read_image(file), colours)
    with (
        path.open("r", encoding="latin-1") as file,
        pytest.raises(TypeError, match="must be opened as bytes"),
    ):
        read_image(file)
    with pytest.raises(ValueError, match=r"cannot read the image of 3 bytes: its content is no known image format"):
        read_image(b"abc")
    with pytest.raises(ValueError, match=r"cannot read the image of 0 bytes: the file is empty"):
        read_image(b"")
    with pytest.raises(ValueError, match=r"cannot read the image of 60 bytes"):
        read_image(content[:60])
    with pytest.raises(TypeError, match=r"bytes, an open file or a tensor, not int"):
        read_image(7)


def test_tensors_have_their_channels_first(colours: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(colours).permute(2, 0, 1)
    np.testing.assert_array_equal(read_image(tensor), colours)
    np.testing.assert_array_equal(read_image(tensor[:1])[..., 0], colours[..., 0])
    np.testing.assert_array_equal(read_image(tensor[1])[..., 2], colours[..., 1])
    assert is_one_image(tensor)
    refused = {
        (5, 7, 3): r"must be .C, H, W. with 1, 3 or 4 channels, not .5, 7, 3.: pass tensor.permute",
        (3, 7, 3): r"may be .C, H, W. or .H, W, C.: pass an .H, W, C. array",
        (1, 1, 1): r"may be",
        (2, 3, 5, 7): r"pass list.tensor. for a batch",
        (5, 7, 9): r"must be .C, H, W.",
        (4,): r"must be .C, H, W.",
    }
    for shape, message in refused.items():
        with pytest.raises(ValueError, match=message):
            read_image(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"is float32; pass uint8"):
        read_image(torch.zeros(3, 5, 7))


def test_bgr_is_what_opencv_gives(colours: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(colours).save(path)
    cv2 = pytest.importorskip("cv2")
    np.testing.assert_array_equal(read_image(as_source(cv2.imread(str(path)), bgr=True)), colours)
    with_alpha = np.dstack([colours[..., ::-1], np.full((5, 7), 9, np.uint8)])
    np.testing.assert_array_equal(read_image(as_source(with_alpha, bgr=True)), colours)
    grey = colours[..., 0]
    np.testing.assert_array_equal(as_source(grey, bgr=True), grey)
    for source in (path, str(path), path.read_bytes(), Image.fromarray(colours)):
        with pytest.raises(ValueError, match=r"bgr=True is for arrays and tensors, and a \w+ says which"):
            as_source(source, bgr=True)
    with pytest.raises(ValueError, match="says which colour is which"):
        list_sources(tmp_path, bgr=True)


def test_torch_is_not_imported_for_what_is_no_tensor() -> None:
    code = (
        "import io, sys, uflow.images\n"
        "assert not uflow.images.is_one_image([])\n"
        "try: uflow.images.read_image(io.BytesIO(b'x'))\n"
        "except ValueError: print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
