"""What several commands need: printing, reading texts, and looking at outputs before the work."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from ..detector import Detector
    from ..evaluate.samples import Dataset
    from ..predictor import Predictor
    from ..product import Product

__all__ = [
    "check_new_file",
    "check_new_folder",
    "check_output_folder",
    "check_seed",
    "find_datasets",
    "load_model",
    "lose_output",
    "lost_output",
    "lost_results",
    "note",
    "parse_numbers",
    "parse_size",
    "remove_empty_folders",
    "say",
    "set_quiet",
    "show_progress",
    "shows_bars",
    "split_arguments",
]

T = TypeVar("T")
PROBE_BYTES = 1 << 20  # that are written, and removed, to see whether a disk is full
_quiet = False
_made: list[Path] = []  # folders for results, by this command
_output_lost = ""  # why standard output takes nothing; empty while it does
_results_lost = False  # whether it was to take what stands nowhere else


def say(text: str, err: bool = False, kept: bool = False) -> bool:
    """Print a text on standard output, or standard error; among progress bars it goes through them.

    What is printed in vain ends no work: the program goes on, and `lost_results` tells of it at the end.

    Args:
        text: what to print, and to send off at once.
        err: on standard error.
        kept: whether nothing is lost where it cannot be printed: it is no result, or stands in a file too.

    Returns:
        Whether it was taken: not by an output that was closed, whose reader has gone, or whose disk is full.
    """
    global _results_lost
    if err or not _output_lost:
        try:
            print(text, file=sys.stderr if err else sys.stdout, flush=True)
            return True
        except OSError as error:
            _discard(sys.stderr if err else sys.stdout)
            if not err:
                lose_output(str(error.strerror or error))
    _results_lost = _results_lost or not (err or kept)
    return False


def lose_output(why: str) -> None:
    """Print nothing on standard output from now on; an empty text: it is as it should be."""
    global _output_lost, _results_lost
    _output_lost, _results_lost = why, False


def lost_output() -> str:
    """Why standard output takes nothing; empty while it takes what is printed."""
    return _output_lost


def lost_results() -> str:
    """What became of results that standard output was to take and did not, on one line; empty where it took all."""
    return f"standard output did not take all results: {_output_lost}" if _results_lost else ""


def _discard(stream: IO[str]) -> None:
    """Let the system throw away what comes: else what waits in the stream fails once more when the program ends."""
    with suppress(OSError, ValueError):  # a stream that is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def show_progress(items: Iterable[T], what: str) -> Iterable[T]:
    """The items, with a bar where standard error is a terminal."""
    if not shows_bars():
        return items
    from rich.console import Console  # not for figures alone
    from rich.progress import track

    return track(items, what, console=Console(stderr=True))


def note(text: str, err: bool = False) -> None:
    """Print what is no result, such as where results were written, unless --quiet."""
    if not _quiet:
        say(text, err, kept=True)


def shows_bars() -> bool:
    """Whether progress bars are shown: on a terminal, unless --quiet."""
    return sys.stderr.isatty() and not _quiet


def set_quiet(quiet: bool) -> None:
    """Choose what is printed: all, or results, warnings and errors only."""
    global _quiet
    _quiet = quiet
    logging.getLogger("uflow").setLevel("WARNING" if quiet else "INFO")


def number_of(count: int, noun: str) -> str:
    """ "1 epoch", "2 epochs"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def next_arguments(product: Path | None, output: Path | None, model: Path) -> str:
    """What `uflow predict` is to be given after a model was written: to the `output` asked for, or a product's own."""
    return f"{model} IMAGES" if product is None or output is not None else f"--product {product} IMAGES"


# Texts to values ------------------------------------------------------------------------------------------------------


def parse_numbers(text: str, separator: str = ",") -> list[int]:
    """The whole numbers in "8,16,32"; ValueError for anything else."""
    try:
        return [int(part) for part in text.split(separator)]
    except ValueError:
        raise ValueError(f"{text!r} is not a list of whole numbers with {separator!r} between them") from None


