from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_pages import Element, Page, read_page
from report_workspaces import CONFIGURATION, add_model, write_log, write_record

from umamba_cli.pipeline.data.splits import read_folds
from umamba_cli.pipeline.data.workspace import Workspace, open_workspace
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks.architecture import ModelVariant
from umamba_cli.pipeline.workflows import report as workflow
from umamba_cli.pipeline.workflows.report import WrittenReport, write_report
from umamba_cli.pipeline.workflows.report_models import shown_models
from umamba_cli.pipeline.workflows.report_results import read_results
from umamba_cli.pipeline.workflows.report_trainings import duration

MADE = datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc)


@pytest.fixture
def workspace(own_workspace: Path) -> Workspace:
    return open_workspace(own_workspace)


def written(workspace: Workspace, **more: Any) -> tuple[Page, WrittenReport]:
    path = workspace.folder.parent / "report.html"
    result = write_report(workspace, path, made=MADE, **more)
    assert result.size_bytes == path.stat().st_size
    return read_page(path.read_text(encoding="utf-8")), result


def text_of(page: Page, section: str) -> str:
    (found,) = page.of("section", id=section)
    return " ".join(found.text.split())


def rows(page: Page, title: str) -> list[list[str]]:
    """The cells of the first table whose caption begins so."""
    place = next(
        index
        for index, element in enumerate(page.elements)
        if element.tag == "caption" and element.text.startswith(title)
    )
    found: list[list[str]] = []
    for element in page.elements[place + 1 :]:
        if element.tag == "table":
            break
        if element.tag == "tr":
            found.append([])
        elif element.tag in ("th", "td"):
            found[-1].append(element.text)
    return found


def headings(page: Page) -> list[str]:
    return [each.text for each in page.of("h3")]


def held_back(workspace: Workspace) -> list[str]:
    folds = read_folds(workspace.splits_file)
    return [case for fold in folds[:2] for case in fold.val]


def test_a_workspace_with_two_models(workspace: Workspace) -> None:
    first, second = held_back(workspace)
    add_model(workspace.folder, "unet", by={first: 0, second: 6})
    add_model(workspace.folder, "umamba-bot", by={first: 1, second: 4})
    page, result = written(workspace)
    assert (result.trainings, result.models, result.cases, result.notes) == (4, 2, 2, ())
    (title,) = page.of("h1")
    assert title.text == "Report on Dataset001_Tiny"
    assert any("Made 2026-01-02 03:04+00:00 by umamba" in each.text for each in page.of("p"))
    assert "5 cases, 1 channel (MRI)." in text_of(page, "summary")
    assert "4 trainings: 4 finished." in text_of(page, "summary")
    assert "the models were not compared" in text_of(page, "summary")
    assert rows(page, "Labels")[1:3] == [["liver", "1"], ["kidneys", "2"]]
    assert [row[0] for row in rows(page, "Configurations")[1:]] == ["2d", CONFIGURATION]
    assert "All are of configuration 3d_fullres" in text_of(page, "trainings")
    assert rows(page, "All trainings")[1][:6] == ["umamba-bot", "0", "finished", "10/10", "0.865", "10"]
    best, worst = headings(page)[-2:]
    assert (best, worst) == (f"Best case: {first}", f"Worst case: {second}")


def test_the_figures_are_those_of_the_summaries(workspace: Workspace) -> None:
    first, second = held_back(workspace)
    add_model(workspace.folder, "unet", by={first: 1, second: 6})
    page, _ = written(workspace)
    dices: dict[str, dict[str, float]] = {}
    for fold in (0, 1):
        summary = json.loads((workspace.run("unet", CONFIGURATION, fold).validation / "summary.json").read_text())
        dices |= {case["case"]: {key: of["dice"] for key, of in case["labels"].items()} for case in summary["cases"]}
    liver = [dices[case]["1"] for case in (first, second)]
    row = next(row for row in rows(page, "unet: Dice")[1:] if row[0] == "liver")
    assert row[1:3] == [f"{value:.3f}" for value in liver]
    assert row[3] == row[5] == f"{np.mean(liver):.3f}"
    assert row[4] == f"{np.std(liver, ddof=1):.3f}"
    box = next(row for row in rows(page, "Dice of every held-back case") if row[0] == "liver")
    assert box[2:5] == ["2", f"{np.mean(liver):.3f}", f"{np.std(liver, ddof=1):.3f}"]
    means = {case: np.mean([value for value in of.values() if value is not None]) for case, of in dices.items()}
    assert [row[:2] for row in rows(page, "Worst cases")[1:]] == [
        [case, f"{means[case]:.3f}"] for case in (second, first)
    ]
    assert rows(page, "95 % Hausdorff distance of every")[1][3] == "3.00"
    assert "95 % Hausdorff distance (mm)" in rows(page, "Results of all models")[0]


