"""Networks and weights of others: U-Mamba as it was released, and nnU-Net's two U-Nets.

The released U-Mamba differs from its paper (arXiv 2401.04722) in what `released_umamba` sets. Their decoders count
stages from the lowest resolution up, ours by resolution. Their checkpoints hold many tensors under several names: the
encoder again inside the decoder, and the layers of a convolution block again in a list of all its modules.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks.architecture import Architecture
from umamba_cli.pipeline.networks.unet import UNet

MOST_NAMES = 10
"""An error names so many parameters of each sort, and counts the others."""

_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod)\.)+")
"""What DistributedDataParallel and torch.compile put before every name."""


def released_umamba(
    variant: Literal["bot", "enc"],
    *,
    patch_size: Sequence[int],
    features_per_stage: Sequence[int],
    kernel_sizes: Sequence[Sequence[int]],
    strides: Sequence[Sequence[int]],
    input_channels: int,
    outputs: int,
    n_conv_per_stage: Sequence[int],
    n_conv_per_stage_decoder: Sequence[int],
) -> Architecture:
    """U-Mamba_Bot or U-Mamba_Enc as the released code builds it from nnU-Net's plans, in 2D or 3D.

    Whatever the plans say, of n stages it gives one block to those of the encoder from index ceil(n / 2) on, and to
    those of the decoder from index ceil((n - 1) / 2 + 0.5) on: in either, to the later ones in order of computation.

    Args:
        variant: where Mamba stands, in the bottleneck or in the encoder.
        patch_size: of the plans' configuration; the weights of U-Mamba_Enc can be bound to it.
        features_per_stage: feature maps, full resolution first.
        kernel_sizes: of each stage, by axis.
        strides: at the entry of each stage, by axis.
        input_channels: channels of the image.
        outputs: classes.
        n_conv_per_stage: blocks of each stage of the encoder.
        n_conv_per_stage_decoder: blocks of each stage of the decoder in nnU-Net's order, lowest resolution first.

    Raises:
        InputError: they contradict each other.
    """
    stages, is_2d = len(features_per_stage), len(strides[0]) == 2
    encoder = _one_block_from(math.ceil(stages / 2), n_conv_per_stage)
    decoder = _one_block_from(math.ceil((stages - 1) / 2 + 0.5), n_conv_per_stage_decoder)
    return Architecture(
        input_channels=input_channels,
        outputs=outputs,
        features_per_stage=tuple(features_per_stage),
        strides=tuple(tuple(axes) for axes in strides),
        kernel_sizes=tuple(tuple(axes) for axes in kernel_sizes),
        blocks_per_stage=encoder,
        blocks_per_stage_decoder=decoder[::-1],
        block="residual",
        shortcut="convolution_each_stage",
        stem="blocks",
        upsampling="nearest",
        full_resolution_skip=not is_2d,
        mamba="encoder" if variant == "enc" else "bottleneck",
        mamba_every=2 if is_2d and variant == "enc" else 1,
        channel_tokens_for=tuple(patch_size) if variant == "enc" else None,
    )


def umamba_weights(weights: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """The weights of a released U-Mamba under the names of our `UNet`, each tensor once.

    Args:
        weights: its `network_weights`, also with what DistributedDataParallel or torch.compile put before the names.
        architecture: of that network, see `released_umamba`.

    Raises:
        InputError: a parameter is missing, not known or of another shape, or two copies of one differ.
    """
    return _renamed(weights, architecture, _umamba_name)


def nnunet_weights(weights: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """The weights of nnU-Net's PlainConvUNet or ResidualEncoderUNet under the names of our `UNet`, each tensor once.

    Args:
        weights: its `network_weights`, also with what DistributedDataParallel or torch.compile put before the names.
        architecture: that of our `unet` or `resenc` for the same plans.

    Raises:
        InputError: a parameter is missing, not known or of another shape, or two copies of one differ.
    """
    return _renamed(weights, architecture, _nnunet_name)


def _one_block_from(index: int, blocks: Sequence[int]) -> tuple[int, ...]:
    return tuple(1 if i >= index else number for i, number in enumerate(blocks))


def _renamed(
    weights: Mapping[str, Tensor], architecture: Architecture, their_name: Callable[[str, Architecture], str]
) -> dict[str, Tensor]:
    with torch.device("meta"):  # names and shapes alone
        expected = UNet(architecture).state_dict()
    found = _each_once(weights)
    theirs = {ours: their_name(ours, architecture) for ours in expected}
    missing = [name for name in theirs.values() if name not in found]
    unknown = sorted(found.keys() - set(theirs.values()))
    reshaped = [
        f"{name}: {_shape(found[name])} instead of {_shape(expected[ours])}"
        for ours, name in theirs.items()
        if name in found and found[name].shape != expected[ours].shape
    ]
    wrong = {"missing": missing, "not known": unknown, "of another shape": reshaped}
    if any(wrong.values()):
        counts = ", ".join(f"{len(names)} {sort}" for sort, names in wrong.items() if names)
        raise InputError(
            f"the weights are not those of this network: of {len(theirs)} parameters {counts}",
            details=[line for sort, names in wrong.items() for line in _in_short(sort, names)],
            next_step="give the checkpoint and the plans of one and the same training",
        )
    return {ours: found[name] for ours, name in theirs.items()}


def _in_short(sort: str, names: Sequence[str]) -> list[str]:
    lines = [f"{sort}: {name}" for name in names[:MOST_NAMES]]
    return [*lines, f"{sort}: {len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else lines


def _shape(tensor: Tensor) -> str:
    return "x".join(str(n) for n in tensor.shape) or "a number"


def _each_once(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by one name each; copies are dropped.

    Raises:
        InputError: two copies differ, so that it is open which one counts.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        first = found.setdefault(_one_name(name), tensor)
        if first is not tensor and not _equal(first, tensor):
            raise InputError(
                f"the weights hold {_one_name(name)} more than once, and {name} differs from the others",
                next_step="give the checkpoint as it was saved",
            )
    return found


def _one_name(name: str) -> str:
    name = _WRAPPERS.sub("", name)
    name = re.sub(r"^decoder\.encoder\.", "encoder.", name)
    return re.sub(r"\.all_modules\.(\d+)\.", lambda found: ".conv." if found[1] == "0" else ".norm.", name)


def _equal(a: Tensor, b: Tensor) -> bool:
    same_kind = a.shape == b.shape and a.dtype == b.dtype
    return same_kind and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)  # a training may have ended in NaN


def _umamba_name(name: str, a: Architecture) -> str:
    """The released name of a parameter of ours."""
    lowest = len(a.features_per_stage) - 2
    match name.split("."):
        case ["encoder", "mamba_layers", _, *rest] if a.mamba == "bottleneck":
            return ".".join(("mamba_layer", *rest))
        case ["heads", stage, parameter]:
            return f"decoder.seg_layers.{lowest - int(stage)}.{parameter}"
        case ["decoder", stage, "upsample", "conv", parameter]:
            return f"decoder.upsample_layers.{lowest - int(stage)}.conv.{parameter}"
        case ["decoder", stage, "blocks", block, part, layer, parameter]:
            return f"decoder.stages.{lowest - int(stage)}.{_umamba_block(block, part, layer, parameter)}"
        case ["encoder", "stem", block, part, layer, parameter]:
            return f"encoder.stem.{_umamba_block(block, part, layer, parameter)}"
        case ["encoder", "stages", stage, block, part, layer, parameter]:
            return f"encoder.stages.{stage}.{_umamba_block(block, part, layer, parameter)}"
    return name


def _umamba_block(block: str, part: str, layer: str, parameter: str) -> str:
    # The first block of a stage is of another class than the others.
    number = {"first": 1, "second": 2, "shortcut": 3}[part]
    return f"{block}.{layer}{number}.{parameter}" if block == "0" else f"{block}.conv{number}.{layer}.{parameter}"


def _nnunet_name(name: str, a: Architecture) -> str:
    """nnU-Net's name of a parameter of ours."""
    lowest = len(a.features_per_stage) - 2
    match name.split("."):
        case ["heads", stage, parameter]:
            return f"decoder.seg_layers.{lowest - int(stage)}.{parameter}"
        case ["decoder", stage, "upsample", parameter]:
            return f"decoder.transpconvs.{lowest - int(stage)}.{parameter}"
        case ["decoder", stage, "blocks", block, layer, parameter]:
            return f"decoder.stages.{lowest - int(stage)}.convs.{block}.{layer}.{parameter}"
        case ["encoder", "stem", layer, parameter]:
            return f"encoder.stem.convs.0.{layer}.{parameter}"
        case ["encoder", "stages", stage, block, layer, parameter]:
            return f"encoder.stages.{stage}.0.convs.{block}.{layer}.{parameter}"
        case ["encoder", "stages", stage, block, part, layer, parameter]:
            # Their shortcut is a list, in which pooling comes first where there is a stride.
            skip = f"skip.{int(max(a.strides[int(stage)]) > 1)}"
            theirs = {"first": "conv1", "second": "conv2", "shortcut": skip}[part]
            return f"encoder.stages.{stage}.blocks.{block}.{theirs}.{layer}.{parameter}"
    return name
