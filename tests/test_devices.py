from __future__ import annotations

import pytest
import torch

from umamba_cli.pipeline import devices
from umamba_cli.pipeline.devices import Compute, choose_compute, free_device_bytes, lower_precisions
from umamba_cli.pipeline.errors import InputError


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that says it has two GPUs: the first with compute capability 7.5, the second with 8.0."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with_capability(monkeypatch, {None: (7, 5), 0: (7, 5), 1: (8, 0)})
    monkeypatch.setattr(torch.version, "hip", None)
    return monkeypatch


def with_capability(monkeypatch: pytest.MonkeyPatch, capabilities: dict[int | None, tuple[int, int]]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device.index])


@pytest.mark.parametrize(
    ("capability", "precision", "words"),
    [
        ((9, 0), "bf16", "bfloat16"),
        ((8, 0), "bf16", "bfloat16"),
        ((7, 5), "fp16", "capability 7.5) is fast in float16 and has no bfloat16"),
        ((7, 0), "fp16", "capability 7.0"),
        ((6, 1), "fp32", "capability 6.1) is not fast in bfloat16 or float16"),
    ],
)
def test_the_best_precision_of_a_gpu(
    gpu: pytest.MonkeyPatch, capability: tuple[int, int], precision: str, words: str
) -> None:
    with_capability(gpu, {None: capability})
    compute = choose_compute()
    assert (compute.device.type, compute.precision) == ("cuda", precision)
    assert words in compute.reason


@pytest.mark.usefixtures("gpu")
def test_each_gpu_is_asked_for_itself() -> None:
    assert [choose_compute(f"cuda:{i}").precision for i in (0, 1)] == ["fp16", "bf16"]


def test_amds_gpus_have_bfloat16(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.version, "hip", "6.2")
    assert choose_compute().precision == "bf16"


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_never_takes_float16_by_itself(
    monkeypatch: pytest.MonkeyPatch, *, has_bf16: bool, precision: str
) -> None:
    monkeypatch.setattr(devices, "_cpu_has_bf16", lambda: has_bf16)
    compute = choose_compute("cpu")
    assert compute.precision == precision
    assert "CPU" in compute.reason


def test_a_cpu_refuses_float16_by_name() -> None:
    with pytest.raises(InputError, match="CPU does not compute in fp16") as error:
        choose_compute("cpu", "fp16")
    assert "--precision" in error.value.next_step


def test_mps_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    compute = choose_compute("mps")
    assert (compute.precision, compute.reason) == ("fp32", "the mps has no fast bfloat16")


@pytest.mark.usefixtures("gpu")
def test_what_is_asked_for_is_taken() -> None:
    assert choose_compute("cuda", "fp32").precision == "fp32"
    with pytest.raises(InputError, match="no precision 'half'"):
        choose_compute("cuda", "half")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("device", "precision", "lower"),
    [("cuda:0", "fp32", ("fp16",)), ("cuda:1", "fp32", ("bf16",)), ("cuda:0", "fp16", ()), ("cuda:1", "bf16", ())],
)
def test_lower_precisions(device: str, precision: str, lower: tuple[str, ...]) -> None:
    assert lower_precisions(Compute(torch.device(device), precision, "asked for")) == lower


def test_memory_that_torch_keeps_is_free_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 8000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 200)
    assert free_device_bytes(torch.device("cuda")) == 1300


@pytest.mark.parametrize(("threads", "taken"), [(None, 3), (1, 1), (5, 5), (12, 12), (1_000_000, 12)])
def test_no_more_threads_than_some_a_core(monkeypatch: pytest.MonkeyPatch, threads: int | None, taken: int) -> None:
    counts: list[int] = []
    monkeypatch.setattr(devices, "usable_cores", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    devices.use_threads(threads)
    assert counts == [taken]
