from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks.registry import NetworkPlan, build_network
from umamba_cli.pipeline.networks.unetr_plus_plus import (
    AttentionBlock,
    PairedAttention,
    PatchEmbedding,
    UNETRPlusPlus,
    _normalise_tokens,
    _softmax,
)

PLAN = NetworkPlan(
    input_channels=1,
    outputs=3,
    patch_size=(4, 16, 16),
    features_per_stage=(4, 6, 8),
    strides=((1, 1, 1), (1, 4, 4), (2, 2, 2)),
    kernel_sizes=((1, 3, 3), (1, 3, 3), (3, 3, 3)),
    convolutions_per_stage=(2, 2, 2),
    convolutions_per_stage_decoder=(2, 2),
    blocks_per_stage=(1, 2, 1),
    blocks_per_stage_decoder=(1, 2),
)
IMAGE = (1, 1, *PLAN.patch_size)


def attention(width: int, tokens: int, projected_tokens: int, heads: int) -> PairedAttention:
    """In float64, with weights that leave nothing near 0 or 1."""
    torch.manual_seed(0)
    layer = PairedAttention(width, tokens, projected_tokens, heads).double()
    for p in layer.parameters():
        nn.init.normal_(p)
    return layer


def softmax(scores: Any) -> Any:
    shares = np.exp(scores)
    return shares / shares.sum(-1, keepdims=True)


def test_paired_attention_by_hand() -> None:
    """Three tokens of four channels, two heads, two projected tokens; a matrix a head, as the equations have them."""
    layer = attention(4, 3, 2, 2)
    x = torch.randn(1, 3, 4, dtype=torch.float64)
    weights = {name: p.detach().numpy() for name, p in layer.named_parameters()}
    Q, K, V_space, V_channels = np.split(x[0].numpy() @ weights["qkvv_proj.weight"].T, 4, axis=1)
    Q_unit, K_unit = Q / np.sqrt((Q**2).sum(0)), K / np.sqrt((K**2).sum(0))
    E, b = weights["E.weight"], weights["E.bias"][:, None]
    space, channels = [], []
    for head in range(2):
        at = np.s_[:, 2 * head : 2 * head + 2]
        K_projected, V_projected = E @ K[at] + b, E @ V_space[at] + b
        A_space = softmax(weights["temperature_space"][head] * Q_unit[at] @ K_projected.T)
        A_channels = softmax(weights["temperature_channels"][head] * Q_unit[at].T @ K_unit[at])
        space.append(A_space @ V_projected)
        channels.append(V_channels[at] @ A_channels.T)
    expected = np.hstack(
        [
            np.hstack(space) @ weights["out_space.weight"].T + weights["out_space.bias"],
            np.hstack(channels) @ weights["out_channels.weight"].T + weights["out_channels.bias"],
        ]
    )
    np.testing.assert_allclose(layer(x)[0].detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("part", "changes_space", "changes_channels"),
    [("queries", True, True), ("keys", True, True), ("values 1", True, False), ("values 2", False, True)],
)
def test_queries_and_keys_are_shared_and_values_are_not(part: str, changes_space: bool, changes_channels: bool) -> None:
    layer = attention(8, 5, 3, 2)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    before = layer(x)
    first = 8 * ("queries", "keys", "values 1", "values 2").index(part)
    with torch.no_grad():
        layer.qkvv_proj.weight[first : first + 8] += torch.randn(8, 8, dtype=torch.float64)
    space, channels = (layer(x) - before).detach().abs().split(4, dim=-1)
    assert bool((space > 1e-9).any()) == changes_space
    assert bool((channels > 1e-9).any()) == changes_channels