def parse_size(text: str, option: str = "--image-size") -> int | tuple[int, int]:
    """A side, or (height, width), of "256" or "256x320"."""
    numbers = parse_numbers(text.lower(), "x")
    if len(numbers) == 1:
        return numbers[0]
    if len(numbers) != 2:
        raise ValueError(f"{option} is a side or HEIGHTxWIDTH, such as 256 or 256x320; got {text!r}")
    return numbers[0], numbers[1]


def check_seed(seed: int, option: str = "--seed") -> None:
    """Raise ValueError for a number that seeds nothing."""
    from ..recipe import MAX_SEED  # not for --help

    if seed < 0:
        raise ValueError(f"{option} is a whole number from 0 on, got {seed}")
    if seed > MAX_SEED:
        raise ValueError(f"{option} is at most {MAX_SEED}, got {seed}")


# Outputs, before the work whose results go there ----------------------------------------------------------------------


def check_new_file(file: Path, option: str = "--output") -> None:
    """Raise OSError, one line, where a file cannot be written."""
    folder = file.resolve().parent
    if file.is_dir():
        raise IsADirectoryError(f"{option} {file} is a folder: name the file to write, such as {file / 'new'}")
    if not folder.is_dir():
        raise FileNotFoundError(f"cannot write {file}: there is no folder {folder}")
    _try_to_write(folder, file)


def check_output_folder(folder: Path, option: str = "--output") -> None:
    """Make a folder for results if it is not there; OSError, one line, where nothing can be written into it."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{option} {folder} is a file, and a folder is needed: name another")
    _made.extend(each for each in (folder, *folder.parents) if not each.exists())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{option} {folder} cannot be made: {error.strerror}") from error
    _try_to_write(folder, folder)


def remove_empty_folders() -> None:
    """Remove folders that were made for results where none came: an error leaves nothing behind."""
    for folder in sorted(_made, key=lambda made: -len(made.parts)):
        with suppress(OSError):  # there are results
            folder.rmdir()
    _made.clear()


def check_new_folder(folder: Path, option: str = "--output") -> None:
    """Raise OSError, one line, where a folder that is written whole or not at all cannot be made."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{option} {folder} is a file, and a folder is needed: name another")
    check_output_folder(folder.resolve().parent, option)


def _try_to_write(folder: Path, target: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE_BYTES))  # a full disk takes an empty file
    except OSError as error:
        raise OSError(f"cannot write {target}: {error.strerror}") from error


# Products, models and data --------------------------------------------------------------------------------------------


def split_arguments(file: Path | None, model: Path, images: list[str]) -> tuple[Product | None, Path, list[str]]:
    """The product in a file, the model, and the images: with a product all arguments are images.

    Raises:
        FileNotFoundError, ValueError: a file that cannot be used, or no images.
    """
    if file is None:
        return None, model, images
    from ..product import read_product
    from .config import UsageError

    product = read_product(file)
    given = [str(each) for each in (model, *(images or ())) if each is not None]
    if not given:
        raise UsageError(f"the model is that of {file}, and there are no images: name them")
    return product, product.model, given


def load_model(
    path: Path,
    device: str = "auto",
    weights: Sequence[Path] | None = None,
    runtime: str | None = None,
    tile: bool | None = None,
) -> tuple[Detector | Predictor, Predictor]:
    """A model as `uflow.load` gives it, and the predictor that it is or has; `tile` None is as it was trained."""
    from .. import load
    from ..predictor import Predictor

    model = load(path, device, weights, runtime)
    predictor = model if isinstance(model, Predictor) else model.predictor
    if tile is not None:
        predictor.tile = tile
    return model, predictor


def find_datasets(root: Path, layout: str | None, categories: str | None) -> tuple[list[Dataset], dict[str, str]]:
    """The categories of a data set, all or those named in "bottle,cable"; and why others cannot be read, by name."""
    from ..evaluate.datasets import find_categories

    failed: dict[str, str] = {}
    datasets = find_categories(root, layout, failed)
    if categories is None:
        return datasets, failed
    wanted = [name.strip() for name in categories.split(",")]
    names = [*(dataset.name for dataset in datasets), *failed]
    if unknown := [name for name in wanted if name not in names]:
        raise ValueError(f"{root} has no category {', '.join(unknown)}: it has {', '.join(names)}")
    chosen = [dataset for dataset in datasets if dataset.name in wanted]
    return chosen, {name: reason for name, reason in failed.items() if name in wanted}
