"""`umamba train` and what it goes on from: kinds of labels, cascades, folds, other models, other processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from small_cascades import CASCADE, LOWRES, add_cascade

from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.runs.checkpoint import read_checkpoint
from umamba_cli.pipeline.runs.lock import RunLock

QUICK = ("-m", "unet", "--epochs", 1, "--iterations", 2, "--device", "cpu", "-j", 0)


def run_of(workspace: Path, fold: int | str = 0, configuration: str = "3d_fullres") -> Run:
    return Run(workspace / "runs" / f"unet__{configuration}" / f"fold_{fold}")


def record_of(run: Run) -> dict[str, Any]:
    return json.loads((run.folder / "run.json").read_text())


def relabelled(dataset: Path, folder: Path, labels: dict[str, Any], change: Callable[[np.ndarray], None]) -> Path:
    """A copy of a dataset with other labels."""
    copy = Path(shutil.copytree(dataset, folder / dataset.name))
    description = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps({**description, **labels}))
    for file in (copy / "labelsTr").iterdir():
        image = sitk.ReadImage(str(file))
        voxels = sitk.GetArrayFromImage(image)
        change(voxels)
        new = sitk.GetImageFromArray(voxels)
        new.CopyInformation(image)
        sitk.WriteImage(new, str(file))
    return copy


def test_regions_go_the_whole_way(umamba: Callable, tiny_dataset: Path, tmp_path: Path) -> None:
    labels = {"background": 0, "all": [1, 2, 3, 4], "organs": [1, 2], "kidneys": [2]}
    dataset = relabelled(
        tiny_dataset, tmp_path, {"labels": labels, "regions_class_order": [3, 1, 2]}, lambda voxels: None
    )
    work = tmp_path / "work"
    assert umamba("plan", dataset, "-w", work, "--preset", "cpu").code == 0
    assert umamba("preprocess", work, "-c", "3d_fullres").code == 0
    trained = umamba("train", work, *QUICK, "--json")
    assert trained.code == 0, trained.err
    assert json.loads(trained.out)["validation"]["cases"], trained.out
    line = json.loads(run_of(work).log_file.read_text().splitlines()[0])
    assert list(line["dice"]) == ["all", "organs", "kidneys"]
    predicted = umamba("predict", run_of(work).folder, "-i", dataset / "imagesTs", "-o", tmp_path / "predictions")
    assert predicted.code == 0, predicted.err
    (file,) = (tmp_path / "predictions").glob("*.nii.gz")
    assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(file))))) <= {0, 1, 2, 3}
    evaluated = umamba("evaluate", run_of(work).validation, dataset / "labelsTr")
    assert evaluated.code == 0, evaluated.err


def test_sparse_labels_go_the_whole_way(umamba: Callable, tiny_dataset: Path, tmp_path: Path) -> None:
    def forget(voxels: np.ndarray) -> None:
        voxels[::2] = 5

    description = json.loads((tiny_dataset / "dataset.json").read_text())
    dataset = relabelled(tiny_dataset, tmp_path, {"labels": {**description["labels"], "ignore": 5}}, forget)
    work = tmp_path / "work"
    assert umamba("plan", dataset, "-w", work, "--preset", "cpu").code == 0
    assert umamba("preprocess", work, "-c", "3d_fullres").code == 0
    trained = umamba("train", work, *QUICK, "--json")
    assert trained.code == 0, trained.err
    case = json.loads(trained.out)["validation"]["cases"][0]["case"]
    predicted = sitk.GetArrayFromImage(sitk.ReadImage(str(run_of(work).validation / f"{case}.nii.gz")))
    assert predicted.max() < 5, "the ignore label is nothing to predict"


def test_a_cascade_needs_no_other_command(
    umamba: Callable, own_workspace: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    add_cascade(own_workspace)
    too_early = umamba("train", own_workspace, "-c", CASCADE, *QUICK)
    assert too_early.code == 2
    assert f"-c {LOWRES}" in too_early.err
    done = umamba("train", own_workspace, "-c", LOWRES, "-f", "0-4", *QUICK)
    assert done.code == 0, done.err
    done = umamba("train", own_workspace, "-c", CASCADE, *QUICK, "--json")
    assert done.code == 0, done.err
    run = run_of(own_workspace, 0, CASCADE)
    assert record_of(run)["settings"]["augmentation"] == "workers"
    assert len(record_of(run)["previous_runs"]) == 5
    again = umamba("train", own_workspace, "-c", CASCADE, *QUICK, "--json")
    assert json.loads(again.out) == json.loads(done.out)
    predicted = umamba("predict", run.folder, "-i", tiny_dataset / "imagesTs", "-o", tmp_path / "predictions")
    assert predicted.code == 0, predicted.err
    assert len(list((tmp_path / "predictions").glob("*.nii.gz"))) == 1

    # What is finished and predicted needs the previous stage no more.
    shutil.rmtree(run_of(own_workspace, 0, LOWRES).folder.parent)
    again = umamba("train", own_workspace, "-c", CASCADE, *QUICK, "--json")
    assert again.code == 0, again.err
    next(run.validation.glob("*.nii.gz")).unlink()
    again = umamba("train", own_workspace, "-c", CASCADE, *QUICK)
    assert again.code == 2
    assert f"-c {LOWRES}" in again.err


def test_a_second_training_in_the_folder_is_refused(umamba: Callable, own_workspace: Path) -> None:
    run = run_of(own_workspace)
    with RunLock(run):
        refused = umamba("train", own_workspace, *QUICK)
        assert refused.code == 2
        assert "is being trained by process" in refused.err
        assert "--tag NAME" in refused.err
        preview = umamba("train", own_workspace, *QUICK, "--dry-run", "--json")
        assert json.loads(preview.out)["busy"]["process"] > 0
        assert not run.configuration_file.exists()
    assert umamba("train", own_workspace, *QUICK).code == 0


def test_several_folds_end_with_their_table(umamba: Callable, own_workspace: Path) -> None:
    with RunLock(run_of(own_workspace, 1)):
        shared = umamba("train", own_workspace, "-f", "0-1", *QUICK, "--json")
        assert shared.code == 1
        assert list(json.loads(shared.out)["left"]) == ["1"]
        assert run_of(own_workspace, 0).is_finished
    before = run_of(own_workspace, 0).checkpoint("final").stat().st_mtime_ns
    done = umamba("train", own_workspace, "-f", "0,1", *QUICK)
    assert done.code == 0, done.err
    assert run_of(own_workspace, 0).checkpoint("final").stat().st_mtime_ns == before
    assert "next: umamba predict" in done.out
    table = json.loads((run_of(own_workspace).folder.parent / "cross_validation.json").read_text())
    assert list(table["cases"]) == ["0", "1"]
    assert table["missing_folds"] == [2, 3, 4]


def test_a_fold_that_another_process_just_finished_is_kept(
    umamba: Callable, own_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the folder and the lock the other one may have come to its end."""
    assert umamba("train", own_workspace, *QUICK).code == 0
    run = run_of(own_workspace)
    weights = run.checkpoint("final").read_bytes()
    aside = run.folder.with_name("aside")
    run.folder.rename(aside)
    enter = RunLock.__enter__

    def late(lock: RunLock) -> RunLock:
        aside.rename(run.folder)
        return enter(lock)

    monkeypatch.setattr(RunLock, "__enter__", late)
    assert umamba("train", own_workspace, *QUICK).code == 0
    assert run.checkpoint("final").read_bytes() == weights


