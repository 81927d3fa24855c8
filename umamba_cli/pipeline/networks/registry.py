"""Models by name, to which other packages can add.

A package adds a model with an entry point in the group `umamba.models`::

    [project.entry-points."umamba.models"]
    my-model = "my_package:build_my_model"

where `build_my_model(plan: NetworkPlan) -> torch.nn.Module`; or, within a process, with `register_model`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any, Literal

from torch import nn

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks import monai_networks
from umamba_cli.pipeline.networks.architecture import (
    Architecture,
    Axes,
    Mixer,
    ModelVariant,
    ScanDirections,
    divisor_of,
)
from umamba_cli.pipeline.networks.attention_unet import AttentionUNet
from umamba_cli.pipeline.networks.unet import UNet
from umamba_cli.pipeline.networks.unet_plus_plus import UNetPlusPlus
from umamba_cli.pipeline.networks.unetr_plus_plus import UNETRPlusPlus

ENTRY_POINTS = "umamba.models"


@dataclass(frozen=True)
class NetworkPlan:
    """What plans and dataset decide about any network, whatever the model."""

    input_channels: int
    outputs: int
    patch_size: Axes
    features_per_stage: tuple[int, ...]
    strides: tuple[Axes, ...]
    kernel_sizes: tuple[Axes, ...]

    convolutions_per_stage: tuple[int, ...]
    """Of a plain network's encoder."""

    convolutions_per_stage_decoder: tuple[int, ...]
    """Of a plain network's decoder, by resolution, full resolution first."""

    blocks_per_stage: tuple[int, ...]
    """Residual blocks, of two convolutions each, of a residual network's encoder."""

    blocks_per_stage_decoder: tuple[int, ...]
    """Residual blocks of a residual network's decoder, by resolution, full resolution first."""

    class_frequencies: tuple[float, ...] = ()
    """Share of each class among the voxels of the training cases, for the heads' first guess; empty: unknown. Where the
    outputs are regions, which overlap, the odds of each (voxels in it to those that are not): the logarithm is what
    an output begins with in both cases."""

    mixer: Mixer = "mamba"
    """What mixes the tokens in the Mamba layers of a model that has some; see `Architecture`."""

    scan_directions: ScanDirections = "forward"
    """The order in which they read the voxels; see `Architecture`."""

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return len(self.patch_size)

    @property
    def divisor(self) -> Axes:
        """What a patch must be a multiple of, by axis, to be made smaller by the strides of all stages."""
        return divisor_of(self.strides)


Builder = Callable[[NetworkPlan], nn.Module]


@dataclass(frozen=True)
class Model:
    """A network family."""

    name: str
    builder: Builder
    """Makes the network, freshly initialised. In training mode it returns a list of logits, full resolution first."""

    description: str
    """One line with the paper."""

    extra: str = ""
    """The extra of umamba that must be installed; "" where there is none."""

    has_mixer: bool = False
    """Whether it has layers for which `NetworkPlan.mixer` and `scan_directions` can be chosen."""

    @property
    def missing(self) -> str:
        """What has to be installed before it can be built; "" where it can."""
        needed = _MODULES_OF_EXTRA.get(self.extra, ())
        return f"umamba[{self.extra}]" if any(find_spec(module) is None for module in needed) else ""

    def build(self, plan: NetworkPlan) -> nn.Module:
        """The network for a plan, freshly initialised from torch's random state.

        Raises:
            InputError: it lacks what must be installed, or the plan does not suit it.
        """
        if self.missing:
            raise InputError(
                f"{self.name} needs {self.missing}, which is not installed", next_step=f"pip install '{self.missing}'"
            )
        return self.builder(plan)


_MODULES_OF_EXTRA = {"monai": ("monai", "einops")}  # MONAI's transformers need einops, but it does not ask for it

_CHOICES: Mapping[str, Mapping[str, str]] = {
    "mixer": {"mamba": "", "s4d": "S4D (Gu et al. 2022)", "mamba2": "Mamba-2 (Dao and Gu 2024)"},
    "directions": {
        "forward": "",
        "both": "both ways (Vision Mamba, Zhu et al. 2024)",
        "axes": "along each axis (VMamba, Liu et al. 2024)",
    },
}
"""What can be chosen, and its paper where the model's own is not of it."""

_MODELS: dict[str, Model] = {}


def register_model(
    name: str, build: Builder, description: str = "", *, extra: str = "", has_mixer: bool = False
) -> None:
    """Add a model, or replace the one of that name; arguments as the fields of `Model`."""
    _MODELS[name] = Model(name, build, description, extra, has_mixer)


def available_models() -> dict[str, Model]:
    """All models by name: those of umamba and those that installed packages add."""
    found = {point.name: _from_entry_point(point) for point in entry_points(group=ENTRY_POINTS)}
    return {**found, **_MODELS}


def find_model(name: str) -> Model:
    """A model by name.

    Raises:
        InputError: there is none of that name.
    """
    models = available_models()
    if name not in models:
        raise InputError(f"there is no model {name!r}", next_step=f"choose one of {', '.join(sorted(models))}")
    return models[name]


