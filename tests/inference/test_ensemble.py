"""Several models as one: the streamed mean is the one computed whole."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_cascades import CASCADE, LOWRES, add_cascade, finish, finish_lowres, new_record

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.data.images import Image, read_image, read_label_map
from umamba_cli.pipeline.data.inputs import InputCase
from umamba_cli.pipeline.data.workspace import Workspace
from umamba_cli.pipeline.devices import choose_compute
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.inference import ensemble as module
from umamba_cli.pipeline.inference import export, sliding_window
from umamba_cli.pipeline.inference.ensemble import Ensemble, labels_of_mean, load_ensemble
from umamba_cli.pipeline.inference.export import Exported, Wanted, probabilities_on_image_grid
from umamba_cli.pipeline.inference.predict import predict_cases
from umamba_cli.pipeline.inference.predictor import Predictor, load_predictor
from umamba_cli.pipeline.planning.plans import read_plans
from umamba_cli.pipeline.workflows.export import export_model

CPU = choose_compute("cpu", "fp32")
ALL = Wanted(probabilities=True, uncertainty=True)
REGIONS = DatasetDescription(
    channel_names={"0": "MRI"},
    labels={"background": 0, "whole": (1, 2, 3), "core": (2, 3), "enhancing": 3},
    regions_class_order=(1, 2, 3),
    file_ending=".nii.gz",
)


@pytest.fixture(scope="module")
def workspace(tiny_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """With untrained models of several configurations, one of them in another axis order. Not to be changed."""
    opened = add_cascade(Path(shutil.copytree(tiny_workspace, tmp_path_factory.mktemp("several") / "work")))
    turned = json.loads(opened.plans_file.read_text()) | {
        "transpose_forward": [2, 0, 1],
        "transpose_backward": [1, 2, 0],
    }
    plans = type(read_plans(opened.plans_file)).model_validate(turned)
    finish(opened, new_record(opened, "3d_fullres", 0))
    finish(opened, new_record(opened, "2d", 0))
    finish(opened, new_record(opened, LOWRES, 0, tag="turned", plans=plans))
    for name in ("3d_fullres", "2d"):
        finish(opened, new_record(opened, name, 0, tag="regions", dataset=REGIONS))
    return opened


def models(workspace: Workspace, *names: str, previous_stage: bool = True) -> tuple[Predictor, ...]:
    folders = [workspace.runs / name for name in names]
    return tuple(load_predictor(each, (), CPU, mirroring=False, previous_stage=previous_stage) for each in folders)


THREE = ("unet__3d_fullres", "unet__2d", f"unet__{LOWRES}__turned")


@pytest.fixture(scope="module")
def images(tiny_dataset: Path) -> list[Image]:
    """Of three sizes, one of them smaller than a patch, each with a margin that is cropped away."""
    whole = read_image(sorted((tiny_dataset / "imagesTs").iterdir())[:1])

    def part(shape: tuple[int, ...]) -> Image:
        voxels = np.zeros((1, *shape), dtype=np.float32)
        inside = tuple(slice(1, n - 2) for n in shape)
        voxels[(0, *inside)] = whole.voxels[(0, *inside)]
        return Image(voxels, replace(whole.grid, shape=shape))

    z, y, x = whole.grid.shape
    return [part((z, y, x)), part((6, 9, 7)), part((z - 3, y, x - 5))]


def computed_whole(predictors: tuple[Predictor, ...], image: Image) -> NDArray[np.float64]:
    """The mean probabilities (outputs, z, y, x), all at once."""
    found = []
    for predictor in predictors:
        case = predictor.prepare(image)
        how = case.geometry, predictor.record.network_configuration, predictor.dataset
        found.append(probabilities_on_image_grid(predictor.logits(case.image), *how).astype(np.float64))
    mean: NDArray[np.float64] = np.mean(found, axis=0)
    return mean


def in_turn(together: Ensemble, images: list[Image], wanted: Wanted = ALL) -> list[Exported]:
    found = list(together.export(enumerate(map(together.prepare, images)), wanted))
    assert [key for key, _ in found] == list(range(len(images)))
    return [each for _, each in found]


def entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    logarithms: NDArray[np.float64] = np.log(p, out=np.zeros_like(p), where=p > 0)
    nats: NDArray[np.float64] = -(p * logarithms).sum(0)
    return nats


def test_the_mean_is_the_one_computed_whole(workspace: Workspace, images: list[Image]) -> None:
    predictors = models(workspace, *THREE)
    for image in images:
        (found,) = in_turn(Ensemble(predictors), [image])
        mean = computed_whole(predictors, image)
        assert found.labels.shape == image.grid.shape
        assert found.labels.dtype == np.uint8
        assert found.probabilities is not None
        assert found.uncertainty is not None
        np.testing.assert_allclose(found.probabilities, mean, atol=2e-6)
        best = np.sort(mean, axis=0)
        sure = best[-1] - best[-2] > 1e-5
        assert sure.mean() > 0.99
        np.testing.assert_array_equal(found.labels[sure], mean.argmax(0)[sure])
        np.testing.assert_allclose(found.uncertainty, entropy(mean), atol=1e-5)


def test_cases_that_share_batches_are_not_mixed_up(workspace: Workspace, images: list[Image]) -> None:
    together = Ensemble(models(workspace, *THREE))
    for image, found in zip(images, in_turn(together, images), strict=True):
        (alone,) = in_turn(together, [image])
        assert found.probabilities is not None
        assert alone.probabilities is not None
        # Convolutions of another batch size sum in another order, which networks without training make much of.
        np.testing.assert_allclose(found.probabilities, alone.probabilities, atol=5e-3)


def test_models_count_alike_and_in_any_order(workspace: Workspace, images: list[Image]) -> None:
    one, other, third = models(workspace, *THREE)
    (forward,), (backward,) = (
        in_turn(Ensemble(each), images[:1]) for each in ((one, other, third), (third, one, other))
    )
    assert forward.probabilities is not None
    assert backward.probabilities is not None
    np.testing.assert_allclose(forward.probabilities, backward.probabilities, atol=1e-6)


def test_outside_the_crop_is_surely_background(workspace: Workspace, images: list[Image]) -> None:
    (found,) = in_turn(Ensemble(models(workspace, *THREE)), images[:1])
    assert found.probabilities is not None
    assert found.uncertainty is not None
    corners = (slice(None), [0, -1, 0, -1], [0, -1, -1, 0], [0, 0, -1, -1])
    assert found.probabilities[corners].tolist() == [[1] * 4, *[[0] * 4] * (len(found.probabilities) - 1)]
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-6)
    assert not found.uncertainty[0].any()


def test_regions_are_likelier_than_not_one_by_one(workspace: Workspace, images: list[Image]) -> None:
    predictors = models(workspace, "unet__3d_fullres__regions", "unet__2d__regions")
    (found,) = in_turn(Ensemble(predictors), images[:1])
    mean = computed_whole(predictors, images[0])
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities, mean, atol=2e-6)
    assert not found.probabilities[:, 0].any()  # outside the crop
    sure = (abs(mean - 0.5) > 1e-5).all(0)
    expected = np.zeros(mean.shape[1:])
    for value, region in zip((1, 2, 3), mean, strict=True):
        expected[region > 0.5] = value
    assert 0 < (expected > 0).mean() < 1
    np.testing.assert_array_equal(found.labels[sure], expected[sure])
    assert found.uncertainty is not None
    decisions = entropy(np.stack([mean, 1 - mean])).sum(0)
    np.testing.assert_allclose(found.uncertainty, decisions, atol=1e-5)


def test_labels_of_a_mean_worked_out_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    one = np.array([[0.6, 0.5, 0.0], [0.4, 0.1, 0.2], [0.0, 0.4, 0.8]], dtype=np.float32)
    other = np.array([[0.1, 0.2, 0.1], [0.9, 0.1, 0.9], [0.0, 0.7, 0.0]], dtype=np.float32)
    labels = REGIONS.model_copy(update={"labels": {"background": 0, "a": 1, "b": 2}, "regions_class_order": None})
    maps = [each.reshape(3, 1, 1, 3) for each in (one, other)]
    assert labels_of_mean(maps, labels).tolist() == [[[1, 2, 1]]]
    # Regions: the whole (0.35, 0.35, 0.05), the core (0.65, 0.1, 0.55), enhancing (0, 0.55, 0.4).
    assert labels_of_mean(maps, REGIONS).tolist() == [[[2, 3, 2]]]
    monkeypatch.setattr(module, "_BYTES_AT_ONCE", 1)  # a voxel at a time
    assert labels_of_mean(maps, labels).tolist() == [[[1, 2, 1]]]


def test_blocks_of_a_few_voxels_give_the_same(
    workspace: Workspace, images: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = Ensemble(models(workspace, *THREE))
    (whole,) = in_turn(together, images[:1])
    monkeypatch.setattr(module, "_BYTES_AT_ONCE", 4 * 5 * 777)
    (parts,) = in_turn(together, images[:1])
    np.testing.assert_array_equal(whole.labels, parts.labels)
    for one, other in ((whole.probabilities, parts.probabilities), (whole.uncertainty, parts.uncertainty)):
        assert one is not None
        assert other is not None
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_there_is_one_file_at_a_time(
    workspace: Workspace, images: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None for each model, and none of the case before; nothing as large lies in memory."""
    files: list[weakref.ref[Any]] = []
    most = 0
    made = module.array_in_file

    def counted(*arguments: Any) -> NDArray[Any]:
        nonlocal most
        array = made(*arguments)
        files.append(weakref.ref(array))
        gc.collect()
        most = max(most, sum(file() is not None for file in files))
        return array

    monkeypatch.setattr(module, "array_in_file", counted)
    monkeypatch.setattr(export, "array_in_file", lambda *_: pytest.fail("a model has a file of its own"))
    found = in_turn(Ensemble(models(workspace, *THREE)), images, Wanted())
    assert (len(files), most) == (3, 1)
    assert [each.probabilities for each in found] == [None] * 3
    assert [each.uncertainty for each in found] == [None] * 3


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not tell")
def test_what_lies_in_the_file_is_not_held_in_memory() -> None:
    def mapped_mib() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssFile"))

    maps = [module.array_in_file((4, 64, 256, 256), np.float32) for _ in range(2)]  # 64 MiB each
    for number, each in enumerate(maps):
        each[:] = 0.25
        each[number, 0] = 1
    before = mapped_mib()
    labels = labels_of_mean(maps, REGIONS.model_copy(update={"labels": {"background": 0, "a": 1, "b": 2, "c": 3}}))
    assert mapped_mib() < before - 100
    assert (labels.max(), maps[1][1, 0].min(), maps[0][3].min()) == (0, 1, 0.25)