def paths(page: Page, case: int, source: int) -> list[str]:
    """What is drawn of a source in the slice of a case that is shown first."""
    shown = [index for index, each in enumerate(page.elements) if each.tag == "div" and is_shown(each)]
    begin = shown[case]
    found: list[str] = []
    is_of_source = False
    for element in page.elements[begin + 1 :]:
        if "slice" in element.attributes.get("class", "").split():
            break
        if element.tag == "g":
            is_of_source = f"s{source}" in element.attributes.get("class", "").split()
        elif element.tag == "path" and is_of_source:
            found.append(element.attributes["d"])
    return found


def is_shown(element: Element) -> bool:
    return element.attributes.get("class") == "slice" and "hidden" not in element.attributes


def test_the_contours_are_those_of_reference_and_models(workspace: Workspace) -> None:
    first, second = held_back(workspace)
    add_model(workspace.folder, "unet", by={first: 0, second: 6})
    add_model(workspace.folder, "umamba-bot", by={first: 1, second: 4})
    page, _ = written(workspace)
    labels = [each.text.strip() for each in page.of("label")]
    assert labels[:3] == ["reference", "umamba-bot", "unet"]
    assert paths(page, 0, 0)
    assert paths(page, 0, 0) == paths(page, 0, 2)  # unet found the first case as it is
    assert paths(page, 0, 0) != paths(page, 0, 1)
    assert paths(page, 1, 0) != paths(page, 1, 2)
    # A model has one colour and one pattern of dashes in contours and plots, also where another one was left out.
    swatches = [each.attributes["class"] for each in page.of("svg", class_="swatch")]
    assert swatches[:3] == ["swatch o-1", "swatch o0", "swatch o1"]
    boxes = [each.attributes["class"] for each in page.of("rect")]
    assert boxes[:2] == ["box c0", "box c1"]


def test_models_are_called_by_what_they_differ_in() -> None:
    found = shown_models(dict.fromkeys(["unet__2d", "unet__2d__seed-1", "resenc__2d", "unet__2d__lr"]))
    assert [(name, model.title, model.style) for name, model in found.items()] == [
        ("resenc__2d", "resenc", 0),
        ("unet__2d", "unet", 1),
        ("unet__2d__lr", "unet lr", 2),
        ("unet__2d__seed-1", "unet seed-1", 3),
    ]
    assert [name for name, model in found.items() if model.is_repetition] == ["unet__2d__seed-1"]
    assert not shown_models({"unet__2d__seed-1": None})["unet__2d__seed-1"].is_repetition
    assert [model.title for model in shown_models({"a__2d": None, "a__3d": None}).values()] == ["a 2d", "a 3d"]
    s4d = ModelVariant("umamba-bot", "s4d")
    names = ["umamba-bot__2d__s4d", "umamba-bot__2d__s4d-seed-1", "umamba-bot__2d__mine"]
    assert [model.title for model in shown_models(dict.fromkeys(names, s4d)).values()] == [
        "umamba-bot+s4d mine",
        "umamba-bot+s4d",
        "umamba-bot+s4d seed-1",
    ]


def test_of_repeated_trainings_the_first_is_drawn(workspace: Workspace) -> None:
    add_model(workspace.folder, "unet", by=1, folds=[0])
    add_model(workspace.folder, "unet", by=2, folds=[0], tag="seed-1")
    page, result = written(workspace)
    assert result.models == 1
    labels = [each.text.strip() for each in page.of("label")]
    assert labels[:2] == ["reference", "unet"]
    assert "unet seed-1" not in labels
    assert "Of trainings repeated with other seeds the first is drawn." in text_of(page, "cases")
    assert rows(page, "unet seed-1: Dice")
    assert "unet seed-1" not in text_of(page, "cases")
    assert not any("unet seed-1" in row for row in rows(page, "Worst cases"))
    plots = [each for each in page.of("svg") if "box" in each.attributes.get("aria-labelledby", "")]
    assert plots
    assert not any("unet seed-1" in each.text for each in plots)


