"""The networks that the U-Mamba paper compares itself with, from the library MONAI (the extra `monai`).

Sources: Myronenko, "3D MRI brain tumor segmentation using autoencoder regularization", 2018 (SegResNet, of which MONAI
leaves the autoencoder's branch out); Hatamizadeh et al., "UNETR", WACV 2022; Hatamizadeh et al., "Swin UNETR", 2022.

Each is what its paper has, which is also what U-Mamba's authors trained against, where the plan's first stage has 32
feature maps, as nnU-Net's plans do. Of the plan they take channels, outputs, 2D or 3D and the patch size; all widths
are scaled by the feature maps of its first stage. They do not take its strides and kernels: these networks halve all
axes alike and have kernels of 3. What is random in a training (dropout, stochastic depth) is off, as U-Mamba's authors
had it.

Because they halve all axes, few plans have a patch that fits (UNETR: a multiple of 16; Swin UNETR: of 32), and patches
differ from model to model if each has its own. So the input is padded behind its end up to the next size that fits, and
the logits are cut back: all models train on the same patches. The padding is 0, the mean where intensities are
normalised to z-scores. It costs what the larger patch costs; `umamba models` shows how much memory that is.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks.architecture import Axes, next_multiples, require_multiples
from umamba_cli.pipeline.networks.blocks import guard_convolutions
from umamba_cli.pipeline.networks.heads import begin_with_frequencies

if TYPE_CHECKING:
    from umamba_cli.pipeline.networks.registry import NetworkPlan

SEGRESNET_BLOCKS = (1, 2, 2, 4)
"""Residual blocks by resolution, full resolution first: table 1 of the paper."""

SEGRESNET_GROUPS = 8
"""Of the group norm, as MONAI's SegResNet has them."""

UNETR_PATCH = 16
"""Voxels of a token along each axis."""

UNETR_HEADS = 12
SWIN_DIVISOR = 32
"""Tokens of 2 voxels an axis, halved four times."""


def segresnet(plan: NetworkPlan) -> nn.Module:
    """SegResNet: residual blocks with group norm, one in each stage of the decoder, bilinear upsampling.

    From the plan: as many filters at full resolution as its first stage has (paper: 32), twice as many at each lower
    resolution; its number of stages, but at most the paper's four, since there is no limit to the doubling. It has a
    head for each resolution of the decoder (MONAI's `SegResNetDS`) to which the plan's patch can be halved exactly.
    """
    stages = min(len(plan.features_per_stage), len(SEGRESNET_BLOCKS))
    filters = plan.features_per_stage[0]
    heads = 1
    while heads < stages - 1 and all(n % 2**heads == 0 for n in plan.patch_size):
        heads += 1
    network = _from_monai(
        "SegResNetDS",
        spatial_dims=plan.dimensions,
        init_filters=filters,
        in_channels=plan.input_channels,
        out_channels=plan.outputs,
        norm=("group", {"num_groups": math.gcd(SEGRESNET_GROUPS, filters)}),
        blocks_down=SEGRESNET_BLOCKS[:stages],
        dsdepth=heads,
        upsample_mode="nontrainable",  # the paper's: a 1x1 convolution, then bilinear
    )
    begin_with_frequencies([level.head for level in network.up_layers[-heads:]], plan.class_frequencies)
    return PaddedNetwork(network, plan, 2 ** (stages - 1))


