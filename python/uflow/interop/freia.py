"""The weights of a U-Flow under FrEIA's names (the authors' and anomalib's checkpoints), both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from ..files import some_names
from ..flow import CouplingStep, UFlow

__all__ = ["FREIA_KEY", "SoftClamp", "convert_freia", "to_freia"]

SoftClamp = Literal["tanh(r)", "tanh(r/clamp)"]

FREIA_KEY = re.compile(r"(?P<prefix>.*?)module_list\.(?P<node>\d+)\.(?P<name>.+)")
_SUBNET = ("subnet.0.weight", "subnet.0.bias", "subnet.2.weight", "subnet.2.bias")


def convert_freia(
    state_dict: Mapping[str, Any], soft_clamp: SoftClamp = "tanh(r)", clamp: float = 2.0
) -> dict[str, Tensor]:
    """Weights of a U-Flow built with FrEIA (the authors' and anomalib's checkpoints), for `UFlow.load_state_dict`.

    The graph's nodes are numbered coarsest stage first: S coupling steps, split, up-sampling, concatenation, S steps,
    and so on, so that the stages start at nodes 0, S + 3, 2 (S + 3), ...

    Args:
        state_dict: arrays or tensors under the keys `[prefix][flow.]module_list.{node}.{name}`. The permutation
            `w_perm` may be a matrix (C, C[, 1, 1]), out[i] = sum_j w_perm[i, j] in[j], or an index, out = in[w_perm].
            All other keys, such as `feature_extractor.*`, are ignored.
        soft_clamp: which step the flow was trained with; no key of the file tells. "tanh(r)": s = clamp * tanh(r), as
            in FrEIA 0.2 and anomalib; "tanh(r/clamp)": s = clamp * tanh(r / clamp), later versions of FrEIA.
        clamp: the `clamp` of both.

    Returns:
        the state dict of the `UFlow(channels, sizes, steps, clamp)` with as many scales and steps, in the file's dtype.

    Raises:
        ValueError: when there is no such flow, parts of it are missing, or `w_perm` is not a permutation.

    >>> from uflow.flow import UFlow
    >>> convert_freia(UFlow((8,), ((2, 2),)).state_dict())
    Traceback (most recent call last):
    ValueError: expected keys such as 'flow.module_list.0.global_scale', found 'stages.0.0.global_scale', ...
    """
    nodes = _freia_nodes(state_dict)
    steps, scales = _freia_layout(nodes)
    factor = 1 / _clamp_factor(soft_clamp, clamp)
    converted = {}
    for scale in range(scales):  # coarsest first, as FrEIA numbers them
        for step in range(steps):
            number = scale * (steps + 3) + step
            node = nodes[number]
            key = f"stages.{scales - 1 - scale}.{step}"
            converted[f"{key}.global_scale"] = node["global_scale"].reshape(-1, 1, 1)
            converted[f"{key}.global_offset"] = node["global_offset"].reshape(-1, 1, 1)
            converted[f"{key}.permutation"] = _freia_permutation(node["w_perm"], number)
            _check_subnet(node, number, step)
            converted |= {f"{key}.{name}": _scale_log_scales(name, node[name], factor) for name in _SUBNET}
    return converted


def to_freia(
    flow: UFlow,
    prefix: str = "model.flow.",
    permutation: Literal["matrix", "index"] = "matrix",
    soft_clamp: SoftClamp = "tanh(r)",
) -> dict[str, Tensor]:
    """Our flow in the authors' key layout: the opposite of `convert_freia`.

    Args:
        flow: the flow, such as ``detector.flow``.
        prefix: what precedes `module_list`; "" is for a FrEIA graph itself.
        permutation: "matrix" (C, C, 1, 1), FrEIA 0.2's and anomalib's, or "index" (C,), later versions of FrEIA.
        soft_clamp: the step of the flow that will load it, see `convert_freia`.

    Returns:
        the state dict of the FrEIA graph, which loads with ``strict=True``. A flow with `Affine`s has them beside it,
        as the weight and bias of the LayerNorms `feature_extractor.feature_normalizations.{scale}`.

    Raises:
        TypeError: not a `UFlow`.

    >>> flow = UFlow((4, 8), ((4, 4), (2, 2)), steps=1)
    >>> list(to_freia(flow, prefix=""))[-1], to_freia(flow, prefix="")["module_list.2.downsample_kernel"].shape
    ('module_list.4.subnet.2.bias', torch.Size([4, 1, 2, 2]))
    """
    if not isinstance(flow, UFlow):
        raise TypeError(f"flow must be a UFlow, such as detector.flow, got {type(flow).__name__}")
    exported: dict[str, Tensor] = {}
    scales = len(flow.sizes)
    for scale in range(scales):
        level = scales - 1 - scale
        for number, step in enumerate(cast(nn.ModuleList, flow.stages[level]), scale * (flow.steps + 3)):
            assert isinstance(step, CouplingStep)
            p, key = step.permutation.detach(), f"{prefix}module_list.{number}"
            inverse = p.argsort()
            if permutation == "matrix":
                matrix = torch.eye(len(p), dtype=step.global_scale.dtype, device=p.device)
                p, inverse = matrix[p, :, None, None], matrix[inverse, :, None, None]
            exported |= {
                f"{key}.global_scale": step.global_scale.detach()[None].clone(),
                f"{key}.global_offset": step.global_offset.detach()[None].clone(),
                f"{key}.w_perm": p.clone(),
                f"{key}.w_perm_inv": inverse.clone(),
            }
            factor = _clamp_factor(soft_clamp, step.clamp)
            weights = step.state_dict()
            exported |= {f"{key}.{name}": _scale_log_scales(name, weights[name], factor).clone() for name in _SUBNET}
        if level > 0:
            up = flow.volumes[level] // 8 * 4
            key = f"{prefix}module_list.{scale * (flow.steps + 3) + flow.steps + 1}.downsample_kernel"
            exported[key] = torch.eye(4).view(4, 1, 2, 2).repeat(up // 4, 1, 1, 1)
    norms = f"{prefix.removesuffix('flow.')}feature_extractor.feature_normalizations."
    return exported | {norms + name: tensor.detach().clone() for name, tensor in flow.affines.state_dict().items()}


def _clamp_factor(soft_clamp: SoftClamp, clamp: float) -> float:
    """How much larger r is in that flow than in ours: the two steps differ by no more than this."""
    if soft_clamp not in get_args(SoftClamp):
        raise ValueError(f"soft_clamp is one of {', '.join(map(repr, get_args(SoftClamp)))}, got {soft_clamp!r}")
    return 1.0 if soft_clamp == "tanh(r)" else clamp


def _scale_log_scales(name: str, tensor: Tensor, factor: float) -> Tensor:
    """A subnet's tensor, its first half of output channels, r[:C2], times `factor`."""
    if factor == 1 or not name.startswith("subnet.2."):
        return tensor
    scale, shift = tensor.chunk(2)
    return torch.cat([scale * factor, shift])


