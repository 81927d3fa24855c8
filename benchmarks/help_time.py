"""How long `umamba --help` takes, against a Typer app with two empty commands."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _report import Bar, Parser, finish

EMPTY = """
import typer
app = typer.Typer()

@app.command()
def one() -> None: ...

@app.command()
def two() -> None: ...

app()
"""


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "empty.py"
        script.write_text(EMPTY)
        commands = {
            "empty Typer app": [sys.executable, str(script), "--help"],
            "umamba": [sys.executable, "-m", "umamba_cli", "--help"],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(arguments.runs + 1):
            for name, command in commands.items():  # in turn, so that both meet the same noise
                began = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "umamba_cli", "--help"], check=True, capture_output=True, text=True
    ).stderr
    bars = [
        Bar("umamba --help / empty app", medians["umamba"] / medians["empty Typer app"], 1.5, at_most=True),
        Bar("torch imported", float("| torch\n" in loaded), 0, at_most=True),
    ]
    finish(("program", "seconds"), list(medians.items()), bars, as_json=arguments.json)


if __name__ == "__main__":
    main()
