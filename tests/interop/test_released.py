"""The released U-Mamba and nnU-Net's U-Nets: their rules, their names, and the results of their code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from golden_networks import check_outputs_and_gradients, formula_weights, read_golden
from torch import Tensor

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.interop.released import nnunet_weights, released_umamba, umamba_weights
from umamba_cli.pipeline.networks.architecture import Architecture
from umamba_cli.pipeline.networks.unet import UNet

Variant = Literal["bot", "enc"]
NETWORKS = ("bot_2d_rgb", "bot_3d_isotropic", "enc_2d_odd_stages", "enc_3d_anisotropic")
CHECKPOINTS: dict[str, Variant] = {"bot_3d": "bot", "enc_2d": "enc", "enc_3d_noamp": "enc"}


def released(variant: Variant, dimensions: int, stages: int, **change: Any) -> Architecture:
    settings: dict[str, Any] = {
        "patch_size": (2 ** (stages + 1),) * dimensions,
        "features_per_stage": [min(8 * 2**i, 32) for i in range(stages)],
        "kernel_sizes": [[3] * dimensions] * stages,
        "strides": [[1] * dimensions, *([[2] * dimensions] * (stages - 1))],
        "input_channels": 2,
        "outputs": 3,
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    return released_umamba(variant, **{**settings, **change})


@pytest.mark.parametrize(
    ("stages", "encoder", "decoder"),
    [
        (3, (2, 2, 1), (2, 2)),
        (4, (2, 2, 1, 1), (1, 2, 2)),
        (5, (2, 2, 2, 1, 1), (1, 2, 2, 2)),
        (6, (2, 2, 2, 1, 1, 1), (1, 1, 2, 2, 2)),
        (7, (2, 2, 2, 2, 1, 1, 1), (1, 1, 2, 2, 2, 2)),
        (8, (2, 2, 2, 2, 1, 1, 1, 1), (1, 1, 1, 2, 2, 2, 2)),
    ],
)
@pytest.mark.parametrize("variant", ["bot", "enc"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_later_stages_have_one_block(
    variant: Variant, dimensions: int, stages: int, encoder: tuple[int, ...], decoder: tuple[int, ...]
) -> None:
    a = released(variant, dimensions, stages)
    assert a.blocks_per_stage == encoder
    assert a.blocks_per_stage_decoder == decoder  # ours: full resolution first


def test_the_decoder_is_listed_from_the_lowest_resolution_up() -> None:
    a = released("bot", 3, 4, n_conv_per_stage=[2, 3, 4, 5], n_conv_per_stage_decoder=[6, 5, 4])
    assert (a.blocks_per_stage, a.blocks_per_stage_decoder) == ((2, 3, 1, 1), (1, 5, 6))


@pytest.mark.parametrize(
    ("variant", "dimensions", "stages", "mamba", "channels_are_tokens"),
    [
        ("bot", 2, 5, (4,), {}),
        ("bot", 3, 4, (3,), {}),
        ("enc", 2, 4, (1, 3), {3: 16}),
        ("enc", 2, 5, (0, 2, 4), {4: 16}),
        ("enc", 2, 6, (1, 3, 5), {5: 16}),
        ("enc", 3, 4, (0, 1, 2, 3), {}),
        ("enc", 3, 5, (0, 1, 2, 3, 4), {}),
    ],
)
def test_where_mamba_stands(
    variant: Variant, dimensions: int, stages: int, mamba: tuple[int, ...], channels_are_tokens: dict[int, int]
) -> None:
    a = released(variant, dimensions, stages)
    assert a.mamba_stages == mamba
    assert a.channel_token_voxels == channels_are_tokens
    assert a.full_resolution_skip == (dimensions == 3)


def test_thick_slices_and_small_patches_take_channels_as_tokens_in_3d() -> None:
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    a = released("enc", 3, 4, patch_size=(8, 16, 16), strides=strides)  # voxels 2048, 512, 64, 8
    assert a.channel_token_voxels == {3: 8}
    assert released("bot", 3, 4, patch_size=(8, 16, 16), strides=strides).channel_token_voxels == {}


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients_are_those_of_the_released_code(shared: Path, name: str) -> None:
    golden = read_golden(shared / "goldens" / "umamba_networks" / f"{name}.json")
    a = released_umamba(
        "bot" if golden["variant"] == "U-Mamba_Bot" else "enc",
        patch_size=golden["patch_size"],
        features_per_stage=golden["features_per_stage"],
        kernel_sizes=golden["kernel_sizes"],
        strides=golden["strides"],
        input_channels=golden["input_channels"],
        outputs=golden["num_classes"],
        n_conv_per_stage=golden["n_blocks_per_stage_encoder"],
        n_conv_per_stage_decoder=golden["n_conv_per_stage_decoder"],
    )
    theirs = formula_weights(golden)
    check_outputs_and_gradients(UNet(a), golden, theirs, umamba_weights(theirs, a))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_released_checkpoint_gives_its_outputs(shared: Path, name: str) -> None:
    folder = shared / "goldens" / "umamba_checkpoints" / name
    plans = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    dataset = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    (plan,) = plans["configurations"].values()
    a = released_umamba(
        CHECKPOINTS[name],
        patch_size=plan["patch_size"],
        features_per_stage=[
            min(plan["UNet_base_num_features"] * 2**i, plan["unet_max_num_features"])
            for i in range(len(plan["conv_kernel_sizes"]))
        ],
        kernel_sizes=plan["conv_kernel_sizes"],
        strides=plan["pool_op_kernel_sizes"],
        input_channels=len(dataset["channel_names"]),
        outputs=len(dataset["labels"]),
        n_conv_per_stage=plan["n_conv_per_stage_encoder"],
        n_conv_per_stage_decoder=plan["n_conv_per_stage_decoder"],
    )
    weights = _network_weights(folder)
    network = UNet(a)
    renamed = umamba_weights(weights, a)
    assert len(renamed) < len(weights)  # it does hold copies
    network.load_state_dict(renamed)
    with np.load(folder / "outputs.npz") as content:
        expected = [torch.from_numpy(content[f"output_{i}"]) for i in range(len(content.files))]
    x = np.sin(0.01234 * np.arange(a.input_channels * expected[0][0, 0].numel()) + 0.5)
    with torch.no_grad():
        outputs = network(torch.from_numpy(x).float().view(1, a.input_channels, *plan["patch_size"]))
    for ours, theirs in zip(outputs, expected, strict=True):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4


def test_a_checkpoint_of_nnunet_is_renamed_without_its_copies(shared: Path) -> None:
    weights = _network_weights(shared / "goldens" / "nnunet_model")
    renamed = nnunet_weights(weights, plain())
    UNet(plain()).load_state_dict(renamed)
    assert len(weights) == 188
    assert len(renamed) == 68
    assert torch.equal(renamed["encoder.stages.0.0.conv.weight"], weights["encoder.stages.0.0.convs.0.conv.weight"])
    assert torch.equal(renamed["decoder.0.upsample.weight"], weights["decoder.transpconvs.2.weight"])
    assert torch.equal(renamed["heads.2.bias"], weights["decoder.seg_layers.0.bias"])


def _network_weights(model: Path) -> dict[str, Tensor]:
    # Only the restricted reader opens files of others; these are known.
    content = torch.load(model / "fold_0" / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    weights: dict[str, Tensor] = content["network_weights"]
    return weights


def plain() -> Architecture:
    return Architecture(
        input_channels=1,
        outputs=3,
        features_per_stage=(8, 16, 32, 64),
        strides=((1, 1, 1), *(((2, 2, 2),) * 3)),
        kernel_sizes=((3, 3, 3),) * 4,
        blocks_per_stage=(2,) * 4,
        blocks_per_stage_decoder=(2,) * 3,
    )


A = released("enc", 2, 3)


def their_weights() -> dict[str, Tensor]:
    """Weights of `A` under the released names, without copies."""
    names = {
        **{f"encoder.stem.0.{p}": shape for p, shape in _first(2, 8).items()},
        **{f"encoder.stem.1.{p}": shape for p, shape in _further(8).items()},
        **{f"encoder.stages.0.0.{p}": shape for p, shape in _first(8, 8).items()},
        **{f"encoder.stages.0.1.{p}": shape for p, shape in _further(8).items()},
        **{f"encoder.stages.1.0.{p}": shape for p, shape in _first(8, 16).items()},
        **{f"encoder.stages.1.1.{p}": shape for p, shape in _further(16).items()},
        **{f"encoder.stages.2.0.{p}": shape for p, shape in _first(16, 32).items()},
        **{f"encoder.mamba_layers.0.{p}": shape for p, shape in _mamba(8).items()},
        **{f"encoder.mamba_layers.2.{p}": shape for p, shape in _mamba(16).items()},  # 4x4 voxels, 32 channels
        **{f"decoder.upsample_layers.0.conv.{p}": shape for p, shape in _conv(32, 16, 1).items()},
        **{f"decoder.upsample_layers.1.conv.{p}": shape for p, shape in _conv(16, 8, 1).items()},
        **{f"decoder.stages.0.0.{p}": shape for p, shape in _first(32, 16).items()},
        **{f"decoder.stages.0.1.{p}": shape for p, shape in _further(16).items()},
        **{f"decoder.stages.1.0.{p}": shape for p, shape in _first(8, 8).items()},
        **{f"decoder.stages.1.1.{p}": shape for p, shape in _further(8).items()},
        **{f"decoder.seg_layers.0.{p}": shape for p, shape in _conv(16, 3, 1).items()},
        **{f"decoder.seg_layers.1.{p}": shape for p, shape in _conv(8, 3, 1).items()},
    }
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in names.items()}


def _conv(inputs: int, outputs: int, kernel: int) -> dict[str, tuple[int, ...]]:
    return {"weight": (outputs, inputs, kernel, kernel), "bias": (outputs,)}


def _first(inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    layers = {
        "conv1": _conv(inputs, outputs, 3),
        "norm1": {"weight": (outputs,), "bias": (outputs,)},
        "conv2": _conv(outputs, outputs, 3),
        "norm2": {"weight": (outputs,), "bias": (outputs,)},
        "conv3": _conv(inputs, outputs, 1),
    }
    return {f"{layer}.{p}": shape for layer, parameters in layers.items() for p, shape in parameters.items()}


def _further(width: int) -> dict[str, tuple[int, ...]]:
    layers = {"conv": _conv(width, width, 3), "norm": {"weight": (width,), "bias": (width,)}}
    return {
        f"{number}.{layer}.{p}": shape
        for number in ("conv1", "conv2")
        for layer, parameters in layers.items()
        for p, shape in parameters.items()
    }


def _mamba(width: int) -> dict[str, tuple[int, ...]]:
    inner, rank = 2 * width, 1
    return {
        "norm.weight": (width,),
        "norm.bias": (width,),
        "mamba.A_log": (inner, 16),
        "mamba.D": (inner,),
        "mamba.in_proj.weight": (2 * inner, width),
        "mamba.conv1d.weight": (inner, 1, 4),
        "mamba.conv1d.bias": (inner,),
        "mamba.x_proj.weight": (rank + 32, inner),
        "mamba.dt_proj.weight": (inner, rank),
        "mamba.dt_proj.bias": (inner,),
        "mamba.out_proj.weight": (width, inner),
    }


def test_every_parameter_finds_its_name() -> None:
    theirs = their_weights()
    renamed = umamba_weights(theirs, A)
    UNet(A).load_state_dict(renamed)
    assert {id(tensor) for tensor in renamed.values()} == {id(tensor) for tensor in theirs.values()}
    assert renamed["encoder.stages.1.0.shortcut.conv.bias"] is theirs["encoder.stages.1.0.conv3.bias"]
    assert renamed["decoder.0.blocks.1.first.norm.weight"] is theirs["decoder.stages.1.1.conv1.norm.weight"]
    assert renamed["decoder.0.upsample.conv.weight"] is theirs["decoder.upsample_layers.1.conv.weight"]
    assert renamed["heads.1.weight"] is theirs["decoder.seg_layers.0.weight"]


def test_the_bottlenecks_mamba_layer_has_a_name_of_its_own() -> None:
    a = replace(A, mamba="bottleneck", mamba_every=1, channel_tokens_for=None)
    theirs = {name: tensor for name, tensor in their_weights().items() if "mamba" not in name}
    theirs |= {f"mamba_layer.{p}": torch.zeros(shape) for p, shape in _mamba(32).items() if "_proj" not in p}
    theirs |= {
        "mamba_layer.mamba.in_proj.weight": torch.zeros(128, 32),
        "mamba_layer.mamba.x_proj.weight": torch.zeros(34, 64),
        "mamba_layer.mamba.dt_proj.weight": torch.zeros(64, 2),
        "mamba_layer.mamba.dt_proj.bias": torch.zeros(64),
        "mamba_layer.mamba.out_proj.weight": torch.zeros(32, 64),
    }
    assert umamba_weights(theirs, a)["encoder.mamba_layers.2.mamba.D"] is theirs["mamba_layer.mamba.D"]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_and_copies_make_no_difference(prefix: str) -> None:
    theirs = their_weights()
    again = {name.replace("encoder.", "decoder.encoder.", 1): t for name, t in theirs.items() if "encoder." in name}
    stored = {**theirs, **again}
    layers = {".conv.": ".all_modules.0.", ".norm.": ".all_modules.1."}
    stored |= {
        name.replace(layer, number): tensor.clone()
        for name, tensor in stored.items()
        for layer, number in layers.items()
        if f".conv1{layer}" in name or f".conv2{layer}" in name
    }
    assert len(stored) > len(theirs) + len(again)
    renamed = umamba_weights({prefix + name: tensor for name, tensor in stored.items()}, A)
    expected = umamba_weights(theirs, A)
    assert renamed.keys() == expected.keys()
    assert all(renamed[name] is tensor for name, tensor in expected.items())


def test_weights_that_ended_in_nan_are_copies_too() -> None:
    theirs = their_weights()
    theirs["encoder.stem.0.conv1.bias"].fill_(torch.nan)
    copy = {"decoder.encoder.stem.0.conv1.bias": theirs["encoder.stem.0.conv1.bias"].clone()}
    assert umamba_weights({**theirs, **copy}, A).keys() == UNet(A).state_dict().keys()


def test_copies_that_differ_are_refused() -> None:
    theirs = their_weights()
    other = {"decoder.encoder.stem.0.conv1.bias": theirs["encoder.stem.0.conv1.bias"] + 1}
    with pytest.raises(InputError, match=r"decoder\.encoder\.stem\.0\.conv1\.bias differs"):
        umamba_weights({**theirs, **other}, A)


def test_all_that_does_not_fit_is_named() -> None:
    theirs = their_weights()
    del theirs["encoder.stem.0.conv3.bias"], theirs["decoder.seg_layers.1.weight"]
    theirs["decoder.stages.2.0.conv1.weight"] = torch.zeros(1)
    theirs["encoder.mamba_layers.0.mamba.D"] = torch.zeros(3)
    with pytest.raises(InputError, match="2 missing, 1 not known, 1 of another shape") as error:
        umamba_weights(theirs, A)
    assert error.value.details == (
        "missing: encoder.stem.0.conv3.bias",
        "missing: decoder.seg_layers.1.weight",
        "not known: decoder.stages.2.0.conv1.weight",
        "of another shape: encoder.mamba_layers.0.mamba.D: 3 instead of 16",
    )


@pytest.mark.parametrize("rename", [umamba_weights, nnunet_weights])
@pytest.mark.parametrize("other", [plain(), replace(plain(), block="residual", shortcut="pooling", stem="convolution")])
def test_weights_of_another_network_are_refused_in_short(rename: Any, other: Architecture) -> None:
    with pytest.raises(InputError, match="not those of this network") as error:
        rename(their_weights(), other)
    assert len(error.value.details) < 35


def test_a_plan_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(InputError, match="blocks_per_stage_decoder"):
        released("bot", 3, 4, n_conv_per_stage_decoder=[2, 2])
    with pytest.raises(InputError, match="channel_tokens_for"):
        released("enc", 3, 4, patch_size=(20, 16, 16))