@pytest.mark.parametrize("tokens", [256, 2048])
def test_the_cost_is_linear_in_the_tokens(tokens: int) -> None:
    def multiply_adds(tokens: int) -> int:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            PairedAttention(16, tokens, 64, 4)(torch.empty(1, tokens, 16))
        return counter.get_total_flops() // 2

    C, D, P = 16, 4, 64
    assert multiply_adds(tokens) == tokens * (4 * C * C + 4 * C * P + 2 * C * D + C * C)
    assert multiply_adds(2 * tokens) == 2 * multiply_adds(tokens)


@pytest.mark.parametrize("axes", [2, 3])
def test_a_block_knows_the_positions_and_adds_its_input(axes: int) -> None:
    size = (4, 3, 2)[:axes]
    tokens = int(np.prod(size))
    block = AttentionBlock(6, tokens, 64, (3,) * axes).double()
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    assert block.gamma_C.tolist() == pytest.approx([1e-6] * 6)  # at first convolutions alone
    assert set(block.position_LC.flatten().tolist()) == {0}
    nn.init.normal_(block.position_LC)
    for nothing in (block.gamma_C, *block.conv1.parameters()):
        nn.init.zeros_(nothing)
    position = block.position_LC.T.reshape(6, *size)
    torch.testing.assert_close(block(x), x + position)
    nn.init.constant_(block.gamma_C, 0.5)
    tokens_BLC = (x + position).reshape(2, 6, -1).mT
    share = block.attention(block.norm(tokens_BLC)).mT.reshape(x.shape)
    torch.testing.assert_close(block(x), x + position + 0.5 * share)
    nn.init.normal_(block.conv1.weight)
    before = x + position + 0.5 * share
    torch.testing.assert_close(block(x), before + block.conv1(block.conv3(before)))


@pytest.mark.parametrize(("width", "tokens", "heads", "projected"), [(8, 100, 4, 64), (6, 9, 3, 9), (7, 64, 1, 64)])
def test_heads_divide_the_width_and_no_tokens_are_made_up(width: int, tokens: int, heads: int, projected: int) -> None:
    layer = AttentionBlock(width, tokens, 64, (3, 3)).attention
    assert layer.heads == heads
    assert tuple(layer.E.weight.shape) == (projected, tokens)
    assert layer(torch.randn(1, tokens, width)).shape == (1, tokens, width)


def test_a_patch_embedding_looks_at_each_voxel_once() -> None:
    layer = PatchEmbedding(1, 2, (2, 4)).conv
    x = torch.randn(1, 1, 4, 12)
    changed = x.clone()
    changed[..., 1, 4] += 1
    difference = (layer(changed) - layer(x)).abs().sum(1)[0].detach()
    assert difference.shape == (2, 3)
    assert torch.nonzero(difference).tolist() == [[0, 1]]


def test_another_size_is_refused_with_the_plans() -> None:
    network = build_network("unetr++", PLAN)
    with pytest.raises(InputError, match="bound to one patch size") as error:
        network(torch.zeros(1, 1, 4, 16, 32))
    assert "(4, 16, 16)" in error.value.next_step


@pytest.mark.parametrize(
    "change",
    [
        {"strides": ((1, 1, 1), (1, 2, 2))},
        {"strides": ((1, 2, 2), (1, 1, 1), (2, 2, 2))},
        {"patch_size": (3, 16, 16)},
    ],
)
def test_a_plan_that_does_not_suit_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        build_network("unetr++", replace(PLAN, **change))


def test_the_first_embedding_takes_the_image_and_the_skip_is_added() -> None:
    torch.manual_seed(0)
    network = build_network("unetr++", PLAN).eval()
    assert isinstance(network, UNETRPlusPlus)
    seen: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if name in ("full_resolution", "embeddings.0", "upsamplings.0.conv", "decoder.0.0"):
            module.register_forward_hook(
                lambda _, given, y, name=name: seen.update({name: y, f"into {name}": given[0]})
            )
    image = torch.randn(IMAGE)
    network(image)
    assert seen["into embeddings.0"] is image
    torch.testing.assert_close(seen["into decoder.0.0"], seen["upsamplings.0.conv"] + seen["full_resolution"])