def test_best_median_and_worst_case_are_by_the_mean_over_the_models(workspace: Workspace) -> None:
    folds = read_folds(workspace.splits_file)
    cases = [case for fold in folds for case in fold.val]
    moved = dict(zip(cases, (3, 0, 9, 1, 6), strict=True))
    add_model(workspace.folder, "a", by=moved, folds=range(5))
    add_model(workspace.folder, "b", by=moved, folds=range(5))
    page, _ = written(workspace)
    assert headings(page)[-3:] == [f"Best case: {cases[1]}", f"Median case: {cases[0]}", f"Worst case: {cases[2]}"]
    # A model that lacks the worst case leaves the cases that all have.
    add_model(workspace.folder, "c", by=moved, folds=[0, 1, 3, 4])
    assert headings(written(workspace)[0])[-1] == f"Worst case: {cases[4]}"


def test_a_single_case_is_the_only_one(workspace: Workspace) -> None:
    add_model(workspace.folder, "unet", by=1, folds=[0])
    assert headings(written(workspace)[0])[-1].startswith("Only case: ")


def test_a_workspace_without_trainings(workspace: Workspace) -> None:
    page, result = written(workspace)
    assert (result.trainings, result.models, result.cases) == (0, 0, 0)
    assert "No training was started yet." in text_of(page, "trainings")
    assert rows(page, "Folds")[1] == ["0", "4", "1"]


def test_a_training_that_runs_and_a_model_without_results(workspace: Workspace) -> None:
    add_model(workspace.folder, "unet", by=1, folds=[0])
    run = workspace.run("umamba-enc", CONFIGURATION, 0)
    write_record(run, "umamba-enc", 0, ["a"], epochs=100)
    write_log(run, 7, ["liver"])
    page, result = written(workspace)
    assert (result.trainings, result.models) == (2, 1)
    assert "umamba-enc has no result yet" in text_of(page, "results")
    assert rows(page, "All trainings")[1][:4] == ["umamba-enc", "0", "stopped", "7/100"]
    assert "14 s for 7 epochs, 2 s each" in text_of(page, "trainings")


def test_a_training_on_every_case_has_no_result(workspace: Workspace) -> None:
    write_log(workspace.run("unet", CONFIGURATION, "all"), 3, ["liver"])
    assert "unet has no result: it was trained on every case" in text_of(written(workspace)[0], "results")


def test_the_mean_curve_ends_where_the_shortest_training_does(workspace: Workspace) -> None:
    for fold, epochs in ((0, 7), (1, 4)):
        run = workspace.run("unet", CONFIGURATION, fold)
        write_record(run, "unet", fold, ["a"])
        write_log(run, epochs, ["liver"])
    found = rows(written(workspace)[0], "Mean Dice by epoch")
    assert found[0] == ["epoch", "unet (2 trainings)"]
    assert [row[0] for row in found[1:]] == ["1", "2", "3", "4"]
    assert found[4][1] == f"{1 - np.exp(-4 / 5):.4f}"


def test_images_that_were_moved_away(workspace: Workspace) -> None:
    add_model(workspace.folder, "unet", by=1)
    description = json.loads(workspace.description_file.read_text())
    workspace.description_file.write_text(json.dumps({**description, "dataset": "/nowhere/Dataset001_Tiny"}))
    page, result = written(workspace)
    assert result.cases == 0
    assert "no longer at /nowhere/Dataset001_Tiny" in text_of(page, "summary")
    assert "It cannot be shown: the dataset is not there." in text_of(page, "cases")
    assert rows(page, "unet: Dice")


