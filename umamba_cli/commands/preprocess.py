"""umamba preprocess: crop, normalise and resample every case."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from umamba_cli.commands._console import Console, elapsed
from umamba_cli.commands._options import (
    ClusterOption,
    JsonOption,
    QuietOption,
    ShardOption,
    VerboseOption,
    WorkersOption,
    WorkspaceArgument,
    refuse_workers_of_cluster,
)

ConfigurationsOption = Annotated[
    list[str] | None,
    typer.Option("--configuration", "-c", help="May be given several times.", show_default="all of the plans"),
]


def preprocess(
    workspace: WorkspaceArgument,
    configuration: ConfigurationsOption = None,
    shard: ShardOption = None,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Prepare the images for training. Finished cases are kept, so it can be run again after a stop."""
    from umamba_cli.pipeline.resources import prepare_workers

    refuse_workers_of_cluster(workers, cluster)
    if cluster is None:
        stage = "umamba_cli.pipeline.preprocessing.dataset"
        prepare_workers(workers, "umamba_cli.cli", stage, "scipy.ndimage", "SimpleITK", "blosc2")

    from umamba_cli.pipeline.data.workspace import open_workspace
    from umamba_cli.pipeline.planning.plans import read_plans
    from umamba_cli.pipeline.preprocessing.dataset import preprocess_workspace
    from umamba_cli.pipeline.shards import Shard

    console = Console(json_output, quiet, verbose)
    part = Shard.parse(shard) if shard else None
    opened = open_workspace(workspace)
    console.log_to(opened.logs, "preprocess")
    plans = read_plans(opened.plans_file)
    names = configuration or list(plans.configurations)
    configurations = [plans.configuration(name) for name in names]  # all of them before work starts
    began = time.monotonic()
    results = []
    for name in names:
        with console.progress() as on_progress:
            results.append(
                preprocess_workspace(
                    opened, name, workers=workers, shard=part, cluster=cluster, on_progress=on_progress
                )
            )
    console.result({"workspace": opened.folder, "configurations": [vars(result) for result in results]})
    for result in results:
        kept = f", {result.kept} of them were there already" if result.kept else ""
        of_shard = f" of shard {part}" if part else ""
        console.say(f"{result.configuration}: {result.cases} cases{of_shard} are preprocessed{kept} ({elapsed(began)})")
    first_stages = [each.name for each in configurations if each.previous_stage is None]
    first = "when all shards are preprocessed, " if part else ""
    console.say(f"next: {first}umamba train {workspace} -c {(first_stages or names)[-1]}")
