"""Pretrained weights that are published for the known backbones: licence, size, where they are. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PUBLISHED", "PublishedNet", "describe_licence"]


@dataclass(frozen=True)
class PublishedNet:
    """A net of timm with published weights.

    Attributes:
        arch: timm's name.
        megabytes: size of its file, millions of bytes.
        extra: the extra of this package that brings the weights, where they are a package; None: they are on the hub.
        licence: of the weights, as those who publish them say (SPDX).
    """

    arch: str
    megabytes: int
    extra: str | None = None
    licence: str = "Apache-2.0"


# Backbone -> its nets, in the order of `--weights`.
PUBLISHED = {
    "efficientnet_lite0": (PublishedNet("tf_efficientnet_lite0", 19, "train"),),
    "efficientnet_lite1": (PublishedNet("tf_efficientnet_lite1", 22, "lite1"),),
    "efficientnet_lite2": (PublishedNet("tf_efficientnet_lite2", 25, "lite2"),),
    "mcait": (PublishedNet("cait_m48_448", 1426), PublishedNet("cait_s24_224", 188)),
    "resnet18": (PublishedNet("resnet18", 47),),
    "wide_resnet50_2": (PublishedNet("wide_resnet50_2", 276),),
}


def describe_licence(backbone: str, source: str | None) -> str:
    """The licence of a backbone's weights, in words; "not known" where they may be others than the published ones.

    Args:
        backbone: its name.
        source: where the weights came from, as `Backbone.weights_source` says it; None where that is not known.

    >>> describe_licence("resnet18", "hub timm/resnet18.a1_in1k/model.safetensors")
    'Apache-2.0'
    >>> describe_licence("resnet18", "file mine.pth")
    'not known (file mine.pth); of the published ones: Apache-2.0'
    """
    licences = " and ".join(sorted({net.licence for net in PUBLISHED.get(backbone, ())}))
    if not licences:
        return "not known"
    if source is not None and all(part.startswith(("package ", "hub ", "torch.hub ")) for part in source.split(" + ")):
        return licences
    return f"not known ({source or 'source not recorded'}); of the published ones: {licences}"
