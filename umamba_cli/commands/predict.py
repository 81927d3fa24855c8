"""umamba predict: segment images with a trained model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from umamba_cli.commands._console import Console, elapsed
from umamba_cli.commands._options import (
    DeviceOption,
    JsonOption,
    PrecisionOption,
    QuietOption,
    ThreadsOption,
    VerboseOption,
    parse_fold,
)

ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A run's folder, the folder above its folds, or a bundle (model.zip).")
]
InputOption = Annotated[Path, typer.Option("--input", "-i", help="Folder of images (CASE_0000.nii.gz), or one image.")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Folder for the label maps.")]
FoldsOption = Annotated[
    list[str] | None,
    typer.Option("--fold", "-f", help="Folds to average; may be given several times.", show_default="all finished"),
]
MirroringOption = Annotated[bool, typer.Option("--mirroring/--no-mirroring", help="Average over mirrored images.")]
StepOption = Annotated[float, typer.Option("--step", help="Distance between tiles, as a share of the patch.")]
ProbabilitiesOption = Annotated[
    bool, typer.Option("--save-probabilities", help="Write CASE.npz beside each label map.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Predict finished cases again.")]


def predict(
    model: ModelArgument,
    input_path: InputOption,
    output: OutputOption,
    fold: FoldsOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    mirroring: MirroringOption = True,
    step: StepOption = 0.5,
    save_probabilities: ProbabilitiesOption = False,
    overwrite: OverwriteOption = False,
    threads: ThreadsOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Segment images. Labels come back on each image's own grid; finished cases are skipped."""
    from umamba_cli.pipeline.devices import choose_compute, use_threads
    from umamba_cli.pipeline.inference.predict import find_input, predict_cases, raise_if_failed
    from umamba_cli.pipeline.inference.predictor import load_predictor

    console = Console(json_output, quiet, verbose)
    folds = [parse_fold(text) for text in fold or ()]
    use_threads(threads)
    predictor = load_predictor(model, folds, choose_compute(device, precision), mirroring=mirroring, step=step)
    cases = find_input(input_path, predictor.record.dataset.file_ending)
    began = time.monotonic()
    with console.progress() as on_progress:
        result = predict_cases(
            predictor,
            cases,
            output,
            overwrite=overwrite,
            save_probabilities=save_probabilities,
            on_progress=on_progress,
        )
    if not (console.json_output and result.failed):
        console.result({"output": output, **vars(result)})
    skipped = f", {len(result.skipped)} were there already" if result.skipped else ""
    if result.predicted or result.skipped:
        console.say(
            f"{len(result.predicted)} of {len(cases)} cases predicted into {output}{skipped} ({elapsed(began)})"
        )
    raise_if_failed(result)
