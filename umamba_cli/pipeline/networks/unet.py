"""One U-Net for every model: encoder, decoder with skips, and a head at every resolution for deep supervision.

Sources: Ronneberger et al., "U-Net", 2015 (encoder, decoder, skips); Isensee et al., "nnU-Net", 2021 (strided and
transposed convolutions, deep supervision); Ma, Li and Wang, "U-Mamba", arXiv 2401.04722, figure 1 (residual blocks and
Mamba layers in the encoder).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks.architecture import Architecture, Axes, BlockKind, require_multiples
from umamba_cli.pipeline.networks.blocks import (
    TRANSPOSED,
    ConvolutionBlock,
    NearestUpsampling,
    ResidualBlock,
    apply_to,
    initialise,
)
from umamba_cli.pipeline.networks.checkpointing import is_worthwhile, run_part
from umamba_cli.pipeline.networks.heads import begin_with_frequencies, new_heads
from umamba_cli.pipeline.networks.mamba import MambaLayer


class Encoder(nn.Module):
    """Stages of blocks, each but the first entered by a stride, some followed by a Mamba layer."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        features = a.features_per_stage
        self.stem: nn.Module = nn.Identity()
        if a.stem == "convolution":
            self.stem = ConvolutionBlock(a.input_channels, features[0], a.kernel_sizes[0])
        elif a.stem == "blocks":
            self.stem = _stage(a, a.block, a.blocks_per_stage[0], a.input_channels, features[0], a.kernel_sizes[0])
        inputs = (a.input_channels if a.stem == "none" else features[0], *features)
        unbounded = (False, *unbounded_maps(a)[0])
        self.stages = nn.ModuleList(
            _stage(a, a.block, blocks, inputs[i], features[i], a.kernel_sizes[i], a.strides[i], unbounded=unbounded[i])
            for i, blocks in enumerate(a.blocks_per_stage)
        )
        self.mamba_layers = nn.ModuleList(_mamba_layer(a, i) for i in range(len(features)))

    def forward(self, x: Tensor, *, checkpointing: bool = False) -> list[Tensor]:
        """(B, channels, ...) to the feature maps of all stages, full resolution first."""
        x = run_part(self.stem, x, checkpointing=checkpointing)
        maps = []
        for stage, mamba in zip(self.stages, self.mamba_layers, strict=True):
            x = run_part(stage, x, checkpointing=checkpointing)
            x = run_part(mamba, x, checkpointing=checkpointing)  # apart: it keeps as much as the stage
            maps.append(x)
        return maps


class DecoderStage(nn.Module):
    """Upsample, put the skip beside it, apply blocks."""

    def __init__(self, a: Architecture, index: int) -> None:
        super().__init__()
        of_encoder, of_decoder = unbounded_maps(a)
        self._unbounded_below = (*of_decoder, of_encoder[-1])[index + 1]
        self.unbounded = of_decoder[index]
        below, width = a.features_per_stage[index + 1], a.features_per_stage[index]
        stride = a.strides[index + 1]
        self.upsample = (
            NearestUpsampling(below, width, stride)
            if a.upsampling == "nearest"
            else TRANSPOSED[a.dimensions](below, width, stride, stride)  # type: ignore[arg-type]
        )
        self.skips = index > 0 or a.full_resolution_skip
        inputs = 2 * width if self.skips else width
        unbounded = self._unbounded_below or (self.skips and of_encoder[index])
        block, blocks = a.block_decoder or a.block, a.blocks_per_stage_decoder[index]
        self.blocks = _stage(a, block, blocks, inputs, width, a.kernel_sizes[index], unbounded=unbounded)

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        """The map from below and the encoder's at this resolution to the decoder's at this resolution."""
        x = apply_to(below, self.upsample, unbounded=self._unbounded_below)
        # Of two types autocast takes the wider one, and what is not bounded is in float32.
        y: Tensor = self.blocks(torch.cat((x, skip), dim=1) if self.skips else x)
        return y