def test_what_cannot_be_read_is_named_and_hides_nothing_else(workspace: Workspace) -> None:
    first, second = held_back(workspace)
    add_model(workspace.folder, "good", by={first: 1, second: 2})
    add_model(workspace.folder, "bad", by=1)
    add_model(workspace.folder, "gone", by=1)
    (workspace.run("bad", CONFIGURATION, 0).validation / "summary.json").write_text("{")
    (workspace.run("gone", CONFIGURATION, 0).validation / f"{first}.nii.gz").unlink()
    workspace.plans_file.write_text("[]")
    page, result = written(workspace)
    assert result.models == 2
    assert "The results of bad are left out" in text_of(page, "summary")
    assert "There are no plans to show" in text_of(page, "summary")
    assert "gone is not drawn" in text_of(page, "cases")
    assert rows(page, "good: Dice")


def test_a_reference_that_was_exchanged(workspace: Workspace, tmp_path: Path, tiny_dataset: Path) -> None:
    add_model(workspace.folder, "unet", by=1, folds=[0])
    (case,) = read_folds(workspace.splits_file)[0].val
    dataset = Path(shutil.copytree(tiny_dataset, tmp_path / tiny_dataset.name))
    shutil.copy(next(dataset.glob("labelsTs/*.nii.gz")), dataset / "labelsTr" / f"{case}.nii.gz")
    workspace.description_file.write_text(json.dumps({"format": 1, "dataset": str(dataset)}))
    page, result = written(workspace)
    assert result.cases == 0
    assert "It cannot be shown: image" in text_of(page, "cases")
    assert any("cannot be shown" in note for note in result.notes)


def test_names_are_escaped(workspace: Workspace, tmp_path: Path, tiny_dataset: Path) -> None:
    bad = "<script>alert('x')</script>\"&"
    dataset = Path(shutil.copytree(tiny_dataset, tmp_path / "Dataset001_<b>Tiny"))
    description = json.loads((dataset / "dataset.json").read_text())
    labels = {bad if name == "liver" else name: value for name, value in description["labels"].items()}
    (dataset / "dataset.json").write_text(json.dumps({**description, "name": bad, "labels": labels}))
    workspace.description_file.write_text(json.dumps({"format": 1, "dataset": str(dataset)}))
    add_model(workspace.folder, "unet", by=1, folds=[0])
    page, _ = written(workspace)
    assert len(page.of("script")) == 1
    assert not page.of("b")
    assert any(each.text == f"reference: {bad}" for each in page.of("title"))
    assert rows(page, "Labels")[1][0] == bad


def test_the_page_keeps_to_its_size(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    add_model(workspace.folder, "unet", by=2)
    whole, with_all = written(workspace)
    monkeypatch.setattr(workflow, "MOST_BYTES", 1000)
    page, without = written(workspace)
    assert not page.of("image")
    assert without.cases == 0
    assert any(each.text.startswith("Pictures of cases are left out") for each in page.of("li"))
    most = (with_all.size_bytes + without.size_bytes) // 2
    monkeypatch.setattr(workflow, "MOST_BYTES", most)
    monkeypatch.setattr(workflow, "_ROOM_FOR_TEXT", 5000)
    page, result = written(workspace)
    assert result.size_bytes <= most
    assert 4 <= len(page.of("div", class_="slice")) < len(whole.of("div", class_="slice"))


def test_a_comparison_is_shown(workspace: Workspace) -> None:
    add_model(workspace.folder, "unet", by=1)
    add_model(workspace.folder, "umamba-bot", by=2)
    table = {"title": "Paired", "columns": ["pair", "Dice"], "rows": [["unet, umamba-bot", "0.01"]], "caption": "so"}
    content: dict[str, Any] = {
        "verdicts": {"dice": "No difference shown in Dice.", "lesion_f1": "Nor in lesions."},
        "mamba_verdict": "That Mamba helps is not shown.",
        "tables": [table],
        "trainings": ["unet, fold 0, seed 0", "umamba-bot, fold 0, seed 0"],
        "missing": {},
        "made": "2026-01-02T03:04:05+00:00",
    }
    file = workspace.folder / "compare" / "comparison.json"
    file.parent.mkdir()
    file.write_text(json.dumps(content))
    page, _ = written(workspace)
    summary = text_of(page, "summary")
    assert summary.startswith("In short No difference shown in Dice. Nor in lesions. That Mamba helps is not shown.")
    assert "This was compared from 2 trainings, 2026-01-02 03:04:05+00:00." in summary
    assert "not compared" not in summary
    assert rows(page, "Paired")[1] == ["unet, umamba-bot", "0.01"]
    file.write_text(json.dumps({**content, "missing": {"unet, fold 1, seed 0": "is not trained"}}))
    assert "So far 2 of 3 trainings are compared" in text_of(written(workspace)[0], "summary")
    file.write_text(json.dumps({**content, "verdicts": {}}))
    assert "not compared" in text_of(written(workspace)[0], "summary")


def test_a_damaged_comparison_is_told_of(workspace: Workspace) -> None:
    add_model(workspace.folder, "unet", by=1)
    file = workspace.folder / "compare" / "comparison.json"
    file.parent.mkdir()
    for text in ("{", "{}", '{"verdicts": 3}'):
        file.write_text(text)
        page, result = written(workspace)
        assert any(note.startswith("The comparison is left out: ") for note in result.notes)
        assert not page.of("section", id="comparison")


def test_nothing_in_the_workspace_is_changed(workspace: Workspace) -> None:
    add_model(workspace.folder, "unet", by=1, folds=[0])

    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in workspace.folder.rglob("*")}

    before = state()
    written(workspace)
    assert state() == before


