from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from phantoms import nnunet_plans

from umamba_cli.pipeline.data.dataset import DatasetDescription, open_dataset
from umamba_cli.pipeline.data.images import Image, read_image, read_label_map
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import Grid
from umamba_cli.pipeline.planning.plans import Plans, read_plans
from umamba_cli.pipeline.preprocessing.case import (
    CaseGeometry,
    plans_digest,
    preprocess,
    sample_annotated_voxels,
    sample_class_voxels,
)

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
ONE_LABEL = DatasetDescription(channel_names={"0": "MR"}, labels={"background": 0, "a": 1}, file_ending=".nii.gz")
GOLDENS = [
    ("Dataset004_Hippocampus", "hippocampus_001", "3d_fullres"),
    ("Dataset004_Hippocampus", "hippocampus_004", "3d_fullres"),
    ("Dataset018_Nuclei", "00ae65c1c6631ae6", "2d"),
    ("Dataset101_CineMR", "SCD0000101_ED", "2d"),
    ("Dataset101_CineMR", "SCD0000201_ED", "3d_fullres"),
]


@pytest.mark.parametrize(("dataset", "case", "configuration"), GOLDENS)
def test_cases_come_out_as_from_nnunet(shared: Path, dataset: str, case: str, configuration: str) -> None:
    goldens = shared / "goldens/preprocessing" / dataset
    plans = read_plans(goldens / "nnUNetPlans.json")
    (raw,) = open_dataset(shared / "data" / dataset).select([case])
    assert raw.label is not None
    labels = read_label_map(raw.label).labels
    ours = preprocess(read_image(raw.images), labels, plans, plans.configuration(configuration))
    with np.load(goldens / f"{case}_{configuration}.npz") as theirs:
        np.testing.assert_allclose(ours.image, theirs["data"], rtol=0, atol=1e-4)
        np.testing.assert_array_equal(ours.labels, theirs["seg"][0])


def _phantom(shape: tuple[int, int, int] = (14, 20, 24), margin: int = 3) -> tuple[Image, np.ndarray]:
    """A ball with an off-centre smaller one in it, and zeros around."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n - 2 * margin) for n in shape), indexing="ij")
    inner = ((z - 0.1) ** 2 + (y + 0.1) ** 2 + (x - 0.2) ** 2 < 0.3).astype(int)
    labels = np.pad(inner, margin)
    voxels = np.pad(10 + 5 * inner + z, margin)[None].astype(np.float32)
    return Image(voxels, Grid(shape, (3.0, 1.0, 1.0), (1.0, 2.0, 3.0), IDENTITY)), labels


def test_the_image_is_cropped_to_nonzero_and_standardised() -> None:
    image, labels = _phantom()
    before = image.voxels.copy()
    plans = nnunet_plans(spacing=(3.0, 1.0, 1.0))
    case = preprocess(image, labels, plans, plans.configuration("3d_fullres"))
    assert case.image.shape == (1, 8, 14, 18)
    assert case.geometry.crop.start == (3, 3, 3)
    assert abs(float(case.image.mean())) < 1e-5
    assert float(case.image.std()) == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(image.voxels, before)


@pytest.mark.parametrize("spacing", [(3.0, 1.0, 1.0), (1.7, 0.8, 1.3), (5.0, 2.0, 2.0)])
@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
def test_labels_go_there_and_back(spacing: tuple[float, ...], transpose: tuple[int, ...]) -> None:
    """Resampled to the plans' grid and back, at most the surface voxels of the small ball move."""
    image, labels = _phantom((20, 36, 40), margin=2)
    plans = nnunet_plans(spacing=tuple(spacing[axis] for axis in transpose), transpose=transpose)
    case = preprocess(image, labels, plans, plans.configuration("3d_fullres"))
    assert case.labels is not None

    from umamba_cli.pipeline.inference.export import labels_on_image_grid

    geometry = CaseGeometry.from_json(case.geometry.to_json())
    assert geometry == case.geometry
    logits = np.stack([case.labels != 1, case.labels == 1]).astype(np.float32) * 10
    back = labels_on_image_grid(logits, geometry, plans.configuration("3d_fullres"), ONE_LABEL)
    assert back.shape == labels.shape
    dice = 2 * (back & labels).sum() / (back.sum() + labels.sum())
    assert dice == 1.0 if spacing == (3.0, 1.0, 1.0) else dice > 0.85


def test_outside_the_mask_is_minus_one_but_a_label_there_stays() -> None:
    image, labels = _phantom(margin=0)
    image.voxels[0, :, :5] = 0
    labels[0, 0, 0] = 1
    image.voxels[0, 0, 0, 1] = 1  # so that the crop keeps the whole image
    plans = nnunet_plans(spacing=(3.0, 1.0, 1.0))
    case = preprocess(image, labels, plans, plans.configuration("3d_fullres"))
    assert case.labels is not None
    assert case.labels[0, 0, :3].tolist() == [1, 0, -1]


