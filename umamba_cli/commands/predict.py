"""umamba predict: segment images with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from umamba_cli.commands._console import Console
from umamba_cli.commands._options import (
    ClusterOption,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    QuietOption,
    ShardOption,
    ThreadsOption,
    VerboseOption,
    parse_folds,
)
from umamba_cli.commands._predicting import (
    EveryOption,
    InputOption,
    MirroringOption,
    OutputOption,
    OverwriteOption,
    ProbabilitiesOption,
    SeriesOption,
    StepOption,
    UncertaintyOption,
    WatchOption,
    What,
    predict_with,
    refuse_contradictions,
)

ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A run's folder, the folder above its folds, or a bundle (model.zip).")
]
FoldsOption = Annotated[
    list[str] | None,
    typer.Option("--fold", "-f", help="Folds to average; may be given several times.", show_default="all finished"),
]


def predict(
    model: ModelArgument,
    input_path: InputOption,
    output: OutputOption,
    fold: FoldsOption = None,
    series: SeriesOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    mirroring: MirroringOption = True,
    step: StepOption = 0.5,
    save_probabilities: ProbabilitiesOption = False,
    save_uncertainty: UncertaintyOption = False,
    overwrite: OverwriteOption = False,
    shard: ShardOption = None,
    cluster: ClusterOption = None,
    watch: WatchOption = False,
    every: EveryOption = 10.0,
    threads: ThreadsOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Segment images. Labels come back on each image's own grid and in its format; finished cases are skipped."""
    console = Console(json_output, quiet, verbose)
    folds = tuple(parse_folds(*(fold or ())))
    what = What(
        input_path,
        output,
        series or (),
        shard,
        cluster,
        save_probabilities,
        save_uncertainty,
        overwrite,
        watch,
        every,
    )
    refuse_contradictions(what)

    from umamba_cli.pipeline.inference.remote import Loading

    predict_with(Loading((model,), folds, device, precision, mirroring, step, threads), what, console)
