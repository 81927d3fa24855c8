"""Models of nnU-Net and U-Mamba become bundles whose networks answer as theirs; what cannot be is refused by name."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from trained_models import TrainedModel

from umamba_cli.pipeline.inference.export import labels_of_logits
from umamba_cli.pipeline.interop.checkpoints import find_checkpoints, import_model
from umamba_cli.pipeline.progress import Progress
from umamba_cli.pipeline.runs.bundle import Bundle, open_bundle
from umamba_cli.pipeline.runs.network import recorded_network

ALL_GOLDENS = ["plain_2d", "plain_3d_thick", "resenc_2d", "resenc_3d", "resenc_3d_thick"]


@pytest.fixture
def model() -> TrainedModel:
    return TrainedModel()


def heads(bundle: Bundle, image: Tensor) -> list[Tensor]:
    """The outputs of all heads of the bundle's first fold."""
    network = recorded_network(bundle.record).train()
    network.load_state_dict(bundle.weights(bundle.folds[0]))
    with torch.no_grad():
        answers: list[Tensor] = network(image)
    return answers


def assert_close(ours: list[Tensor], theirs: list[Tensor], most: float) -> None:
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).abs().max() / b.abs().max()) < most


def _imported(model: TrainedModel, tmp_path: Path) -> Bundle:
    path = tmp_path / "model.zip"
    import_model(model.write(tmp_path / "model"), path)
    return open_bundle(path)


@pytest.mark.parametrize(
    ("golden", "old_keys"), [*((name, False) for name in ALL_GOLDENS), ("plain_2d", True), ("resenc_3d", True)]
)
def test_the_network_answers_as_nnunet_s(tmp_path: Path, golden: str, old_keys: bool) -> None:
    model = TrainedModel(golden, old_keys=old_keys)
    bundle = _imported(model, tmp_path)
    assert bundle.record.model == ("unet" if golden.startswith("plain") else "resenc")
    shape = (1, model.golden["input_channels"], *model.golden["patch_size"])
    image = torch.from_numpy(np.random.RandomState(0).standard_normal(shape)).float()
    assert_close(heads(bundle, image), model.golden["outputs"], 1e-3)


@pytest.mark.parametrize("name", ["bot_3d", "enc_2d", "enc_3d_noamp"])
def test_the_network_answers_as_the_released_umamba_s(shared: Path, tmp_path: Path, name: str) -> None:
    folder = shared / "goldens/umamba_checkpoints" / name
    imported = import_model(folder, tmp_path / "model.zip")
    bundle = open_bundle(tmp_path / "model.zip")
    assert bundle.record.model == f"umamba-{name[:3]}"
    assert bundle.record.architecture is not None
    assert imported.manifest.origin["program"] == "U-Mamba"
    shape = (1, bundle.record.dataset.num_channels, *bundle.record.network_configuration.patch_size)
    image = torch.sin(0.01234 * torch.arange(math.prod(shape), dtype=torch.float64) + 0.5).reshape(shape).float()
    with np.load(folder / "outputs.npz") as theirs:
        expected = [torch.from_numpy(theirs[f"output_{i}"]) for i in range(len(theirs.files))]
    assert_close(heads(bundle, image), expected, 1e-4)


def test_what_is_known_of_the_training_goes_along(model: TrainedModel, tmp_path: Path) -> None:
    model.mirror_axes = (np.int64(1), 2)
    bundle = _imported(model, tmp_path)
    record, origin = bundle.record, bundle.manifest.origin
    assert (record.fold, record.configuration, record.mirror_axes) == (0, "3d_fullres", (1, 2))
    assert record.architecture is None
    assert record.dataset.labels == model.dataset["labels"]
    assert list(record.plans.configurations) == ["3d_fullres"]
    content = (tmp_path / "model/fold_0/checkpoint_final.pth").read_bytes()
    assert origin == {
        "program": "nnU-Net",
        "trainer": "nnUNetTrainer",
        "plans": "nnUNetPlans",
        "dataset": "Dataset001_A",
        "epochs": 7,
        "checkpoints": [{"file": "fold_0/checkpoint_final.pth", "sha256": hashlib.sha256(content).hexdigest()}],
    }


@pytest.mark.parametrize("given", [None, ()])
def test_a_model_that_was_not_trained_on_mirrored_patches(model: TrainedModel, tmp_path: Path, given: object) -> None:
    model.mirror_axes = given
    assert _imported(model, tmp_path).record.mirror_axes == ()


def test_plans_are_taken_from_the_checkpoint_where_no_file_is_there(model: TrainedModel, tmp_path: Path) -> None:
    folder = model.write(tmp_path / "model")
    (tmp_path / "lone.pth").write_bytes((folder / "fold_0/checkpoint_final.pth").read_bytes())
    import_model(tmp_path / "lone.pth", tmp_path / "lone.zip")
    lone, whole = open_bundle(tmp_path / "lone.zip"), _imported(TrainedModel(), tmp_path / "other")
    assert lone.record.plans == whole.record.plans
    assert lone.folds == (0,)