@pytest.mark.parametrize(
    ("steps", "attending"),
    [((2, 2, 2, 2), (2, 3, 4)), ((4, 2, 2), (1, 2, 3)), ((2, 2), (2,)), ((2,), (1,)), ((1, 2, 4), (3,))],
)
def test_attention_begins_at_a_quarter_of_the_resolution(steps: tuple[int, ...], attending: tuple[int, ...]) -> None:
    stages = 1 + len(steps)
    plan = replace(
        PLAN,
        patch_size=(32, 32),
        features_per_stage=(4,) * stages,
        strides=((1, 1), *((1, step) for step in steps)),
        kernel_sizes=((3, 3),) * stages,
        blocks_per_stage=(1,) * stages,
        blocks_per_stage_decoder=(1,) * (stages - 1),
    )
    network = build_network("unetr++", plan)
    assert isinstance(network, UNETRPlusPlus)
    found = [stage for stage, blocks in enumerate(network.encoder, 1) if isinstance(blocks[0], AttentionBlock)]
    assert tuple(found) == attending
    of_decoder = [stage for stage, blocks in enumerate(network.decoder) if isinstance(blocks[0], AttentionBlock)]
    assert of_decoder == [stage for stage in found if stage < stages - 1]


def test_attention_in_float16_is_computed_in_float32() -> None:
    scores = torch.tensor([60_000.0, 59_968.0, 0.0]).half().expand(1, 2, 1, 3)
    shares = _softmax(scores, torch.tensor([1 / 32, 2.0]))
    assert shares.dtype == torch.float16
    e = float(np.exp(1))
    torch.testing.assert_close(shares[0, 0, 0].float(), torch.tensor([e, 1, 0]) / (1 + e), rtol=1e-3, atol=1e-3)
    assert shares[0, 1, 0].tolist() == [1, 0, 0]
    unit = _normalise_tokens(torch.full((1, 100, 2), 60_000.0).half())
    torch.testing.assert_close(unit, torch.full((1, 100, 2), 0.1).half())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_close_and_has_finite_gradients(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    network = build_network("unetr++", PLAN).double()
    for block in network.modules():
        if isinstance(block, AttentionBlock):  # as if the attention's share had been learnt
            nn.init.ones_(block.gamma_C)
    x = torch.randn(IMAGE)
    expected = network(x.double())[0].detach().float()
    network.float().to(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", kind, enabled=kind != torch.float32):
        y = network(x.to(memory_format=torch.channels_last_3d))[0]
    bound = {torch.float16: 0.02, torch.bfloat16: 0.1, torch.float32: 1e-5}[kind]
    assert float((y.float() - expected).detach().abs().mean() / expected.abs().mean()) < bound
    y.float().square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_checkpointing_changes_no_bit_and_runs_each_block_again(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    network = build_network("unetr++", PLAN)
    image = torch.randn(IMAGE)
    calls = []
    for block in network.modules():
        if isinstance(block, AttentionBlock):
            block.register_forward_pre_hook(lambda *_: calls.append(1))

    def loss_and_gradients() -> list[Tensor]:
        network.zero_grad()
        calls.clear()
        with torch.autocast("cpu", kind, enabled=kind != torch.float32):
            loss = torch.stack([y.float().square().mean() for y in network(image)]).sum()
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]

    expected = loss_and_gradients()
    assert len(calls) == 3 * 3  # two stages of the encoder, one of the decoder
    network.checkpointing = True
    found = loss_and_gradients()
    assert len(calls) == 2 * 3 * 3
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_it_runs_without_numbers() -> None:
    with FakeTensorMode():
        outputs = build_network("unetr++", PLAN)(torch.empty(IMAGE))
        sum(y.sum() for y in outputs).backward()
    assert [tuple(y.shape[2:]) for y in outputs] == [(4, 16, 16), (4, 4, 4)]