def unetr(plan: NetworkPlan) -> nn.Module:
    """UNETR: a vision transformer of 12 layers over tokens of 16 voxels an axis, and a convolutional decoder.

    From the plan: a token is 24 times as wide as its first stage (paper: 768, in 12 heads; four times as wide inside
    the transformer's perceptrons), and the decoder's full resolution half as wide (paper: 16). Each token's position
    has an embedding of its own, so that the weights fit the plan's patch size alone. It has one head.
    """
    features = plan.features_per_stage[0]
    network = _from_monai(
        "UNETR",
        in_channels=plan.input_channels,
        out_channels=plan.outputs,
        img_size=next_multiples(plan.patch_size, (UNETR_PATCH,) * plan.dimensions),
        feature_size=max(features // 2, 1),
        hidden_size=2 * UNETR_HEADS * features,
        mlp_dim=8 * UNETR_HEADS * features,
        num_heads=UNETR_HEADS,
        spatial_dims=plan.dimensions,
    )
    for block in network.vit.blocks:  # a norm that MONAI makes for cross-attention, which UNETR has not
        block.norm_cross_attn = nn.Identity()
    begin_with_frequencies([network.out.conv.conv], plan.class_frequencies)
    return PaddedNetwork(network, plan, UNETR_PATCH, only_size=plan.patch_size)


def swin_unetr(plan: NetworkPlan) -> nn.Module:
    """Swin UNETR: a Swin transformer in windows of 7 tokens of 2 voxels an axis, and a convolutional decoder.

    From the plan: at full resolution one and a half times as wide as its first stage (paper: 48), in multiples of 12 as
    the transformer's heads want. It has one head. Its lowest resolution needs two voxels for its instance norm, so that
    a patch which fits into 32 voxels an axis is padded to 64 along the last.
    """
    network = _from_monai(
        "SwinUNETR",
        in_channels=plan.input_channels,
        out_channels=plan.outputs,
        feature_size=12 * max(round(plan.features_per_stage[0] / 8), 1),
        spatial_dims=plan.dimensions,
    )
    begin_with_frequencies([network.out.conv.conv], plan.class_frequencies)
    return CheckpointedSwin(network, plan, SWIN_DIVISOR, least_voxels=2)


class PaddedNetwork(nn.Module):
    """A network for sizes that are multiples of some number, which takes the sizes of a plan.

    In training mode it returns a list of logits, full resolution first; in evaluation mode those of the full resolution
    alone. The network within may answer with a list, each entry half the size of the one before it, or with one tensor.
    """

    def __init__(
        self,
        network: nn.Module,
        plan: NetworkPlan,
        multiple: int,
        *,
        least_voxels: int = 1,
        only_size: Axes | None = None,
    ) -> None:
        """Wrap a network.

        Args:
            network: takes (B, channels, ...) of sizes that are multiples of `multiple`.
            plan: whose patch size and divisor are what an input must fit, as any other model's.
            multiple: halved away by the network, the same along each axis.
            least_voxels: that the network needs at its lowest resolution.
            only_size: the one size of an input that the network's weights fit.

        Raises:
            InputError: the plan's patch does not fit its own strides.
        """
        super().__init__()
        require_multiples(plan.patch_size, plan.divisor)
        self.network = network
        self._divisor, self._multiple = plan.divisor, multiple
        self._least_voxels, self._only_size = least_voxels, only_size

    def padded_size(self, size: Axes) -> Axes:
        """What an input of this size is padded to."""
        *others, last = next_multiples(size, (self._multiple,) * len(size))
        while math.prod((*others, last)) // self._multiple ** len(size) < self._least_voxels:
            last += self._multiple
        return (*others, last)

    def forward(self, x: Tensor) -> list[Tensor] | Tensor:
        """(B, channels, ...) to logits (B, outputs, ...), see the class.

        Raises:
            InputError: the size of `x` is not one of the plan's multiples, or not the one that the weights fit.
        """
        size = tuple(x.shape[2:])
        require_multiples(size, self._divisor)
        if self._only_size is not None and size != self._only_size:
            raise InputError(
                f"a patch of {size} does not fit the network, whose weights are bound to one patch size: "
                "the positions of its tokens are learnt",
                next_step=f"use {self._only_size}",
            )
        behind = [larger - n for larger, n in zip(self.padded_size(size), size, strict=True)]
        if any(behind):
            x = F.pad(x, [n for after in reversed(behind) for n in (0, after)])
        outputs = self.network(x)
        found = outputs if isinstance(outputs, list) else [outputs]
        logits = [_cut(y, [-(-n // 2**level) for n in size]) for level, y in enumerate(found)]
        return logits if self.training else logits[0]


class CheckpointedSwin(PaddedNetwork):
    """Adds what MONAI's Swin transformer offers: to compute its blocks anew for the gradients.

    The convolutions around the transformer are not part of it, so that it saves less than in a `UNet`.
    """

    @property
    def checkpointing(self) -> bool:
        """In training, compute the transformer's blocks anew: the same results, less memory, more time."""
        return any(block.use_checkpoint for block in self._blocks())

    @checkpointing.setter
    def checkpointing(self, wanted: bool) -> None:
        for block in self._blocks():
            block.use_checkpoint = wanted

    def _blocks(self) -> Iterable[Any]:
        return (module for module in self.network.modules() if hasattr(module, "use_checkpoint"))


def _from_monai(name: str, **arguments: Any) -> Any:
    """A network of MONAI, which is imported here so that nobody waits for it who does not ask for it.

    Raises:
        InputError: the MONAI that is installed does not know it, or not like this.
    """
    with warnings.catch_warnings():
        # Of its own and of its dependencies' future, which is not the user's to change.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        import monai
        from monai.networks import nets

        try:
            network = getattr(nets, name)(**arguments)
        except (AttributeError, TypeError) as error:  # an older one, with other arguments
            raise InputError(
                f"MONAI {monai.__version__} cannot build {name} as umamba wants it: {error}",
                next_step="pip install --upgrade 'umamba[monai]'",
            ) from error
    guard_convolutions(network)
    return network


def _cut(logits: Tensor, size: list[int]) -> Tensor:
    for axis, n in enumerate(size, start=2):
        logits = logits.narrow(axis, 0, n)
    return logits
