"""Models that cannot be imported are refused by name, nothing in them is run, and nothing is left behind."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trained_models import TrainedModel

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.interop.checkpoints import import_model
from umamba_cli.pipeline.runs.bundle import open_bundle


@pytest.fixture
def model() -> TrainedModel:
    return TrainedModel()


def _import(model: TrainedModel, tmp_path: Path) -> None:
    import_model(model.write(tmp_path / "model"), tmp_path / "model.zip")


def _network(model: TrainedModel) -> dict[str, Any]:
    arguments: dict[str, Any] = model.configuration["architecture"]["arch_kwargs"]
    return arguments


def _without_bias(model: TrainedModel) -> None:
    _network(model)["conv_bias"] = False


def _batch_norm(model: TrainedModel) -> None:
    model.trainer = "nnUNetTrainerBN"
    weights = model.weights()
    weights["encoder.stages.0.0.convs.0.norm.running_mean"] = torch.zeros(4)
    model.checkpoint["network_weights"] = weights


def _cascade(model: TrainedModel) -> None:
    model.plans["configurations"]["3d_lowres"] = dict(model.configuration)
    model.plans["configurations"]["3d_cascade_fullres"] = {
        "inherits_from": "3d_fullres",
        "previous_stage": "3d_fullres",
    }
    model.name = "3d_cascade_fullres"


def _class(name: str) -> Callable[[TrainedModel], None]:
    def spoil(model: TrainedModel) -> None:
        model.configuration["architecture"]["network_class_name"] = f"somewhere.{name}"

    return spoil


def _old_class(model: TrainedModel) -> None:
    model.__init__("plain_2d", old_keys=True)  # type: ignore[misc]
    model.configuration["UNet_class_name"] = "Generic_UNet"


def _old_and_not_whole(model: TrainedModel) -> None:
    model.__init__("plain_2d", old_keys=True)  # type: ignore[misc]
    del model.configuration["unet_max_num_features"]


def _not_finite(model: TrainedModel) -> None:
    weights = {name: tensor.clone() for name, tensor in model.weights().items()}
    for name, tensor in weights.items():
        if name.endswith("seg_layers.0.bias"):
            tensor[0] = math.nan
    model.checkpoint["network_weights"] = weights


def _without_heads(model: TrainedModel) -> None:
    model.checkpoint["network_weights"] = {k: v for k, v in model.weights().items() if "seg_layers" not in k}


def _copies_differ(model: TrainedModel) -> None:
    weights = model.weights()
    name = next(name for name in weights if ".all_modules." in name)
    weights[name] = weights[name] + 1
    model.checkpoint["network_weights"] = weights


# What is spoiled, and what the error says of it.
REFUSED: dict[str, tuple[Callable[[TrainedModel], Any], str]] = {
    "another network": (_class("ResUNetOfMine"), "its network is somewhere.ResUNetOfMine, known are PlainConvUNet"),
    "another network in old keys": (_old_class, "its network is Generic_UNet"),
    "old keys that are not whole": (_old_and_not_whole, "lack unet_max_num_features"),
    "no bias": (_without_bias, "have no bias"),
    "batch norms": (_batch_norm, "batch norms (nnUNetTrainerBN)"),
    "another norm": (
        lambda model: _network(model).update(norm_op="torch.nn.BatchNorm3d"),
        "norm_op of its network is BatchNorm3d",
    ),
    "no norm": (lambda model: _network(model).update(norm_op=None), "norm_op of its network is none"),
    "another epsilon": (lambda model: _network(model).update(norm_op_kwargs={"eps": 1e-3}), "norm_op_kwargs"),
    "another activation": (
        lambda model: _network(model).update(nonlin="torch.nn.ReLU"),
        "nonlin of its network is ReLU",
    ),
    "another slope": (
        lambda model: _network(model).update(nonlin_kwargs={"negative_slope": 0.2}),
        "negative_slope of 0.2",
    ),
    "2D convolutions in 3D": (lambda model: _network(model).update(conv_op="torch.nn.Conv2d"), "conv_op"),
    "the activation before the norm": (lambda model: _network(model).update(nonlin_first=True), "nonlin_first = True"),
    "squeeze and excitation": (
        lambda model: _network(model).update(squeeze_excitation=True),
        "squeeze_excitation = True",
    ),
    "a cascade": (_cascade, "second stage of a cascade"),
    "another preprocessor": (
        lambda model: model.configuration.update(preprocessor_name="CTPreprocessor"),
        "prepared by CTPreprocessor",
    ),
    "turned images": (
        lambda model: model.plans.update(image_reader_writer="NibabelIOWithReorient"),
        "read by NibabelIOWithReorient",
    ),
    "another configuration": (lambda model: setattr(model, "name", "4d"), "no configuration '4d'"),
    "plans of another network": (
        lambda model: _network(model).update(features_per_stage=[4, 6, 10]),
        "other weights than unet's",
    ),
    "weights without heads": (_without_heads, "other weights than unet's"),
    "copies that differ": (_copies_differ, "more than once"),
    "a training that ended in NaN": (_not_finite, "not finite"),
    "released U-Mamba's trainer on another network": (
        lambda model: setattr(model, "trainer", "nnUNetTrainerUMambaBot"),
        "other weights than umamba-bot's",
    ),
    "mirror axes of text": (lambda model: setattr(model, "mirror_axes", ("x",)), "inference_allowed_mirroring_axes.0"),
    "weights that are none": (
        lambda model: model.checkpoint.update(network_weights={"a": [1.0]}),
        "network_weights.a",
    ),
    "no arguments": (lambda model: model.checkpoint.update(init_args={}), "init_args.configuration: missing"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_imported_is_refused_by_name(model: TrainedModel, tmp_path: Path, kind: str) -> None:
    spoil, said = REFUSED[kind]
    spoil(model)
    with pytest.raises(InputError, match=re.escape(said)) as error:
        _import(model, tmp_path)
    assert str(tmp_path / "model") in str(error.value)
    assert error.value.next_step
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_several_reasons_are_all_named(model: TrainedModel, tmp_path: Path) -> None:
    _cascade(model)
    _without_bias(model)
    with pytest.raises(InputError) as error:
        _import(model, tmp_path)
    assert len(error.value.details) == 2


@pytest.mark.parametrize("part", ["trainer", "configuration", "mirror axes"])
def test_folds_of_different_trainings_are_refused(model: TrainedModel, tmp_path: Path, part: str) -> None:
    folder = model.write(tmp_path / "model")
    other = TrainedModel()
    if part == "trainer":
        other.trainer = "nnUNetTrainerDA5"
    elif part == "mirror axes":
        other.mirror_axes = (0,)
    else:
        other.name = "other"
    (folder / "fold_1").mkdir()
    torch.save(other.content(1), folder / "fold_1/checkpoint_final.pth")
    with pytest.raises(InputError, match=f"with the {part}"):
        import_model(folder, tmp_path / "model.zip")
    assert not (tmp_path / "model.zip").exists()


class _Touch:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("key", ["network_weights", "optimizer_state", "logging", "init_args", "something"])
def test_nothing_in_a_checkpoint_is_run(model: TrainedModel, tmp_path: Path, key: str) -> None:
    mark = tmp_path / "mark"
    model.checkpoint[key] = {"a": _Touch(mark)}
    folder = model.write(tmp_path / "model")
    torch.load(folder / "fold_0/checkpoint_final.pth", weights_only=False)
    assert mark.exists()
    mark.unlink()
    with pytest.raises(InputError, match="system"):
        import_model(folder, tmp_path / "model.zip")
    assert not mark.exists()
    assert not (tmp_path / "model.zip").exists()


def test_sources_that_are_no_models_are_refused(model: TrainedModel, tmp_path: Path) -> None:
    folder, bundle = model.write(tmp_path / "results/model", folds=(0,)), tmp_path / "model.zip"
    for source, folds, said in (
        (tmp_path / "none", (), "does not exist"),
        (folder, (3,), "holds no checkpoint_final.pth of fold 3"),
        (folder / "fold_0/checkpoint_final.pth", (0,), "is one fold already"),
        (folder / "plans.json", (), "cannot be read as a file of torch"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            import_model(source, bundle, folds=folds)
    with pytest.raises(InputError, match=r"holds no fold_\*/checkpoint_final\.pth") as error:
        import_model(tmp_path / "results", bundle)
    assert "model" in error.value.next_step
    torch.save({"state_dict": {}}, tmp_path / "old.model")
    with pytest.raises(InputError, match="no checkpoint of nnU-Net 2") as error:
        import_model(tmp_path / "old.model", bundle)
    assert "nnU-Net 1" in error.value.next_step
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    with pytest.raises(InputError, match="no checkpoint of nnU-Net 2"):
        import_model(tmp_path / "tensor.pth", bundle)


def test_a_bundle_that_is_there_is_kept_unless_asked(model: TrainedModel, tmp_path: Path) -> None:
    folder, bundle = model.write(tmp_path / "model"), tmp_path / "model.zip"
    bundle.write_bytes(b"precious")
    with pytest.raises(InputError, match="is there already"):
        import_model(folder, bundle)
    assert bundle.read_bytes() == b"precious"
    import_model(folder, bundle, overwrite=True)
    assert open_bundle(bundle).folds == (0,)


def test_plans_that_are_no_plans_are_refused(model: TrainedModel, tmp_path: Path) -> None:
    folder = model.write(tmp_path / "model")
    for content in ([], {}, {"configurations": []}, {"configurations": {"3d_fullres": 5}}):
        (folder / "plans.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=re.escape(str(folder / "plans.json"))):
            import_model(folder, tmp_path / "model.zip")
    for circle in ("3d_fullres", "nowhere"):
        model.configuration["inherits_from"] = circle
        (folder / "plans.json").write_text(json.dumps(model.plans))
        with pytest.raises(InputError, match=r"plans\.json"):
            import_model(folder, tmp_path / "model.zip")


def _doubled() -> list[Any]:
    content: list[Any] = [0]
    for _ in range(60):
        content = [content, content]
    return content


def _holding_itself() -> list[Any]:
    content: list[Any] = []
    content.append(content)
    return content


@pytest.mark.parametrize("content", [_doubled, _holding_itself])
def test_containers_that_unfold_without_end_are_refused(
    model: TrainedModel, tmp_path: Path, content: Callable[[], list[Any]]
) -> None:
    model.checkpoint["init_args"] = {"configuration": "3d_fullres", "fold": 0, "plans": content()}
    with pytest.raises(InputError, match="hold themselves"):
        _import(model, tmp_path)
