"""Options and arguments that several commands share, each declared once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from umamba_cli.pipeline.errors import InputError

DatasetArgument = Annotated[
    Path, typer.Argument(metavar="DATASET", help="Folder in nnU-Net raw layout (dataset.json, imagesTr, labelsTr).")
]
WorkspaceArgument = Annotated[Path, typer.Argument(metavar="WORKSPACE", help="Folder that `umamba plan` made.")]
WorkspaceOption = Annotated[
    Path | None,
    typer.Option("--workspace", "-w", help="Folder to work in.", show_default="umamba_work/DATASETNAME"),
]
ConfigurationOption = Annotated[
    str, typer.Option("--configuration", "-c", help="2d, 3d_fullres, 3d_lowres or 3d_cascade_fullres.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda (or cuda:1) or mps.")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="auto, fp32, bf16 or fp16.")]
BatchSizeOption = Annotated[
    int | None, typer.Option("--batch-size", min=1, help="Patches a step.", show_default="by plans")
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", "-j", min=0, help="Worker processes.", show_default="what cores and memory allow"),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads that compute on a CPU.", show_default="all usable cores")
]
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", metavar="K/N", help="Only the K-th of N parts of the cases.", show_default="all"),
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="ADDRESS",
        help="Send the cases to a Dask scheduler (tcp://HOST:8786), whose workers see the same files.",
        show_default="this machine",
    ),
]
BundleOption = Annotated[Path, typer.Option("--output", "-o", help="Bundle to write (model.zip).")]
BundleOverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")]
FoldsToTakeOption = Annotated[
    list[str] | None,
    typer.Option("--fold", "-f", help="Folds of a folder; may be given several times.", show_default="all finished"),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document to standard output and nothing else there.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no tables.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of an error.")]


def refuse_workers_of_cluster(workers: int | None, cluster: str | None) -> None:
    """Refuse to be told how many workers a cluster has.

    Raises:
        InputError: both options are given.
    """
    if workers is not None and cluster is not None:
        raise InputError(
            "--workers and --cluster do not go together, a cluster has its own",
            next_step="leave one of them out; `dask worker --nworkers` says how many a machine has",
        )


def parse_folds(*texts: str) -> list[int | str]:
    """`0` as [0], `0-4` as [0, 1, 2, 3, 4], `0,2` as [0, 2], `all` as ["all"]; of several, all of them.

    Raises:
        InputError: it is none of these.
    """
    folds: list[int | str] = []
    for part in ",".join(texts).split(",") if texts else ():
        first, dash, last = part.strip().partition("-")
        if not dash:
            folds.append(parse_fold(first))
            continue
        begin, end = parse_fold(first), parse_fold(last)
        if not isinstance(begin, int) or not isinstance(end, int) or end < begin:
            raise InputError(f"there are no folds {part.strip()!r}", next_step="give them as 0-4, 0,2 or all")
        folds += range(begin, end + 1)
    return list(dict.fromkeys(folds))


def split_names(text: str) -> tuple[str, ...]:
    """`unet, umamba-bot` as two names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def given_again(context: typer.Context, *, without: Sequence[str]) -> list[str]:
    """The command line of a command as it was given, to start another process with.

    Args:
        context: of the command.
        without: names of parameters to leave out.
    """
    line = [str(context.info_name)]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.name in without or value is None or value == parameter.get_default(context, call=True):
            continue
        if parameter.param_type_name == "argument":
            line.append(str(value))
        elif value is True:
            line.append(parameter.opts[0])
        else:
            for item in value if isinstance(value, list | tuple) else [value]:
                line += [parameter.opts[0], str(item)]
    return line


def parse_fold(text: str) -> int | str:
    """`0` as 0, `all` as `all`.

    Raises:
        InputError: it is neither.
    """
    if text == "all":
        return text
    if not (text.isascii() and text.isdigit()):
        raise InputError(f"there is no fold {text!r}", next_step="choose a number, or all")
    return int(text)
