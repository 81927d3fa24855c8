"""A bundle of a cascade predicts as its folders do, and tells nobody who was in the dataset."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import rewrite
from small_cascades import CASCADE, LOWRES, add_cascade, finish, finish_lowres, new_record

from umamba_cli.pipeline.data.images import Image, read_image
from umamba_cli.pipeline.data.workspace import Workspace, open_workspace
from umamba_cli.pipeline.devices import choose_compute
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.inference.predictor import load_predictor
from umamba_cli.pipeline.progress import Progress
from umamba_cli.pipeline.runs.bundle import open_bundle
from umamba_cli.pipeline.runs.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from umamba_cli.pipeline.workflows.export import export_model

CPU = choose_compute("cpu", "fp32")


def names(*folds: int | str) -> tuple[str, ...]:
    return tuple(f"unet__{LOWRES}/fold_{fold}" for fold in folds)


@pytest.fixture(scope="module")
def trained(tiny_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a finished cascade, whose folds were trained with different folds of 3d_lowres."""
    folder = Path(shutil.copytree(tiny_workspace, tmp_path_factory.mktemp("cascade") / "work"))
    workspace = add_cascade(folder)
    finish_lowres(workspace, 0, 1, 2, "all")
    finish(workspace, new_record(workspace, LOWRES, 1), finds=1, surely=40.0)  # outvotes the others
    finish(workspace, new_record(workspace, CASCADE, 0, previous_runs=names(0, 1, 2)))
    finish(workspace, new_record(workspace, CASCADE, 1, previous_runs=names(2)))
    finish(workspace, new_record(workspace, CASCADE, "all", previous_runs=names("all")))
    return folder


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Workspace:
    """A copy to be changed."""
    return open_workspace(Path(shutil.copytree(trained, tmp_path / "work")))


@pytest.fixture(scope="module")
def image(tiny_dataset: Path) -> Image:
    return read_image(sorted((tiny_dataset / "imagesTs").iterdir())[:1])


def cascade(workspace: Path) -> Path:
    return open_workspace(workspace).run("unet", CASCADE, 0).folder.parent


@pytest.mark.parametrize("folds", [(), (0,), (1,), ("all",), (0, "all")])
def test_a_bundle_finds_what_the_folder_finds(
    trained: Path, image: Image, tmp_path: Path, folds: tuple[int | str, ...]
) -> None:
    exported = export_model(cascade(trained), tmp_path / "model.zip", folds=folds)
    elsewhere = Path(shutil.copy(tmp_path / "model.zip", tmp_path / "copied.zip"))
    assert exported.folds == (folds or (0, 1))
    ours, theirs = (load_predictor(model, folds, CPU) for model in (elsewhere, cascade(trained)))
    assert ours.previous is not None
    assert theirs.previous is not None
    assert len(ours.previous.networks) == len(theirs.previous.networks)
    one, other = (found.predict(image.voxels, image.grid.spacing_mm) for found in (ours, theirs))
    np.testing.assert_array_equal(one, other)
    expected = {(): {0, 1, 2}, (0,): {0, 1, 2}, (1,): {2}, ("all",): {"all"}, (0, "all"): {0, 1, 2, "all"}}[folds]
    assert set(exported.previous_folds) == expected


