"""What a bundle says of its model is not believed: it is compared with the weights, and kept within what fits."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import FOLD_0, architecture, cascade_records, edit, record, rewrite
from safetensors.torch import load, save
from torch import Tensor

from umamba_cli.pipeline.devices import choose_compute
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.inference.predictor import Predictor, load_predictor
from umamba_cli.pipeline.runs.bundle import PreviousStage, write_bundle
from umamba_cli.pipeline.runs.network import recorded_network
from umamba_cli.pipeline.runs.record import RunRecord

CPU = choose_compute("cpu", "fp32")
IMAGE = np.random.default_rng(0).normal(size=(12, 20, 20)).astype(np.float32)


def weights_of(of: RunRecord) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return recorded_network(of).state_dict()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A bundle that predicts."""
    path = tmp_path / "model.zip"
    write_bundle(path, record(), [(0, weights_of(record()))], origin={})
    return path


def loaded(path: Path, **options: Any) -> Predictor:
    return load_predictor(path, (), CPU, **options)


def refused(path: Path, text: str) -> InputError:
    """Loading it fails with this text, without much memory taken."""
    tracemalloc.start()
    with pytest.raises(InputError, match=text) as caught:
        loaded(path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert caught.value.next_step
    return caught.value


def test_it_predicts(model: Path) -> None:
    assert loaded(model).predict(IMAGE, (1.0, 0.5, 0.5)).shape == IMAGE.shape


def _without(weights: dict[str, Tensor], name: str) -> None:
    weights.pop(name)


def _with(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], Any]:
    return lambda weights: weights.update({name: change(weights.get(name, torch.zeros(3)))})


BIAS = "heads.0.bias"
CHANGED: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda weights: _without(weights, BIAS), f"{BIAS} is missing"),
    "none": (dict.clear, "is missing"),
    "extra": (_with("evil", lambda tensor: tensor), "evil is none of the network's"),
    "longer": (_with(BIAS, lambda tensor: tensor.repeat(2)), rf"{BIAS} is \(4,\), the network's is \(2,\)"),
    "empty": (_with(BIAS, lambda tensor: tensor[:0]), rf"{BIAS} is \(0,\), the network's is \(2,\)"),
    "axes": (_with(BIAS, lambda tensor: tensor[None]), rf"{BIAS} is \(1, 2\), the network's is \(2,\)"),
    "whole numbers": (_with(BIAS, lambda tensor: tensor.long()), f"{BIAS} holds torch.int64"),
    "truth": (_with(BIAS, lambda tensor: tensor.bool()), f"{BIAS} holds torch.bool"),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_weights_of_another_network_are_refused(model: Path, kind: str) -> None:
    change, said = CHANGED[kind]

    def spoil(files: dict[str, bytes]) -> None:
        weights = load(files[FOLD_0])
        change(weights)
        files[FOLD_0] = save(weights)

    with pytest.raises(InputError, match=said) as caught:
        loaded(rewrite(model, spoil))
    assert caught.value.problem.startswith(f"{FOLD_0} in {model} does not fit the model unet")


def change_plans(path: Path, **changed: Any) -> Path:
    """Other values of the bundle's configuration; those of the network by their own names."""

    def change(files: dict[str, bytes]) -> None:
        plans = json.loads(files["plans.json"])
        configuration = plans["configurations"]["3d_fullres"]
        for key, value in changed.items():
            network = configuration["architecture"]["arch_kwargs"]
            (configuration if key in configuration else network)[key] = value
        files["plans.json"] = json.dumps(plans).encode()

    return rewrite(path, change)


@pytest.mark.parametrize("patch", [[2**20] * 3, [1024, 1024, 1024], [16, 16, 2**40], [2**62] * 3])
def test_a_patch_beyond_all_memory_is_refused(model: Path, patch: list[int]) -> None:
    error = refused(change_plans(model, patch_size=patch), "1 value not allowed")
    assert "patch_size: must not have more than 134217728 voxels" in error.details[0]
    assert error.next_step.startswith("get the bundle again")


