"""UNet++ and Attention U-Net as their papers configure them: their numbers of parameters, and every difference."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from _paper_configurations import PaperConfiguration

from umamba_cli.pipeline.networks.registry import NetworkPlan

TWO_D = (32, 64, 128, 256, 512)
"""Features of the U-Net and the UNet++ of Zhou et al."""

THREE_D = (16, 32, 64, 128, 256)
"""Features of the U-Net and the Attention U-Net of Oktay et al."""

CLASSES_OF_CT_150 = 4
"""Background, pancreas, liver, spleen."""


def configurations() -> list[PaperConfiguration]:
    """Of both papers the network and the U-Net that it is compared with."""
    of_zhou = "comment in the authors' keras/helper_functions.py (github.com/MrGiovanni/UNetPlusPlus)"
    of_oktay = "table 1 of arXiv 1804.03999"
    return [
        PaperConfiguration(
            name="U-Net of Zhou et al.",
            plan=_plan(TWO_D, (96, 96), outputs=1),
            model="unet",
            paper_parameters=7_759_521,
            paper_multiply_adds=None,
            source=f"{of_zhou}: 7,759,521",
            terms={
                "instance norms, theirs has no norm": 2 * sum(_widths_of_unet(TWO_D)),
                "heads below full resolution": sum(_convolution(width, 1, 1) for width in TWO_D[1:-1]),
            },
        ),
        PaperConfiguration(
            name="UNet++",
            plan=_plan(TWO_D, (96, 96), outputs=1),
            model="unet++",
            paper_parameters=9_041_601,
            paper_multiply_adds=None,
            source=f"{of_zhou}, without deep supervision: 9,041,601; the paper rounds to 9.04M",
            terms={
                "instance norms, theirs has no norm": 2 * sum(_widths_of_unet_plus_plus(TWO_D)),
                "heads on X^{0,1}, X^{0,2} and X^{0,3}": 3 * _convolution(TWO_D[0], 1, 1),
            },
        ),
        PaperConfiguration(
            name="U-Net of Oktay et al.",
            plan=_plan(THREE_D, (96, 160, 160), outputs=CLASSES_OF_CT_150),
            model="unet",
            paper_parameters=_unet_of_oktay(),
            paper_multiply_adds=None,
            source=f"{of_oktay}: 5.88M, as the layers of the authors' code add up to 5,888,004 with 4 classes "
            "(github.com/ozan-oktay/Attention-Gated-Networks, models/networks/unet_CT_dsv_3D.py, feature_scale 4)",
            terms=_terms_of_the_unet_of_oktay(),
        ),
        PaperConfiguration(
            name="Attention U-Net",
            plan=_plan(THREE_D, (96, 160, 160), outputs=CLASSES_OF_CT_150),
            model="attention-unet",
            paper_parameters=_unet_of_oktay() + sum(_gates_of_oktay()),
            paper_multiply_adds=None,
            source=f"{of_oktay}: 6.40M, as the layers of the authors' code (unet_CT_multi_att_dsv_3D.py) add up to "
            "6,407,018 without its convolution of the lowest gating signal; with that one (66,304) it has 6,473,322",
            terms={**_terms_of_the_unet_of_oktay(), **_terms_of_the_gates_of_oktay()},
        ),
    ]


def _plan(features: tuple[int, ...], patch_size: tuple[int, ...], outputs: int) -> NetworkPlan:
    axes, stages = len(patch_size), len(features)
    return NetworkPlan(
        input_channels=1,
        outputs=outputs,
        patch_size=patch_size,
        features_per_stage=features,
        strides=((1,) * axes, *((2,) * axes,) * (stages - 1)),
        kernel_sizes=((3,) * axes,) * stages,
        convolutions_per_stage=(2,) * stages,
        convolutions_per_stage_decoder=(2,) * (stages - 1),
        blocks_per_stage=(1,) * stages,
        blocks_per_stage_decoder=(1,) * (stages - 1),
    )


def _convolution(inputs: int, outputs: int, voxels: int, *, norm: bool = False) -> int:
    """Parameters of a convolution with a bias and, where there is a norm, of its scales and shifts."""
    return (inputs * voxels + 1 + 2 * norm) * outputs


def _widths_of_unet(features: tuple[int, ...]) -> Iterator[int]:
    """Of all convolutions of a U-Net with two to a stage."""
    for width in (*features, *features[:-1]):
        yield from (width, width)


def _widths_of_unet_plus_plus(features: tuple[int, ...]) -> Iterator[int]:
    """Of all convolutions of a UNet++ with two to a node: level i has nodes X^{i,0} to X^{i,L-i}."""
    for level, width in enumerate(features):
        yield from (width, width) * (len(features) - level)


def _between_stages() -> list[tuple[int, int]]:
    """Features of a stage of Oktay et al. and of the one below it."""
    return list(pairwise(THREE_D))


def _gated() -> list[tuple[int, int]]:
    """Features of the skip and of the gating signal where there are gates: not at full resolution."""
    return _between_stages()[1:]


def _unet_of_oktay() -> int:
    """Max pooling, trilinear upsampling; logits of all resolutions are mixed by a last convolution."""
    inputs = (1, *THREE_D[:-1])
    encoder = sum(_two(before, width) for before, width in zip(inputs, THREE_D, strict=True))
    decoder = sum(_two(width + below, width) for width, below in _between_stages())
    return encoder + decoder + sum(_convolution(w, CLASSES_OF_CT_150, 1) for w in THREE_D[:-1]) + _mixing_of_logits()


def _two(inputs: int, width: int) -> int:
    return _convolution(inputs, width, 27, norm=True) + _convolution(width, width, 27, norm=True)


def _mixing_of_logits() -> int:
    return _convolution(4 * CLASSES_OF_CT_150, CLASSES_OF_CT_150, 1)


def _terms_of_the_unet_of_oktay() -> dict[str, int]:
    return {
        "transposed convolutions, theirs upsamples linearly": sum(
            8 * below * width + width for width, below in _between_stages()
        ),
        "the decoder's first convolutions, which get as many channels from below as from the skip": -sum(
            27 * (below - width) * width for width, below in _between_stages()
        ),
        "the logits of all resolutions are not mixed": -_mixing_of_logits(),
    }


def _gates_of_oktay() -> Iterator[int]:
    """Of each gated skip: two gates, each with a convolution and a norm behind it, and what mixes them."""
    for width, gating in _gated():
        behind = _convolution(width, width, 1, norm=True)
        yield 2 * (_gate(width, gating, voxels=8) + behind) + _convolution(2 * width, width, 1, norm=True)


def _gate(width: int, gating: int, voxels: int) -> int:
    """W_x (without a bias) of a kernel with so many voxels; W_g and b_g; psi and b_psi."""
    return voxels * width**2 + _convolution(gating, width, 1) + _convolution(width, 1, 1)


def _terms_of_the_gates_of_oktay() -> dict[str, int]:
    return {
        "W_x is 1x1x1 as in the paper, in the authors' code 2x2x2": -sum(7 * width**2 for width, _ in _gated()),
        "one gate a skip as in equation 1, in the authors' code two": -sum(_gate(*g, voxels=8) for g in _gated()),
        "no convolution and norm behind each gate": -sum(2 * _convolution(w, w, 1, norm=True) for w, _ in _gated()),
        "no mixing of two gates": -sum(_convolution(2 * w, w, 1, norm=True) for w, _ in _gated()),
    }
