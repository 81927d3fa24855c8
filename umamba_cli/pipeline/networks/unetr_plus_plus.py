"""UNETR++: a U-Net whose blocks attend along space and along channels, with the same queries and keys.

Source: Shaker et al., "UNETR++: Delving into Efficient and Accurate 3D Medical Image Segmentation", arXiv 2212.04497,
IEEE TMI 2024: figure 2 (the network; at its right the efficient paired attention, EPA) and equations 1 to 5. What these
leave open is taken from the released network (https://github.com/Amshaker/unetr_plus_plus, the one for Synapse).

    X_s = SA(Q, K, V_s)                                                                                (equation 1)
    X_c = CA(Q, K, V_c)                                                                                (equation 2)
    SA  = softmax(Q K_p^T / sqrt(d)) V_p,  K_p = E K and V_p = E V_s: P tokens in place of L           (equation 3)
    CA  = V_c softmax(Q^T K / sqrt(d))                                                                 (equation 4)
    X   = Conv1(Conv3(X_s + X_c))                                                                      (equation 5)

As in the released network, and otherwise than in the equations: queries are divided by their norm along the tokens,
and for channel attention the keys, too; a learned factor for each head (a temperature) stands in place of 1 / sqrt(d);
X_s and X_c each go through a linear layer to half the width and are put side by side, where equation 5 adds them;
their sum with the input, X scaled by a learned gamma, then goes through the two convolutions, which have a residual
connection of their own; tokens get a learned embedding of their position at the entry of each block.

What the released network has and this one has not:
- a mistake: it permutes the axes of X_s so that tokens and channels are mixed up before the linear layer. Its issue 62
  says so, and there its author agrees; corrected, and with equation 4 to the letter, it had a Dice of 87.1, not 87.2;
- dropout (0.1): all networks here are trained alike, with augmentation alone against overfitting, and nothing random;
- batch norm in the blocks, group norm after the patch embedding: here instance norm as everywhere, batches being small;
- the first downsampling by (2, 4, 4): here stages, strides, widths and kernel sizes are the plan's.

A plan's first stage, at full resolution, is convolutional: one residual block for the skip and one in the decoder. So
are those that follow until a quarter of the resolution is reached, where the paper's attention begins: position and E
have numbers for each token, and at half of the resolution they would be most of the network. All others have `DEPTH`
EPA blocks whatever number of convolution blocks the plan has. Every stage is entered by a patch embedding. The weights
fit one patch size alone. The released network supervises the three highest resolutions of the decoder, this one all,
as the other models do.

Axes: B batch, C feature maps, L tokens, H heads, D and E channels of a head, P projected tokens.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks.architecture import Architecture, Axes, divisor_of, require_multiples
from umamba_cli.pipeline.networks.blocks import CONVOLUTION, TRANSPOSED, ResidualBlock, convolution, initialise
from umamba_cli.pipeline.networks.checkpointing import is_worthwhile, run_part
from umamba_cli.pipeline.networks.heads import begin_with_frequencies, new_heads
from umamba_cli.pipeline.networks.normalization import InstanceNorm

if TYPE_CHECKING:
    from umamba_cli.pipeline.networks.registry import NetworkPlan

DEPTH = 3
"""EPA blocks of a stage."""

SHARE = 4
"""Stages attend from where the resolution along an axis is one by this."""

HEADS = 4
"""Attention heads; where they do not divide the width, the largest number below that does."""

PROJECTED_TOKENS, PROJECTED_TOKENS_OF_BOTTLENECK = 64, 32
"""To so many are keys and values projected, but not to more than there are. In the released network 64, 64, 64 and 32
in the encoder's stages, 64 in the decoder's."""

GAMMA = 1e-6
"""What the attention's share in a block begins with."""


