"""Plans files: written, read, edited."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.planning.plans import Plans, read_plans, write_plans


def _problems(folder: Path, content: dict[str, Any]) -> list[str]:
    """The complaints about a plans file of this content, one for each key."""
    file = folder / "plans.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        read_plans(file)
    assert str(file) in caught.value.problem
    assert caught.value.next_step
    return list(caught.value.details)


def test_round_trip(tmp_path: Path, written_plans: dict[str, Any]) -> None:
    plans = Plans.model_validate(written_plans)
    write_plans(tmp_path / "plans.json", plans)
    assert read_plans(tmp_path / "plans.json") == plans
    again = json.loads((tmp_path / "plans.json").read_text())
    assert again == written_plans
    assert "_kw_requires_import" in again["configurations"]["2d"]["architecture"]


def test_unknown_keys_are_kept(tmp_path: Path, written_plans: dict[str, Any]) -> None:
    written_plans["label_manager"] = "LabelManager"
    written_plans["configurations"]["2d"]["note"] = "mine"
    write_plans(tmp_path / "plans.json", Plans.model_validate(written_plans))
    again = json.loads((tmp_path / "plans.json").read_text())
    assert again["label_manager"] == "LabelManager"
    assert again["configurations"]["2d"]["note"] == "mine"


def test_missing_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist") as caught:
        read_plans(tmp_path / "plans.json")
    assert "umamba plan" in caught.value.next_step


def _network(configuration: dict[str, Any]) -> dict[str, Any]:
    network: dict[str, Any] = configuration["architecture"]["arch_kwargs"]
    return network


EDITS: list[tuple[Callable[[dict[str, Any]], object], str, str]] = [
    (lambda c: c.update(patch_size=[100, 128, 128]), "patch_size", "must be multiples of 32, 32, 32"),
    (lambda c: c.update(patch_size=[128, 128]), "patch_size", "must have 3 entries"),
    (lambda c: c.update(patch_size=[128, 128, 0]), "patch_size.2", "greater than or equal to 1"),
    (lambda c: c.update(patch_size="large"), "patch_size", "valid tuple"),
    (lambda c: c.pop("patch_size"), "patch_size", "missing"),
    (lambda c: c.update(batch_size=0), "batch_size", "greater than or equal to 1"),
    (lambda c: c.update(spacing=[1.0, -1.0, 1.0]), "spacing.1", "greater than 0"),
    (lambda c: c.update(spacing=[1.0, 1.0]), "spacing", "must have 3 entries"),
    (lambda c: c.update(normalization_schemes=["CT"]), "normalization_schemes.0", "'CTNormalization', 'ZScoreNorm"),
    (lambda c: c.update(use_mask_for_norm=[]), "use_mask_for_norm", "must have 1 entries"),
    (lambda c: _network(c).update(n_stages=5), "architecture.arch_kwargs.strides", "must have 5 entries"),
    (
        lambda c: _network(c).update(features_per_stage=[32, 64]),
        "architecture.arch_kwargs.features_per_stage",
        "must have 6 entries",
    ),
    (
        lambda c: _network(c).update(n_conv_per_stage_decoder=[2] * 6),
        "architecture.arch_kwargs.n_conv_per_stage_decoder",
        "must have 5 entries",
    ),
    (
        lambda c: _network(c).update(kernel_sizes=[[3, 3]] * 6),
        "architecture.arch_kwargs.kernel_sizes",
        "every entry must have 3 numbers",
    ),
    (lambda c: _network(c).pop("n_conv_per_stage"), "architecture.arch_kwargs", "n_conv_per_stage or n_blocks"),
    (lambda c: c.update(resampling_fn_data="resample_torch"), "resampling_fn_data", "resample_data_or_seg_to_shape"),
    (lambda c: c.update(resampling_fn_data_kwargs={"order": 2}), "resampling_fn_data_kwargs.order", "0, 1 or 3"),
    (
        lambda c: c.update(resampling_fn_seg_kwargs={"order": 1, "order_z": 1}),
        "resampling_fn_seg_kwargs.order_z",
        "be 0",
    ),
    (lambda c: c.update(resampling_fn_seg_kwargs={"order": 3}), "resampling_fn_seg_kwargs.order", "0 or 1"),
    (lambda c: c.update(previous_stage="3d_low"), "previous_stage", "must be one of 2d, 3d_lowres, 3d_fullres"),
]


@pytest.mark.parametrize(("edit", "key", "allowed"), EDITS)
def test_edits_are_refused_with_key_and_allowed_values(
    tmp_path: Path,
    written_plans: dict[str, Any],
    edit: Callable[[dict[str, Any]], object],
    key: str,
    allowed: str,
) -> None:
    edit(written_plans["configurations"]["3d_fullres"])
    problems = _problems(tmp_path, written_plans)
    assert any(line.startswith(f"configurations.3d_fullres.{key}: ") and allowed in line for line in problems), problems
    # The cascade inherits the mistake; it is named where it was made.
    assert not any(line.startswith("configurations.3d_cascade") for line in problems)


def test_all_wrong_keys_are_listed(tmp_path: Path, written_plans: dict[str, Any]) -> None:
    written_plans["configurations"]["2d"]["batch_size"] = 0
    written_plans["configurations"]["3d_fullres"]["patch_size"] = [1, 1, 1]
    assert len(_problems(tmp_path, written_plans)) == 2


def test_patch_that_the_strides_divide_is_accepted(written_plans: dict[str, Any]) -> None:
    written_plans["configurations"]["3d_fullres"]["patch_size"] = [96, 64, 32]
    plans = Plans.model_validate(written_plans)
    assert plans.configuration("3d_fullres").patch_size == (96, 64, 32)
    assert plans.configuration("3d_cascade_fullres").patch_size == (96, 64, 32)


def test_wrong_transposes_are_refused(tmp_path: Path, written_plans: dict[str, Any]) -> None:
    assert "must hold 0, 1 and 2" in _problems(tmp_path, {**written_plans, "transpose_forward": [0, 0, 1]})[0]
    wrong = {**written_plans, "transpose_forward": [2, 0, 1], "transpose_backward": [2, 0, 1]}
    assert "must be [1, 2, 0]" in _problems(tmp_path, wrong)[0]


def test_channels_must_agree(tmp_path: Path, written_plans: dict[str, Any]) -> None:
    channels = written_plans["foreground_intensity_properties_per_channel"]
    channels["1"] = channels["0"]
    (problem,) = _problems(tmp_path, written_plans)
    assert problem.startswith("configurations.2d.normalization_schemes: must have 2 entries")
    channels["5"] = channels.pop("1")
    assert "keys 0 to 1" in _problems(tmp_path, written_plans)[0]


def test_inheritance_goes_through_chains(written_plans: dict[str, Any]) -> None:
    written_plans["configurations"]["large_batch"] = {"inherits_from": "3d_fullres", "batch_size": 4}
    written_plans["configurations"]["small_patch"] = {"inherits_from": "large_batch", "patch_size": [64, 64, 64]}
    plans = Plans.model_validate(written_plans)
    child = plans.configuration("small_patch")
    assert (child.name, child.batch_size, child.patch_size) == ("small_patch", 4, (64, 64, 64))
    assert child.network == plans.configuration("3d_fullres").network


def test_mistakes_of_a_child_are_named_there(tmp_path: Path, written_plans: dict[str, Any]) -> None:
    written_plans["configurations"]["child"] = {"inherits_from": "3d_fullres", "patch_size": [5, 5, 5]}
    (problem,) = _problems(tmp_path, written_plans)
    assert problem.startswith("configurations.child.patch_size: must be multiples of")


@pytest.mark.parametrize(
    ("parents", "problem"),
    [
        ({"a": "a"}, "configurations.a.inherits_from: runs in a circle: a -> a"),
        ({"a": "b", "b": "a"}, "configurations.b.inherits_from: runs in a circle: a -> b -> a"),
        ({"a": "nothing"}, "configurations.a.inherits_from: must be one of 2d, 3d_lowres"),
        ({"a": ["2d"]}, "configurations.a.inherits_from: must be one of 2d, 3d_lowres"),
    ],
)
def test_impossible_parents_are_refused(
    tmp_path: Path, written_plans: dict[str, Any], parents: dict[str, Any], problem: str
) -> None:
    for name, parent in parents.items():
        written_plans["configurations"][name] = {"inherits_from": parent}
    assert _problems(tmp_path, written_plans)[0].startswith(problem)


def test_unknown_configuration_lists_the_known(written_plans: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no configuration '3d'") as caught:
        Plans.model_validate(written_plans).configuration("3d")
    assert caught.value.next_step == "choose one of 2d, 3d_lowres, 3d_fullres, 3d_cascade_fullres"


def test_2d_leaves_the_first_axis_as_it_is(written_plans: dict[str, Any]) -> None:
    plans = Plans.model_validate(written_plans)
    assert plans.configuration("2d").dimensions == 2
    assert plans.configuration("2d").data_spacing((7.0, 0.5, 0.5)) == (7.0, 1.0, 1.0)
    assert plans.configuration("3d_fullres").data_spacing((7.0, 0.5, 0.5)) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("name", ["../../evil", "", "a/b", ".hidden", "with space"])
def test_a_configuration_that_cannot_name_a_folder_is_refused(
    tmp_path: Path, written_plans: dict[str, Any], name: str
) -> None:
    written_plans["configurations"][name] = {"inherits_from": "3d_fullres"}
    (problem,) = _problems(tmp_path, written_plans)
    assert "must be named with letters" in problem


def test_a_misspelt_key_is_refused_and_other_unknown_ones_are_kept(
    tmp_path: Path, written_plans: dict[str, Any]
) -> None:
    written_plans["configurations"]["small"] = {"inherits_from": "3d_fullres", "patch_sise": [32, 32, 32]}
    (problem,) = _problems(tmp_path, written_plans)
    assert problem.startswith("configurations.small.patch_sise: is not known, did you mean patch_size?")
    written_plans["configurations"]["small"] = {"inherits_from": "3d_fullres", "remark": "a smaller one"}
    assert Plans.model_validate(written_plans).configurations["small"]["remark"] == "a smaller one"
