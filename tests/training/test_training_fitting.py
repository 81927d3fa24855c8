from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from umamba_cli.pipeline.devices import Compute, out_of_memory
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks.registry import NetworkPlan, build_network
from umamba_cli.pipeline.training import fitting
from umamba_cli.pipeline.training.fitting import (
    HEADROOM,
    Suggestion,
    memory_error,
    memory_to_plan_for,
    require_memory,
    what_would_fit,
)
from umamba_cli.pipeline.training.losses import SegmentationLoss
from umamba_cli.pipeline.training.memory import training_memory
from umamba_cli.pipeline.training.settings import TrainingSettings

LOSS = SegmentationLoss(batch_dice=False)
BATCH = 6


def plan(patch: tuple[int, ...] = (32, 32)) -> NetworkPlan:
    axes = len(patch)
    return NetworkPlan(
        input_channels=1,
        outputs=2,
        patch_size=patch,
        features_per_stage=(8, 16),
        strides=((1,) * axes, (2,) * axes),
        kernel_sizes=((3,) * axes,) * 2,
        convolutions_per_stage=(1, 1),
        convolutions_per_stage_decoder=(1,),
        blocks_per_stage=(1, 1),
        blocks_per_stage_decoder=(1,),
    )


def settings(batch_size: int = BATCH) -> TrainingSettings:
    return TrainingSettings(epochs=1, iterations=1, batch_size=batch_size, validation_iterations=1)


def compute(precision: str = "fp32", device: str = "cpu") -> Compute:
    return Compute(torch.device(device), precision, "asked for")


def network() -> nn.Module:
    with torch.device("meta"):
        return build_network("umamba-bot", plan())


@functools.cache
def peak(batch_size: int = BATCH, precision: str = "fp32", *, checkpointing: bool = False) -> int:
    counted = network()
    counted.checkpointing = checkpointing  # type: ignore[assignment]
    return training_memory(counted, plan(), settings(batch_size), compute(precision), loss=LOSS).peak_bytes


def options(free_bytes: int, *, precisions: Sequence[str] = (), counted: nn.Module | None = None) -> list[str]:
    suggestions = what_would_fit(
        counted or network(), plan(), settings(), compute(), free_bytes, loss=LOSS, precisions=precisions
    )
    for suggestion in suggestions:
        assert suggestion.peak_bytes * HEADROOM <= free_bytes
    return [suggestion.options for suggestion in suggestions]


def with_room(peak_bytes: int) -> int:
    """So much free memory that an option of this peak is named, and none of more."""
    return int(peak_bytes * HEADROOM) + 2


def test_all_options_that_fit_are_named_those_that_change_least_first() -> None:
    free = with_room(peak(precision="bf16"))
    assert peak(5) > peak(precision="bf16") > peak(checkpointing=True) > peak(1)  # as the answer below supposes
    found = options(free, precisions=["bf16"])
    assert found[:2] == ["--checkpointing", "--precision bf16"]
    assert len(found) == 3
    assert found[2].startswith("--batch-size ")


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_largest_batch_that_fits_is_named(batch_size: int) -> None:
    assert f"--batch-size {batch_size}" in options(with_room(peak(batch_size)))
    assert f"--batch-size {batch_size}" not in options(with_room(peak(batch_size)) - 4)


def test_options_are_put_together_where_none_is_enough() -> None:
    both = peak(precision="bf16", checkpointing=True)
    assert both < min(peak(precision="bf16"), peak(checkpointing=True))
    assert options(with_room(both), precisions=["bf16"])[0] == "--precision bf16 --checkpointing"


def test_a_smaller_batch_is_put_together_with_other_options_too() -> None:
    free = with_room(peak(2, checkpointing=True))
    assert peak(checkpointing=True) > peak(2, checkpointing=True)
    found = options(free)
    assert found[-1] == "--batch-size 2 --checkpointing"
    assert all("--batch-size" in option for option in found)