class PairedAttention(nn.Module):
    """Efficient paired attention: to P projected tokens, and among the channels of a head (equations 1 to 4)."""

    def __init__(self, width: int, tokens: int, projected_tokens: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkvv_proj = nn.Linear(width, 4 * width, bias=False)  # Q, K, V of space, V of channels
        self.E = nn.Linear(tokens, projected_tokens)  # of keys and values alike
        self.temperature_space = nn.Parameter(torch.ones(heads))
        self.temperature_channels = nn.Parameter(torch.ones(heads))
        self.out_space = nn.Linear(width, width - width // 2)
        self.out_channels = nn.Linear(width, width // 2)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """(B, L, C) to (B, L, C)."""
        q_BLC, k_BLC, v_space_BLC, v_channels_BLC = self.qkvv_proj(x_BLC).chunk(4, dim=-1)
        q_BLHD = self._split(_normalise_tokens(q_BLC))
        x_space_BLC = self._along_space(q_BLHD, k_BLC, v_space_BLC)
        x_channels_BLC = self._along_channels(q_BLHD, k_BLC, v_channels_BLC)
        return torch.cat((self.out_space(x_space_BLC), self.out_channels(x_channels_BLC)), dim=-1)

    def _along_space(self, q_BLHD: Tensor, k_BLC: Tensor, v_BLC: Tensor) -> Tensor:
        k_BPHD = self._split(self.E(k_BLC.mT).mT)
        v_BPHD = self._split(self.E(v_BLC.mT).mT)
        scores_BHLP = torch.einsum("blhd,bphd->bhlp", q_BLHD, k_BPHD)
        attention_BHLP = _softmax(scores_BHLP, self.temperature_space)
        return torch.einsum("bhlp,bphd->blhd", attention_BHLP, v_BPHD).flatten(2)

    def _along_channels(self, q_BLHD: Tensor, k_BLC: Tensor, v_BLC: Tensor) -> Tensor:
        k_BLHE = self._split(_normalise_tokens(k_BLC))
        scores_BHDE = torch.einsum("blhd,blhe->bhde", q_BLHD, k_BLHE)
        attention_BHDE = _softmax(scores_BHDE, self.temperature_channels)
        return torch.einsum("bhde,blhe->blhd", attention_BHDE, self._split(v_BLC)).flatten(2)

    def _split(self, x_BLC: Tensor) -> Tensor:
        return x_BLC.view(*x_BLC.shape[:2], self.heads, -1)  # (B, L, H, D)


def _softmax(scores_BHxy: Tensor, temperature_H: Tensor) -> Tensor:
    """Over y, in at least float32; in the type of the scores, which the matrices to be multiplied have."""
    wide = torch.promote_types(scores_BHxy.dtype, torch.float32)
    return (scores_BHxy.to(wide) * temperature_H[:, None, None]).softmax(dim=-1).to(scores_BHxy.dtype)


def _normalise_tokens(x_BLC: Tensor) -> Tensor:
    """Each channel divided by its norm along the tokens, which is taken in at least float32."""
    wide = torch.promote_types(x_BLC.dtype, torch.float32)
    return F.normalize(x_BLC.to(wide), dim=1).to(x_BLC.dtype)


class AttentionBlock(nn.Module):
    """Position, paired attention and two convolutions, the two latter with the input added (equation 5)."""

    def __init__(self, width: int, tokens: int, projected_tokens: int, kernel_size: Axes) -> None:
        super().__init__()
        heads = max(n for n in range(1, HEADS + 1) if width % n == 0)
        self.position_LC = nn.Parameter(torch.zeros(tokens, width))
        self.norm = nn.LayerNorm(width)
        self.attention = PairedAttention(width, tokens, min(projected_tokens, tokens), heads)
        self.gamma_C = nn.Parameter(torch.full((width,), GAMMA))
        self.conv3 = ResidualBlock(width, width, kernel_size)
        self.conv1 = convolution(width, width, (1,) * len(kernel_size))

    def forward(self, x_BCzyx: Tensor) -> Tensor:
        """(B, C, [z,] y, x) to the same; in channels_last(_3d) memory format the tokens are a view."""
        x_BzyxC = x_BCzyx.movedim(1, -1)
        x_BLC = x_BzyxC.flatten(1, -2) + self.position_LC
        x_BLC = x_BLC + self.gamma_C * self.attention(self.norm(x_BLC))
        x_BCzyx = x_BLC.view(x_BzyxC.shape).movedim(-1, 1)
        y_BCzyx: Tensor = x_BCzyx + self.conv1(self.conv3(x_BCzyx))
        return y_BCzyx


class PatchEmbedding(nn.Module):
    """A convolution whose windows meet without overlapping, and a norm."""

    def __init__(self, inputs: int, outputs: int, stride: Axes) -> None:
        super().__init__()
        self.conv = CONVOLUTION[len(stride)](inputs, outputs, stride, stride, bias=False)  # type: ignore[arg-type]
        self.norm = InstanceNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, ...) to (B, outputs, ... / stride)."""
        y: Tensor = self.norm(self.conv(x))
        return y


class UpsampleAndAdd(nn.Module):
    """A transposed convolution whose windows do not overlap; the encoder's map is added."""

    def __init__(self, inputs: int, outputs: int, stride: Axes) -> None:
        super().__init__()
        self.conv = TRANSPOSED[len(stride)](inputs, outputs, stride, stride, bias=False)  # type: ignore[arg-type]

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        """The map from below and the encoder's at this resolution to the decoder's at this resolution."""
        y: Tensor = self.conv(below) + skip
        return y


class UNETRPlusPlus(nn.Module):
    """The network of figure 2 for a plan; its weights fit the plan's patch size alone.

    In training mode it returns the logits of every decoder resolution, full resolution first; in evaluation mode those
    of the full resolution alone.
    """

    checkpointing: bool = False
    """In training, keep the maps between blocks alone, and compute those inside them anew for the gradients: the same
    results, less memory, more time."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        _refuse_contradictions(plan)
        self.patch_size = tuple(plan.patch_size)
        features, strides, kernel_sizes = plan.features_per_stage, plan.strides, plan.kernel_sizes
        voxels = math.prod(plan.patch_size)
        tokens = [voxels // math.prod(divisor_of(strides[: i + 1])) for i in range(len(strides))]  # of each stage
        last = len(features) - 1
        shares = [max(divisor_of(strides[: i + 1])) for i in range(last)]
        first = next((i for i, share in enumerate(shares) if share >= SHARE), last)

        def blocks_of(stage: int) -> nn.ModuleList:
            if stage < first:
                return nn.ModuleList([ResidualBlock(features[stage], features[stage], kernel_sizes[stage])])
            p = PROJECTED_TOKENS_OF_BOTTLENECK if stage == last else PROJECTED_TOKENS
            blocks = (AttentionBlock(features[stage], tokens[stage], p, kernel_sizes[stage]) for _ in range(DEPTH))
            return nn.ModuleList(blocks)

        # The first patch embedding takes the image, not what the convolutions at full resolution make of it.
        inputs = (plan.input_channels, *features[1:])
        self.full_resolution = ResidualBlock(plan.input_channels, features[0], kernel_sizes[0], shortcut="pooling")
        self.embeddings = nn.ModuleList(PatchEmbedding(inputs[i], features[i + 1], strides[i + 1]) for i in range(last))
        self.encoder = nn.ModuleList(blocks_of(stage) for stage in range(1, last + 1))
        self.upsamplings = nn.ModuleList(
            UpsampleAndAdd(features[i + 1], features[i], strides[i + 1]) for i in range(last)
        )
        self.decoder = nn.ModuleList(blocks_of(stage) for stage in range(last))
        self.heads = new_heads(features[:-1], plan.outputs, plan.dimensions)
        self.apply(initialise)
        self.apply(_initialise_linear)
        begin_with_frequencies(self.heads, plan.class_frequencies)

    def forward(self, x: Tensor) -> list[Tensor] | Tensor:
        """(B, channels, ...) to logits (B, outputs, ...), see the class.

        Raises:
            InputError: the size of `x` is not the plan's patch size.
        """
        if tuple(x.shape[2:]) != self.patch_size:
            raise InputError(
                f"a patch of {tuple(x.shape[2:])} does not fit the network, whose weights are bound to one patch size: "
                "UNETR++ projects the keys and values of all tokens, and knows where they are",
                next_step=f"use {self.patch_size}",
            )
        checkpointing = is_worthwhile(self)
        skips = [run_part(self.full_resolution, x, checkpointing=checkpointing)]
        for embedding, blocks in zip(self.embeddings, self.encoder, strict=True):
            x = run_part(embedding, x, checkpointing=checkpointing)
            x = _run(blocks, x, checkpointing)
            skips.append(x)
        logits: list[Tensor] = []
        for i in reversed(range(len(self.decoder))):
            x = run_part(self.upsamplings[i], x, skips[i], checkpointing=checkpointing)
            x = _run(self.decoder[i], x, checkpointing)
            if self.training or i == 0:
                logits.append(self.heads[i](x))
        return logits[::-1] if self.training else logits[-1]


def _run(blocks: nn.Module, x: Tensor, checkpointing: bool) -> Tensor:
    for block in blocks.children():
        x = run_part(block, x, checkpointing=checkpointing)
    return x


def _refuse_contradictions(plan: NetworkPlan) -> None:
    Architecture(
        input_channels=plan.input_channels,
        outputs=plan.outputs,
        features_per_stage=plan.features_per_stage,
        strides=plan.strides,
        kernel_sizes=plan.kernel_sizes,
        blocks_per_stage=plan.blocks_per_stage,
        blocks_per_stage_decoder=plan.blocks_per_stage_decoder,
    )
    if any(step != 1 for step in plan.strides[0]):
        raise InputError(
            f"UNETR++ has convolutions at full resolution, the plan's first stage has the strides {plan.strides[0]}",
            next_step="plan again, or correct the first strides to ones in plans.json",
        )
    require_multiples(plan.patch_size, plan.divisor)


def _initialise_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