class UNet(nn.Module):
    """A U-Net built from an `Architecture`.

    Where the classes' frequencies are given, the heads begin by predicting them, see `heads`.

    In training mode it returns the logits of every decoder resolution, full resolution first; in evaluation mode those
    of the full resolution alone.
    """

    checkpointing: bool = False
    """In training, keep the maps between stages and Mamba layers alone, and compute those inside them anew for the
    gradients: the same results, less memory, more time."""

    decoder_stage: type[DecoderStage] = DecoderStage
    """What the decoder is made of, for networks that differ in it alone."""

    def __init__(self, architecture: Architecture, class_frequencies: Sequence[float] = ()) -> None:
        super().__init__()
        self.architecture = architecture
        self.encoder = Encoder(architecture)
        stages = range(len(architecture.features_per_stage) - 1)
        self.decoder = nn.ModuleList(self.decoder_stage(architecture, i) for i in stages)
        self.heads = new_heads(architecture.features_per_stage[:-1], architecture.outputs, architecture.dimensions)
        self.apply(initialise)
        if architecture.shortcut == "pooling":  # as nnU-Net's residual encoder
            self.apply(_begin_as_shortcut)
        begin_with_frequencies(self.heads, class_frequencies)

    def forward(self, x: Tensor) -> list[Tensor] | Tensor:
        """(B, channels, ...) to logits (B, outputs, ...), see the class.

        Raises:
            InputError: the size of `x` is not a multiple of the network's strides.
        """
        require_fitting_size(x.shape[2:], self.architecture)
        checkpointing = is_worthwhile(self)
        *skips, x = self.encoder(x, checkpointing=checkpointing)
        logits: list[Tensor] = []
        for index in reversed(range(len(self.decoder))):
            stage, head = self.decoder[index], self.heads[index]
            assert isinstance(stage, DecoderStage)
            x = run_part(stage, x, skips[index], checkpointing=checkpointing)
            if self.training or index == 0:
                logits.append(apply_to(x, head, unbounded=stage.unbounded))
        return logits[::-1] if self.training else logits[-1]


def require_fitting_size(size: Axes, architecture: Architecture) -> None:
    """Make sure that an input of this size can be halved as often as the architecture wants.

    Raises:
        InputError: it cannot; the problem names the nearest size that can. Or the weights fit another size alone.
    """
    require_multiples(size, architecture.divisor)
    if architecture.channel_token_voxels and tuple(size) != architecture.channel_tokens_for:
        raise InputError(
            f"a patch of {tuple(size)} does not fit the network, whose weights are bound to one patch size: "
            "at its lowest resolutions Mamba takes the channels as tokens",
            next_step=f"use {architecture.channel_tokens_for}",
        )


def _stage(
    a: Architecture,
    block: BlockKind,
    blocks: int,
    inputs: int,
    outputs: int,
    kernel_size: Axes,
    stride: Axes | None = None,
    *,
    unbounded: bool = False,
) -> nn.Sequential:
    # nnU-Net's plain stages count convolutions, residual stages count blocks of two.
    more = range(blocks - 1)
    if block == "plain":
        first = ConvolutionBlock(inputs, outputs, kernel_size, stride, unbounded=unbounded)
        return nn.Sequential(first, *(ConvolutionBlock(outputs, outputs, kernel_size) for _ in more))
    entry = ResidualBlock(
        inputs, outputs, kernel_size, stride, shortcut=a.shortcut, starts_stage=True, unbounded=unbounded
    )
    unbounded = unbounded and _passes_on(a, block, inputs, outputs)
    return nn.Sequential(entry, *(ResidualBlock(outputs, outputs, kernel_size, unbounded=unbounded) for _ in more))


def unbounded_maps(a: Architecture) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Whether the map that a stage gives out can grow without bound: of the encoder's and the decoder's stages.

    A Mamba layer's can, and so can all that is made of it up to the next norm, along the shortcuts: see `blocks`.
    """
    of_encoder: list[bool] = []
    of_decoder: list[bool] = []
    features, unbounded = a.features_per_stage, False
    for i, width in enumerate(features):
        unbounded = i in a.mamba_stages or (unbounded and _passes_on(a, a.block, features[i - 1], width))
        of_encoder.append(unbounded)
    for i in reversed(range(len(features) - 1)):
        skips = i > 0 or a.full_resolution_skip
        unbounded = unbounded or (skips and of_encoder[i])
        width = features[i]
        unbounded = unbounded and _passes_on(a, a.block_decoder or a.block, (1 + skips) * width, width)
        of_decoder.insert(0, unbounded)
    return tuple(of_encoder), tuple(of_decoder)


def _passes_on(a: Architecture, block: BlockKind, inputs: int, outputs: int) -> bool:
    """Whether a stage's input reaches its output along shortcuts without a norm."""
    return block == "residual" and not (a.shortcut == "pooling" and inputs != outputs)


def _mamba_layer(a: Architecture, stage: int) -> nn.Module:
    if stage not in a.mamba_stages:
        return nn.Identity()
    if stage in a.channel_token_voxels:
        return MambaLayer(a.channel_token_voxels[stage], channels_are_tokens=True)
    width = a.features_per_stage[stage]
    return MambaLayer(width, a.dimensions, mixer=a.mixer, scan_directions=a.scan_directions)


def _begin_as_shortcut(module: nn.Module) -> None:
    if isinstance(module, ResidualBlock):
        for scale_or_shift in module.second.norm.parameters():
            nn.init.zeros_(scale_or_shift)


def count_parameters(network: nn.Module) -> int:
    """Trainable numbers."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