def test_what_is_labelled_counts_as_image_even_where_it_is_zero() -> None:
    """As in nnU-Net, whose mask is what the label map does not mark as outside."""
    image, labels = _phantom(margin=0)
    image.voxels[0, :, :5] = 0
    image.voxels[0, 0, 0, 1] = 1  # so that the crop keeps the whole image
    labels[:], labels[:, :3] = 0, 2
    plans = nnunet_plans(spacing=(3.0, 1.0, 1.0), masked=True)
    case = preprocess(image, labels, plans, plans.configuration("3d_fullres"))
    assert case.labels is not None
    inside = case.labels >= 0
    assert inside[:, :3].all()
    assert not inside[:, 3:5].any()
    assert float(case.image[0][inside].mean()) == pytest.approx(0, abs=1e-5)
    assert float(case.image[0][inside].std()) == pytest.approx(1, abs=1e-5)
    assert not case.image[0][~inside].any()


def test_an_image_of_zeros_keeps_its_size_and_stays_finite() -> None:
    image, labels = _phantom()
    image.voxels[:] = 0
    plans = nnunet_plans(spacing=(3.0, 1.0, 1.0))
    case = preprocess(image, labels, plans, plans.configuration("3d_fullres"))
    assert case.image.shape == (1, 14, 20, 24)
    assert not case.image.any()


def test_class_voxels_hold_their_class_and_do_not_depend_on_order() -> None:
    labels = np.random.default_rng(0).integers(-1, 3, (30, 40, 50))
    voxels = sample_class_voxels(labels, (1, 2, 7), "case_1")
    assert set(voxels) == {1, 2}
    for label, indices in voxels.items():
        assert len(indices) == 10_000
        assert (labels.ravel()[indices] == label).all()
    np.testing.assert_array_equal(voxels[1], sample_class_voxels(labels, (2, 1), "case_1")[1])
    assert not np.array_equal(voxels[1], sample_class_voxels(labels, (1,), "case_2")[1])


def test_annotated_voxels_are_neither_ignored_nor_outside() -> None:
    labels = np.random.default_rng(0).integers(-1, 4, (30, 40, 50), dtype=np.int8)
    labels[10:12] = 3
    voxels = sample_annotated_voxels(labels, 3, "case_1")
    assert len(np.unique(voxels)) == len(voxels) == 10_000
    held, counts = np.unique(labels.ravel()[voxels], return_counts=True)
    assert held.tolist() == [0, 1, 2]
    assert counts == pytest.approx([10_000 / 3] * 3, rel=0.05)
    in_slices = np.bincount(voxels // (40 * 50), minlength=30)
    assert in_slices[[0, 29]] == pytest.approx([10_000 / 28] * 2, rel=0.2)
    np.testing.assert_array_equal(voxels, sample_annotated_voxels(labels, 3, "case_1"))
    assert not np.array_equal(voxels, sample_annotated_voxels(labels, 3, "case_2"))


def test_few_annotated_voxels_are_all_noted() -> None:
    labels = np.full((3, 4, 5), 2)
    assert sample_annotated_voxels(labels, 2, "case").tolist() == []
    labels[1, 2, 3], labels[2, 0, 0], labels[0] = 0, 1, -1
    assert sample_annotated_voxels(labels, 2, "case").tolist() == [33, 40]


def test_a_dataset_with_an_ignore_label_is_preprocessed_anew() -> None:
    """Its stores of before hold no annotated voxels."""
    plans = nnunet_plans(spacing=(3.0, 1.0, 1.0))
    ignoring = ONE_LABEL.model_copy(update={"labels": {"background": 0, "a": 1, "ignore": 2}})
    assert plans_digest(plans, plans.configuration("3d_fullres"), ignoring) != "7d7138074b808d3e"


def test_the_digest_changes_with_what_preprocessing_takes_from_the_plans() -> None:
    plans = nnunet_plans(spacing=(3.0, 1.0, 1.0))
    other = nnunet_plans(spacing=(3.0, 1.0, 1.1))
    dataset = ONE_LABEL
    more = dataset.model_copy(update={"labels": {"background": 0, "a": 1, "b": 2}})

    def digest(plans: Plans, dataset: DatasetDescription) -> str:
        return plans_digest(plans, plans.configuration("3d_fullres"), dataset)

    assert digest(plans, dataset) == digest(plans, dataset) == "14c4d28599ef842b"  # stores that are there stay good
    assert len({digest(plans, dataset), digest(other, dataset), digest(plans, more)}) == 3


def test_an_image_with_another_number_of_channels_than_the_plans_is_refused() -> None:
    image, _ = _phantom()
    two = Image(np.concatenate((image.voxels, image.voxels)), image.grid)
    plans = nnunet_plans(spacing=(3.0, 1.0, 1.0))
    with pytest.raises(InputError, match="2 channels"):
        preprocess(two, None, plans, plans.configuration("3d_fullres"))
