from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal, get_args

import pytest
import torch
from torch import Tensor, nn

from umamba_cli.pipeline.devices import Compute
from umamba_cli.pipeline.errors import InputError, WorkError
from umamba_cli.pipeline.networks.architecture import Mixer, ScanDirections
from umamba_cli.pipeline.networks.registry import Model, NetworkPlan, build_network
from umamba_cli.pipeline.training.losses import SegmentationLoss
from umamba_cli.pipeline.training.memory import TrainingMemory, training_memory
from umamba_cli.pipeline.training.schedule import new_optimizer
from umamba_cli.pipeline.training.settings import TrainingSettings
from umamba_cli.pipeline.workflows.models import model_needs

FLOAT, INTEGER, HALF = 4, 8, 2  # bytes
LOSS = SegmentationLoss(batch_dice=False)


def _plan(size: int = 16, axes: int = 3, classes: int = 2) -> NetworkPlan:
    return NetworkPlan(
        input_channels=1,
        outputs=classes,
        patch_size=(size,) * axes,
        features_per_stage=(8, 16),
        strides=((1,) * axes, (2,) * axes),
        kernel_sizes=((3,) * axes,) * 2,
        convolutions_per_stage=(2, 2),
        convolutions_per_stage_decoder=(2,),
        blocks_per_stage=(2, 2),
        blocks_per_stage_decoder=(2,),
    )


def _settings(batch_size: int = 1) -> TrainingSettings:
    return TrainingSettings(epochs=1, iterations=1, batch_size=batch_size, validation_iterations=1)


def _compute(precision: str = "fp32") -> Compute:
    return Compute(torch.device("cpu"), precision, "asked for")


def _count(network: nn.Module, plan: NetworkPlan, batch_size: int = 1, precision: str = "fp32") -> TrainingMemory:
    return training_memory(network, plan, _settings(batch_size), _compute(precision), loss=LOSS)


class OneConvolution(nn.Module):
    """A 1x1x1 convolution from one channel to two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.conv(x)]


def test_one_convolution_by_hand() -> None:
    voxels = 4**3
    memory = _count(OneConvolution(), _plan(size=4))
    assert memory.parameter_bytes == memory.gradient_bytes == memory.optimizer_bytes == (2 + 2) * FLOAT
    assert memory.batch_bytes == voxels * (FLOAT + INTEGER)
    # The convolution keeps its input and weight, which are the batch and a parameter. Of the loss: the logarithms of
    # the probabilities and the sum of the weights (cross-entropy), the probabilities, the foreground's target, and the
    # quotient's two numbers (Dice).
    in_loss = 2 * voxels * FLOAT + FLOAT + 2 * voxels * FLOAT + voxels * FLOAT + 2 * FLOAT
    assert memory.saved_bytes == in_loss
    # In bfloat16 the convolution keeps its own copies of the image and of the two weights.
    assert _count(OneConvolution(), _plan(size=4), precision="bf16").saved_bytes == in_loss + (voxels + 2) * HALF


def test_the_peak_holds_all_parts_and_what_the_loss_makes() -> None:
    memory = _count(OneConvolution(), _plan(size=4))
    kept = memory.parameter_bytes + memory.optimizer_bytes + memory.batch_bytes + memory.saved_bytes
    logits = 2 * 4**3 * FLOAT
    assert memory.peak_bytes > kept + logits


class Shared(OneConvolution):
    """A parameter and a result that are used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv3d(1, 2, 1)
        self.again.weight = self.conv.weight
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        y = (self.conv(x) + self.again(x)).sigmoid()
        return [y * y]


