"""What a network is made of, as one frozen value: what plans decide, and what sets the models apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, get_args

from umamba_cli.pipeline.errors import InputError

Axes = tuple[int, ...]
BlockKind = Literal["plain", "residual"]
ShortcutKind = Literal["convolution", "convolution_each_stage", "pooling"]
Mixer = Literal["mamba", "s4d", "mamba2"]
ScanDirections = Literal["forward", "both", "axes"]


_MOST = {
    "input_channels": 10_000,
    "outputs": 100_000,
    "features_per_stage": 100_000,
    "strides": 64,
    "kernel_sizes": 99,
    "blocks_per_stage": 100,
    "blocks_per_stage_decoder": 100,
}
"""Beyond all that anybody trains."""

_MOST_STAGES = 32


@dataclass(frozen=True)
class Architecture:
    """A U-Net in two or three dimensions.

    Contradictions are refused when it is built.
    """

    input_channels: int
    """Channels of the image."""

    outputs: int
    """Channels of the result: one a class."""

    features_per_stage: tuple[int, ...]
    """Feature maps of each stage, full resolution first."""

    strides: tuple[Axes, ...]
    """Downsampling at the entry of each stage, by axis; ones for the first."""

    kernel_sizes: tuple[Axes, ...]
    """Kernel size of each stage, by axis."""

    blocks_per_stage: tuple[int, ...]
    """Blocks in each stage of the encoder."""

    blocks_per_stage_decoder: tuple[int, ...]
    """Blocks in each stage of the decoder, lowest resolution last: entry i works at the resolution of stage i."""

    block: BlockKind = "plain"
    """Of the encoder: plain convolutions as in nnU-Net's U-Net, or residual blocks of two as in U-Mamba."""

    block_decoder: BlockKind | None = None
    """Of the decoder; None: as in the encoder. nnU-Net's residual encoder has a plain decoder."""

    shortcut: ShortcutKind = "convolution"
    """What the input of a residual block goes through before it is added, where the block changes size or width:
    `convolution`, a 1x1 convolution with the block's stride; `convolution_each_stage`, the same, and in the first block
    of every stage even where nothing changes (the released U-Mamba); `pooling`, the average over the stride, then a 1x1
    convolution and a norm where the width changes (nnU-Net's residual encoder)."""

    stem: Literal["none", "convolution", "blocks"] = "none"
    """Before the first stage, at full resolution: nothing, one convolution with norm and activation as in nnU-Net's
    residual encoder, or as many blocks as the first stage has, as in U-Mamba."""

    upsampling: Literal["transposed", "nearest"] = "transposed"
    """Of the decoder: a transposed convolution, or nearest neighbour and a 1x1 convolution (the released U-Mamba)."""

    full_resolution_skip: bool = True
    """Whether the last stage of the decoder sees the encoder's map beside its own (the released U-Mamba: not in 2D)."""

    mamba: Literal["none", "bottleneck", "encoder"] = "none"
    """Where Mamba layers stand: nowhere, after the last stage, or after the stages of the encoder."""

    mamba_every: int = 1
    """With Mamba in the encoder: 1, at every stage; 2, at every second one, counted back from the last (the released
    U-Mamba in 2D)."""

    channel_tokens_for: Axes | None = None
    """A patch size: Mamba layers at stages that have no more voxels than channels then take the channels as their
    tokens, each as long as the stage has voxels, and the weights fit this patch size alone (the released U-Mamba_Enc).
    None: tokens are voxels at every stage, and any size will do."""

    mixer: Mixer = "mamba"
    """What mixes the tokens in a Mamba layer: `mamba`, the selective state space model of U-Mamba; `s4d`, a
    time-invariant one, computed as a convolution; `mamba2`, the selective one whose state decays at one rate a head."""

    scan_directions: ScanDirections = "forward"
    """The order in which a Mamba layer reads the voxels: `forward`, row by row, as U-Mamba has it; `both`, that and its
    reverse (Vision Mamba); `axes`, along each axis both ways (VMamba, SegMamba)."""

    def __post_init__(self) -> None:
        stages = len(self.features_per_stage)
        if stages < 2:
            raise _contradiction(f"a U-Net needs at least 2 stages, the plan has {stages}")
        if stages > _MOST_STAGES:
            raise _contradiction(f"a U-Net has {_MOST_STAGES} stages at most, the plan has {stages}")
        for name, expected in (
            ("strides", stages),
            ("kernel_sizes", stages),
            ("blocks_per_stage", stages),
            ("blocks_per_stage_decoder", stages - 1),
        ):
            if len(getattr(self, name)) != expected:
                raise _contradiction(f"{name} has {len(getattr(self, name))} entries, {expected} are needed")
        if any(len(axes) != self.dimensions for axes in (*self.strides, *self.kernel_sizes)):
            raise _contradiction(f"strides and kernel_sizes differ in their number of axes: {self.strides}")
        if self.dimensions not in (2, 3):
            raise _contradiction(f"networks have 2 or 3 dimensions, the plan has {self.dimensions}")
        self._check_sizes()
        if any(k % 2 == 0 for axes in self.kernel_sizes for k in axes):
            raise _contradiction(f"kernel sizes must be odd, they are {self.kernel_sizes}")
        if self.mamba_every < 1:
            raise _contradiction(f"mamba_every must be 1 or more, it is {self.mamba_every}")
        for name, choices in (("mixer", get_args(Mixer)), ("scan_directions", get_args(ScanDirections))):
            if getattr(self, name) not in choices:
                raise _contradiction(f"{name} is {getattr(self, name)!r}, possible are {', '.join(choices)}")
        self._check_channel_tokens()

    def _check_sizes(self) -> None:
        """All sizes are positive, and small enough that a file of someone else's cannot fill the memory."""
        for name, most in _MOST.items():
            sizes = getattr(self, name)
            for size in [sizes] if isinstance(sizes, int) else [n for entry in sizes for n in _as_tuple(entry)]:
                if not 1 <= size <= most:
                    raise _contradiction(f"{name} holds {size}, from 1 to {most} is possible")

    def _check_channel_tokens(self) -> None:
        patch = self.channel_tokens_for
        if patch is None:
            return
        if len(patch) != self.dimensions or any(n < d or n % d for n, d in zip(patch, self.divisor, strict=True)):
            raise _contradiction(f"channel_tokens_for is {patch}, it must be a multiple of {self.divisor}")
        if (self.mixer, self.scan_directions) != ("mamba", "forward"):
            raise _contradiction(
                f"with channel_tokens_for only the mixer mamba and the direction forward are possible, asked for are "
                f"{self.mixer} and {self.scan_directions}"
            )

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return len(self.strides[0])

    @property
    def divisor(self) -> Axes:
        """What the size of an input must be a multiple of, by axis."""
        return divisor_of(self.strides)

    @property
    def mamba_stages(self) -> tuple[int, ...]:
        """Stages of the encoder that a Mamba layer follows."""
        last = len(self.features_per_stage) - 1
        if self.mamba == "none":
            return ()
        if self.mamba == "bottleneck":
            return (last,)
        return tuple(range(last, -1, -self.mamba_every))[::-1]

    @property
    def is_plain(self) -> bool:
        """Whether it is nnU-Net's plain U-Net: nothing differs from its default."""
        return all(field.default in (MISSING, getattr(self, field.name)) for field in fields(self))

    @property
    def channel_token_voxels(self) -> dict[int, int]:
        """Voxels of the stages at which the Mamba layer takes the channels as its tokens."""
        if self.channel_tokens_for is None:
            return {}
        return {
            stage: voxels
            for stage in self.mamba_stages
            if (voxels := self._voxels(stage, self.channel_tokens_for)) <= self.features_per_stage[stage]
        }

    def _voxels(self, stage: int, patch_size: Axes) -> int:
        return math.prod(patch_size) // math.prod(step for strides in self.strides[: stage + 1] for step in strides)

    def to_json(self) -> dict[str, Any]:
        """A dictionary for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Architecture:
        """The architecture that `to_json` wrote."""
        return cls(**{name: _tuples(value) for name, value in content.items()})


@dataclass(frozen=True)
class ModelVariant:
    """A model with the choice of its state space layers, written `umamba-bot+s4d-both`."""

    model: str
    """Registered name."""

    mixer: Mixer = "mamba"
    scan_directions: ScanDirections = "forward"

    @property
    def tag(self) -> str:
        """What is not as published: `s4d`, `both`, `s4d-both`; "" where all is."""
        mixer = self.mixer if self.mixer != "mamba" else ""
        directions = self.scan_directions if self.scan_directions != "forward" else ""
        return "-".join(part for part in (mixer, directions) if part)

    @property
    def title(self) -> str:
        """`umamba-bot`, `umamba-bot+s4d`."""
        return f"{self.model}+{self.tag}" if self.tag else self.model

    def named(self, configuration: str, tag: str) -> str:
        """What to call a training of it: `umamba-bot+s4d 3d_fullres seed-1`.

        Args:
            configuration: of the plans; "" where it need not be said.
            tag: the training's; what it repeats of the variant's own is left out.
        """
        more = "" if tag == self.tag else tag.removeprefix(f"{self.tag}-") if self.tag else tag
        return " ".join(part for part in (self.title, configuration, more) if part)


def divisor_of(strides: Sequence[Axes]) -> Axes:
    """What the size of an input must be a multiple of, by axis, to be made smaller by the strides of all stages."""
    return tuple(math.prod(along) for along in zip(*strides, strict=True))


def require_multiples(size: Axes, divisor: Axes) -> None:
    """Make sure that an input of this size can be made smaller as often as a network wants.

    Raises:
        InputError: it cannot; the problem names the nearest size that can.
    """
    if any(n % d or n < d for n, d in zip(size, divisor, strict=True)):
        raise InputError(
            f"a patch of {tuple(size)} does not fit the network, which needs multiples of {divisor}",
            next_step=f"use {next_multiples(size, divisor)}, the next size that fits",
        )


def next_multiples(size: Axes, divisor: Axes) -> Axes:
    """The smallest size that is not below `size` and a multiple of the divisor along each axis."""
    return tuple(max(-(-n // d), 1) * d for n, d in zip(size, divisor, strict=True))


def require_plain(architecture: Architecture, model: str) -> None:
    """Make sure that nothing is asked of a model made of plain convolutions that it would leave out.

    Raises:
        InputError: residual blocks, Mamba layers or the like are asked for.
    """
    if not architecture.is_plain:
        raise _contradiction(f"{model} is made of plain convolutions, the architecture asks for more: {architecture}")


def _as_tuple(value: int | Axes) -> Axes:
    return (value,) if isinstance(value, int) else value


def _contradiction(problem: str) -> InputError:
    return InputError(problem, next_step="correct the architecture in plans.json, or plan again")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