def test_a_case_held_back_by_two_folds_has_the_first_ones_result(workspace: Workspace) -> None:
    add_model(workspace.folder, "unet", by=1)
    first, second = (workspace.run("unet", CONFIGURATION, fold).validation / "summary.json" for fold in (0, 1))
    content = json.loads(second.read_text())
    content["cases"].append(json.loads(first.read_text())["cases"][0])
    content["cases"][-1]["labels"]["1"]["dice"] = 0.001
    second.write_text(json.dumps(content))
    (model,) = read_results(workspace, shown_models({"unet__3d_fullres": None})).models
    (case,) = read_folds(workspace.splits_file)[0].val
    assert model.folds[case] == 0
    assert model.scores[case]["1"]["dice"] > 0.1
    assert "1 cases were held back by several folds" in text_of(written(workspace)[0], "results")


def test_the_command(umamba: Callable[..., Any], workspace: Workspace, tmp_path: Path) -> None:
    add_model(workspace.folder, "unet", by=1, folds=[0])
    done = umamba("report", workspace.folder)
    assert done.code == 0
    assert str(workspace.folder / "report.html") in done.out
    assert "see before you mail it" in done.out
    document = json.loads(umamba("report", workspace.folder, "-o", tmp_path / "other.html", "--json").out)
    assert document["report"] == str(tmp_path / "other.html")
    assert (document["trainings"], document["models"], document["cases"], document["notes"]) == (1, 1, 1, [])
    assert umamba("report", tmp_path / "nowhere").code == 2
    assert umamba("report", workspace.folder, "-o", tmp_path).code == 2


def test_a_folder_is_no_file(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        write_report(workspace, tmp_path)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45, "45 s"), (119, "119 s"), (150, "2 min"), (3599, "1 h 00 min"), (11100, "3 h 05 min"), (2e5, "2 d 7 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_report_replaces_no_other_file(workspace: Workspace) -> None:
    write_report(workspace, workspace.folder / "report.html")
    write_report(workspace, workspace.folder / "report.html")
    before = workspace.plans_file.read_bytes()
    with pytest.raises(InputError, match=r"plans.json is there and no report"):
        write_report(workspace, workspace.plans_file)
    assert workspace.plans_file.read_bytes() == before


def test_a_comparison_with_ragged_tables_is_told_of(workspace: Workspace) -> None:
    add_model(workspace.folder, "unet", by=1)
    ragged = {"title": "Paired", "columns": ["pair", "Dice"], "rows": [["1"], ["1", "2", "3"]]}
    content = {"verdicts": {"dice": "No."}, "mamba_verdict": None, "tables": [ragged]}
    file = workspace.folder / "compare" / "comparison.json"
    file.parent.mkdir()
    file.write_text(json.dumps({**content, "trainings": [], "missing": {}, "made": ""}))
    page, _ = written(workspace)
    assert "The comparison is left out" in text_of(page, "summary")