def test_nothing_fits_into_nothing() -> None:
    assert options(peak(1, checkpointing=True) // 2) == []


def test_memory_that_ran_out_all_the_same_leaves_what_takes_less() -> None:
    """As on a GPU in pieces: counted to fit, and it did not."""
    assert options(10 * peak()) == ["--checkpointing", f"--batch-size {BATCH - 1}"]


class Foreign(nn.Module):
    """A network of others: it knows no checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.conv(x)]


class LooksAtValues(Foreign):
    """Cannot be counted."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return super().forward(x if x.sum().item() > 0 else -x)


def test_networks_of_others() -> None:
    needed = training_memory(Foreign(), plan(), settings(), compute(), loss=LOSS).peak_bytes
    found = options(needed, counted=Foreign())
    assert len(found) == 1
    assert found[0].startswith("--batch-size ")
    assert options(needed, counted=LooksAtValues()) == []
    require_memory(LooksAtValues(), plan(), settings(), compute(), 0, loss=LOSS)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_network_is_left_as_it_is(*, checkpointing: bool) -> None:
    asked = network()
    asked.checkpointing = checkpointing  # type: ignore[assignment]
    found = options(with_room(peak(1, checkpointing=True)), counted=asked)
    assert asked.checkpointing is checkpointing
    assert any("--checkpointing" in option for option in found) is not checkpointing


def test_a_precision_has_a_remark_only_where_it_is_known() -> None:
    lines = [
        str(Suggestion("--batch-size 1", 5210 * 2**20, "")),
        str(Suggestion("--checkpointing", 4100 * 2**20, "a quarter slower, same results")),
    ]
    assert lines == ["--batch-size 1: 5,210 MiB", "--checkpointing: 4,100 MiB (a quarter slower, same results)"]


def test_a_cpu_without_room_is_refused_with_what_would_fit() -> None:
    asked, needed = network(), peak()
    require_memory(asked, plan(), settings(), compute(), needed, loss=LOSS)
    with pytest.raises(InputError, match=f"batch of {BATCH} in fp32 needs about") as error:
        require_memory(asked, plan(), settings(), compute(), needed - 1, loss=LOSS, precisions=["bf16"])
    assert any(line.startswith("--checkpointing: ") and "same results" in line for line in error.value.details)
    assert any(line.startswith("--precision bf16: ") for line in error.value.details)
    assert error.value.next_step.startswith("take one of these options, or choose a model that takes less")


def test_the_last_resort_is_another_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "memory_to_plan_for", lambda *_: 5.5)
    monkeypatch.setattr(fitting, "_GIB", 1)  # the networks here are a billion times smaller than real ones
    error = memory_error(network(), plan(), settings(), compute(), peak(1, checkpointing=True) // 2, loss=LOSS)
    assert error.details == ()
    assert error.next_step == "plan again with `umamba plan DATASET --memory 5.5`"
    monkeypatch.setattr(fitting, "_GIB", 2**30)  # for more than is free nobody need plan
    error = memory_error(network(), plan(), settings(), compute(), peak(1, checkpointing=True) // 2, loss=LOSS)
    assert "--memory" not in error.next_step


def test_a_gpu_is_tried_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(*_: object, **__: object) -> None:
        raise AssertionError("counted")

    monkeypatch.setattr(fitting, "training_memory", count)
    require_memory(network(), plan(), settings(), compute(device="cuda"), 0, loss=LOSS)


def test_what_cannot_be_counted_is_said_without_figures() -> None:
    error = memory_error(LooksAtValues(), plan(), settings(), compute(), 2**20, loss=LOSS)
    assert error.problem == "a training step with a batch of 6 in fp32 does not fit into the 1 MiB that are free on cpu"
    assert error.details == ()
    assert error.next_step.endswith("or plan again with `umamba plan DATASET --preset cpu`")


def test_the_memory_to_plan_for_is_the_present_plan_s_by_what_is_missing() -> None:
    features, strides = (32, 64, 128, 256, 320, 320), ((1,) * 3, *((2,) * 3 for _ in range(5)))
    default = NetworkPlan(
        input_channels=1,
        outputs=3,
        patch_size=(128, 128, 128),
        features_per_stage=features,
        strides=strides,
        kernel_sizes=((3,) * 3,) * 6,
        convolutions_per_stage=(2,) * 6,
        convolutions_per_stage_decoder=(2,) * 5,
        blocks_per_stage=(2,) * 6,
        blocks_per_stage_decoder=(2,) * 5,
    )
    # nnU-Net plans 128x128x128 and a batch of 2 for 8 GB: with as much free as the step needs, that less the headroom.
    whole = memory_to_plan_for(default, 2, 1000, 1000)
    assert whole is not None
    assert 5 < whole < 8 / HEADROOM  # it takes most of them, as the next larger patch would not have fitted
    assert memory_to_plan_for(default, 2, 1000, 500) == pytest.approx(whole / 2, abs=0.1)
    assert memory_to_plan_for(default, 2, 1000, 100) is None


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 7.9 GB)"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_errors_that_say_that_memory_ran_out(error: BaseException, is_one: bool) -> None:
    assert out_of_memory(error) is is_one


def test_what_torch_really_raises() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50)
    assert out_of_memory(error.value)