def test_configurations_inherit(tmp_path: Path) -> None:
    for old_keys in (False, True):
        model = TrainedModel("plain_2d", old_keys=old_keys)
        model.plans["configurations"]["own"] = {"inherits_from": "2d", "batch_size": 3}
        model.name = "own"
        bundle = _imported(model, tmp_path / str(old_keys))
        assert bundle.record.network_configuration.batch_size == 3
        assert bundle.record.network_configuration.network.features_per_stage == (4, 8, 12, 12)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_distributed_and_compiled_networks_are_known(
    model: TrainedModel, tmp_path: Path, wrapper: str
) -> None:
    plain = _imported(model, tmp_path / "plain").weights(0)
    model.checkpoint["network_weights"] = {wrapper + name: tensor for name, tensor in model.weights().items()}
    wrapped = _imported(model, tmp_path / "wrapped").weights(0)
    assert plain.keys() == wrapped.keys()
    assert all(torch.equal(plain[name], wrapped[name]) for name in plain)


def test_weights_in_half_precision_become_float32(model: TrainedModel, tmp_path: Path) -> None:
    model.checkpoint["network_weights"] = {name: tensor.half() for name, tensor in model.weights().items()}
    assert {tensor.dtype for tensor in _imported(model, tmp_path).weights(0).values()} == {torch.float32}


def test_all_numbered_folds_are_taken_or_those_asked_for(model: TrainedModel, tmp_path: Path) -> None:
    folder = model.write(tmp_path / "model", folds=(0, 2, "all"))
    (folder / "fold_1").mkdir()  # not finished
    seen: list[Progress] = []
    for folds, expected in (((), (0, 2)), ((2,), (2,)), (("all",), ("all",)), (("all", 0), ("all", 0))):
        imported = import_model(folder, tmp_path / "m.zip", folds=folds, overwrite=True, on_progress=seen.append)
        bundle = open_bundle(tmp_path / "m.zip")
        assert imported.folds == expected
        assert set(bundle.folds) == set(expected)
        assert bundle.record.fold == expected[0]
    assert [(p.done, p.total) for p in seen[:3]] == [(0, 2), (1, 2), (2, 2)]
    import_model(folder, tmp_path / "m.zip", overwrite=True)
    bundle = open_bundle(tmp_path / "m.zip")
    first, third = bundle.weights(0), bundle.weights(2)
    assert all(torch.allclose(third[name], 2 * first[name]) for name in first)


def test_the_only_fold_may_be_all(model: TrainedModel, tmp_path: Path) -> None:
    folder = model.write(tmp_path / "model", folds=("all",))
    assert [path.parent.name for path in find_checkpoints(folder)] == ["fold_all"]
    assert find_checkpoints(folder / "fold_all") == [folder / "fold_all/checkpoint_final.pth"]


def test_voxels_that_nobody_annotated_have_no_output(model: TrainedModel, tmp_path: Path) -> None:
    model.dataset["labels"]["ignore"] = 3
    bundle = _imported(model, tmp_path)
    assert bundle.record.dataset.ignore_label == 3
    assert len(bundle.weights(0)["heads.0.bias"]) == 3


def test_regions_have_an_output_each(model: TrainedModel, tmp_path: Path) -> None:
    model.dataset["labels"] = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "rest": 3}
    model.dataset["regions_class_order"] = [1, 2, 3]
    bundle = _imported(model, tmp_path)
    assert tuple(bundle.record.dataset.regions.values()) == ((1, 2, 3), (2, 3), (3,))
    assert len(bundle.weights(0)["heads.0.bias"]) == 3
    shape = (1, model.golden["input_channels"], *model.golden["patch_size"])
    image = torch.from_numpy(np.random.RandomState(0).standard_normal(shape)).float()
    assert_close(heads(bundle, image), model.golden["outputs"], 1e-3)
    labels = labels_of_logits(heads(bundle, image)[0][0].numpy(), bundle.record.dataset)
    assert set(np.unique(labels)) <= {0, 1, 2, 3}


def test_a_trainer_that_is_not_known_is_named(model: TrainedModel, tmp_path: Path) -> None:
    for known in (
        "nnUNetTrainer",
        "nnUNetTrainer_250epochs",
        "nnUNetTrainerDA5",
        "nnUNetTrainer_4000epochs_NoMirroring",
    ):
        model.trainer = known
        assert import_model(model.write(tmp_path / known), tmp_path / f"{known}.zip").notes == ()
    model.trainer = "nnUNetTrainerOfMine"
    (note,) = import_model(model.write(tmp_path / "mine"), tmp_path / "mine.zip").notes
    assert "nnUNetTrainerOfMine" in note
