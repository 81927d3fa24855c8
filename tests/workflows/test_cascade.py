"""The previous stage of a cascade: whose prediction each case gets, and when there is none."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage.transform import resize
from small_cascades import CASCADE, LOWRES, add_cascade, finish, finish_lowres, new_record

from umamba_cli.pipeline.data.workspace import Workspace, open_workspace
from umamba_cli.pipeline.devices import choose_compute
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.inference.predictor import load_predictor
from umamba_cli.pipeline.planning.plans import read_plans
from umamba_cli.pipeline.preprocessing.dataset import preprocess_workspace, preprocessed_store, stored_as
from umamba_cli.pipeline.progress import Progress
from umamba_cli.pipeline.runs.network import new_network
from umamba_cli.pipeline.training.patches import PreviousStage
from umamba_cli.pipeline.workflows.cascade import (
    choose_previous_runs,
    network_input,
    predict_previous_stage,
    previous_run_names,
)

CPU = choose_compute("cpu", "fp32")
FOLDS = range(5)


@pytest.fixture(scope="module")
def planned(tiny_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_workspace` with a cascade. Not to be changed."""
    return add_cascade(Path(shutil.copytree(tiny_workspace, tmp_path_factory.mktemp("cascade") / "work"))).folder


@pytest.fixture(scope="module")
def trained(planned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with five folds of 3d_lowres, of which fold k finds label k everywhere. Not to be changed."""
    folder = Path(shutil.copytree(planned, tmp_path_factory.mktemp("lowres") / "work"))
    finish_lowres(open_workspace(folder), *FOLDS)
    return folder


@pytest.fixture
def work(planned: Path, tmp_path: Path) -> Workspace:
    """A workspace with a cascade of which nothing is trained, to be changed."""
    return open_workspace(Path(shutil.copytree(planned, tmp_path / "work")))


@pytest.fixture
def ready(trained: Path, tmp_path: Path) -> Workspace:
    """A workspace whose 3d_lowres is trained, to be changed."""
    return open_workspace(Path(shutil.copytree(trained, tmp_path / "work")))


def predicted(workspace: Workspace, fold: int | str = 0, **other: Any) -> tuple[PreviousStage, list[str]]:
    """The previous stage of a cascade's fold, and the cases that were predicted for it just now."""
    told: list[Progress] = []
    stage = predict_previous_stage(workspace, new_record(workspace, CASCADE, fold, **other), CPU, told.append)
    assert stage is not None
    return stage, [progress.step for progress in told if progress.task == f"predict {LOWRES}" and progress.step]


def refused(workspace: Workspace, fold: int | str = 0, **other: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        choose_previous_runs(workspace, new_record(workspace, CASCADE, fold, **other))
    return caught.value


@pytest.mark.parametrize("fold", [0, 3, "all"])
def test_each_case_is_predicted_by_the_fold_that_held_it_out(ready: Workspace, fold: int | str) -> None:
    stage, _ = predicted(ready, fold)
    assert sorted(stage.files) == sorted(case.identifier for case in ready.dataset().cases)
    for number in FOLDS:
        (case,) = new_record(ready, LOWRES, number).val_cases
        assert np.unique(stage.labels(case)[:]).tolist() == [number]
        assert stage.files[case].is_relative_to(ready.run("unet", LOWRES, number).folder)


def test_label_maps_are_on_the_grid_of_the_next_stage(ready: Workspace) -> None:
    stage, _ = predicted(ready)
    record = new_record(ready, CASCADE, 0)
    lower, upper = (preprocessed_store(ready, record.plans, name, record.dataset) for name in (LOWRES, CASCADE))
    for case in stage.files:
        assert stage.labels(case).shape == (1, *upper.case(case).shape)
        assert lower.case(case).shape != upper.case(case).shape


def test_the_label_map_is_the_resampled_logits_of_the_whole_case(ready: Workspace) -> None:
    record = new_record(ready, LOWRES, 0)
    run = finish(ready, record)  # random weights in place of a label everywhere
    stage, _ = predicted(ready)
    (case,) = record.val_cases
    lower, upper = (
        preprocessed_store(ready, record.plans, name, record.dataset).case(case) for name in (LOWRES, CASCADE)
    )
    logits = load_predictor(run.folder, (), CPU).logits(lower.image[:])
    linear = [resize(each, upper.shape, order=1, mode="edge", anti_aliasing=False) for each in logits]
    found = stage.labels(case)[0]
    assert len(np.unique(found)) > 1
    assert (found == np.argmax(linear, axis=0)).mean() > 0.999


def test_what_is_done_is_kept_and_what_is_out_of_date_made_again(ready: Workspace) -> None:
    stage, made = predicted(ready)
    assert sorted(made) == sorted(stage.files)
    assert predicted(ready)[1] == []
    assert predicted(ready, 4)[1] == []  # another fold of the cascade needs the same

    (of_fold_2,) = new_record(ready, LOWRES, 2).val_cases
    finish_lowres(ready, 2)  # trained again
    assert predicted(ready)[1] == [of_fold_2]

    damaged, gone, *_ = sorted(stage.files)
    stage.files[damaged].write_bytes(b"half of")
    stage.files[gone].unlink()
    assert sorted(predicted(ready)[1]) == [damaged, gone]

    image = ready.dataset().select([gone])[0].images[0]
    state = image.stat()
    try:
        os.utime(image, ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))
        for configuration in (LOWRES, CASCADE):
            preprocess_workspace(ready, configuration, workers=1)
        assert predicted(ready)[1] == [gone]
    finally:
        os.utime(image, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_a_killed_prediction_goes_on(ready: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    record = new_record(ready, CASCADE, 0)
    seen: list[str] = []

    def note(progress: Progress) -> None:
        if progress.task == f"predict {LOWRES}" and progress.step:
            seen.append(progress.step)
            if len(seen) == 2:
                monkeypatch.setattr("umamba_cli.pipeline.workflows.cascade.write_array", killed)

    with pytest.raises(KeyboardInterrupt):
        predict_previous_stage(ready, record, CPU, note)
    monkeypatch.undo()
    assert len(predicted(ready)[1]) == len(FOLDS) - 2


def test_a_training_without_a_previous_stage_needs_nothing(work: Workspace) -> None:
    record = new_record(work, "3d_fullres", 0)
    assert choose_previous_runs(work, record) == {}
    assert predict_previous_stage(work, record, CPU) is None


def test_the_runs_are_noted_by_their_names(ready: Workspace) -> None:
    names = previous_run_names(choose_previous_runs(ready, new_record(ready, CASCADE, 1)))
    assert names == tuple(f"unet__{LOWRES}/fold_{fold}" for fold in FOLDS)
    assert all((ready.runs / name).is_dir() for name in names)


def test_missing_and_unfinished_folds_are_named_with_the_command(work: Workspace) -> None:
    finish_lowres(work, 0, 2, 4)
    work.run("unet", LOWRES, 2).checkpoint("final").unlink()
    error = refused(work)
    assert "for 3 of 5 cases there is none" in error.problem
    (case,) = new_record(work, LOWRES, 1).val_cases
    assert error.details[0] == f"fold 1 is not trained: 1 case, {case}"
    assert [line.split(":")[0] for line in error.details[1:]] == ["fold 2 is not finished", "fold 3 is not trained"]
    assert error.next_step == f"run `umamba train {work.folder} -c {LOWRES} -m unet -f 1-3` first"


def test_a_training_on_all_cases_does_not_stand_in_for_a_fold(work: Workspace) -> None:
    finish_lowres(work, "all")
    assert "-f 0-4`" in refused(work).next_step
    assert set(choose_previous_runs(work, new_record(work, CASCADE, "all")).values()) == {
        work.run("unet", LOWRES, "all")
    }
    finish_lowres(work, *FOLDS)  # from now on they are better
    runs = choose_previous_runs(work, new_record(work, CASCADE, "all"))
    assert len(set(runs.values())) == 5
    assert work.run("unet", LOWRES, "all") not in runs.values()


def test_a_training_on_all_cases_is_told_both_ways(work: Workspace) -> None:
    step = refused(work, "all").next_step
    assert "-f 0-4` first, or `umamba train" in step
    assert step.endswith("-f all`")


def test_runs_of_another_tag_or_model_do_not_count(ready: Workspace) -> None:
    assert "-f 0-4 --tag wide`" in refused(ready, tag="wide").next_step
    assert "-m resenc -f 0-4`" in refused(ready, model="resenc").next_step
    finish_lowres(ready, *FOLDS, tag="wide")
    runs = choose_previous_runs(ready, new_record(ready, CASCADE, 0, tag="wide"))
    assert {run.folder.parent.name for run in runs.values()} == {f"unet__{LOWRES}__wide"}


def test_what_a_fold_held_out_is_what_its_own_record_says(ready: Workspace) -> None:
    folds = json.loads(ready.splits_file.read_text())
    ready.splits_file.write_text(json.dumps(folds[::-1]))
    runs = choose_previous_runs(ready, new_record(ready, CASCADE, 0))
    assert all(runs[folds[number]["val"][0]] == ready.run("unet", LOWRES, number) for number in FOLDS)


def test_folds_that_held_out_other_cases_are_refused(ready: Workspace) -> None:
    finish_lowres(ready, 3, val_cases=new_record(ready, LOWRES, 0).val_cases)
    error = refused(ready)
    (case,) = new_record(ready, LOWRES, 3).val_cases
    assert error.details == (f"fold 3 held out other cases when it was trained: 1 case, {case}",)
    assert "splits.json" in error.next_step
    assert error.next_step.endswith("-f 3`")


def test_cases_that_no_fold_holds_out_are_named(work: Workspace) -> None:
    folds = json.loads(work.splits_file.read_text())
    work.splits_file.write_text(json.dumps(folds[:1]))
    finish_lowres(work, 0)
    error = refused(work)
    assert error.details == ("no fold holds out: 4 cases, phantom_001, phantom_002, phantom_003, ...",)
    assert "hold out every case once" in error.next_step
    assert refused(work, "all").next_step == f"run `umamba train {work.folder} -c {LOWRES} -m unet -f all` first"


def test_another_order_of_axes_is_refused(ready: Workspace) -> None:
    plans = json.loads(ready.plans_file.read_text())
    plans |= {"transpose_forward": [0, 2, 1], "transpose_backward": [0, 2, 1]}
    ready.plans_file.write_text(json.dumps(plans))
    error = refused(ready)
    assert "another axis order" in error.problem
    assert "--restart" in error.next_step


def test_a_cascade_of_three_stages_is_refused(ready: Workspace) -> None:
    plans = json.loads(ready.plans_file.read_text())
    plans["configurations"][LOWRES]["previous_stage"] = "2d"
    ready.plans_file.write_text(json.dumps(plans))
    assert "two previous stages, 3d_lowres and 2d" in refused(ready).problem


def test_cases_must_be_preprocessed_for_both_stages(ready: Workspace) -> None:
    (ready.preprocessed(LOWRES) / "phantom_001.json").unlink()
    with pytest.raises(InputError, match="not preprocessed for 3d_lowres") as caught:
        predicted(ready)
    assert caught.value.next_step == f"run `umamba preprocess {ready.folder} -c {LOWRES}`"


def test_the_network_gets_a_channel_for_each_label_of_the_foreground(ready: Workspace) -> None:
    record = new_record(ready, CASCADE, 0)
    stage, _ = predicted(ready)
    store = preprocessed_store(ready, record.plans, CASCADE, record.dataset)
    for number in FOLDS:
        (name,) = new_record(ready, LOWRES, number).val_cases
        image = network_input(store.case(name), record, stage)
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image[:1], store.case(name).image[:])
        assert [bool(channel.all()) for channel in image[1:]] == [label == number for label in range(1, 5)]
        assert network_input(store.case(name), record, None).shape[0] == 1
    network = new_network("unet", record.network_configuration, record.dataset)
    assert next(tensor.shape[1] for name, tensor in network.named_parameters() if tensor.dim() == 5) == 1 + 4


def test_the_cascade_and_its_parent_share_their_preprocessed_cases(work: Workspace) -> None:
    before = sorted(path.name for path in work.preprocessed("3d_fullres").iterdir())
    result = preprocess_workspace(work, CASCADE, workers=1)
    assert (result.configuration, result.kept, result.cases) == (CASCADE, 5, 5)
    shutil.rmtree(work.preprocessed("3d_fullres"))
    assert preprocess_workspace(work, CASCADE, workers=1).kept == 0
    assert sorted(path.name for path in work.preprocessed("3d_fullres").iterdir()) == before
    assert not work.preprocessed(CASCADE).exists()


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, "3d_fullres"),
        ({"batch_size": 7}, "3d_fullres"),
        ({"spacing": [4.0, 2.0, 2.0]}, CASCADE),
        ({"data_identifier": "its own"}, CASCADE),
    ],
)
def test_what_a_child_changes_decides_whether_it_shares(work: Workspace, own: dict[str, Any], expected: str) -> None:
    content = json.loads(work.plans_file.read_text())
    content["configurations"][CASCADE] |= own
    content["configurations"]["grandchild"] = {"inherits_from": CASCADE}
    work.plans_file.write_text(json.dumps(content))
    plans = read_plans(work.plans_file)
    description = work.dataset().description
    assert stored_as(plans, CASCADE, description) == expected
    assert stored_as(plans, "grandchild", description) == expected
    assert stored_as(plans, "3d_fullres", description) == "3d_fullres"
    assert stored_as(plans, LOWRES, description) == LOWRES
