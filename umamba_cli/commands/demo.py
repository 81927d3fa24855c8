"""umamba demo: the whole way, on a phantom dataset that it draws itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from umamba_cli.commands._console import Console, elapsed, number, show_evaluation
from umamba_cli.commands._options import JsonOption, QuietOption, ThreadsOption, VerboseOption, WorkersOption

DemoWorkspaceOption = Annotated[Path, typer.Option("--workspace", "-w", help="Folder to work in.")]
RestartOption = Annotated[bool, typer.Option("--restart", help="Remove an earlier demo's training and start over.")]


def demo(
    workspace: DemoWorkspaceOption = Path("umamba_demo"),
    restart: RestartOption = False,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Draw a small phantom dataset, then plan, preprocess, train, predict and evaluate: three minutes on two cores."""
    from umamba_cli.pipeline.workflows.demo import run_demo

    console = Console(json_output, quiet, verbose)
    console.log_to(workspace / "logs", "demo")
    began = time.monotonic()
    with console.progress() as on_progress:
        result = run_demo(workspace, restart=restart, workers=workers, threads=threads, on_progress=on_progress)
    evaluation = result.evaluation
    console.result({"workspace": workspace, "picture": result.picture, **evaluation.to_json()})
    console.say(f"umamba-bot on {len(evaluation.cases)} phantoms that it was not trained on:")
    show_evaluation(console, evaluation)
    console.say(f"mean Dice {number(evaluation.foreground_mean.dice)} ({elapsed(began)})")
    console.say(f"image, reference and prediction side by side: {result.picture}")