def find_variant(text: str, mixer: str | None = None, scan_directions: str | None = None) -> ModelVariant:
    """A model with the choice of its layers.

    Args:
        text: as `ModelVariant.title` writes it; the name of a model alone is the model as published.
        mixer: where the text does not say it; None: what the text says, or as published.
        scan_directions: the same.

    Raises:
        InputError: there is no such model or choice, two that contradict each other, or no layers to choose.
    """
    models = available_models()
    name, plus, choices = text.rpartition("+")
    if text in models or name not in models:  # unet++ is a name
        name, plus = text, ""
    model = find_model(name)
    chosen: dict[str, Any] = {}
    for choice in choices.split("-") if plus else []:
        kind = next((kind for kind, known in _CHOICES.items() if choice in known), None)
        if kind is None or kind in chosen:
            known = " and ".join(", ".join(each) for each in _CHOICES.values())
            raise InputError(f"there is no model {text!r}", next_step=f"write NAME, or NAME+CHOICES, of {known}")
        chosen[kind] = choice
    for kind, given in (("mixer", mixer), ("directions", scan_directions)):
        if given is None:
            continue
        if given not in _CHOICES[kind]:
            raise InputError(f"there is no {kind} {given!r}", next_step=f"choose {', '.join(_CHOICES[kind])}")
        if chosen.setdefault(kind, given) != given:
            raise InputError(f"{text} has the {kind} {chosen[kind]}, not {given}", next_step="leave out one of the two")
    if chosen and not model.has_mixer:
        some = ", ".join(sorted(name for name, model in models.items() if model.has_mixer))
        raise InputError(f"{name} has no state space layers to choose", next_step=f"choose one of {some} for that")
    return ModelVariant(name, chosen.get("mixer", "mamba"), chosen.get("directions", "forward"))


def describe(variant: ModelVariant) -> str:
    """One line with the papers of the model and of its layers, where these are not the model's.

    Raises:
        InputError: there is no such model.
    """
    layers = _CHOICES["mixer"][variant.mixer], _CHOICES["directions"][variant.scan_directions]
    return "; ".join(filter(None, (find_model(variant.model).description, *layers)))


def build_network(name: str, plan: NetworkPlan) -> nn.Module:
    """Build the network of a model for a plan, freshly initialised from torch's random state.

    Raises:
        InputError: there is no such model, it lacks what must be installed, or the plan does not suit it.
    """
    return find_model(name).build(plan)


def _from_entry_point(point: EntryPoint) -> Model:
    # Loaded when built, so that a broken package harms only those who ask for its model.
    def build(plan: NetworkPlan) -> nn.Module:
        network: nn.Module = point.load()(plan)
        return network

    return Model(point.name, build, f"from {point.value}")


def _architecture(plan: NetworkPlan, **what_sets_the_model_apart: Any) -> Architecture:
    return Architecture(
        input_channels=plan.input_channels,
        outputs=plan.outputs,
        features_per_stage=plan.features_per_stage,
        strides=plan.strides,
        kernel_sizes=plan.kernel_sizes,
        **what_sets_the_model_apart,
    )


def _u_net(plan: NetworkPlan, **what_sets_the_model_apart: Any) -> nn.Module:
    return UNet(_architecture(plan, **what_sets_the_model_apart), plan.class_frequencies)


def _plain(network: Callable[[Architecture, Sequence[float]], nn.Module]) -> Builder:
    def build(plan: NetworkPlan) -> nn.Module:
        architecture = _architecture(
            plan,
            blocks_per_stage=plan.convolutions_per_stage,
            blocks_per_stage_decoder=plan.convolutions_per_stage_decoder,
        )
        return network(architecture, plan.class_frequencies)

    return build


def _resenc(plan: NetworkPlan) -> nn.Module:
    return _u_net(
        plan,
        blocks_per_stage=plan.blocks_per_stage,
        blocks_per_stage_decoder=plan.convolutions_per_stage_decoder,
        block="residual",
        block_decoder="plain",
        shortcut="pooling",
        stem="convolution",
    )


def _umamba(mamba: Literal["none", "bottleneck", "encoder"]) -> Builder:
    def build(plan: NetworkPlan) -> nn.Module:
        return _u_net(
            plan,
            blocks_per_stage=plan.blocks_per_stage,
            blocks_per_stage_decoder=plan.blocks_per_stage_decoder,
            block="residual",
            stem="blocks",
            mamba=mamba,
            mixer=plan.mixer,
            scan_directions=plan.scan_directions,
        )

    return build


register_model("unet", _plain(UNet), "nnU-Net's U-Net (Isensee et al. 2021)")
register_model("resenc", _resenc, "nnU-Net's U-Net with a residual encoder (Isensee et al. 2024)")
register_model("umamba-none", _umamba("none"), "U-Mamba's residual U-Net without Mamba, the baseline")
register_model(
    "umamba-bot",
    _umamba("bottleneck"),
    "U-Mamba with one Mamba layer in the bottleneck (Ma et al. 2024)",
    has_mixer=True,
)
register_model(
    "umamba-enc",
    _umamba("encoder"),
    "U-Mamba with a Mamba layer in every stage of the encoder (Ma et al. 2024)",
    has_mixer=True,
)
register_model("unet++", _plain(UNetPlusPlus), "U-Net with nested, dense skips (Zhou et al. 2018)")
register_model("attention-unet", _plain(AttentionUNet), "U-Net with attention gates on its skips (Oktay et al. 2018)")
register_model(
    "unetr++", UNETRPlusPlus, "UNETR++, attention along space and channels with shared queries (Shaker et al. 2024)"
)
register_model("segresnet", monai_networks.segresnet, "SegResNet (Myronenko 2018), of MONAI", extra="monai")
register_model("unetr", monai_networks.unetr, "UNETR (Hatamizadeh et al. 2022), of MONAI", extra="monai")
register_model("swin-unetr", monai_networks.swin_unetr, "Swin UNETR (Hatamizadeh et al. 2022), of MONAI", extra="monai")