def test_a_dry_run_times_steps_and_changes_nothing(umamba: Callable, own_workspace: Path) -> None:
    before = sorted(own_workspace.rglob("*"))
    shown = umamba("train", own_workspace, "--epochs", 10, "--iterations", 6, "-m", "unet", "--dry-run", "--json")
    assert shown.code == 0, shown.err
    preview = json.loads(shown.out)
    assert preview["steps"] == 60
    assert preview["seconds_in_all"] > 60 * preview["seconds_a_step"] > 0
    assert preview["settings"]["augmentation"] == "batched"
    text = umamba("train", own_workspace, "-f", "0-1", "-m", "unet", "--dry-run").out
    assert "s a step" in text
    assert sorted(own_workspace.rglob("*")) == before


def test_fine_tuning_takes_what_fits(umamba: Callable, own_workspace: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    assert umamba("train", own_workspace, *QUICK, "-f", "all").code == 0
    model = run_of(own_workspace, "all")

    fewer = {"labels": {"background": 0, "liver": 1, "kidneys": 2}}
    dataset = relabelled(tiny_dataset, tmp_path, fewer, lambda voxels: voxels.__imul__(voxels < 3))
    work = tmp_path / "work"
    planned = umamba("plan", dataset, "-w", work, "--like", model.folder)
    assert planned.code == 0, planned.err
    old, new = (json.loads((folder / "plans.json").read_text()) for folder in (own_workspace, work))
    for key in ("patch_size", "spacing"):
        assert new["configurations"]["3d_fullres"][key] == old["configurations"]["3d_fullres"][key]
    assert umamba("preprocess", work, "-c", "3d_fullres").code == 0
    tuned = umamba("train", work, *QUICK, "--init-from", model.folder, "--lr", 1e-30)
    assert tuned.code == 0, tuned.err
    assert "5x" in tuned.err or "3 here, 5 there" in tuned.err, "what did not match is named"
    taken = record_of(run_of(work))["initialised"]
    assert taken["taken"] > 10
    assert all(name.startswith("heads.") for name in taken["left"])
    ours, theirs = (read_checkpoint(run.checkpoint("final")).weights for run in (run_of(work), model))
    shared = [name for name in ours if ours[name].shape == theirs[name].shape]
    assert len(shared) == taken["taken"]
    for name in shared:  # a rate of nearly nothing left the weights as they came
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-6)


