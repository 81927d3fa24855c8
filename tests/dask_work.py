"""What the workers of a test's cluster do; light to import, as every new worker must.

`dask worker --preload dask_work` also lets a worker be held in the middle of writing a file, see `DaskProcesses.hold`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from umamba_cli.pipeline.errors import InputError

DEADLY = WRONG = 7


def double_noted(place: tuple[Path, int]) -> int:
    """Note that it was here, then double."""
    folder, number = place
    with (folder / str(number)).open("a") as file:
        file.write("x")
    if number == WRONG:
        raise InputError("seven", details=["its file"], next_step="take another")
    return 2 * number


def double_or_die(number: int) -> int:
    if number == DEADLY:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def touch_and_wait(place: tuple[Path, int]) -> int:
    """Tell that it has begun; all but the first wait until they may end."""
    folder, number = place
    (folder / f"begun_{number}").touch()
    while number and not (folder / "go").exists():
        time.sleep(0.02)
    return number


def dask_setup(worker: object) -> None:
    """Called by Dask: whoever first writes a file that is held leaves half of it, tells so, and waits to be killed."""
    from umamba_cli.pipeline.data import files

    replacing = files.replacing
    held = Path(os.environ["UMAMBA_TEST_HELD"])

    @contextmanager
    def replacing_or_held(path: Path) -> Iterator[Path]:
        with replacing(path) as temporary:
            if (held / path.name).exists():
                (held / path.name).unlink()
                temporary.write_bytes(b"half")
                told = held / f"{path.name}.pid"
                told.with_suffix(".part").write_text(str(os.getpid()))
                told.with_suffix(".part").rename(told)
                time.sleep(3600)
            yield temporary

    files.replacing = replacing_or_held  # before whatever writes has imported it
