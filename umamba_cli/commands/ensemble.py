"""umamba ensemble: segment images with several models together."""

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

ModelsArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="MODEL...", help="Two or more: runs' folders, folders above folds (all finished are taken), bundles."
    ),
]


def ensemble(
    models: ModelsArgument,
    input_path: InputOption,
    output: OutputOption,
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
    """Segment images with several models, whose probabilities are averaged. Finished cases are skipped."""
    console = Console(json_output, quiet, verbose)
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

    how = device, precision, mirroring, step, threads
    predict_with(Loading(tuple(models), (), *how, are_ensemble=True), what, console)
