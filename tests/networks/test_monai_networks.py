from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from needs_monai import NEEDS_MONAI
from small_trainings import SETTINGS
from test_models import plan
from torch import Tensor, nn

from umamba_cli.pipeline.devices import Compute
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks import registry
from umamba_cli.pipeline.networks.monai_networks import PaddedNetwork
from umamba_cli.pipeline.networks.registry import available_models, build_network
from umamba_cli.pipeline.networks.unet import count_parameters
from umamba_cli.pipeline.training.losses import SegmentationLoss
from umamba_cli.pipeline.workflows.models import model_needs

MODELS = ("segresnet", "unetr", "swin-unetr")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The networks here are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def built(model: str, **changes: Any) -> PaddedNetwork:
    torch.manual_seed(0)
    network = build_network(model, replace(plan(2), **changes))
    assert isinstance(network, PaddedNetwork)
    return network


@NEEDS_MONAI
@pytest.mark.parametrize(("model", "multiple"), [("segresnet", 4), ("unetr", 16), ("swin-unetr", 32)])
def test_padding_and_cutting_change_nothing_but_the_size(model: str, multiple: int) -> None:
    size = (40, 36) if model != "segresnet" else (18, 22)
    strides = ((1, 1), (1, 1), (2, 2))
    network = built(model, patch_size=size, strides=strides).eval()
    x = torch.randn(2, 2, *size)
    larger = network.padded_size(size)
    assert all(n <= m < n + multiple and m % multiple == 0 for n, m in zip(size, larger, strict=True))
    padded = torch.zeros(2, 2, *larger)
    padded[..., : size[0], : size[1]] = x
    with torch.no_grad():
        expected = network.network(padded)[..., : size[0], : size[1]]
        assert torch.equal(network(x), expected)


@NEEDS_MONAI
@pytest.mark.parametrize("model", MODELS)
def test_a_patch_that_fits_is_not_padded(model: str) -> None:
    network = built(model, patch_size=(64, 32))
    assert network.padded_size((64, 32)) == (64, 32)


@NEEDS_MONAI
@pytest.mark.parametrize(
    ("patch_size", "sizes"),
    [((16, 16), [(16, 16), (8, 8), (4, 4)]), ((18, 24), [(18, 24), (9, 12)]), ((17, 24), [(17, 24)])],
)
def test_segresnet_is_supervised_where_the_patch_can_be_halved(
    patch_size: tuple[int, ...], sizes: list[tuple[int, ...]]
) -> None:
    plan_of_5 = replace(
        plan(2),
        patch_size=patch_size,
        features_per_stage=(4,) * 5,
        strides=((1, 1),) * 5,
        kernel_sizes=((3, 3),) * 5,
    )
    network = build_network("segresnet", plan_of_5)
    assert [tuple(y.shape[2:]) for y in network(torch.zeros(1, 2, *patch_size))] == sizes


@NEEDS_MONAI
@pytest.mark.parametrize("model", MODELS)
def test_sizes_that_are_none_of_the_plans_are_refused_with_one_that_is(model: str) -> None:
    network = built(model)
    with pytest.raises(InputError, match="does not fit the network") as error:
        network(torch.zeros(1, 2, 16, 18))
    assert "(16, 20)" in error.value.next_step
    with pytest.raises(InputError, match="multiples of") as error:
        built(model, patch_size=(16, 18))
    assert "(16, 20)" in error.value.next_step


@NEEDS_MONAI
def test_unetr_takes_the_plans_size_alone() -> None:
    network = built("unetr")
    with pytest.raises(InputError, match="bound to one patch size") as error:
        network(torch.zeros(1, 2, 16, 20))
    assert "(16, 16)" in error.value.next_step


@NEEDS_MONAI
@pytest.mark.parametrize("model", ["segresnet", "swin-unetr"])
def test_others_take_other_sizes(model: str) -> None:
    network = built(model).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 2, 20, 12)).shape == (1, 3, 20, 12)


@NEEDS_MONAI
@pytest.mark.parametrize("model", MODELS)
def test_heads_begin_with_the_frequencies(model: str) -> None:
    shares = (0.9, 0.07, 0.03)
    for logits in built(model, class_frequencies=shares)(torch.randn(1, 2, 16, 16)):
        found = logits.softmax(1).mean((0, 2, 3))
        torch.testing.assert_close(found, torch.tensor(shares), rtol=0.25, atol=0)


