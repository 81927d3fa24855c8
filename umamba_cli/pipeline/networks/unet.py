"""One U-Net for every model: encoder, decoder with skips, and a head at every resolution for deep supervision.

Sources: Ronneberger et al., "U-Net", 2015 (encoder, decoder, skips); Isensee et al., "nnU-Net", 2021 (strided and
transposed convolutions, deep supervision); Ma, Li and Wang, "U-Mamba", arXiv 2401.04722, figure 1 (residual blocks and
Mamba layers in the encoder).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks.architecture import Architecture, Axes, BlockKind
from umamba_cli.pipeline.networks.blocks import (
    NEGATIVE_SLOPE,
    TRANSPOSED,
    ConvolutionBlock,
    NearestUpsampling,
    ResidualBlock,
    apply_to,
    convolution,
)
from umamba_cli.pipeline.networks.mamba import MambaLayer

RAREST = 1e-4
"""A class rarer than this is taken to be this frequent at the start."""


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
        x = _run(self.stem, x, checkpointing=checkpointing)
        maps = []
        for stage, mamba in zip(self.stages, self.mamba_layers, strict=True):
            x = _run(stage, x, checkpointing=checkpointing)
            x = _run(mamba, x, checkpointing=checkpointing)  # apart: it keeps as much as the stage
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

    Where the classes' frequencies are given, the heads begin by predicting them. Otherwise the first steps teach the
    network that nearly all is background, with a momentum that carries it far beyond, and on small datasets it takes
    hundreds of steps to come back. Source: Lin et al., "Focal Loss for Dense Object Detection", 2017, section 3.3.

    In training mode it returns the logits of every decoder resolution, full resolution first; in evaluation mode those
    of the full resolution alone.
    """

    checkpointing: bool = False
    """In training, keep the maps between stages and Mamba layers alone, and compute those inside them anew for the
    gradients: the same results, less memory, more time.
    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174."""

    def __init__(self, architecture: Architecture, class_frequencies: Sequence[float] = ()) -> None:
        super().__init__()
        self.architecture = architecture
        self.encoder = Encoder(architecture)
        stages = range(len(architecture.features_per_stage) - 1)
        self.decoder = nn.ModuleList(DecoderStage(architecture, i) for i in stages)
        ones = (1,) * architecture.dimensions
        self.heads = nn.ModuleList(
            convolution(architecture.features_per_stage[i], architecture.outputs, ones) for i in stages
        )
        self.apply(_initialise)
        if architecture.shortcut == "pooling":  # as nnU-Net's residual encoder
            self.apply(_begin_as_shortcut)
        if class_frequencies:
            self._begin_with(class_frequencies)

    @torch.no_grad()
    def _begin_with(self, class_frequencies: Sequence[float]) -> None:
        # A softmax of the logarithms of shares gives the shares; so does a sigmoid of a region's logarithm of the odds.
        prior = torch.tensor(class_frequencies).clamp_min(RAREST).log()
        for head in self.heads:
            assert isinstance(head, nn.Conv2d | nn.Conv3d)
            assert head.bias is not None
            nn.init.normal_(head.weight, std=0.01)
            head.bias.copy_(prior)

    def forward(self, x: Tensor) -> list[Tensor] | Tensor:
        """(B, channels, ...) to logits (B, outputs, ...), see the class.

        Raises:
            InputError: the size of `x` is not a multiple of the network's strides.
        """
        require_fitting_size(x.shape[2:], self.architecture)
        checkpointing = self.checkpointing and self.training and torch.is_grad_enabled()
        *skips, x = self.encoder(x, checkpointing=checkpointing)
        logits: list[Tensor] = []
        for index in reversed(range(len(self.decoder))):
            stage, head = self.decoder[index], self.heads[index]
            assert isinstance(stage, DecoderStage)
            x = _run(stage, x, skips[index], checkpointing=checkpointing)
            if self.training or index == 0:
                logits.append(apply_to(x, head, unbounded=stage.unbounded))
        return logits[::-1] if self.training else logits[-1]


def require_fitting_size(size: Axes, architecture: Architecture) -> None:
    """Make sure that an input of this size can be halved as often as the architecture wants.

    Raises:
        InputError: it cannot; the problem names the nearest size that can. Or the weights fit another size alone.
    """
    if any(n % d or n < d for n, d in zip(size, architecture.divisor, strict=True)):
        fitting = tuple(max(-(-n // d), 1) * d for n, d in zip(size, architecture.divisor, strict=True))
        raise InputError(
            f"a patch of {tuple(size)} does not fit the network, which needs multiples of {architecture.divisor}",
            next_step=f"use {fitting}, the next size that fits",
        )
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


def _run(part: nn.Module, *maps: Tensor, checkpointing: bool) -> Tensor:
    """Apply a part of the network; with checkpointing keep its inputs alone for the backward pass."""
    if not checkpointing or isinstance(part, nn.Identity):
        y: Tensor = part(*maps)
        return y
    again: Tensor = checkpoint(part, *maps, use_reentrant=False, preserve_rng_state=False)  # nothing is random
    return again


def _mamba_layer(a: Architecture, stage: int) -> nn.Module:
    if stage not in a.mamba_stages:
        return nn.Identity()
    if stage in a.channel_token_voxels:
        return MambaLayer(a.channel_token_voxels[stage], channels_are_tokens=True)
    return MambaLayer(a.features_per_stage[stage])


def _initialise(module: nn.Module) -> None:
    # He et al. 2015, for leaky ReLU, as nnU-Net does. Mamba's own projections keep their initialisation.
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _begin_as_shortcut(module: nn.Module) -> None:
    if isinstance(module, ResidualBlock):
        for scale_or_shift in module.second.norm.parameters():
            nn.init.zeros_(scale_or_shift)


def count_parameters(network: nn.Module) -> int:
    """Trainable numbers."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