def _check_subnet(node: Mapping[str, Tensor], number: int, step: int) -> None:
    """ValueError unless a node's subnet is U-Flow's; load_state_dict's own message has many lines."""
    channels, kernel = node["global_scale"].numel(), 1 if step % 2 else 3
    c1, c2 = channels - channels // 2, channels // 2
    shapes = [(c1, c1, kernel, kernel), (c1,), (2 * c2, c1, kernel, kernel), (2 * c2,)]
    for name, shape in zip(_SUBNET, shapes, strict=True):
        if tuple(node[name].shape) != shape:
            raise ValueError(
                f"module_list.{number}.{name} has shape {tuple(node[name].shape)}, not {shape}: subnets have as many "
                "hidden channels as inputs, and kernels 3, 1, 3, 1, ..."
            )


def _freia_nodes(state_dict: Mapping[str, Any]) -> dict[int, dict[str, Tensor]]:
    """The flow's tensors by node number and name."""
    nodes: dict[int, dict[str, Tensor]] = {}
    prefixes = set()
    for key, value in state_dict.items():
        match = FREIA_KEY.fullmatch(key)
        if match and "feature_extractor." not in key:
            prefixes.add(match["prefix"])
            nodes.setdefault(int(match["node"]), {})[match["name"]] = torch.as_tensor(value, device="cpu").detach()
    if not nodes:
        raise ValueError(f"expected keys such as 'flow.module_list.0.global_scale', found {some_names(state_dict)}")
    if len(prefixes) > 1:
        raise ValueError(f"expected one flow, found several, under {sorted(prefixes)}: keep the keys of only one")
    return nodes


def _freia_layout(nodes: Mapping[int, Mapping[str, Tensor]]) -> tuple[int, int]:
    """The numbers of steps in a stage and of scales; ValueError unless every node's tensors are there."""
    found = sorted(node for node, tensors in nodes.items() if "w_perm" in tensors)
    steps = next((n for n in range(len(found)) if found[n] != n), len(found))
    scales, rest = divmod(len(found), steps) if steps else (0, 1)
    if rest or found != [scale * (steps + 3) + step for scale in range(scales) for step in range(steps)]:
        raise ValueError(
            f"expected stages of S coupling steps at the nodes 0, S + 3, 2 (S + 3), ..., found steps at {found}: "
            "parts of the flow are missing"
        )
    wanted = {(node, name) for node in found for name in ("global_scale", "global_offset", *_SUBNET)}
    wanted |= {(scale * (steps + 3) + steps + 1, "downsample_kernel") for scale in range(scales - 1)}
    missing = sorted((node, name) for node, name in wanted if name not in nodes.get(node, {}))
    if missing:
        raise ValueError("missing from the flow: " + ", ".join(f"module_list.{node}.{name}" for node, name in missing))
    return steps, scales


def _freia_permutation(w_perm: Tensor, node: int) -> Tensor:
    """`w_perm` as an index p, out = in[p]."""
    p = w_perm.long() if w_perm.ndim == 1 else w_perm.flatten(1).argmax(dim=1)
    is_permutation = torch.equal(p.sort().values, torch.arange(len(p)))
    if w_perm.ndim > 1:  # exact zeros and ones, and nothing but
        is_permutation = is_permutation and torch.equal(w_perm.flatten(1), torch.eye(len(p), dtype=w_perm.dtype)[p])
    if not is_permutation:
        raise ValueError(
            f"module_list.{node}.w_perm of shape {tuple(w_perm.shape)} is not a permutation: "
            "soft and learned permutations are not supported"
        )
    return p
