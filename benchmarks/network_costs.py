"""Parameters and multiply-adds of each network at its paper's configuration, against what the paper states.

Nothing is computed: networks are built without data where they can be. Multiply-adds are those of predicting one patch,
counted as `umamba models` does: products alone, where some papers count norms and activations too. What is known of a
difference is a term below the table; what is left is not explained, and a bar holds it against the paper's figure.
Where a paper's multiply-adds were counted in another way that is not known, they are shown and have no bar.
"""

from __future__ import annotations

from _paper_configurations import PaperConfiguration
from _report import Bar, Parser, Table, finish, run

UNEXPLAINED = 0.005
"""Of the paper's figure: figures are printed with three or four digits."""


def main() -> None:
    arguments = Parser(__doc__).parse_args()
    rows: list[tuple[object, ...]] = []
    terms: list[tuple[object, ...]] = []
    bars: list[Bar] = []
    for each in configurations():
        parameters, operations = counts(each)
        stated = (each.paper_parameters, each.paper_multiply_adds)
        rows.append((each.name, parameters / 1e6, _of(stated[0], 1e6), operations / 1e9, _of(stated[1], 1e9)))
        for what, ours, theirs, of_it in (
            ("parameters", parameters, stated[0], each.terms),
            ("multiply-adds", operations, stated[1], each.multiply_add_terms),
        ):
            terms += [(each.name, what, cause, f"{value:+,}") for cause, value in (of_it or {}).items()]
            if theirs is not None and of_it is not None:
                left = abs(ours - theirs - sum(of_it.values())) / theirs
                bars.append(Bar(f"{each.name}: share of its {what} not explained", left, UNEXPLAINED, at_most=True))
        terms.append((each.name, "source", each.source, ""))
    finish(
        ("network", "M parameters", "paper", "G multiply-adds", "paper"),
        rows,
        bars,
        as_json=arguments.json,
        more=Table("ours less the paper's", ("network", "of", "cause", "number"), terms),
    )


def configurations() -> list[PaperConfiguration]:
    """Of all networks that have one."""
    from _paper_configurations_dense import configurations as dense
    from _paper_configurations_monai import CONFIGURATIONS as OF_MONAI
    from _paper_configurations_unetrpp import SYNAPSE

    return [*dense(), SYNAPSE, *OF_MONAI]


def counts(configuration: PaperConfiguration) -> tuple[int, int]:
    """Parameters and multiply-adds of ours."""
    import torch

    from umamba_cli.pipeline.networks.costs import multiply_adds
    from umamba_cli.pipeline.networks.registry import build_network
    from umamba_cli.pipeline.networks.unet import count_parameters

    # Swin UNETR looks at numbers while it is built.
    with torch.device("cpu" if configuration.model == "swin-unetr" else "meta"):
        network = build_network(configuration.model, configuration.plan)
    shape = (1, configuration.plan.input_channels, *configuration.plan.patch_size)
    return count_parameters(network), multiply_adds(network, shape)


def _of(value: int | None, unit: float) -> object:
    return "-" if value is None else value / unit


if __name__ == "__main__":
    run(main)
