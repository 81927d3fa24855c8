"""Presets, options, and a reason for every number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.planning.fingerprint import Fingerprint
from umamba_cli.pipeline.planning.planner import PlannedDataset, PlanOptions, make_plans
from umamba_cli.pipeline.planning.plans import Configuration

BuildFingerprint = Callable[..., Fingerprint]
BuildDescription = Callable[..., DatasetDescription]


@pytest.fixture
def plan(fingerprint_of: BuildFingerprint, description_of: BuildDescription) -> Callable[..., PlannedDataset]:
    """Plans for equal cases of a spacing and a shape."""

    def build(spacing: tuple[float, ...], shape: tuple[int, ...], cases: int = 20, **options: Any) -> PlannedDataset:
        fingerprint = fingerprint_of(spacing, shape, cases=cases)
        return make_plans(fingerprint, description_of(), "Dataset001_Test", PlanOptions(**options))

    return build


def _configurations(planned: PlannedDataset) -> dict[str, Configuration]:
    return {name: planned.plans.configuration(name) for name in planned.plans.configurations}


def test_small_patches_are_the_usual_ones_on_a_cpu(plan: Callable[..., PlannedDataset]) -> None:
    usual = _configurations(plan((1.0, 1.0, 1.0), (36, 50, 35)))
    small = _configurations(plan((1.0, 1.0, 1.0), (36, 50, 35), preset="cpu"))
    assert small["3d_fullres"].patch_size == usual["3d_fullres"].patch_size == (40, 56, 40)
    assert small["3d_fullres"].network.features_per_stage == (8, 16, 32, 64)
    assert small["3d_fullres"].network.strides == usual["3d_fullres"].network.strides


@pytest.mark.parametrize(
    ("spacing", "shape"),
    [
        ((1.0, 0.8, 0.8), (430, 512, 512)),
        ((5.0, 0.6, 0.6), (24, 320, 320)),
        ((999.0, 1.0, 1.0), (1, 1000, 1400)),
        ((1.0, 1.0, 1.0), (47, 47, 47)),
    ],
)
def test_cpu_preset_keeps_its_limits(
    plan: Callable[..., PlannedDataset], spacing: tuple[float, ...], shape: tuple[int, ...]
) -> None:
    planned = plan(spacing, shape, preset="cpu")
    usual = _configurations(plan(spacing, shape))
    assert (planned.plans.training.epochs, planned.plans.training.iterations) == (30, 60)
    assert set(_configurations(planned)) == set(usual)
    for name, configuration in _configurations(planned).items():
        limit = 65_536 if configuration.dimensions == 2 else 100_000
        assert math.prod(configuration.patch_size) <= limit
        # One step less would do: the limit is not undercut for nothing.
        assert math.prod(configuration.patch_size) > limit / 3 or configuration.patch_size == usual[name].patch_size
        assert configuration.batch_size == 2
        features = configuration.network.features_per_stage
        assert features == tuple(min(64, 8 * 2**stage) for stage in range(len(features)))
        assert configuration.spacing == usual[name].spacing


def test_cpu_patch_by_hand(plan: Callable[..., PlannedDataset]) -> None:
    # 512 x 512 is shrunk in turns, x first, to 256 x 256 = 65,536 pixels.
    configurations = _configurations(plan((999.0, 1.0, 1.0), (1, 512, 512), preset="cpu"))
    assert configurations["2d"].patch_size == (256, 256)


def test_flat_images_get_2d_only(plan: Callable[..., PlannedDataset]) -> None:
    planned = plan((999.0, 1.0, 1.0), (1, 512, 640))
    assert list(planned.plans.configurations) == ["2d"]
    assert planned.plans.configuration("2d").spacing == (1.0, 1.0)
    assert any(row.value == "no" and "single slices" in row.reason for row in planned.decisions)


def test_flat_images_keep_their_slice_whatever_spacing_is_asked_for(plan: Callable[..., PlannedDataset]) -> None:
    planned = plan((999.0, 1.0, 1.0), (1, 512, 640), spacing_mm=(1.0, 2.0, 2.0))
    assert list(planned.plans.configurations) == ["2d"]
    assert planned.plans.configuration("2d").spacing == (2.0, 2.0)
    assert planned.plans.configuration("2d").median_image_size_in_voxels == (256, 320)


def test_spacing_can_be_asked_for(plan: Callable[..., PlannedDataset]) -> None:
    planned = plan((1.0, 1.0, 1.0), (60, 60, 60), spacing_mm=(1.0, 1.0, 3.0))
    assert planned.plans.transpose_forward == (2, 0, 1)
    assert planned.plans.transpose_backward == (1, 2, 0)
    assert planned.plans.configuration("3d_fullres").spacing == (3.0, 1.0, 1.0)
    assert planned.plans.configuration("3d_fullres").median_image_size_in_voxels == (20, 60, 60)
    assert "--spacing" in next(
        r.reason for r in planned.decisions if (r.configuration, r.what) == ("3d_fullres", "spacing")
    )


def test_large_images_get_a_cascade(plan: Callable[..., PlannedDataset]) -> None:
    planned = plan((1.0, 1.0, 1.0), (400, 400, 400))
    assert set(planned.plans.configurations) == {"2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"}
    lowres, cascade = (planned.plans.configuration(name) for name in ("3d_lowres", "3d_cascade_fullres"))
    covered = math.prod(lowres.patch_size) / math.prod(lowres.median_image_size_in_voxels)
    assert 0.24 < covered < 0.3
    assert lowres.next_stage == "3d_cascade_fullres"
    assert cascade.previous_stage == "3d_lowres"
    assert cascade.patch_size == planned.plans.configuration("3d_fullres").patch_size
    assert cascade.batch_dice
    assert not lowres.batch_dice


def test_lowres_is_dropped_where_it_gains_little(plan: Callable[..., PlannedDataset]) -> None:
    # 128^3 of 220^3 voxels is 20 %; at a quarter, images would be 1.3 times smaller.
    planned = plan((1.0, 1.0, 1.0), (220, 220, 220))
    assert set(planned.plans.configurations) == {"2d", "3d_fullres"}
    assert any(row.configuration == "3d_lowres" and "times smaller" in row.reason for row in planned.decisions)


def test_more_memory_makes_larger_patches_or_batches(plan: Callable[..., PlannedDataset]) -> None:
    def voxels(gb: float) -> int:
        configuration = plan((1.0, 1.0, 1.0), (220, 220, 220), memory_gb=gb).plans.configuration("3d_fullres")
        return configuration.batch_size * math.prod(configuration.patch_size)

    assert voxels(4) < voxels(8) < voxels(24) < voxels(80)


def test_resenc_xl_is_planned_for_40_gb(plan: Callable[..., PlannedDataset]) -> None:
    own, explicit = (plan((1.0, 1.0, 1.0), (400,) * 3, preset="resenc-xl", memory_gb=gb).plans for gb in (None, 40))
    assert own == explicit
    network = own.configuration("3d_fullres").network
    assert network.n_blocks_per_stage == (1, 3, 4, 6, 6, 6)
    assert network.n_conv_per_stage is None


def test_batch_sees_a_twentieth_of_the_dataset_at_most(plan: Callable[..., PlannedDataset]) -> None:
    # 32 x 32 x 32 voxels in 100 cases; 5 % is 5 cases, one patch each.
    assert plan((1.0,) * 3, (32, 32, 32), cases=100).plans.configuration("3d_fullres").batch_size == 5
    assert plan((1.0,) * 3, (32, 32, 32), cases=10).plans.configuration("3d_fullres").batch_size == 2
    assert plan((1.0,) * 3, (32, 32, 32), 100, preset="resenc-m").plans.configuration("3d_fullres").batch_size == 100


def test_every_number_has_a_reason(plan: Callable[..., PlannedDataset]) -> None:
    planned = plan((5.0, 1.0, 1.0), (60, 600, 600))
    assert "3d_lowres" in planned.plans.configurations
    rows = {(row.configuration, row.what): row for row in planned.decisions}
    assert len(rows) == len(planned.decisions)
    for name in ("2d", "3d_lowres", "3d_fullres"):
        for what in (
            "spacing", "median image size", "patch size", "batch size", "stages", "strides", "kernel sizes", "features",
            "encoder", "decoder", "batch Dice",
        ):  # fmt: skip
            assert rows.pop((name, what)).reason
    for what in ("axis order", "normalisation of MR", "mask for MR", "training"):
        assert rows.pop(("", what)).reason
    assert rows.pop(("3d_lowres", "planned")).value == "yes"
    assert rows.pop(("3d_cascade_fullres", "planned")).value == "yes"
    assert not rows
    assert max(len(row.reason) for row in planned.decisions) <= 110


def test_channels_are_normalised_by_their_names(
    fingerprint_of: BuildFingerprint, description_of: BuildDescription
) -> None:
    fingerprint = fingerprint_of((1.0,) * 3, (40, 40, 40), channels=2, relative_size=0.5)
    planned = make_plans(fingerprint, description_of("CT", "PET"), "Dataset001_Test", PlanOptions())
    configuration = planned.plans.configuration("3d_fullres")
    assert configuration.normalization_schemes == ("CTNormalization", "ZScoreNormalization")
    assert configuration.use_mask_for_norm == (False, True)


def test_fingerprint_of_other_channels_is_refused(
    fingerprint_of: BuildFingerprint, description_of: BuildDescription
) -> None:
    with pytest.raises(InputError, match=r"has 1 channels, dataset\.json has 2"):
        make_plans(fingerprint_of((1.0,) * 3, (40,) * 3), description_of("T1", "T2"), "Test", PlanOptions())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"memory_gb": 0}, "memory of 0 GB"),
        ({"memory_gb": float("nan")}, "memory of nan GB"),
        ({"spacing_mm": (1.0, 1.0)}, "spacing of 1 1 mm"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "spacing of 1 0 1 mm"),
        ({"preset": "huge"}, "there is no preset 'huge'"),
    ],
)
def test_contradictory_options_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError) as caught:
        PlanOptions(**options)
    assert caught.value.problem == problem
    assert caught.value.next_step


def test_too_little_memory_is_refused(plan: Callable[..., PlannedDataset]) -> None:
    with pytest.raises(InputError, match="no patch fits the memory"):
        plan((1.0, 1.0, 1.0), (60, 60, 60), memory_gb=1e-7)


def test_single_voxels_are_refused(plan: Callable[..., PlannedDataset]) -> None:
    with pytest.raises(InputError, match="single voxel"):
        plan((1.0, 1.0, 1.0), (5, 1, 1))