def test_starting_over_begins_with_the_other_weights(umamba: Callable, own_workspace: Path, tmp_path: Path) -> None:
    assert umamba("train", own_workspace, *QUICK, "--seed", 5, "--tag", "source").code == 0
    source = own_workspace / "runs/unet__3d_fullres__source/fold_0"
    assert umamba("train", own_workspace, *QUICK).code == 0
    run = run_of(own_workspace)
    again = umamba("train", own_workspace, *QUICK, "--restart", "--init-from", source, "--lr", 1e-30)
    assert again.code == 0, again.err
    assert record_of(run)["initialised"]["left"] == []
    ours, theirs = (read_checkpoint(Run(folder).checkpoint("final")).weights for folder in (run.folder, source))
    assert all(np.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)
    refused = umamba("train", own_workspace, *QUICK, "--restart", "--init-from", run.folder)
    assert refused.code == 2
    assert "its own weights" in refused.err
    assert run.is_finished


def test_what_does_not_fit_leaves_the_folder_to_what_does(umamba: Callable, own_workspace: Path) -> None:
    refused = umamba("train", own_workspace, *QUICK, "--batch-size", 10_000_000)
    assert refused.code == 2
    assert "does not fit" in refused.err
    assert "--memory" not in refused.err, "the batch is too large, not the plan"
    assert json.loads(umamba("status", own_workspace, "--json").out)["runs"] == []
    assert umamba("train", own_workspace, *QUICK, "--batch-size", 1).code == 0


def test_a_damaged_log_costs_its_lines_alone(umamba: Callable, own_workspace: Path) -> None:
    assert umamba("train", own_workspace, *QUICK).code == 0
    run = run_of(own_workspace)
    for content in (b'{"epoch": 1}\n{"epoch', b"\xff\xfe\n", b"[1, 2]\n"):
        run.checkpoint("final").unlink(missing_ok=True)
        run.log_file.write_bytes(content)
        done = umamba("train", own_workspace, *QUICK)
        assert done.code == 0, done.err
        assert "1 lines of" in done.err
        run.log_file.write_bytes(content)
        assert umamba("train", own_workspace, *QUICK, "--json").code == 0


def test_folds_have_the_same_splits(own_workspace: Path) -> None:
    from umamba_cli.pipeline.data.workspace import open_workspace
    from umamba_cli.pipeline.errors import InputError
    from umamba_cli.pipeline.progress import Progress
    from umamba_cli.pipeline.training.settings import SettingsChosen
    from umamba_cli.pipeline.workflows.folds import train_folds
    from umamba_cli.pipeline.workflows.train import TrainingJob

    workspace = open_workspace(own_workspace)
    tasks = set()

    def edit(progress: Progress) -> None:
        tasks.add(progress.task)
        if progress.task == "fold 0: validate":
            folds = json.loads(workspace.splits_file.read_text())
            workspace.splits_file.write_text(json.dumps(folds[::-1]))

    chosen = SettingsChosen(epochs=1, iterations=1)
    job = TrainingJob(workspace, model="unet", device="cpu", workers=0, chosen=chosen)
    with pytest.raises(InputError, match="fold 1 was not begun"):
        train_folds(job, [0, 1], on_progress=edit)
    assert run_of(own_workspace).is_finished
    assert not run_of(own_workspace, 1).folder.exists()


