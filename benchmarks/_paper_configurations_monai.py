"""MONAI's networks at the configurations of papers: what the papers state, and why it differs from what is counted."""

from __future__ import annotations

from _paper_configurations import PaperConfiguration

from umamba_cli.pipeline.networks.registry import NetworkPlan


def plan(channels: int, outputs: int, patch_size: tuple[int, ...], features: int = 32) -> NetworkPlan:
    """Of a U-Net of four stages that halve every axis."""
    stages = 4
    return NetworkPlan(
        input_channels=channels,
        outputs=outputs,
        patch_size=patch_size,
        features_per_stage=tuple(features * 2**stage for stage in range(stages)),
        strides=((1, 1, 1), *((2, 2, 2),) * (stages - 1)),
        kernel_sizes=((3, 3, 3),) * stages,
        convolutions_per_stage=(2,) * stages,
        convolutions_per_stage_decoder=(2,) * (stages - 1),
        blocks_per_stage=(1,) * stages,
        blocks_per_stage_decoder=(1,) * (stages - 1),
    )


BTCV = plan(1, 14, (96, 96, 96))

CONFIGURATIONS = (
    PaperConfiguration(
        "SegResNet, BraTS 2018",
        "segresnet",
        plan(4, 3, (160, 192, 128)),
        None,
        None,
        "Myronenko 2018, who states neither. MONAI's own SegResNet has 18,798,627 parameters: a norm more before its "
        "head, and no heads of lower resolutions, which deep supervision needs.",
        {"heads of lower resolutions": 64 * 3 + 3 + 128 * 3 + 3},
    ),
    PaperConfiguration(
        "SegResNet with 16 filters",
        "segresnet",
        plan(1, 14, (96, 96, 96), features=16),
        4_700_000,
        None,
        "SuPreM (Li et al., ICLR 2024; github.com/MrGiovanni/SuPreM, issue 8), with MONAI's SegResNet.",
        {"heads of lower resolutions": 32 * 14 + 14 + 64 * 14 + 14},
    ),
    PaperConfiguration(
        "UNETR, BTCV",
        "unetr",
        BTCV,
        92_580_000,
        41_190_000_000,
        "Hatamizadeh et al. 2022, table 5. Its parameters are ours without those that are no convolution's or linear "
        "layer's. Its multiply-adds are half of the 82.68 G that ptflops counts for the authors' own code, norms and "
        "activations included; fvcore counts 73.68 G (github.com/Project-MONAI/research-contributions, issue 80). "
        "3D UX-Net states 92.8 M and 82.6 G.",
        {"position embeddings": 6**3 * 768, "layer norms": 25 * 2 * 768},
        None,
    ),
    PaperConfiguration(
        "Swin UNETR, BTCV",
        "swin-unetr",
        BTCV,
        61_980_000,
        394_840_000_000,
        "Tang et al., CVPR 2022, table S.3. Without the biases of relative positions ours has 61.99 M; how the "
        "multiply-adds were counted is not said. 3D UX-Net states 62.2 M and 328.4 G of the same code.",
        {"biases of relative positions": 13**3 * 2 * (3 + 6 + 12 + 24)},
        None,
    ),
)
