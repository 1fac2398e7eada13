"""Behaviour as it was: frozen.py's golden files against what is computed and written now (half a minute)."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import frozen

TOLERANCE = 1e-4  # of the largest number of an array, on another machine than the golden files are from
HEX = re.compile(r"[0-9a-f]{64}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frozen")
    frozen.run(folder)
    return folder


def values(folder: Path, name: str = "frozen") -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


def arrays(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "frozen.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def exact(made: Path) -> bool:
    return values(made)["machine"] == values(frozen.GOLDEN)["machine"]


def comparable(names: set[str], made: set[str]) -> set[str]:
    """All names, but for the ONNX export's where what writes or runs it is not installed."""
    missing = names - made
    assert made <= names, f"not in the golden files: {sorted(made - names)[:5]}"
    if frozen.has_onnx():
        assert not missing, f"no longer there: {sorted(missing)[:5]}"
    assert all("onnx" in name for name in missing), f"no longer there: {sorted(missing)[:5]}"
    return names - missing


def differences(golden: Any, now: Any, exact: bool, where: str) -> Iterator[str]:
    if isinstance(golden, dict) and isinstance(now, dict) and golden.keys() == now.keys():
        for key in golden:
            yield from differences(golden[key], now[key], exact, f"{where}.{key}")
    elif isinstance(golden, list) and isinstance(now, list) and len(golden) == len(now):
        for i, (a, b) in enumerate(zip(golden, now, strict=True)):
            yield from differences(a, b, exact, f"{where}[{i}]")
    elif not exact and isinstance(golden, float) and isinstance(now, float):
        if not np.isclose(golden, now, TOLERANCE, TOLERANCE):
            yield f"{where}: {golden!r} is now {now!r}"
    elif not exact and isinstance(golden, str) and isinstance(now, str):
        if HEX.sub("", golden) != HEX.sub("", now):
            yield f"{where}: {golden!r} is now {now!r}"
    elif golden != now or type(golden) is not type(now):
        yield f"{where}: {golden!r:.200} is now {now!r:.200}"


def test_maps_masks_and_curves(made: Path, exact: bool) -> None:
    golden, now = arrays(frozen.GOLDEN), arrays(made)
    changed = []
    for name in sorted(comparable(set(golden), set(now))):
        a, b = golden[name], now[name]
        assert a.dtype == b.dtype, name
        if exact:
            equal = a.shape == b.shape and a.tobytes() == b.tobytes()
        elif a.dtype == bool:
            equal = a.shape == b.shape and np.mean(a != b) < 0.01
        elif name.startswith("evaluate"):  # points of a curve: the figures below it are among the values
            continue
        else:
            equal = a.shape == b.shape and np.allclose(a, b, TOLERANCE, TOLERANCE * float(np.abs(a).max()))
        if not equal:
            largest = np.abs(a.astype(float) - b).max() if a.shape == b.shape else f"{a.shape} is now {b.shape}"
            changed.append(f"{name}: {largest}")
    assert not changed, "\n".join(changed)


def test_tensors_regions_scores_headers_and_figures(made: Path, exact: bool) -> None:
    golden, now = values(frozen.GOLDEN), values(made)
    same_masks = {name for name, mask in arrays(frozen.GOLDEN).items() if name.endswith("/mask")}
    if not exact:
        found = arrays(made)
        same_masks = {name for name in same_masks if np.array_equal(arrays(frozen.GOLDEN)[name], found.get(name))}
    changed: list[str] = []
    for name in sorted(comparable(set(golden), set(now)) - {"machine", "help_written_by"}):
        of_mask = name.endswith(("/regions", "/to_dict")) and f"{name.rpartition('/')[0]}/mask" not in same_masks
        if not of_mask and not (not exact and name.endswith(("/roc", "/pro"))):
            changed += differences(golden[name], now[name], exact, name)
    assert not changed, "\n".join(changed)


def test_keys_of_every_json(made: Path) -> None:
    golden, now = values(frozen.GOLDEN, "json_keys"), values(made, "json_keys")
    for name in comparable(set(golden), set(now)):
        assert now[name] == golden[name], name


TYPES = {"bool", "float", "int", "integer", "list", "str", "text"}  # what typer calls them differs too


def test_help(made: Path) -> None:
    same = values(made)["help_written_by"] == values(frozen.GOLDEN)["help_written_by"]
    golden, now = (sorted((folder / "help").iterdir()) for folder in (frozen.GOLDEN, made))
    assert [path.name for path in now] == [path.name for path in golden]
    for a, b in zip(golden, now, strict=True):
        before, after = a.read_text(encoding="utf-8"), b.read_text(encoding="utf-8")
        if same:
            assert after == before, a.name
        else:  # typer and rich lay it out differently from version to version
            said, golden_words = (
                {word.lower() for word in re.findall(r"\w+", text)} - TYPES for text in (after, before)
            )
            assert said == golden_words, a.name