def test_folds_may_be_given_one_by_one(umamba: Callable, own_workspace: Path) -> None:
    done = umamba("train", own_workspace, *QUICK, "-f", 0, "-f", 3)
    assert done.code == 0, done.err
    assert [run_of(own_workspace, fold).is_finished for fold in (0, 1, 3)] == [True, False, True]
    assert "fold 3: train 1/1" in done.err
    again = umamba("train", own_workspace, *QUICK, "--optimizer", "foo")
    assert "there is no optimizer 'foo'" in again.err, "not that the training has another one"


def test_a_dry_run_looks_at_several_processes_too(umamba: Callable, own_workspace: Path) -> None:
    refused = umamba("train", own_workspace, *QUICK, "--gpus", 3, "--batch-size", 2, "--dry-run")
    assert refused.code == 2
    assert "cannot be spread over 3 processes" in refused.err
    shown = umamba("train", own_workspace, *QUICK, "--gpus", 2, "--dry-run", "--json")
    alone = umamba("train", own_workspace, *QUICK, "--dry-run", "--json")
    assert json.loads(shown.out)["processes"] == 2
    peaks = [json.loads(done.out)["model"]["memory"]["peak_bytes"] for done in (shown, alone)]
    assert peaks[0] < peaks[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--optimizer", "foo"), "optimizer"),
        (("--augmentation", "none"), "augmentation"),
        (("--warmup", 2), "warmup"),
        (("--init-from", "nowhere"), "nowhere"),
        (("-f", "0-9"), "fold"),
        (("-f", "first"), "first"),
    ],
)
def test_wrong_options(umamba: Callable, own_workspace: Path, options: tuple[object, ...], said: str) -> None:
    refused = umamba("train", own_workspace, *QUICK, *options)
    assert refused.code == 2
    assert said in refused.err
    assert not run_of(own_workspace).folder.exists()


def test_the_augmentation_is_chosen_once(umamba: Callable, own_workspace: Path) -> None:
    assert umamba("train", own_workspace, *QUICK, "--augmentation", "workers").code == 0
    run = run_of(own_workspace)
    run.checkpoint("final").unlink()
    assert umamba("train", own_workspace, *QUICK).code == 0
    assert record_of(run)["settings"]["augmentation"] == "workers"
    assert record_of(run)["device"]["augmentation_reason"] == "asked for"
    run.checkpoint("final").unlink()
    refused = umamba("train", own_workspace, *QUICK, "--augmentation", "batched")
    assert refused.code == 2
    assert "augmentation" in refused.err


def test_a_training_from_before_there_was_a_choice_had_workers(umamba: Callable, own_workspace: Path) -> None:
    from umamba_cli.pipeline.data.workspace import open_workspace
    from umamba_cli.pipeline.workflows.train import TrainingJob, prepare_training

    assert umamba("train", own_workspace, *QUICK).code == 0
    run = run_of(own_workspace)
    old = record_of(run)
    for name in ("augmentation", "optimizer", "warmup", "checkpointing", "init_from"):
        del old["settings"][name]
    (run.folder / "run.json").write_text(json.dumps(old))
    prepared = prepare_training(TrainingJob(open_workspace(own_workspace), model="unet", device="cpu"))
    assert prepared.goes_on
    assert prepared.settings.augmentation == "workers"
    assert prepared.settings.optimizer == "sgd"


def test_other_optimizers_checkpointing_and_pictures(umamba: Callable, own_workspace: Path) -> None:
    options = ("--optimizer", "adamw", "--warmup", 1, "--checkpointing", "--tensorboard")
    arguments = list(QUICK)
    arguments[arguments.index("--epochs") + 1] = 2
    done = umamba("train", own_workspace, *arguments, *options)
    assert done.code == 0, done.err
    run = run_of(own_workspace)
    assert record_of(run)["settings"]["learning_rate"] == 1e-3
    assert run.progress_picture.is_file()
    assert run.validation_patch.is_file()
    assert list((run.folder / "tensorboard").iterdir())
    rates = [json.loads(line)["learning_rate"] for line in run.log_file.read_text().splitlines()]
    assert rates[0] != rates[1]
