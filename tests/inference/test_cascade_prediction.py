"""Predicting with a cascade: the previous stage is found, run and handed on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from small_cascades import CASCADE, LOWRES, add_cascade, finish, finish_lowres, new_record

from umamba_cli.pipeline.data.images import Image, read_image, read_label_map
from umamba_cli.pipeline.data.inputs import find_cases
from umamba_cli.pipeline.data.workspace import Workspace, open_workspace
from umamba_cli.pipeline.devices import choose_compute
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.inference.predict import predict_cases
from umamba_cli.pipeline.inference.predictor import Predictor, load_predictor
from umamba_cli.pipeline.inference.previous_stage import with_label_channels
from umamba_cli.pipeline.inference.sliding_window import Window, WindowOptions
from umamba_cli.pipeline.runs.bundle import write_bundle
from umamba_cli.pipeline.runs.checkpoint import read_checkpoint
from umamba_cli.pipeline.runs.record import read_record

CPU = choose_compute("cpu", "fp32")
FOLDS = range(5)
NAMES = tuple(f"unet__{LOWRES}/fold_{fold}" for fold in FOLDS)


@pytest.fixture(scope="module")
def trained(tiny_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a finished cascade; fold k of 3d_lowres finds label k everywhere. Not to be changed."""
    folder = Path(shutil.copytree(tiny_workspace, tmp_path_factory.mktemp("cascade") / "work"))
    workspace = add_cascade(folder)
    finish_lowres(workspace, *FOLDS)
    for fold in (0, 1):
        finish(workspace, new_record(workspace, CASCADE, fold, previous_runs=NAMES))
    return folder


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Workspace:
    """A copy to be changed."""
    return open_workspace(Path(shutil.copytree(trained, tmp_path / "work")))


@pytest.fixture(scope="module")
def image(tiny_dataset: Path) -> Image:
    return read_image(sorted((tiny_dataset / "imagesTs").iterdir())[:1])


def model(workspace: Workspace, configuration: str = CASCADE) -> Path:
    return workspace.run("unet", configuration, 0).folder.parent


def load(path: Path, **options: bool) -> Predictor:
    return load_predictor(path, (), CPU, mirroring=False, **options)


def test_all_folds_of_the_previous_stage_are_averaged(own: Workspace, image: Image) -> None:
    # 10 for each label but 25 for label 2, a fifth of it on average: label 2 everywhere, were there one fold or all.
    finish(own, new_record(own, LOWRES, 2), finds=2, surely=25.0)
    finish(own, new_record(own, LOWRES, 0), finds=2, surely=9.0)
    predictor = load(model(own))
    assert predictor.previous is not None
    assert len(predictor.networks) == 2
    assert len(predictor.previous.networks) == 5
    case = predictor.prepare(image)
    assert case.image.shape == (1 + 4, *case.geometry.new_shape)
    assert [float(channel.min()) for channel in case.image[1:]] == [0, 1, 0, 0]
    before = predictor.previous.logits(predictor.previous.prepare(image).image)
    np.testing.assert_allclose(before[:, 0, 0, 0], [0, 2, 34 / 5, 2, 2], rtol=1e-5)


def test_what_the_previous_stage_finds_matters(own: Workspace, image: Image) -> None:
    one = load(model(own)).prepare(image)
    finish_lowres(own, *FOLDS)
    for fold in FOLDS:
        finish(own, new_record(own, LOWRES, fold), finds=3)
    predictor = load(model(own))
    other = predictor.prepare(image)
    np.testing.assert_array_equal(one.image[:1], other.image[:1])
    assert not np.allclose(predictor.logits(one.image), predictor.logits(other.image), atol=1e-3)