@NEEDS_MONAI
@pytest.mark.parametrize("model", MODELS)
def test_channels_last_gives_the_same_result_and_bfloat16_a_close_one(model: str) -> None:
    network = built(model).eval()
    x = torch.randn(1, 2, 16, 16)
    expected = network(x).detach()
    network.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        low = network(x)
        sum(y.float().square().mean() for y in network.train()(x)).backward()
    assert float((low - expected).detach().abs().mean() / expected.abs().mean()) < 0.1


@NEEDS_MONAI
@pytest.mark.parametrize("model", MODELS)
def test_nothing_is_random(model: str) -> None:
    network = built(model)
    x = torch.randn(1, 2, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(network(x), network(x), strict=True))


@NEEDS_MONAI
@pytest.mark.parametrize("model", ["unetr", "swin-unetr"])
def test_a_picture_is_learnt_by_heart(model: str) -> None:
    """As test_overfit, where SegResNet is, in seconds."""
    size = (24, 40)
    network = built(model, patch_size=size)
    labels = torch.zeros(1, *size, dtype=torch.long)
    labels[:, 4:14, 4:15], labels[:, 8:20, 22:35] = 1, 2
    x = torch.randn(1, 2, *size) + 1.5 * (labels == 1)[:, None] - 1.5 * (labels == 2)[:, None]
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, nesterov=True)
    for _ in range(50):
        loss = SegmentationLoss(batch_dice=False)(network(x), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), SETTINGS.gradient_clip)
        optimizer.step()
    assert float((network.eval()(x).argmax(1) == labels).float().mean()) > 0.98


@NEEDS_MONAI
@pytest.mark.parametrize("model", MODELS)
def test_memory_is_counted(model: str) -> None:
    compute = Compute(torch.device("cpu"), "bf16", "a test")
    found = available_models()[model], plan(2), replace(SETTINGS, batch_size=1), compute
    needs = model_needs(*found, loss=SegmentationLoss(batch_dice=False))
    assert needs.problem == ""
    assert needs.memory


@NEEDS_MONAI
def test_checkpointing_keeps_less_and_changes_nothing() -> None:
    def gradients(network: nn.Module) -> tuple[int, list[Tensor]]:
        kept = []
        network.zero_grad()
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
            loss = network(torch.randn(1, 2, 16, 16))[0].square().mean()
        loss.backward()
        return sum(kept), [p.grad.clone() for p in network.parameters() if p.grad is not None]

    network = built("swin-unetr")
    assert network.checkpointing is False
    kept, expected = gradients(network)
    network.checkpointing = True
    assert network.checkpointing is True
    less, found = gradients(network)
    assert less < 0.75 * kept
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not hasattr(built("unetr"), "checkpointing")
    assert not hasattr(built("segresnet"), "checkpointing")


@NEEDS_MONAI
@pytest.mark.parametrize(
    ("model", "channels", "parameters"),
    [("segresnet", (4, 3), 18_799_145), ("unetr", (1, 14), 92_784_046), ("swin-unetr", (1, 14), 62_187_296)],
)
def test_at_32_features_they_are_as_large_as_in_the_papers(
    model: str, channels: tuple[int, int], parameters: int
) -> None:
    """What the papers state, and why it differs: benchmarks/_paper_configurations_monai.py."""
    of_paper = replace(
        plan(3),
        input_channels=channels[0],
        outputs=channels[1],
        patch_size=(96,) * 3,
        features_per_stage=(32, 64, 128, 256),
        strides=((1,) * 3, *((2,) * 3,) * 3),
        kernel_sizes=((3,) * 3,) * 4,
    )
    with torch.device("cpu" if model == "swin-unetr" else "meta"):  # MONAI's looks at numbers while it is built
        assert count_parameters(build_network(model, of_paper)) == parameters


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("missing", ["monai", "einops"])
def test_without_monai_they_are_listed_but_refused(model: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name == missing else object())
    assert available_models()[model].missing == "umamba[monai]"
    with pytest.raises(InputError, match=model) as error:
        build_network(model, plan(2))
    assert error.value.next_step == "pip install 'umamba[monai]'"


@NEEDS_MONAI
def test_an_older_monai_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from monai.networks import nets

    def older(img_size: tuple[int, ...]) -> nn.Module:
        raise AssertionError(img_size)

    monkeypatch.setattr(nets, "SwinUNETR", older)
    with pytest.raises(InputError, match="cannot build SwinUNETR") as error:
        build_network("swin-unetr", plan(2))
    assert "--upgrade 'umamba[monai]'" in error.value.next_step


def test_listing_models_does_not_load_monai() -> None:
    script = (
        "import sys; from umamba_cli.pipeline.networks.registry import available_models; available_models(); "
        "sys.exit('monai' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
