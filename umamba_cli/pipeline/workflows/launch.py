"""Starting the processes of one training on several devices of this machine, as `torchrun` does."""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch

from umamba_cli.pipeline.errors import InputError, Stopped

_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
_SECONDS_BETWEEN_LOOKS = 0.2


def require_devices(processes: int, device: str) -> None:
    """Make sure that every process can have a device of its own.

    Raises:
        InputError: there are fewer GPUs than processes, and the CPU was not asked for.
    """
    gpus = torch.cuda.device_count()
    if device != "cpu" and gpus < processes:
        raise InputError(
            f"--gpus {processes}: this machine has {gpus} for torch {torch.__version__}",
            next_step="ask for as many as there are, see `umamba doctor`, or train on the CPU with --device cpu",
        )


def run_processes(arguments: Sequence[str], processes: int) -> int:
    """Run `umamba ARGUMENTS` in several processes that know of each other, and wait for them.

    A signal to this process is handed on to all of them, which get half a minute to keep where they are.

    Args:
        arguments: the command line of each process.
        processes: how many.

    Returns:
        The exit code of the process that failed first, 0 where none did, 130 where a signal ended them.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The processes say themselves what is wrong; the launcher's account of it would hide that.
    logging.disable(logging.CRITICAL)
    can_choose = "signals_to_handle" in {field.name for field in fields(LaunchConfig)}
    handled: dict[str, Any] = {"signals_to_handle": _SIGNALS} if can_choose else {}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=_SECONDS_BETWEEN_LOOKS,
        **handled,  # older versions of torch handle all of them but SIGUSR1
    )
    try:
        elastic_launch(config, sys.executable)("-m", "umamba_cli", *arguments)
    except ChildFailedError as error:
        codes = [failure.exitcode for _, failure in sorted(error.failures.items())]
        return next((code for code in codes if code > 0), 1)
    except SignalException:
        return Stopped.exit_code
    finally:
        logging.disable(logging.NOTSET)
    return 0
