"""MONAI's networks at the configurations of papers: what the papers state, and why it differs from what is counted.

A multiply-add is half of what torch.utils.flop_counter counts for convolutions and matrix products, attention's
included; norms, activations and interpolation are left out. `python _paper_configurations_monai.py` counts; nothing is
computed, since all is done on the meta device.
"""

from __future__ import annotations

from dataclasses import dataclass

from umamba_cli.pipeline.networks.registry import NetworkPlan, build_network


@dataclass(frozen=True)
class PaperConfiguration:
    """A network as a paper had it."""

    name: str
    model: str
    build: NetworkPlan
    paper_parameters: int | None
    """None where the paper does not say."""

    paper_multiply_adds: int | None
    source: str
    """Of the figures, and what is known about the difference."""

    terms: dict[str, int]
    """Parameters that ours has and the paper's count has not."""


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
        "SegResNet with 8 filters",
        "segresnet",
        plan(1, 14, (96, 96, 96), features=8),
        1_180_000,
        15_600_000_000,
        "3D UX-Net (Lee et al., ICLR 2023), table 1, as remembered and not looked up; 8 filters are MONAI's default.",
        {"heads of lower resolutions": 16 * 14 + 14 + 32 * 14 + 14},
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
    ),
)


def count(configuration: PaperConfiguration) -> tuple[int, int]:
    """Parameters and multiply-adds of ours, in evaluation mode with a batch of 1."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    # Not built on the meta device: Swin UNETR looks at numbers while it is built.
    network = build_network(configuration.model, configuration.build).to("meta").eval()
    size = configuration.build.patch_size
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, configuration.build.input_channels, *size, device="meta"))
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2


def main() -> None:
    from _report import finish

    rows = []
    for configuration in CONFIGURATIONS:
        parameters, multiply_adds = count(configuration)
        paper = (configuration.paper_parameters, configuration.paper_multiply_adds)
        stated = [f"{value / unit:.2f}" if value else "-" for value, unit in zip(paper, (1e6, 1e9), strict=True)]
        without = (parameters - sum(configuration.terms.values())) / 1e6
        rows.append((configuration.name, parameters / 1e6, without, stated[0], multiply_adds / 1e9, stated[1]))
    header = ("network", "M parameters", "without terms", "paper", "G multiply-adds", "paper")
    finish(header, rows, [], as_json=False)


if __name__ == "__main__":
    main()
