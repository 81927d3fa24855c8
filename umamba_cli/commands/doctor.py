"""umamba doctor: what this machine has, and what umamba will use of it."""

from __future__ import annotations

from umamba_cli.commands._console import Console
from umamba_cli.commands._options import JsonOption, QuietOption, VerboseOption


def doctor(json_output: JsonOption = False, quiet: QuietOption = False, verbose: VerboseOption = False) -> None:
    """Show versions, devices, memory, and which scan backend is used and why."""
    from umamba_cli.pipeline.workflows.doctor import examine

    console = Console(json_output, quiet, verbose)
    report = examine()
    console.result(report.to_json())
    for section in report.sections:
        console.table((section.title, "", ""), [(f.name, f.value, f.note) for f in section.findings])
