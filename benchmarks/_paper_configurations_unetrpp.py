"""UNETR++ as its paper has it for Synapse, and why our count of parameters and multiply-adds is not the paper's.

The counts of the released network are by formula, from its source (unetr_pp/network_architecture of
https://github.com/Amshaker/unetr_plus_plus, with MONAI's default of an instance norm without scale and shift at full
resolution, as its trainer for Synapse builds it). That trainer takes multiply-adds from fvcore, which adds 5 for each
number that goes through a norm with scale and shift, 4 without.
"""

from __future__ import annotations

from itertools import pairwise

from _paper_configurations import PaperConfiguration

from umamba_cli.pipeline.networks.registry import NetworkPlan

CLASSES = 14
VOXELS = 64 * 128 * 128
TOKENS = (32 * 32 * 32, 16 * 16 * 16, 8 * 8 * 8, 4 * 4 * 4)
WIDTHS = (32, 64, 128, 256)
PROJECTED = (64, 64, 64, 32)
FULL_WIDTH = 16
DEPTH = 3
HEADS = 4
KERNEL = 3**3
FULL_NORMS = 5  # two in each of the two residual blocks, one at the shortcut of the first

ENCODER = tuple(zip(TOKENS, WIDTHS, PROJECTED, strict=True))
DECODER = tuple((tokens, width, 64) for tokens, width in zip(TOKENS[:3], WIDTHS[:3], strict=True))
BLOCKS = DEPTH * (ENCODER + DECODER)
"""Tokens, width and projected tokens of every attention block."""

OF_LOWER_HEADS = CLASSES * (TOKENS[0] * WIDTHS[0] + TOKENS[1] * WIDTHS[1])
"""Multiply-adds of the released network's heads below full resolution."""

NUMBERS = sum(tokens * width for tokens, width, _ in BLOCKS)
"""That go through a norm of the attention blocks."""


def released_parameters() -> int:
    """Of the released network for Synapse."""
    of_blocks = sum(
        tokens * c  # position
        + 3 * c  # layer norm and gamma
        + 4 * c * c  # queries, keys, values of both kinds
        + (tokens + 1) * p  # E
        + 2 * HEADS  # temperatures
        + c * c + c  # two linear layers to half the width
        + 2 * (KERNEL * c * c + 2 * c)  # residual block with batch norm
        + c * c + c  # last convolution
        for tokens, c, p in BLOCKS
    )  # fmt: skip
    embeddings = 2 * 4 * 4 * WIDTHS[0] + 8 * sum(a * b for a, b in pairwise(WIDTHS))
    norms = 2 * sum(WIDTHS)
    upsamplings = 8 * sum(a * b for a, b in pairwise(WIDTHS)) + 32 * WIDTHS[0] * FULL_WIDTH
    convolutions = KERNEL * FULL_WIDTH + 3 * KERNEL * FULL_WIDTH**2 + FULL_WIDTH
    heads = CLASSES * (FULL_WIDTH + WIDTHS[0] + WIDTHS[1] + 3)
    return of_blocks + embeddings + norms + upsamplings + convolutions + heads


def released_multiply_adds() -> tuple[int, int]:
    """Of the released network for Synapse: in products, and what fvcore counts in norms."""
    of_blocks = sum(
        4 * tokens * c * c  # queries, keys, values
        + 2 * tokens * c * p  # keys and values projected
        + 2 * tokens * c * p  # attention along space
        + 2 * tokens * c * c // HEADS  # attention along channels
        + tokens * c * c  # two linear layers
        + (2 * KERNEL + 1) * tokens * c * c  # convolutions
        for tokens, c, p in BLOCKS
    )
    steps = 8 * sum(n * a * b for n, a, b in zip(TOKENS[1:], WIDTHS, WIDTHS[1:], strict=False))  # down, and again up
    embeddings = VOXELS * WIDTHS[0] + steps
    upsamplings = steps + VOXELS * WIDTHS[0] * FULL_WIDTH
    convolutions = VOXELS * (KERNEL * FULL_WIDTH + 3 * KERNEL * FULL_WIDTH**2 + FULL_WIDTH)
    heads = CLASSES * VOXELS * FULL_WIDTH + OF_LOWER_HEADS
    embedded = sum(tokens * width for tokens, width in zip(TOKENS, WIDTHS, strict=True))
    norms = 5 * (3 * NUMBERS + embedded) + 4 * FULL_NORMS * VOXELS * FULL_WIDTH
    return of_blocks + embeddings + upsamplings + convolutions + heads, norms


PAPER_PARAMETERS, PAPER_MULTIPLY_ADDS = 42_960_000, 47_980_000_000
_, NORMS = released_multiply_adds()

SYNAPSE = PaperConfiguration(
    name="UNETR++, Synapse",
    plan=NetworkPlan(
        input_channels=1,
        outputs=CLASSES,
        patch_size=(64, 128, 128),
        features_per_stage=(FULL_WIDTH, *WIDTHS),
        strides=((1, 1, 1), (2, 4, 4), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        kernel_sizes=((3, 3, 3),) * 5,
        convolutions_per_stage=(2,) * 5,
        convolutions_per_stage_decoder=(2,) * 4,
        blocks_per_stage=(1,) * 5,
        blocks_per_stage_decoder=(1,) * 4,
    ),
    model="unetr++",
    paper_parameters=PAPER_PARAMETERS,
    paper_multiply_adds=PAPER_MULTIPLY_ADDS,
    source="Shaker et al., arXiv 2212.04497: 42.96 M parameters, 47.98 GFLOPs, which fvcore counts as multiply-adds",
    terms={
        "biases of the convolutions before a norm": 2 * sum(c for _, c, _ in BLOCKS) + 4 * FULL_WIDTH,
        "scale and shift of the norms at full resolution": 2 * FULL_NORMS * FULL_WIDTH,
        "a head for the decoder's lowest resolution, too": CLASSES * (WIDTHS[2] + 1),
    },
    multiply_add_terms={
        "norms, which are not counted here": -NORMS,
        "heads below full resolution, which predicting does not need": -OF_LOWER_HEADS,
    },
)
"""The terms are ours less the released network. That has 42.95 M parameters and 47.94 G multiply-adds, a little less
than the paper says, and what is between is left unexplained. One more norm in each attention block (2 `width`
parameters, 5 `NUMBERS` operations) would give 42.957 M and 47.977 G, both as printed; that this is why is a guess."""
