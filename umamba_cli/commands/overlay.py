"""umamba overlay: draw label maps over their images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from umamba_cli.commands._console import Console
from umamba_cli.commands._options import JsonOption, QuietOption, VerboseOption, WorkersOption

ImagesArgument = Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of images, or one image.")]
LabelsArgument = Annotated[Path, typer.Argument(metavar="LABELS", help="Folder of label maps, such as predictions.")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Folder to write CASE.png to.")]
ReferenceOption = Annotated[
    Path | None, typer.Option("--reference", metavar="FOLDER", help="Reference label maps, to compare with.")
]
DescriptionOption = Annotated[
    Path | None,
    typer.Option("--dataset", metavar="DATASET_JSON", help="Names the labels.", show_default="their numbers"),
]
SlicesOption = Annotated[
    int,
    typer.Option(
        "--slices",
        min=1,
        help="Slices of each case: of as many equal parts the one where labels and reference differ most.",
    ),
]
ChannelOption = Annotated[
    int | None,
    typer.Option("--channel", min=0, help="Channel to show, in grey.", show_default="0; pictures in colour"),
]
WindowOption = Annotated[
    str | None,
    typer.Option(
        "--window",
        metavar="LOW,HIGH",
        help="Intensities shown as black and white, such as -160,240 of a CT.",
        show_default="by percentiles",
    ),
]


def overlay(
    images: ImagesArgument,
    labels: LabelsArgument,
    output: OutputOption,
    reference: ReferenceOption = None,
    dataset: DescriptionOption = None,
    slices: SlicesOption = 1,
    channel: ChannelOption = None,
    window: WindowOption = None,
    workers: WorkersOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Draw every label map over its image, each label's outline with a legend: one PNG a case."""
    from umamba_cli.pipeline.data.dataset import read_description
    from umamba_cli.pipeline.workflows.overlay import OverlayOptions, draw_overlays, raise_if_failed

    console = Console(json_output, quiet, verbose)
    options = OverlayOptions(slices, channel, _window(window))
    with console.progress() as on_progress:
        result = draw_overlays(
            images,
            labels,
            output,
            references=reference,
            description=read_description(dataset) if dataset else None,
            options=options,
            workers=workers,
            on_progress=on_progress,
        )
    for note in result.notes:
        console.warn(note)
    document = {"output": output, **vars(result)}
    if result.failed:
        console.result_before_error(document)
    else:
        console.result(document)
    if result.drawn:
        console.say(f"{len(result.drawn)} of {result.total} cases drawn into {output}")
    raise_if_failed(result)


def _window(text: str | None) -> tuple[float, float] | None:
    """`-160,240` as two numbers, the second one larger.

    Raises:
        InputError: it is none.
    """
    import math

    from umamba_cli.pipeline.errors import InputError

    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise InputError(f"there is no window {text!r}", next_step="give two numbers, the lower one first: -160,240")
    return low, high
