"""Which extra of the package brings a module that is not installed: the one place that says `pip install`."""

from __future__ import annotations

import importlib.util

__all__ = ["DISTRIBUTION", "EXTRA_OF", "describe_missing", "pip_install", "require"]

DISTRIBUTION = "uflow-ad"  # on an index; "uflow" there is somebody else's

# What is imported, and the extra of pyproject.toml that brings it.
EXTRA_OF = {
    "torch": "train",
    "timm": "train",
    "huggingface_hub": "train",
    "safetensors": "train",
    "filelock": "train",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "matplotlib": "figures",
    "skimage": "demo",
    "anomalib": "compare",
    "lightning": "compare",
    "torchvision": "compare",
    "supervision": "supervision",
    "ray": "ray",
    "pyarrow": "ray",
    "pandas": "ray",
    "fsspec": "ray",
    "starlette": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "paho": "serve",
}


def pip_install(extra: str) -> str:
    """The command that brings an extra.

    >>> pip_install("onnx")
    'pip install "uflow-ad[onnx]"'
    """
    return f'pip install "{DISTRIBUTION}[{extra}]"'


def require(extra: str, *modules: str) -> None:
    """Raise ModuleNotFoundError, one line, unless these modules are there: names an extra that brings them all."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(_missing(module, extra), name=module)


def describe_missing(error: ImportError) -> str:
    """One line for a module that cannot be imported: what to install; the error's own words where it is none of ours.

    >>> describe_missing(ModuleNotFoundError("No module named 'torch'", name="torch"))
    'torch is not installed, and this needs it: pip install "uflow-ad[train]"'
    """
    extra = EXTRA_OF.get((error.name or "").partition(".")[0])
    if extra is None or not isinstance(error, ModuleNotFoundError) or "pip install" in str(error):
        return str(error)
    return _missing(str(error.name), extra)


def _missing(module: str, extra: str) -> str:
    return f"{module} is not installed, and this needs it: {pip_install(extra)}"