def test_cases_are_taken_when_there_is_room_for_them(
    workspace: Workspace, images: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliding_window, "_VOXELS_A_BATCH", {"cpu": 1})  # a tile at a time
    together = Ensemble(models(workspace, *THREE))
    taken: list[int] = []

    def cases() -> Iterator[tuple[int, Any]]:
        for number in range(6):
            taken.append(number)
            yield number, together.prepare(images[number % 3])

    for number, _ in together.export(cases()):
        assert taken[-1] <= number + 1
    assert taken == list(range(6))


def test_models_that_see_an_image_alike_share_it(
    workspace: Workspace, images: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, flat, turned = models(workspace, *THREE)
    again, *_ = models(workspace, THREE[0])
    prepare, count = Predictor.prepare, []
    monkeypatch.setattr(Predictor, "prepare", lambda self, image: count.append(0) or prepare(self, image))
    prepared = Ensemble((one, flat, again, turned)).prepare(images[0])
    assert len(count) == 3
    assert prepared[0] is prepared[2]
    assert len({id(case) for case in prepared}) == 3
    np.testing.assert_array_equal(prepared[3].image, turned.prepare(images[0]).image)


def test_a_cascade_may_be_among_them(
    tiny_workspace: Path, workspace: Workspace, images: list[Image], tmp_path: Path
) -> None:
    other = add_cascade(Path(shutil.copytree(tiny_workspace, tmp_path / "work")))
    finish_lowres(other, 0, 1)
    names = tuple(f"unet__{LOWRES}/fold_{fold}" for fold in (0, 1))
    finish(other, new_record(other, CASCADE, 0, previous_runs=names))
    predictors = (*models(other, f"unet__{CASCADE}"), *models(workspace, THREE[0]))
    together = Ensemble(predictors)
    assert not together.prepares_ahead
    assert Ensemble(predictors[1:]).prepares_ahead
    (found,) = in_turn(together, images[:1])
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities, computed_whole(predictors, images[0]), atol=2e-6)


