"""The whole way through the commands, on small phantoms and, where it is at hand, on real data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from umamba_cli.pipeline.data.images import read_label_map

QUICK = ("--epochs", 1, "--iterations", 2, "--device", "cpu", "-j", 0)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["umamba-bot", "umamba-enc", "umamba-none", "unet"])
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_every_model_goes_the_whole_way(
    umamba: Callable, own_workspace: Path, tiny_dataset: Path, tmp_path: Path, model: str, configuration: str
) -> None:
    assert umamba("train", own_workspace, "-m", model, "-c", configuration, *QUICK).code == 0
    run = own_workspace / f"runs/{model}__{configuration}"
    names = {path.name for path in (run / "fold_0").iterdir()}
    assert names == {
        "run.json",
        "checkpoint_latest.safetensors",
        "checkpoint_best.safetensors",
        "checkpoint_final.safetensors",
        "log.jsonl",
        "progress.png",
        "validation_patch.png",
        "run.lock",
        "validation",
    }
    summary = json.loads((run / "fold_0/validation/summary.json").read_text())
    assert len(summary["cases"]) == len(list((run / "fold_0/validation").glob("*.nii.gz"))) == 1

    predictions = tmp_path / "predictions"
    done = umamba("predict", run, "-f", 0, "-i", tiny_dataset / "imagesTs", "-o", predictions, "--device", "cpu")
    assert done.code == 0, done.err
    for path in predictions.glob("phantom*"):
        predicted, reference = read_label_map(path), read_label_map(tiny_dataset / "labelsTs" / path.name)
        assert predicted.grid.differences(reference.grid) == []
    done = umamba(
        "evaluate",
        predictions,
        tiny_dataset / "labelsTs",
        "--dataset",
        tiny_dataset / "dataset.json",
        "-j",
        1,
        "--json",
    )
    assert done.code == 0, done.err
    written = json.loads((predictions / "summary.json").read_text())
    assert json.loads(done.out)["foreground_mean"] == written["foreground_mean"]
    assert set(written) >= {"foreground_mean", "mean", "cases", "dataset", "version"}


def test_check_plan_and_preprocess_say_what_they_did(umamba: Callable, tiny_dataset: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert "5 cases" in umamba("check", tiny_dataset, "-j", 1).out
    planned = umamba("plan", tiny_dataset, "-w", work, "--preset", "cpu", "-j", 1)
    for text in ("patch size", "why", "batch size", "30 epochs of 60 iterations"):
        assert text in planned.out
    assert {path.name for path in work.iterdir()} == {
        "workspace.json",
        "fingerprint.json",
        "plans.json",
        "splits.json",
        "logs",
    }
    first = umamba("preprocess", work, "-c", "3d_fullres", "-j", 1)
    assert "preprocess 3d_fullres 5/5: " in first.err
    again = umamba("preprocess", work, "-c", "3d_fullres", "-j", 1)
    assert "5 of them were there already" in again.out
    assert "5/5" not in again.err


def test_planning_again_keeps_folds_and_edited_plans(umamba: Callable, own_workspace: Path, tiny_dataset: Path) -> None:
    arguments = (tiny_dataset, "-w", own_workspace, "--preset", "cpu", "-j", 1)
    splits, plans = (own_workspace / name for name in ("splits.json", "plans.json"))
    original = plans.read_text()
    assert umamba("plan", *arguments).code == 0
    assert not (own_workspace / "plans.previous.json").exists()
    edited = json.loads(original)
    edited["configurations"]["3d_fullres"]["batch_size"] = 3
    plans.write_text(json.dumps(edited))
    splits.write_text(json.dumps(json.loads(splits.read_text())[:2]))
    done = umamba("plan", *arguments)
    assert "plans.previous.json" in done.out
    assert plans.read_text() == original
    assert json.loads((own_workspace / "plans.previous.json").read_text()) == edited
    assert len(json.loads(splits.read_text())) == 2
    assert umamba("plan", *arguments, "--group-by", r"\d+").code == 0
    assert len(json.loads(splits.read_text())) == 5


def test_preprocess_takes_all_configurations_and_redoes_what_changed(umamba: Callable, own_workspace: Path) -> None:
    store = own_workspace / "preprocessed/3d_fullres"
    before = {path.name: path.stat().st_mtime_ns for path in store.iterdir()}
    (store / "phantom_002.json").unlink()  # as if it was killed in the middle of this case
    done = umamba("preprocess", own_workspace, "-j", 1, "--json")
    kept = {entry["configuration"]: entry["kept"] for entry in json.loads(done.out)["configurations"]}
    assert kept == {"2d": 5, "3d_fullres": 4}
    changed = {path.name for path in store.iterdir() if path.stat().st_mtime_ns != before[path.name]}
    assert changed == {"phantom_002.json", "phantom_002.b2nd", "phantom_002_seg.b2nd"}


def test_fold_all_holds_nothing_back(umamba: Callable, own_workspace: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    assert umamba("train", own_workspace, "-f", "all", *QUICK).code == 0
    run = own_workspace / "runs/umamba-bot__3d_fullres"
    assert len(json.loads((run / "fold_all/run.json").read_text())["train_cases"]) == 5
    assert not (run / "fold_all/validation").exists()
    done = umamba("predict", run, "-i", tiny_dataset / "imagesTs", "-o", tmp_path / "out", "--device", "cpu")
    assert done.code == 0, done.err


@pytest.mark.slow
def test_folds_are_averaged_and_a_tag_keeps_trainings_apart(
    umamba: Callable, own_workspace: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    for arguments in (("-f", 0), ("-f", 1), ("-f", 1, "--tag", "seed1", "--seed", 1)):
        assert umamba("train", own_workspace, *arguments, *QUICK).code == 0
    run = own_workspace / "runs/umamba-bot__3d_fullres"
    assert (own_workspace / "runs/umamba-bot__3d_fullres__seed1/fold_1/run.json").is_file()
    probabilities = []
    for name, folds in (("both", ()), ("zero", ("-f", 0)), ("one", ("-f", 1))):
        arguments = ("-i", tiny_dataset / "imagesTs", "-o", tmp_path / name, "--device", "cpu", "--save-probabilities")
        assert umamba("predict", run, *folds, *arguments).code == 0
        (path,) = (tmp_path / name).glob("*.npz")
        with np.load(path) as content:
            probabilities.append(content["probabilities"])
    both, zero, one = probabilities
    assert not np.allclose(zero, one, atol=1e-3)
    assert ((both <= np.maximum(zero, one) + 0.02) | (both >= np.minimum(zero, one) - 0.02)).all()
    assert np.abs(both - (zero + one) / 2).mean() < np.abs(zero - one).mean() / 2


def test_predict_a_single_file_skips_what_is_done_and_goes_on_after_a_bad_one(
    umamba: Callable, trained_workspace: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    run = trained_workspace / "runs/umamba-bot__3d_fullres/fold_0"
    (image,) = (tiny_dataset / "imagesTs").iterdir()
    output = tmp_path / "out"
    arguments = ("-o", output, "--device", "cpu", "--no-mirroring", "--json")
    assert len(json.loads(umamba("predict", run, "-i", image, *arguments).out)["predicted"]) == 1

    folder = tmp_path / "images"
    folder.mkdir()
    (folder / image.name).write_bytes(image.read_bytes())
    (folder / "bad_0000.nii.gz").write_bytes(image.read_bytes()[:500])
    done = umamba("predict", run, "-i", folder, "-o", output, "--device", "cpu", "--no-mirroring")
    assert done.code == 1
    assert "1 of 2 cases could not be predicted" in done.err
    assert "bad: bad_0000.nii.gz cannot be read" in done.err
    assert "1 were there already" in done.out
    assert len(list(output.glob("phantom*"))) == 1


@pytest.mark.parametrize("shape", [(1, 20, 20), (5, 40, 33)])
def test_images_thinner_and_wider_than_any_in_training(
    umamba: Callable, trained_workspace: Path, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    image = sitk.GetImageFromArray(noise)
    image.SetSpacing((0.9, 2.0, 4.0))
    image.SetDirection((0.8, 0.0, 0.6, 0.0, -1.0, 0.0, 0.6, 0.0, -0.8))
    sitk.WriteImage(image, str(tmp_path / "odd_0000.mha"))
    sitk.WriteImage(image, str(tmp_path / "odd_0000.nii.gz"))
    run = trained_workspace / "runs/umamba-bot__3d_fullres"
    arguments = ("-o", tmp_path / "out", "--device", "cpu", "--no-mirroring")
    assert umamba("predict", run, "-i", tmp_path / "odd_0000.nii.gz", *arguments).code == 0
    predicted = sitk.ReadImage(str(tmp_path / "out/odd.nii.gz"))
    assert predicted.GetSize() == image.GetSize()
    np.testing.assert_allclose(predicted.GetDirection(), image.GetDirection(), atol=1e-5)
    np.testing.assert_allclose(predicted.GetSpacing(), image.GetSpacing(), rtol=1e-5)


@pytest.mark.slow
def test_pictures_go_the_whole_way_in_2d(umamba: Callable, shared: Path, tmp_path: Path) -> None:
    """Eight of the real microscopy pictures."""
    raw, work = tmp_path / "Dataset018_Nuclei", tmp_path / "work"
    original = shared / "data/Dataset018_Nuclei"
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
        for path in sorted((original / folder).iterdir())[:8]:
            (raw / folder / path.name).write_bytes(path.read_bytes())
    (raw / "dataset.json").write_bytes((original / "dataset.json").read_bytes())
    assert umamba("plan", raw, "-w", work, "--preset", "cpu", "-j", 1).code == 0
    assert umamba("preprocess", work, "-j", 1).code == 0
    assert umamba("train", work, "-c", "2d", "-f", "all", *QUICK).code == 0
    run = work / "runs/umamba-bot__2d"
    done = umamba("predict", run, "-i", raw / "imagesTr", "-o", tmp_path / "out", "--device", "cpu", "--no-mirroring")
    assert done.code == 0, done.err
    done = umamba("evaluate", tmp_path / "out", raw / "labelsTr", "--dataset", raw / "dataset.json", "-j", 1)
    assert done.code == 0, done.err
    assert "interior" in done.out
