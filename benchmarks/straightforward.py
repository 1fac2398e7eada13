"""What people write from the paper with torchvision, timm, FrEIA, scikit-image and Python, to be put beside uflow."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import skimage
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torchvision.transforms.functional import normalize, to_tensor

import reference
from test_flow import freia_uflow
from uflow import backbones, weights
from uflow.flow import UFlow
from uflow.interop.freia import to_freia

Array = NDArray[np.float64]
LogP = Callable[[Array, Array], Array]  # levels and areas of nodes -> log10 P of each

# The tree -------------------------------------------------------------------------------------------------------------


def log_p_of_regions(energy: Any, log_p: LogP) -> Array:
    """log10 P of the final region of each cell, by scikit-image's max-tree and Python; 0 where there is none."""
    flat = energy.ravel()
    parent, order = skimage.morphology.max_tree(energy, connectivity=1)
    up, pixels = parent.ravel().tolist(), order.tolist()
    root = pixels[0]
    nodes = [p for p in pixels if p == root or flat[up[p]] != flat[p]]
    area = [1.0] * flat.size
    for p in reversed(pixels[1:]):
        area[up[p]] += area[p]
    values = log_p(flat[nodes].astype(float), np.array([area[p] for p in nodes]))
    value = dict(zip(nodes, values.tolist(), strict=True))
    final = final_nodes(nodes, up, value)
    result = np.zeros(flat.size)
    region: dict[int, int | None] = {root: None}
    for p in pixels:
        region[p] = p if p in final else region[up[p]]
        if region[p] is not None:
            result[p] = value[region[p]]
    return result.reshape(energy.shape)


def final_nodes(nodes: Sequence[int], up: Sequence[int], value: dict[int, float]) -> set[int | None]:
    """The nodes that prune and merge leave."""
    children: dict[int, list[int]] = {p: [] for p in nodes}
    for p in nodes[1:]:
        children[up[p]].append(p)
    standing: dict[int, int | None] = {}  # the region that stands for a node so far
    for p in reversed(nodes):
        standing[p] = standing_region(p, [standing[kid] for kid in children[p]], value)
    final: set[int | None] = set()
    decided: dict[int, bool] = {}
    for p in nodes:
        decided[p] = p != nodes[0] and decided[up[p]]
        if not decided[p] and standing[p] is not None:
            final.add(standing[p])
            decided[p] = True
    return final


def standing_region(node: int, below: list[int | None], value: dict[int, float]) -> int | None:
    """What stands for a node, from what stands for the nodes below it; None where several do."""
    regions = [region for region in below if region is not None]
    if len(regions) < len(below):
        return None
    if len(regions) <= 1:
        return min([*regions, node], key=value.__getitem__)
    return node if value[node] <= min(value[region] for region in regions) else None


def resize(array: Array, size: int) -> Array:
    """Bilinear."""
    maps = torch.from_numpy(array)[None, None]
    result: Array = F.interpolate(maps, (size, size), mode="bilinear", align_corners=False)[0, 0].numpy()
    return result


@cache
def log_number_of_tests(sizes: tuple[int, ...]) -> float:
    """log10 N_T."""
    return float(reference.log10_number_of_tests(sizes))


def paper_log_nfa(latents: Sequence[Any], size: int) -> Array:
    """The paper's log10 NFA of one image, latents (1, C, h, w) a scale."""
    maps = []
    for z in map(torch.as_tensor, latents):
        dof = z.shape[1]

        def chernoff(level: Array, area: Array, dof: int = dof) -> Array:
            t = np.maximum(level / dof, 1)
            return -area * dof / 2 * (t - 1 - np.log(t)) / np.log(10)

        maps.append(resize(log_p_of_regions(z[0].square().sum(0).numpy(), chernoff), size))
    tests = log_number_of_tests(tuple(z.shape[2] * z.shape[3] for z in latents))
    return np.asarray(np.min(maps, axis=0) + tests)


# The networks ---------------------------------------------------------------------------------------------------------


def freia_graph(flow: UFlow) -> nn.Module:
    """FrEIA 0.2's graph with the flow's weights."""
    graph = freia_uflow(flow.channels, flow.sizes, flow.steps).float().eval()
    graph.load_state_dict({k: v for k, v in to_freia(flow, prefix="").items() if k.startswith("module_list.")})
    return graph


def timm_lite0() -> nn.Module:
    """timm's EfficientNet-Lite0 as it is, with the weights that uflow finds."""
    net = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(2, 3, 4)).eval()
    ((file, _),) = weights.find_weight_files("efficientnet_lite0", ["tf_efficientnet_lite0"], None)
    whole = backbones._skeleton("tf_efficientnet_lite0").state_dict()
    weights.fill_net(net, "tf_efficientnet_lite0", whole, file, hashlib.sha256())
    return net.requires_grad_(False)


class Straightforward:
    """The paper's method on EfficientNet-Lite0: map, test, mask and regions, with a detector's flow."""

    def __init__(self, flow: UFlow) -> None:
        self.net, self.graph, self.affines = timm_lite0(), freia_graph(flow), flow.affines

    @torch.inference_mode()
    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[tuple[Any, Array, NDArray[np.bool_], list[Any]]]:
        """Anomaly map, log NFA, mask and regions of square images of the network's size."""
        x = torch.stack([to_tensor(image) for image in images])
        side = x.shape[2]
        features = self.net(normalize(x, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
        pairs = zip(features, self.affines, strict=True)
        latents, _ = self.graph([F.layer_norm(f, f.shape[1:], a.weight, a.bias) for f, a in pairs])
        likely = [torch.exp(-0.5 * z.square().mean(dim=1, keepdim=True)) for z in latents]
        resized = [F.interpolate(p, (side, side), mode="bilinear", align_corners=False) for p in likely]
        found = []
        for i, anomaly_map in enumerate(1 - torch.cat(resized, dim=1).mean(dim=1).numpy()):
            log_nfa = paper_log_nfa([z[i : i + 1] for z in latents], side)
            mask = log_nfa < 0
            labels = skimage.measure.label(mask, connectivity=1)
            properties = skimage.measure.regionprops(labels, np.stack([log_nfa, anomaly_map], axis=2))
            regions = [(r.area, r.bbox, r.centroid, r.intensity_min[0], r.intensity_max[1]) for r in properties]
            found.append((anomaly_map, log_nfa, mask, regions))
        return found