def test_folders_are_predicted_with_several_models(workspace: Workspace, tiny_dataset: Path, tmp_path: Path) -> None:
    together = Ensemble(models(workspace, *THREE))
    (image,) = (tiny_dataset / "imagesTs").iterdir()
    name = image.name.removesuffix("_0000.nii.gz")
    cases = [InputCase(name, (image,), ".nii.gz")]
    result = predict_cases(together, cases, tmp_path / "out")
    assert result.failed == {}
    written = read_label_map(tmp_path / "out" / f"{name}.nii.gz")
    (found,) = in_turn(together, [read_image([image])], Wanted())
    np.testing.assert_array_equal(written.labels, found.labels)
    made_by = json.loads((tmp_path / "out/prediction.json").read_text())["made_by"]
    assert [model["configuration"] for model in made_by["models"]] == ["3d_fullres", "2d", LOWRES]
    with pytest.raises(InputError, match="another model"):
        predict_cases(Ensemble(together.predictors[:2]), cases, tmp_path / "out")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"labels": {"background": 0, "liver": 1, "kidneys": 2, "vessel": 3, "tumour": 4}}, "labels differ"),
        ({"labels": {"background": 0, "liver": 1}}, "labels differ"),
        ({"channel_names": {"0": "CT"}}, "channels differ"),
        ({"channel_names": {"0": "MRI", "1": "PET"}}, "channels differ"),
    ],
)
def test_models_of_other_labels_or_channels_are_refused(
    workspace: Workspace, changed: dict[str, Any], said: str
) -> None:
    one, other = models(workspace, *THREE[:2])
    record = other.record.model_copy(update={"dataset": other.dataset.model_copy(update=changed)})
    with pytest.raises(InputError, match=said) as raised:
        Ensemble((one, replace(other, record=record)))
    assert "model 1 (unet 3d_fullres of Dataset001_Tiny)" in raised.value.problem
    assert "model 2 (unet 2d of Dataset001_Tiny)" in raised.value.problem
    assert len(raised.value.details) == 2