def test_what_is_shared_counts_once() -> None:
    memory, single = _count(Shared(), _plan(size=4)), _count(OneConvolution(), _plan(size=4))
    assert memory.parameter_bytes == (2 + 2 + 2 + 3) * FLOAT
    assert memory.gradient_bytes == (2 + 2 + 2) * FLOAT
    assert memory.saved_bytes == single.saved_bytes + 2 * 4**3 * FLOAT  # the sigmoid, for itself and for the product


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("axes", [2, 3])
def test_grows_with_the_batch_in_a_straight_line(axes: int, precision: str) -> None:
    plan = _plan(axes=axes)
    with torch.device("meta"):
        network = build_network("umamba-none", plan)
    one, two, three = (_count(network, plan, batch, precision) for batch in (1, 2, 3))
    assert three.saved_bytes - two.saved_bytes == two.saved_bytes - one.saved_bytes > 0
    assert three.batch_bytes == 3 * one.batch_bytes
    assert three.parameter_bytes == one.parameter_bytes
    assert one.peak_bytes < two.peak_bytes < three.peak_bytes


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("model", ["resenc", "umamba-enc"])
def test_checkpointing_takes_less(model: str, precision: str) -> None:
    with torch.device("meta"):
        network = build_network(model, _plan())
    without = _count(network, _plan(), precision=precision)
    network.checkpointing = True  # type: ignore[assignment]
    memory = _count(network, _plan(), precision=precision)
    assert memory.saved_bytes < without.saved_bytes / 4
    assert memory.peak_bytes < 0.9 * without.peak_bytes
    assert memory.gradient_bytes == without.gradient_bytes == memory.parameter_bytes


@pytest.mark.parametrize("directions", get_args(ScanDirections))
@pytest.mark.parametrize("mixer", get_args(Mixer))
def test_every_mixer_can_be_counted(mixer: Mixer, directions: ScanDirections) -> None:
    plan = dataclasses.replace(_plan(), mixer=mixer, scan_directions=directions)
    with torch.device("meta"):
        network, without = build_network("umamba-bot", plan), build_network("umamba-none", plan)
    memory, of_none = _count(network, plan, 2), _count(without, plan, 2)
    paths = {"forward": 1, "both": 2, "axes": 6}[directions]
    inner = (32 + (128 if mixer == "mamba2" else 0)) * 2 * 8**3 * FLOAT  # what the convolution takes: x, or x, B and C
    assert paths * inner < memory.saved_bytes - of_none.saved_bytes < (6 + 10 * paths) * inner
    assert memory.peak_bytes > of_none.peak_bytes
    assert memory.gradient_bytes == memory.parameter_bytes > of_none.parameter_bytes


def test_checkpointing_keeps_what_stands_between_the_stages() -> None:
    """The stem's and the stages' maps; the heads keep what they take, and those of the loss their part."""
    with torch.device("meta"):
        network = build_network("umamba-none", _plan(size=16))
    network.checkpointing = True  # type: ignore[assignment]
    memory = _count(network, _plan(size=16))
    stem, first, second, decoder = 8 * 16**3, 8 * 16**3, 16 * 8**3, 8 * 16**3
    in_loss = (2 * 2 + 1) * 16**3
    assert memory.saved_bytes == pytest.approx((stem + first + second + decoder + in_loss) * FLOAT, rel=0.01)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_optimizers_state(optimizer: Literal["sgd", "adamw"]) -> None:
    settings = dataclasses.replace(_settings(), optimizer=optimizer)
    memory = training_memory(OneConvolution(), _plan(size=4), settings, _compute(), loss=LOSS)
    numbers = 1 if optimizer == "sgd" else 2
    assert memory.optimizer_bytes - numbers * memory.parameter_bytes in (0, 2 * FLOAT)  # AdamW counts its steps


