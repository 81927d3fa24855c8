"""A worker holds one case, in at most three times its size as float32; one more where labels take 8 bytes each."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from phantoms import nnunet_plans

from umamba_cli.pipeline.data.dataset import open_dataset
from umamba_cli.pipeline.data.store import Store
from umamba_cli.pipeline.preprocessing.dataset import PreprocessingJob, preprocess_and_store
from umamba_cli.pipeline.workflows.plan import check_and_measure

SHAPE = (64, 160, 160)
FLOAT32_BYTES = 4 * int(np.prod(SHAPE))


@pytest.fixture(scope="module", params=[(np.int16, np.uint8), (np.float32, np.float64)])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One CT-like case: a body full of noise with zeros in it, air around, two organs; as different types of voxels."""
    image_kind, label_kind = request.param
    folder = tmp_path_factory.mktemp("raw") / "Dataset001_CT"
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij", sparse=True)
    radius = z**2 + y**2 + x**2
    noise = np.random.default_rng(0).integers(-40, 40, SHAPE)
    image = np.where(radius < 0.8, noise, 0).astype(image_kind)
    labels = (radius < 0.5).astype(label_kind) + (radius < 0.2)
    for name, array in (("imagesTr/ct_0000.nii.gz", image), ("labelsTr/ct.nii.gz", labels)):
        (folder / name).parent.mkdir(parents=True)
        sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / name))
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def _limit(dataset: Path) -> int:
    labels = sitk.ReadImage(str(dataset / "labelsTr/ct.nii.gz")).GetPixelID()
    return (4 if labels == sitk.sitkFloat64 else 3) * FLOAT32_BYTES


def _peak(work: object) -> int:
    tracemalloc.start()
    try:
        work()  # type: ignore[operator]
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_measuring_a_case(dataset: Path) -> None:
    opened = open_dataset(dataset)

    def measure() -> None:
        check_and_measure(opened.cases[0], description=opened.description, most_voxels=1000)

    measure()  # what is imported and cached only once
    assert _peak(measure) < _limit(dataset)


@pytest.mark.parametrize("scheme", ["CTNormalization", "ZScoreNormalization"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.6, 0.9, 0.9), (0.8, 0.9, 0.9)])
def test_preprocessing_a_case(
    dataset: Path, tmp_path: Path, spacing: tuple[float, ...], masked: bool, scheme: str
) -> None:
    opened = open_dataset(dataset)
    plans = nnunet_plans(spacing=spacing, scheme=scheme, masked=masked)
    job = PreprocessingJob(opened.cases[0], opened.description, plans, "3d_fullres", Store(tmp_path), "digest")

    def preprocess() -> None:
        assert preprocess_and_store(job) == ()

    preprocess()
    growth = max(1.0, 1 / float(np.prod(spacing)))
    assert _peak(preprocess) < growth * _limit(dataset)