def test_regions_in_another_order_are_refused(workspace: Workspace) -> None:
    one, other = models(workspace, "unet__3d_fullres__regions", "unet__2d__regions")
    names = ["whole", "enhancing", "core"]
    for update, said in (
        ({"regions_class_order": (3, 2, 1)}, "labels differ"),
        ({"labels": {"background": 0, **{name: REGIONS.labels[name] for name in names}}}, "labels differ"),
    ):
        record = other.record.model_copy(update={"dataset": REGIONS.model_copy(update=update)})
        with pytest.raises(InputError, match=said):
            Ensemble((one, replace(other, record=record)))


def test_folders_and_bundles_are_loaded_together(workspace: Workspace, images: list[Image], tmp_path: Path) -> None:
    folders = [workspace.runs / name for name in THREE[:2]]
    bundle = tmp_path / "flat.zip"
    export_model(folders[1], bundle)
    loaded = load_ensemble([folders[0], bundle], CPU, mirroring=False, step=1.0)
    assert {predictor.options.step for predictor in loaded.predictors} == {1.0}
    plain = Ensemble(tuple(load_predictor(each, (), CPU, mirroring=False, step=1.0) for each in folders))
    (one,), (other,) = in_turn(loaded, images[:1]), in_turn(plain, images[:1])
    np.testing.assert_array_equal(one.labels, other.labels)
    regions = workspace.runs / "unet__2d__regions"
    with pytest.raises(InputError, match="their labels differ") as raised:
        load_ensemble([folders[0], regions], CPU)
    assert f"{folders[0]} and {regions} cannot be averaged" in raised.value.problem


def test_one_model_is_no_ensemble(workspace: Workspace, tmp_path: Path) -> None:
    one, other = (workspace.runs / name for name in THREE[:2])
    with pytest.raises(InputError, match="one model, an ensemble has two or more") as raised:
        load_ensemble([one], CPU)
    assert f"`umamba predict {one}`" in raised.value.next_step
    export_model(one, tmp_path / "one.zip")
    for same, said in ((one, "is named twice"), (one / "fold_0", "the same model"), (tmp_path / "one.zip", "the same")):
        with pytest.raises(InputError, match=said) as raised:
            load_ensemble([one, other, same], CPU)
        assert "umamba predict" in raised.value.next_step


def test_no_model_is_none() -> None:
    with pytest.raises(InputError, match="no model"):
        Ensemble(())
