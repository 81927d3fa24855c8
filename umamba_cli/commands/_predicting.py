"""What `predict` and `ensemble` share: their options, and predicting with what was loaded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from umamba_cli.commands._console import Console, elapsed

if TYPE_CHECKING:
    from umamba_cli.pipeline.data.inputs import Found, InputCase
    from umamba_cli.pipeline.inference.predict import Described
    from umamba_cli.pipeline.inference.remote import Loading

InputOption = Annotated[
    list[Path],
    typer.Option(
        "--input",
        "-i",
        help="Folder of images (CASE_0000.nii.gz), an image, a DICOM folder, or a text file with a path in each line; "
        "may be given several times.",
    ),
]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Folder for the label maps.")]
SeriesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--series",
        help="Series of a DICOM folder that holds several: number, description or UID; once for each channel.",
        show_default=False,
    ),
]
MirroringOption = Annotated[bool, typer.Option("--mirroring/--no-mirroring", help="Average over mirrored images.")]
StepOption = Annotated[float, typer.Option("--step", help="Distance between tiles, as a share of the patch.")]
ProbabilitiesOption = Annotated[
    bool, typer.Option("--save-probabilities", help="Write CASE.npz beside each label map.")
]
UncertaintyOption = Annotated[
    bool,
    typer.Option(
        "--save-uncertainty", help="Write uncertainty/CASE: the entropy (nats) of the softmax, averaged over all."
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Predict finished cases again.")]
WatchOption = Annotated[
    bool, typer.Option("--watch", help="Go on with whatever is put into the folder, until Ctrl-C or a TERM signal.")
]
EveryOption = Annotated[
    float,
    typer.Option(
        "--every", min=0.1, max=86400, help="Seconds between two looks of --watch; what stays the same is whole."
    ),
]


@dataclass(frozen=True)
class What:
    """What to predict, and how it is asked for; the options of a command."""

    inputs: Sequence[Path]
    output: Path
    series: Sequence[str]
    shard: str | None
    cluster: str | None
    save_probabilities: bool
    save_uncertainty: bool
    overwrite: bool
    watch: bool
    every_s: float


def refuse_contradictions(what: What) -> None:
    """Refuse options that do not go together, before a model is loaded.

    Raises:
        InputError: they do not.
    """
    from umamba_cli.pipeline.errors import InputError
    from umamba_cli.pipeline.shards import Shard

    if what.shard is not None:
        Shard.parse(what.shard)
    given = {"--overwrite": what.overwrite, "--shard": what.shard is not None, "--cluster": what.cluster is not None}
    if what.watch and any(given.values()):
        others = " and ".join(option for option, is_given in given.items() if is_given)
        raise InputError(f"--watch and {others} do not go together", next_step="leave one of them out")


def predict_with(loading: Loading, what: What, console: Console) -> None:
    """Load the model, find the cases, predict them, and show the result.

    Raises:
        UmambaError: a case could not be predicted.
        InputError: the model cannot be loaded, nothing is there to predict, or nothing of it can be used.
    """
    from umamba_cli.pipeline.inference.export import Wanted
    from umamba_cli.pipeline.inference.predict import predict_cases, raise_if_failed, refuse_same_folder
    from umamba_cli.pipeline.inference.remote import remote_model
    from umamba_cli.pipeline.inference.watch import watch

    began = time.monotonic()
    wanted, overwrite = Wanted(what.save_probabilities, what.save_uncertainty), what.overwrite
    refuse_same_folder(what.inputs, what.output)
    with console.progress() as on_progress:
        if what.cluster is not None:
            with remote_model(what.cluster, loading) as remote:
                cases = _chosen(remote, what, console)
                result = remote.predict_cases(
                    cases, what.output, wanted=wanted, overwrite=overwrite, on_progress=on_progress
                )
        elif what.watch:
            segmenter = loading.load()
            look = partial(_found, segmenter, what)
            result = watch(segmenter, look, what.output, wanted=wanted, every_s=what.every_s, on_progress=on_progress)
        else:
            segmenter = loading.load()
            cases = _chosen(segmenter, what, console)
            result = predict_cases(
                segmenter, cases, what.output, wanted=wanted, overwrite=overwrite, on_progress=on_progress
            )
    document = {"output": what.output, **vars(result)}
    if result.failed:
        console.result_before_error(document)
    else:
        console.result(document)
    skipped = f", {len(result.skipped)} were there already" if result.skipped else ""
    if result.predicted or result.skipped or not result.failed:
        shard = f" of shard {what.shard}" if what.shard else ""
        console.say(
            f"{len(result.predicted)} of {result.total} cases{shard} predicted into {what.output}{skipped} "
            f"({elapsed(began)})"
        )
    raise_if_failed(result)


def _chosen(model: Described, what: What, console: Console) -> Sequence[InputCase]:
    """The cases of the shard, where there is one; what was left out is told of."""
    from umamba_cli.pipeline.data.dataset import composed
    from umamba_cli.pipeline.shards import Shard

    found = _found(model, what)
    for note in found.notes:
        console.warn(note)
    if what.shard is None:
        return found.cases
    return Shard.parse(what.shard).of(found.cases, lambda case: composed(case.identifier))


def _found(model: Described, what: What) -> Found:
    from umamba_cli.pipeline.data.inputs import find_cases

    ending = model.dataset.file_ending
    return find_cases(what.inputs, ending, series=what.series, may_be_empty=what.watch)
