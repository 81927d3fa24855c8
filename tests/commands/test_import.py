"""`umamba import`, and `umamba predict` with the bundle that it made."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import architecture, edit, rewrite
from raw_datasets import RawDataset, error_lines
from safetensors.torch import load, save
from trained_models import TrainedModel

from umamba_cli.pipeline.data.images import read_label_map
from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.runs.bundle import write_bundle
from umamba_cli.pipeline.runs.checkpoint import read_checkpoint
from umamba_cli.pipeline.runs.record import read_record

CPU = ("--device", "cpu", "--precision", "fp32", "--no-mirroring", "--threads", 1)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Images of two channels, as the model `plain_3d_thick` takes them."""
    return RawDataset(tmp_path / "Dataset001_A", channels=2, cases=("a",)).folder / "imagesTr"


@pytest.fixture
def bundle(umamba: Callable, tmp_path: Path) -> Path:
    """Two folds, imported by the command."""
    folder = TrainedModel().write(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", folds=(0, 1))
    path = tmp_path / "model.zip"
    assert umamba("import", folder, "-o", path).code == 0
    return path


def probabilities(umamba: Callable, model: Path, images: Path, output: Path, *arguments: object) -> Any:
    done = umamba("predict", model, "-i", images, "-o", output, "--save-probabilities", *CPU, *arguments)
    assert done.code == 0, done.err
    (path,) = output.glob("*.npz")
    with np.load(path) as content:
        return content["probabilities"]


def test_import_says_what_it_made(umamba: Callable, tmp_path: Path) -> None:
    folder = TrainedModel().write(tmp_path / "model", folds=(0, 1))
    done = umamba("import", folder, "-o", tmp_path / "a.zip")
    assert done.code == 0
    assert "unet in 3d_fullres, fold 0, 1, trained by nnUNetTrainer on Dataset001_A" in done.out
    assert f"next: umamba predict {tmp_path / 'a.zip'}" in done.out
    assert "import 2/2: fold 1" in done.err
    content = json.loads(umamba("import", folder, "-o", tmp_path / "b.zip", "-f", 1, "--json").out)
    assert (content["model"], content["folds"]) == ("unet", [1])
    assert content["origin"]["trainer"] == "nnUNetTrainer"
    assert umamba("import", folder, "-o", tmp_path / "c.zip", "-q").out == ""


def test_a_trainer_that_is_not_known_is_warned_of(umamba: Callable, tmp_path: Path) -> None:
    model = TrainedModel()
    model.trainer = "nnUNetTrainerOfMine"
    assert (
        "warning: trainer nnUNetTrainerOfMine"
        in umamba("import", model.write(tmp_path / "m"), "-o", tmp_path / "a").err
    )


def test_predict_takes_a_bundle_and_folds_of_it(umamba: Callable, bundle: Path, images: Path, tmp_path: Path) -> None:
    both = probabilities(umamba, bundle, images, tmp_path / "both")
    first, second = (probabilities(umamba, bundle, images, tmp_path / f"{f}", "-f", f) for f in (0, 1))
    assert not np.allclose(first, second, atol=1e-3)
    logits = (np.log(first) + np.log(second)) / 2  # the folds' logits are averaged, up to a constant of the voxel
    averaged = np.exp(logits) / np.exp(logits).sum(0)
    np.testing.assert_allclose(both, averaged, atol=1e-4)
    predicted, image = (read_label_map(path) for path in (tmp_path / "both/a.nii.gz", images / "a_0000.nii.gz"))
    assert predicted.grid.differences(image.grid) == []


def test_a_run_and_its_bundle_predict_alike(
    umamba: Callable, trained_workspace: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    run = Run(trained_workspace / "runs/umamba-bot__3d_fullres/fold_0")
    path = tmp_path / "model.zip"
    write_bundle(path, read_record(run), [(0, read_checkpoint(run.checkpoint("final")).weights)], origin={})
    images = tiny_dataset / "imagesTs"
    ours = probabilities(umamba, path, images, tmp_path / "bundle")
    np.testing.assert_array_equal(ours, probabilities(umamba, run.folder, images, tmp_path / "run"))


def test_mirroring_is_along_the_axes_that_the_checkpoint_names(
    umamba: Callable, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from umamba_cli.pipeline.inference import sliding_window

    seen: list[tuple[int, ...]] = []
    flips = sliding_window._flips
    monkeypatch.setattr(sliding_window, "_flips", lambda axes: seen.append(tuple(axes)) or flips(axes))
    model = TrainedModel()
    model.mirror_axes = (0, 2)
    assert umamba("import", model.write(tmp_path / "model"), "-o", tmp_path / "model.zip").code == 0
    for arguments, axes in (((), (0, 2)), (("--no-mirroring",), ())):
        seen.clear()
        output = tmp_path / f"out{len(axes)}"
        assert (
            umamba("predict", tmp_path / "model.zip", "-i", images, "-o", output, "--device", "cpu", *arguments).code
            == 0
        )
        assert set(seen) == {axes}


@pytest.mark.parametrize("name", ["bot_3d", "enc_2d", "enc_3d_noamp"])
def test_released_umamba_predicts_images_of_any_size(umamba: Callable, shared: Path, tmp_path: Path, name: str) -> None:
    """Tiles have the patch's size, to which the weights of U-Mamba_Enc are bound."""
    source = shared / "goldens/umamba_checkpoints" / name
    described = json.loads((source / "dataset.json").read_text())
    ending, channels = described["file_ending"], len(described["channel_names"])
    shape = (1, 70, 45) if ending == ".png" else (20, 30, 18)
    raw = RawDataset(tmp_path / "raw", ending, channels=channels, cases=("a",), shape=shape)
    assert umamba("import", source, "-o", tmp_path / "model.zip").code == 0
    done = umamba("predict", tmp_path / "model.zip", "-i", raw.folder / "imagesTr", "-o", tmp_path / "out", *CPU)
    assert done.code == 0, done.err
    assert read_label_map(tmp_path / f"out/a{ending}").labels.shape == shape


class _Touch:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def test_refusals_of_import_are_two_lines_and_leave_nothing(umamba: Callable, bundle: Path, tmp_path: Path) -> None:
    model, mark = TrainedModel(), tmp_path / "mark"
    model.checkpoint["logging"] = _Touch(mark)
    hostile = model.write(tmp_path / "hostile")
    before = sorted(tmp_path.iterdir())
    for arguments in (
        (hostile, "-o", tmp_path / "new.zip"),
        (tmp_path / "none", "-o", tmp_path / "new.zip"),
        (bundle.with_name("nnUNetTrainer__nnUNetPlans__3d_fullres"), "-o", bundle),
        (bundle.with_name("nnUNetTrainer__nnUNetPlans__3d_fullres"), "-o", tmp_path / "new.zip", "-f", 7),
        (bundle.with_name("nnUNetTrainer__nnUNetPlans__3d_fullres"), "-o", tmp_path / "new.zip", "-f", "x"),
        (bundle, "-o", tmp_path / "new.zip"),
    ):
        assert len(error_lines(umamba("import", *arguments), code=2)) == 2
    assert sorted(tmp_path.iterdir()) == before
    assert not mark.exists()
    folder = bundle.with_name("nnUNetTrainer__nnUNetPlans__3d_fullres")
    assert umamba("import", folder, "-o", bundle, "--overwrite").code == 0


def _another_hash(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files["weights/fold_0.safetensors"] = files["weights/fold_1.safetensors"]
    with zipfile.ZipFile(bundle, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def _climbing(bundle: Path) -> None:
    with zipfile.ZipFile(bundle, "a") as archive:
        archive.writestr("../evil.json", "{}")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_another_hash, "SHA-256"),
        (_climbing, "climbs out of it"),
        (lambda path: path.write_bytes(b"x"), "is no bundle"),
        (lambda path: torch.save({"network_weights": {}}, path), "a file that a bundle does not have"),
        (Path.unlink, "is no folder and no bundle"),
    ],
)
def test_predict_refuses_bundles_that_are_none(
    umamba: Callable, bundle: Path, images: Path, tmp_path: Path, spoil: Callable[[Path], Any], said: str
) -> None:
    spoil(bundle)
    before = sorted(tmp_path.rglob("*"))
    done = umamba("predict", bundle, "-i", images, "-o", tmp_path / "out", *CPU)
    (error, _) = error_lines(done, code=2)
    assert said in error
    assert sorted(tmp_path.rglob("*")) == before


def test_predict_refuses_folds_that_a_bundle_does_not_hold(
    umamba: Callable, bundle: Path, images: Path, tmp_path: Path
) -> None:
    done = umamba("predict", bundle, "-f", 4, "-i", images, "-o", tmp_path / "out", *CPU)
    error, advice = error_lines(done, code=2)
    assert "holds no fold 4" in error
    assert "0, 1" in advice


def test_a_model_of_nnunet_must_be_imported_first(umamba: Callable, images: Path, tmp_path: Path) -> None:
    folder = TrainedModel().write(tmp_path / "model")
    for model in (folder, folder / "fold_0", folder / "fold_0" / "checkpoint_final.pth"):
        lines = error_lines(umamba("predict", model, "-i", images, "-o", tmp_path / "out", *CPU), code=2)
        assert f"umamba import {model}" in lines[-1]


def test_a_bundle_is_not_imported(umamba: Callable, bundle: Path, tmp_path: Path) -> None:
    lines = error_lines(umamba("import", bundle, "-o", tmp_path / "again.zip"), code=2)
    assert "is a bundle already" in lines[0]


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_bundle_needs_the_name_of_a_file(umamba: Callable, tmp_path: Path, overwrite: tuple[str, ...]) -> None:
    folder = TrainedModel().write(tmp_path / "model")
    (tmp_path / "folder").mkdir()
    for output, problem in ((tmp_path / "folder", "is a folder"), (tmp_path / "no/a.zip", "does not exist")):
        lines = error_lines(umamba("import", folder, "-o", output, *overwrite), code=2)
        assert problem in lines[0]


@pytest.mark.parametrize("changed", [{"blocks_per_stage": [10**9, 1]}, {"features_per_stage": [90_000, 100_000]}])
def test_a_bundle_that_describes_an_absurd_network_is_refused(
    umamba: Callable, bundle: Path, images: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    absurd = dataclasses.asdict(architecture(input_channels=2, outputs=4))
    rewrite(bundle, edit("run.json", architecture={**absurd, **changed}))
    error_lines(umamba("predict", bundle, "-i", images, "-o", tmp_path / "out", *CPU), code=2)
    assert not (tmp_path / "out").exists()


def test_weights_of_whole_numbers_are_refused(umamba: Callable, bundle: Path, images: Path, tmp_path: Path) -> None:
    def round_weights(files: dict[str, bytes]) -> None:
        name = "weights/fold_0.safetensors"
        files[name] = save({key: t.to(torch.int8) for key, t in load(files[name]).items()})

    rewrite(bundle, round_weights)
    lines = error_lines(umamba("predict", bundle, "-f", 0, "-i", images, "-o", tmp_path / "out", *CPU), code=2)
    assert any("torch.int8" in line for line in lines)