def _allocated(network: nn.Module, plan: NetworkPlan, precision: str, file: Path) -> tuple[int, int]:
    """What the allocator reports of a real second step: bytes added by the forward pass and loss, bytes at the peak."""
    from torch.profiler import ProfilerActivity, profile, record_function

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        optimizer = new_optimizer(network.parameters(), _settings())
        images = torch.randn(2, 1, *plan.patch_size).to(memory_format=torch.channels_last_3d)
        labels = torch.randint(0, 2, (2, *plan.patch_size))
        for step in range(2):
            optimizer.zero_grad(set_to_none=True)
            with record_function(f"before {step}"):
                pass
            with _compute(precision).autocast():
                outputs = network(images)
            loss = LOSS(outputs, labels)
            with record_function(f"forward {step}"):
                pass
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            del outputs, loss
    profiler.export_chrome_trace(str(file))
    now, levels, peak = 0, {}, 0
    for event in sorted(json.loads(file.read_text())["traceEvents"], key=lambda e: float(e.get("ts", 0))):
        if event.get("name") == "[memory]":
            now += event["args"]["Bytes"]
        elif str(event.get("name")).startswith(("before", "forward")):
            levels.setdefault(event["name"], now)
        peak = max(peak, now) if "before 1" in levels else 0
    return levels["forward 1"] - levels["before 1"], peak


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["unet", "umamba-none"])
def test_agrees_with_the_allocator(model: str, precision: str, tmp_path: Path, *, checkpointing: bool) -> None:
    plan = _plan(size=32)
    network = build_network(model, plan).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    network.checkpointing = checkpointing
    memory = _count(network, plan, 2, precision)
    saved, peak = _allocated(network, plan, precision, tmp_path / "trace.json")
    logits = 2 * 2 * 32**3 * (FLOAT if precision == "fp32" else HALF)  # they are there, but not saved
    assert memory.saved_bytes == pytest.approx(saved - logits, rel=0.05)
    # The allocator's peak lacks the parameters, which were there before it was listened to.
    counted = memory.peak_bytes - memory.parameter_bytes
    assert counted == pytest.approx(peak, rel=(0.1 if checkpointing else 0.06) if precision == "fp32" else 0.2)
    assert (
        counted <= 1.02 * peak
    )  # the count lacks what norms, and convolutions in bfloat16, allocate inside themselves


def test_a_network_is_left_as_it_is() -> None:
    network = build_network("unet", _plan())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random_state = torch.get_rng_state()
    _count(network, _plan())
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(type(parameter) is nn.Parameter and parameter.grad is None for parameter in network.parameters())


class NotesLayouts(nn.Module):
    """Notes whether what it meets is in channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        self.found = [t.is_contiguous(memory_format=torch.channels_last_3d) for t in (x, self.conv.weight)]
        return [self.conv(x)]


def test_runs_in_the_memory_format_of_a_training() -> None:
    network = NotesLayouts()
    _count(network, dataclasses.replace(_plan(), input_channels=2))
    assert network.found == [True, True]


class LooksAtValues(OneConvolution):
    """Cannot run without data."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return super().forward(x if x.sum().item() > 0 else -x)


class LooksAtValuesWhenBuilt(OneConvolution):
    """Cannot be built without data."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = torch.linspace(0, 1, 3).tolist()


def test_a_network_that_looks_at_values_is_said_to() -> None:
    with pytest.raises(WorkError, match="cannot be counted: DataDependentOutputException"):
        _count(LooksAtValues(), _plan())
    needs = model_needs(Model("x", lambda plan: LooksAtValues(), ""), _plan(), _settings(), _compute(), loss=LOSS)
    assert needs.memory is None
    assert needs.parameters == 4
    assert "cannot be counted" in needs.problem


def test_a_model_that_needs_values_while_it_is_built_is_counted_all_the_same() -> None:
    needs = [
        model_needs(Model("x", lambda plan: kind(), ""), _plan(), _settings(), _compute(), loss=LOSS)  # noqa: B023
        for kind in (LooksAtValuesWhenBuilt, OneConvolution)
    ]
    assert needs[0] == needs[1]
    assert needs[0].memory is not None


def test_a_patch_that_does_not_fit_is_refused_as_in_training() -> None:
    with torch.device("meta"):
        network = build_network("unet", _plan())
    with pytest.raises(InputError, match="does not fit the network"):
        _count(network, _plan(size=17))


@pytest.mark.gpu
def test_agrees_with_the_allocator_of_a_gpu() -> None:
    plan = _plan(size=64)
    compute = Compute(torch.device("cuda"), "bf16", "asked for")
    network = build_network("unet", plan).to(compute.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    memory = training_memory(network, plan, _settings(2), compute, loss=LOSS)
    optimizer = new_optimizer(network.parameters(), _settings(2))
    images = torch.randn(2, 1, *plan.patch_size, device="cuda").to(memory_format=torch.channels_last_3d)
    labels = torch.randint(0, 2, (2, *plan.patch_size), device="cuda")
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        with compute.autocast():
            outputs = network(images)
        LOSS(outputs, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        del outputs
    assert memory.peak_bytes == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.15)