@pytest.mark.parametrize("spacing", [1e-6, 1e-300, 5e-324])
def test_a_spacing_that_would_fill_the_memory_is_refused(model: Path, spacing: float) -> None:
    predictor = loaded(change_plans(model, spacing=[spacing] * 3))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"12x20x20 voxels 1 0\.5 0\.5 mm apart, would take .* GiB at"):
        predictor.predict(IMAGE, (1.0, 0.5, 0.5))
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_a_spacing_that_leaves_one_voxel_is_harmless(model: Path) -> None:
    assert loaded(change_plans(model, spacing=[1e300] * 3)).predict(IMAGE, (1.0, 0.5, 0.5)).shape == IMAGE.shape


def test_networks_that_would_fill_the_memory_are_refused(model: Path) -> None:
    refused(change_plans(model, features_per_stage=[4, 10**9]), "features_per_stage holds 1000000000")
    refused(change_plans(model, features_per_stage=[4, 99_999]), "does not fit the model")
    many = {"n_stages": 20_000, "features_per_stage": [1] * 20_000, "strides": [[1] * 3] * 19_999 + [[2] * 3]}
    many |= {
        "kernel_sizes": [[1] * 3] * 20_000,
        "n_conv_per_stage": [1] * 20_000,
        "n_conv_per_stage_decoder": [1] * 19_999,
    }
    refused(change_plans(model, **many), "a U-Net has 32 stages at most, the plan has 20000")


def test_an_architecture_of_many_stages_is_refused(model: Path) -> None:
    given = architecture().to_json()
    for name in ("features_per_stage", "strides", "kernel_sizes", "blocks_per_stage"):
        given[name] = [*given[name][:1]] * 40
    given["blocks_per_stage_decoder"] = [1] * 39
    with pytest.raises(InputError, match="a U-Net has 32 stages at most, the plan has 40"):
        loaded(rewrite(model, edit("run.json", architecture=given)))


@pytest.fixture
def cascade(tmp_path: Path) -> Path:
    """A bundle of both stages of a cascade."""
    path, (second, first) = tmp_path / "cascade.zip", cascade_records()
    before = PreviousStage(first, [(fold, weights_of(first)) for fold in (0, 1)], {0: (0, 1), 1: (1,)})
    write_bundle(path, second, [(fold, weights_of(second)) for fold in (0, 1)], origin={}, previous=before)
    return path


def test_a_cascade_predicts_with_the_folds_that_belong_together(cascade: Path) -> None:
    for folds, before in (((), 2), ((0,), 2), ((1,), 1)):
        predictor = load_predictor(cascade, folds, CPU)
        assert predictor.previous is not None
        assert len(predictor.networks) == (len(folds) or 2)
        assert len(predictor.previous.networks) == before
        assert predictor.predict(IMAGE, (1.0, 0.5, 0.5)).shape == IMAGE.shape
    with pytest.raises(InputError, match="holds no fold 2"):
        load_predictor(cascade, (2,), CPU)


def test_the_previous_stage_can_be_left_out(cascade: Path) -> None:
    assert loaded(cascade, previous_stage=False).previous is None


def test_a_previous_stage_of_other_labels_is_refused(cascade: Path) -> None:
    def change(files: dict[str, bytes]) -> None:
        dataset = json.loads(files["dataset.json"])
        files["previous/dataset.json"] = json.dumps({**dataset, "labels": {"background": 0, "b": 1}}).encode()

    refused(rewrite(cascade, change), f"the previous stage in {cascade} was trained with other labels")


def test_weights_of_the_previous_stage_are_checked_too(cascade: Path) -> None:
    name = f"previous/{FOLD_0}"
    rewrite(cascade, lambda files: files.update({name: files[FOLD_0]}))
    assert refused(cascade, "does not fit the model").problem.startswith(f"{name} in {cascade} ")
