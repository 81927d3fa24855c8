from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import pytest
from phantoms import Finished

from umamba_cli.pipeline.workflows.costs import epochs_to_learn

Umamba = Callable[..., Finished]

MODELS = "unet,umamba-none"
SHORT = ("--models", MODELS, "--folds", "0-1", "--epochs", 1, "--iterations", 1, "--device", "cpu", "-j", 0)


@pytest.fixture(scope="module")
def compared(tiny_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models trained on two folds for a step each, and compared. Not to be changed."""
    from typer.testing import CliRunner

    from umamba_cli.cli import app

    folder = Path(shutil.copytree(tiny_workspace, tmp_path_factory.mktemp("compared") / "work"))
    done = CliRunner().invoke(app, ["compare", str(folder), *map(str, SHORT), "-q"])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def own_comparison(compared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compared, tmp_path / "own"))


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "compare" / "comparison.json").read_text())
    return content


def test_what_is_missing_is_trained_and_all_is_compared(compared: Path) -> None:
    content = read(compared)
    assert content["complete"] is True
    assert content["missing"] == {}
    assert content["trainings"] == [f"{m}, fold {f}, seed 0" for f in (0, 1) for m in ("unet", "umamba-none")]
    assert "no difference shown" in content["verdict"].lower()
    assert content["mamba_verdict"] is None
    assert content["regime"]["settings"]["epochs"] == 1
    assert content["regime"]["folds"] == [0, 1]
    assert content["comparison"]["models"] == ["unet", "umamba-none"]
    assert {table["title"] for table in content["tables"]} >= {"Scores", "Differences in Dice", "By label", "Cost"}
    for cost in content["costs"]:
        assert cost["parameters"] > 1000
        assert cost["multiply_adds"] > cost["parameters"]
        assert cost["seconds_a_case"] > 0
        assert cost["seconds_a_step"] > 0
        assert cost["memory_bytes"] > 0
    with (compared / "compare" / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["model"], row["fold"]) for row in rows} == {(m, f) for m in ("unet", "umamba-none") for f in "01"}
    assert {row["name"] for row in rows} >= {"liver", "lesion"} or len({row["name"] for row in rows}) > 1


def test_the_report_shows_it(umamba: Umamba, own_comparison: Path) -> None:
    assert umamba("report", own_comparison, "-q").code == 0
    page = (own_comparison / "report.html").read_text(encoding="utf-8")
    content = read(own_comparison)
    assert escape(content["verdict"], quote=False) in page
    for table in content["tables"]:
        assert escape(table["rows"][0][0], quote=False) in page


def test_nothing_is_trained_twice(umamba: Umamba, own_comparison: Path) -> None:
    checkpoints = {path: path.stat().st_mtime_ns for path in own_comparison.rglob("checkpoint_final.*")}
    assert len(checkpoints) == 4
    before = read(own_comparison)
    done = umamba("compare", own_comparison, *SHORT, "--json")
    assert done.code == 0, done.err
    assert {path: path.stat().st_mtime_ns for path in own_comparison.rglob("checkpoint_final.*")} == checkpoints
    assert json.loads(done.out)["comparison"] == before["comparison"]
    assert read(own_comparison)["costs"] == before["costs"]  # measured once


def test_what_is_there_so_far_is_shown_without_training(umamba: Umamba, own_comparison: Path) -> None:
    shutil.rmtree(own_comparison / "runs" / "unet__3d_fullres" / "fold_1")
    done = umamba("compare", own_comparison, *SHORT, "--seeds", 2, "--no-train", "--json")
    assert done.code == 0, done.err
    content = json.loads(done.out)
    assert content["complete"] is False
    assert content["missing"] == {
        "unet, fold 1, seed 0": "is not trained",
        **{f"{m}, fold {f}, seed 1": "is not trained" for f in (0, 1) for m in ("unet", "umamba-none")},
    }
    assert content["comparison"]["metrics"]["dice"]["pairs"][0]["cases"] == 1
    assert "5 trainings are not in this comparison" in done.err


def test_a_training_that_goes_on_again_is_not_compared(umamba: Umamba, own_comparison: Path) -> None:
    run = own_comparison / "runs" / "unet__3d_fullres" / "fold_1"
    (run / "checkpoint_final.safetensors").unlink()  # its summary is still there
    done = umamba("compare", own_comparison, *SHORT, "--no-train", "--json")
    assert json.loads(done.out)["missing"] == {"unet, fold 1, seed 0": "was begun"}


def test_another_seed_is_trained_in_the_same_regime(umamba: Umamba, own_comparison: Path) -> None:
    done = umamba("compare", own_comparison, "--models", MODELS, "--folds", 0, "--seeds", 2, "--device", "cpu", "-j", 0)
    assert done.code == 0, done.err
    added = own_comparison / "runs" / "unet__3d_fullres__seed-1"
    record = json.loads((added / "fold_0" / "run.json").read_text())
    assert (record["settings"]["seed"], record["settings"]["epochs"], record["settings"]["iterations"]) == (1, 1, 1)
    assert not (added / "fold_1").exists()
    metric = read(own_comparison)["comparison"]["metrics"]["dice"]
    assert metric["models"][0]["repetitions"] == 2
    assert "1 case, 2 trainings a fold" in read(own_comparison)["verdict"]
    assert "so far, it may change: " in done.err


def test_an_evaluation_of_an_older_version_is_made_again(umamba: Umamba, own_comparison: Path) -> None:
    summary = own_comparison / "runs" / "unet__3d_fullres" / "fold_0" / "validation" / "summary.json"
    content = json.loads(summary.read_text())
    for case in content["cases"]:
        for figures in case["labels"].values():
            del figures["surface_dice"]
    summary.write_text(json.dumps(content))
    before = read(own_comparison)["comparison"]
    done = umamba("compare", own_comparison, *SHORT, "--no-train", "--json")
    assert json.loads(done.out)["missing"] == {
        "unet, fold 0, seed 0": "is trained, but not evaluated with all that is compared"
    }
    assert umamba("compare", own_comparison, *SHORT).code == 0
    assert read(own_comparison)["comparison"] == before


def test_trainings_of_another_regime_are_refused(umamba: Umamba, own_comparison: Path) -> None:
    done = umamba("compare", own_comparison, "--models", MODELS, "--epochs", 3)
    assert done.code == 2
    assert "epochs is 1, asked for is 3" in done.err
    record = own_comparison / "runs" / "unet__3d_fullres" / "fold_1" / "run.json"
    content = json.loads(record.read_text())
    content["settings"]["learning_rate"] = 0.5
    record.write_text(json.dumps(content))
    done = umamba("compare", own_comparison, *SHORT)
    assert done.code == 2
    assert "the trainings differ in more than model, fold and seed" in done.err
    assert "unet, fold 1, seed 0: learning_rate is 0.5, not 0.01" in done.err


def test_the_same_training_is_not_taken_for_two(umamba: Umamba, own_comparison: Path) -> None:
    runs = own_comparison / "runs"
    shutil.copytree(runs / "unet__3d_fullres", runs / "unet__3d_fullres__seed-1")
    done = umamba("compare", own_comparison, *SHORT, "--seeds", 2)
    assert done.code == 2
    assert "is the same training as unet, fold 0, seed 0, both have the seed 0" in done.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--models", "unet"), "fewer than two models"),
        (("--models", "unet,unet"), "unet is named twice"),
        (("--models", "unet,nothing"), "there is no model 'nothing'"),
        (("--models", MODELS, "-c", "4d"), "4d"),
        (("--models", MODELS, "--folds", "all"), "fold all holds no case back"),
        (("--models", MODELS, "--folds", "7"), "there is no fold 7"),
        (("--models", MODELS, "--predictions", "unet=somewhere"), "predictions are called unet, as a model is"),
        (("--models", MODELS, "--predictions", "somewhere"), "is no NAME=FOLDER"),
        (("--models", MODELS, "--references", "somewhere"), "WORKSPACE knows its references"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    umamba: Umamba, own_workspace: Path, options: tuple[str, ...], said: str
) -> None:
    done = umamba("compare", own_workspace, *options)
    assert done.code == 2, done.err
    assert said in done.err
    assert "next: " in done.err
    assert not (own_workspace / "runs").exists()
    assert not (own_workspace / "compare").exists()


def test_folds_that_hold_back_the_same_case_are_refused(umamba: Umamba, own_workspace: Path) -> None:
    splits = own_workspace / "splits.json"
    folds = json.loads(splits.read_text())
    folds[1] = folds[0]
    splits.write_text(json.dumps(folds))
    done = umamba("compare", own_workspace, *SHORT)
    assert done.code == 2
    assert "folds 0 and 1 both hold back" in done.err


def test_a_patient_on_both_sides_of_a_fold_is_refused(umamba: Umamba, own_workspace: Path) -> None:
    done = umamba("compare", own_workspace, *SHORT, "--group-by", "phantom")
    assert done.code == 2
    assert "fold 0 trains on cases of 1 of the groups that it holds back" in done.err
    assert not (own_workspace / "runs").exists()


def test_the_comparison_of_another_configuration_is_not_lost(umamba: Umamba, own_comparison: Path) -> None:
    before = read(own_comparison)
    of_2d = ("compare", own_comparison, "--models", MODELS, "-c", "2d", "--no-train")
    done = umamba(*of_2d)
    assert done.code == 2
    assert "is the comparison of 3d_fullres, which would be lost" in done.err
    assert read(own_comparison) == before
    elsewhere = umamba(
        "compare", own_comparison, "--models", MODELS, "-c", "2d", "--no-train", "-o", own_comparison / "2d"
    )
    assert elsewhere.code == 0, elsewhere.err
    onto_a_file = umamba("compare", own_comparison, *SHORT, "-o", own_comparison / "plans.json")
    assert onto_a_file.code == 2
    assert "plans.json is no folder" in onto_a_file.err


def test_what_cannot_be_timed_costs_no_comparison(umamba: Umamba, own_comparison: Path) -> None:
    before = read(own_comparison)["comparison"]
    (own_comparison / "compare" / "comparison.json").unlink()
    shutil.rmtree(own_comparison / "preprocessed")
    done = umamba("compare", own_comparison, *SHORT, "--no-train")
    assert done.code == 0, done.err
    assert "what unet costs is not known: " in done.err
    assert read(own_comparison)["comparison"] == before
    assert read(own_comparison)["costs"] == []


def test_a_training_that_was_started_over_is_timed_again(umamba: Umamba, own_comparison: Path) -> None:
    before = {cost["model"]: cost for cost in read(own_comparison)["costs"]}
    record = own_comparison / "runs" / "unet__3d_fullres" / "fold_0" / "run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "started": "later"}))
    assert umamba("compare", own_comparison, *SHORT, "--no-train").code == 0
    after = {cost["model"]: cost for cost in read(own_comparison)["costs"]}
    assert after["unet"]["timed"].endswith("later")
    assert after["unet"]["seconds_a_case"] != before["unet"]["seconds_a_case"]
    assert after["umamba-none"]["seconds_a_case"] == before["umamba-none"]["seconds_a_case"]


def odd_costs(content: dict[str, Any]) -> None:
    content["costs"][0]["model"] = ["unet"]
    content["costs"][1]["seconds_a_case"] = "soon"


@pytest.mark.parametrize(
    "damage",
    [
        odd_costs,
        lambda content: content.update(costs=5),
        lambda content: content.update(regime=None),
        lambda content: content.clear(),
    ],
)
def test_a_damaged_result_is_made_anew(
    umamba: Umamba, own_comparison: Path, damage: Callable[[dict[str, Any]], object]
) -> None:
    before = read(own_comparison)
    content = json.loads(json.dumps(before))
    damage(content)
    (own_comparison / "compare" / "comparison.json").write_text(json.dumps(content))
    done = umamba("compare", own_comparison, *SHORT, "--no-train")
    assert done.code == 0, done.err
    assert read(own_comparison)["comparison"] == before["comparison"]


@pytest.mark.parametrize(
    "figures",
    [
        {"sizes": {"< 5": {"foo": 1}}},
        {"sizes": 3},
        {"dice": {"a": {"b": 1}}},
        {"dice": 10**400},
        {"lesions": 10**400},
        {"dice": -math.inf},
        {"dice": "a"},
    ],
)
def test_a_damaged_evaluation_is_no_evaluation(
    umamba: Umamba, own_comparison: Path, figures: dict[str, object]
) -> None:
    summary = own_comparison / "runs" / "unet__3d_fullres" / "fold_0" / "validation" / "summary.json"
    content = json.loads(summary.read_text())
    next(iter(content["cases"][0]["labels"].values())).update(figures)
    summary.write_text(json.dumps(content))
    done = umamba("compare", own_comparison, *SHORT, "--no-train", "--json")
    assert done.code == 0, done.err
    assert list(json.loads(done.out)["missing"]) == ["unet, fold 0, seed 0"]
    assert umamba("report", own_comparison, "-q").code == 0


def test_an_evaluation_of_other_cases_is_none(umamba: Umamba, own_comparison: Path) -> None:
    summary = own_comparison / "runs" / "unet__3d_fullres" / "fold_0" / "validation" / "summary.json"
    content = json.loads(summary.read_text())
    content["cases"][0]["case"] = "another"
    summary.write_text(json.dumps(content))
    done = umamba("compare", own_comparison, *SHORT, "--no-train", "--json")
    assert list(json.loads(done.out)["missing"]) == ["unet, fold 0, seed 0"]


def test_a_folder_that_holds_another_model_is_refused(umamba: Umamba, own_comparison: Path) -> None:
    record = own_comparison / "runs" / "unet__3d_fullres" / "fold_1" / "run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "model": "umamba-none"}))
    done = umamba("compare", own_comparison, *SHORT, "--no-train")
    assert done.code == 2
    assert "unet, fold 1, seed 0: run.json is that of umamba-none, fold 1" in done.err


def test_odd_lines_of_a_log_cost_what_they_hold(umamba: Umamba, own_comparison: Path) -> None:
    log = own_comparison / "runs" / "unet__3d_fullres" / "fold_0" / "log.jsonl"
    odd = ['{"epoch": 1, "mean_dice": NaN, "seconds": "x"}', '{"epoch": 2, "mean_dice": "y", "seconds": 1e999}']
    odd.append('{"epoch": 3, "mean_dice": -1, "train_loss": 1e308, "val_loss": -1e308, "seconds": [1]}')
    log.write_text("\n".join(odd))
    (own_comparison / "compare" / "comparison.json").unlink()
    done = umamba("compare", own_comparison, *SHORT, "--no-train", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["costs"][0]["seconds_a_step"] > 0  # of the other fold
    assert umamba("report", own_comparison, "-q").code == 0


def test_settings_that_are_none_are_refused(umamba: Umamba, own_comparison: Path) -> None:
    record = own_comparison / "runs" / "unet__3d_fullres" / "fold_0" / "run.json"
    content = json.loads(record.read_text())
    content["settings"]["epochs"] = "x"
    record.write_text(json.dumps(content))
    done = umamba("compare", own_comparison, *SHORT, "--no-train")
    assert done.code == 2
    assert "the settings are damaged" in done.err


def test_epochs_until_most_of_the_final_dice() -> None:
    assert epochs_to_learn([0.0, 0.5, 0.7, 0.77, 0.8, 0.79, 0.8, 0.8, 0.8, 0.8]) == 4
    assert epochs_to_learn([math.nan, 0.8, 0.8]) == 2
    assert epochs_to_learn([0.5, *[0.9] * 17, 0.2, 0.2]) == 1  # the last tenth is what counts, and not the last alone
    assert epochs_to_learn([0.5, *[0.9] * 17, 0.9, 0.2]) == 2
    assert epochs_to_learn([0.8, math.nan]) == 1
    assert math.isnan(epochs_to_learn([math.nan, math.nan]))
    assert math.isnan(epochs_to_learn([0.0, 0.0, 0.0]))  # nothing was learnt, however soon
    assert math.isnan(epochs_to_learn([]))


def test_predictions_of_others_beside_models(umamba: Umamba, own_comparison: Path, tmp_path: Path) -> None:
    validation = own_comparison / "runs" / "unet__3d_fullres"
    for fold in (0, 1):
        shutil.copytree(validation / f"fold_{fold}" / "validation", tmp_path / "copy", dirs_exist_ok=True)
    done = umamba("compare", own_comparison, *SHORT, "--predictions", f"copy={tmp_path}/copy", "--json")
    assert done.code == 0, done.err
    content = json.loads(done.out)
    means = {model["model"]: model["mean"] for model in content["comparison"]["metrics"]["dice"]["models"]}
    assert means["copy"] == pytest.approx(means["unet"])
    assert [cost["model"] for cost in content["costs"]] == ["unet", "umamba-none"]