def test_the_commands(umamba: Callable, trained: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    done = umamba("export", cascade(trained), "-o", tmp_path / "model.zip", "-f", 1, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["origin"]["previous"]["folds"].keys() == {"2"}
    done = umamba("predict", tmp_path / "model.zip", "-i", tiny_dataset / "imagesTs", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 1


@pytest.mark.parametrize("changed", [{"spacing": [1e-5] * 3}, {"patch_size": [2**20] * 3}])
def test_absurd_plans_end_with_a_word(
    umamba: Callable, trained: Path, tiny_dataset: Path, tmp_path: Path, changed: dict[str, list[float]]
) -> None:
    bundle = tmp_path / "model.zip"
    export_model(cascade(trained), bundle)

    def change(files: dict[str, bytes]) -> None:
        plans = json.loads(files["plans.json"])
        plans["configurations"]["3d_fullres"] |= changed
        files["plans.json"] = json.dumps(plans).encode()

    rewrite(bundle, change)
    done = umamba("predict", bundle, "-i", tiny_dataset / "imagesTs", "-o", tmp_path / "out")
    assert done.code == 2
    assert ("would take" if "spacing" in changed else "must not have more than") in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("fold", [0, 1, "all"])
def test_a_fold_of_a_larger_bundle_takes_its_own_previous_folds(trained: Path, tmp_path: Path, fold: int | str) -> None:
    export_model(cascade(trained), tmp_path / "model.zip", folds=(0, 1, "all"))
    ours, theirs = (load_predictor(model, (fold,), CPU) for model in (tmp_path / "model.zip", cascade(trained)))
    assert ours.previous is not None
    assert theirs.previous is not None
    states = [[network.state_dict() for network in of.previous.networks] for of in (ours, theirs) if of.previous]
    for one, other in zip(*states, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_no_names_of_cases_or_paths(own: Workspace, tmp_path: Path) -> None:
    secret = "patient_0815"
    for path in (own.folder / "runs").rglob("run.json"):
        content = json.loads(path.read_text())
        content["train_cases"].append(secret)
        content["initialised"] = {"source": f"/home/{secret}", "taken": 3, "left": [secret]}
        content["settings"]["init_from"] = f"/home/{secret}/model.zip"
        content["dataset"] |= {
            "training": [{"image": f"./imagesTr/{secret}.nii.gz"}],
            "dataset": {secret: {"images": [f"/data/{secret}_0000.nii.gz"], "label": "x"}},
            "description": "Livers",
        }
        path.write_text(json.dumps(content))
    export_model(cascade(own.folder), tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist() if name.endswith(".json")}
    cases = [case.identifier for case in own.dataset().cases]
    for told in (secret, str(own.folder), str(own.dataset().folder), "fold_0/", *cases):
        assert not [name for name, text in texts.items() if told in text], told
    assert "Livers" in texts["dataset.json"]
    bundle = open_bundle(tmp_path / "model.zip")
    assert bundle.previous is not None
    for record in (bundle.record, bundle.previous.record):
        assert record.train_cases == record.val_cases == record.previous_runs == ()
    assert bundle.manifest.origin["previous"]["folds"].keys() == {"0", "1", "2"}


def test_it_is_told_of_every_fold(trained: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    export_model(cascade(trained), tmp_path / "model.zip", on_progress=told.append)
    assert [(one.done, one.total) for one in told] == [(done, 5) for done in range(6)]
    assert told[-1].step == f"fold 2 of {LOWRES}"


def test_a_previous_stage_that_is_gone_is_said(own: Workspace, tmp_path: Path) -> None:
    shutil.rmtree(own.run("unet", LOWRES, 2).folder)
    with pytest.raises(InputError, match=f"needs what {LOWRES} finds, and 1 of 3 trainings of that are gone"):
        export_model(cascade(own.folder), tmp_path / "model.zip")
    assert not (tmp_path / "model.zip").exists()


def test_a_fold_that_names_no_previous_run_is_refused(own: Workspace, tmp_path: Path) -> None:
    run = finish(own, new_record(own, CASCADE, 1))
    with pytest.raises(InputError, match=rf"{run.folder} needs .* its run\.json names no run of that"):
        export_model(cascade(own.folder), tmp_path / "model.zip")


def test_folds_of_two_previous_models_are_refused(own: Workspace, tmp_path: Path) -> None:
    finish(own, new_record(own, LOWRES, 2, tag="wide"))
    finish(own, new_record(own, CASCADE, 1, previous_runs=(f"unet__{LOWRES}__wide/fold_2",)))
    with pytest.raises(InputError, match=f"were trained with several models of {LOWRES}"):
        export_model(cascade(own.folder), tmp_path / "model.zip")


def test_a_previous_stage_of_other_data_is_refused(own: Workspace, tmp_path: Path) -> None:
    for fold in (0, 1, 2):
        path = own.run("unet", LOWRES, fold).configuration_file
        content = json.loads(path.read_text())
        content["dataset"]["labels"] = {"background": 0, "kidneys": 1, "liver": 2, "vessel": 3, "lesion": 4}
        path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="other labels, other channels or another axis order"):
        export_model(cascade(own.folder), tmp_path / "model.zip")


@pytest.mark.parametrize("configuration", [CASCADE, LOWRES])
def test_weights_that_are_no_numbers_are_not_exported(own: Workspace, tmp_path: Path, configuration: str) -> None:
    checkpoint = own.run("unet", configuration, 0).checkpoint("final")
    weights = dict(read_checkpoint(checkpoint).weights)
    weights["heads.0.bias"] = weights["heads.0.bias"] * float("nan")
    write_checkpoint(checkpoint, Checkpoint(1, weights))
    with pytest.raises(InputError, match=f"1 of .* weights of {checkpoint} are not finite numbers"):
        export_model(cascade(own.folder), tmp_path / "model.zip")
    assert not list(tmp_path.glob("*.zip"))