def test_label_maps_come_back_on_the_images_own_grid(trained: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    cases = find_cases([tiny_dataset / "imagesTs"], ".nii.gz").cases
    result = predict_cases(load(model(open_workspace(trained))), cases, tmp_path / "out")
    assert result.failed == {}
    (path,) = (tmp_path / "out").glob("*.nii.gz")
    assert read_label_map(path).grid.shape == read_image(cases[0].sources).grid.shape


def test_the_folds_of_3d_lowres_that_were_used_are_taken_no_others(own: Workspace) -> None:
    for fold in (0, 1):
        finish(own, new_record(own, CASCADE, fold, previous_runs=(f"unet__{LOWRES}/fold_all",)))
    finish_lowres(own, "all")
    predictor = load(model(own))
    assert predictor.previous is not None
    assert predictor.previous.record.fold == "all"
    assert len(predictor.previous.networks) == 1


def test_a_relative_path_finds_the_previous_stage(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained / f"runs/unet__{CASCADE}")
    assert load(Path("fold_0")).previous is not None
    monkeypatch.chdir("fold_0")
    assert load(Path()).previous is not None


def test_the_previous_stage_can_be_left_out(own: Workspace) -> None:
    shutil.rmtree(model(own, LOWRES))
    assert load(model(own), previous_stage=False).previous is None


def test_a_previous_stage_that_is_gone_is_named_with_the_command(own: Workspace) -> None:
    shutil.rmtree(own.run("unet", LOWRES, 1).folder)
    own.run("unet", LOWRES, 3).checkpoint("final").unlink()
    with pytest.raises(InputError, match=f"needs what {LOWRES} finds, and 2 of 5 trainings of that are gone") as caught:
        load(model(own))
    assert caught.value.details == tuple(str(own.run("unet", LOWRES, fold).folder) for fold in (1, 3))
    assert f"`umamba train {own.folder} -c {LOWRES} -m unet -f 1-3`" in caught.value.next_step


def test_a_record_that_names_no_previous_run_is_refused(own: Workspace) -> None:
    finish(own, new_record(own, CASCADE, 0))
    with pytest.raises(InputError, match=r"its run\.json names no run of that"):
        load(own.run("unet", CASCADE, 0).folder)


@pytest.mark.parametrize("changed", ["labels", "axes"])
def test_a_previous_stage_of_other_data_is_refused(own: Workspace, changed: str) -> None:
    for fold in FOLDS:
        path = own.run("unet", LOWRES, fold).configuration_file
        content = json.loads(path.read_text())
        if changed == "labels":
            content["dataset"]["labels"] = {"background": 0, "kidneys": 1, "liver": 2, "vessel": 3, "lesion": 4}
        else:
            content["plans"] |= {"transpose_forward": [0, 2, 1], "transpose_backward": [0, 2, 1]}
        path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="other labels, other channels or another axis order"):
        load(model(own))


def test_a_bundle_of_the_second_stage_alone_is_refused(trained: Path, tmp_path: Path) -> None:
    run = open_workspace(trained).run("unet", CASCADE, 0)
    weights = read_checkpoint(run.checkpoint("final")).weights
    write_bundle(tmp_path / "model.zip", read_record(run), [(0, weights)], origin={})
    with pytest.raises(InputError, match="needs what 3d_lowres finds, and it holds no model of that") as caught:
        load(tmp_path / "model.zip")
    assert "umamba export RUN" in caught.value.next_step


def test_label_channels_are_mirrored_with_the_image(trained: Path) -> None:
    """A cascade's answer to a mirrored image with mirrored labels is the mirrored answer, once it averages both."""
    (network,) = load(open_workspace(trained).run("unet", CASCADE, 0).folder).networks
    generator = np.random.default_rng(0)
    shape = (12, 40, 40)
    labels: NDArray[np.int16] = generator.integers(0, 5, shape).astype(np.int16)
    picture = with_label_channels(generator.standard_normal((1, *shape)).astype(np.float32), labels, (1, 2, 3, 4))
    options = WindowOptions(mirror_axes=(2,))
    answer, mirrored = (
        Window([network], shape, CPU, options).logits(np.ascontiguousarray(given))
        for given in (picture, picture[..., ::-1])
    )
    np.testing.assert_allclose(mirrored[..., ::-1], answer, atol=1e-4)


def test_one_channel_a_label() -> None:
    labels = np.array([[[0, 1, 2]]], dtype=np.int16)
    channels = with_label_channels(np.full((1, 1, 1, 3), 7, np.float32), labels, (1, 2))
    assert channels.dtype == np.float32
    assert channels.tolist() == [[[[7, 7, 7]]], [[[0, 1, 0]]], [[[0, 0, 1]]]]
