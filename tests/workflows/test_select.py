"""The best of several models, or of two averaged, is chosen by what they do on cases that were held back."""

from __future__ import annotations

import itertools
import json
import math
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_cascades import CASCADE, LOWRES, add_cascade, finish, finish_lowres, new_record

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.data.images import read_label_map, write_label_map
from umamba_cli.pipeline.data.splits import Fold, write_folds
from umamba_cli.pipeline.data.store import Store
from umamba_cli.pipeline.data.workspace import Run, Workspace, open_workspace
from umamba_cli.pipeline.devices import choose_compute
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.evaluation.case import Task, evaluate_case
from umamba_cli.pipeline.evaluation.evaluate import evaluate_pairs
from umamba_cli.pipeline.evaluation.results import Evaluation
from umamba_cli.pipeline.evaluation.tables import write_summary
from umamba_cli.pipeline.inference.export import Wanted
from umamba_cli.pipeline.inference.postprocessing import Postprocessing, Step, postprocessing_file, write_postprocessing
from umamba_cli.pipeline.inference.predictor import Predictor, load_runs
from umamba_cli.pipeline.preprocessing.case import CaseGeometry, PreprocessedCase
from umamba_cli.pipeline.progress import Progress
from umamba_cli.pipeline.runs.record import read_record, write_record
from umamba_cli.pipeline.workflows import pairs as module
from umamba_cli.pipeline.workflows.cascade import network_input, predict_previous_stage
from umamba_cli.pipeline.workflows.cross_validation import CrossValidation, Overlap, Result
from umamba_cli.pipeline.workflows.pairs import dices_of_pairs
from umamba_cli.pipeline.workflows.select import Candidate, Selection, choose, common_folds, select_model

CPU = choose_compute("cpu", "fp32")
ONE, TWO, THREE = "unet__3d_fullres", "unet__2d", "unet__3d_fullres__sure"
CONFIGURATIONS = {ONE: "3d_fullres", TWO: "2d", THREE: "3d_fullres"}
FOLDS = range(5)


@pytest.fixture(scope="module")
def evaluated(tiny_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models without training, all folds evaluated; of one, fold k finds label k likelier. Not to be changed."""
    workspace = open_workspace(Path(shutil.copytree(tiny_workspace, tmp_path_factory.mktemp("selected") / "work")))
    for name, fold in itertools.product(CONFIGURATIONS, FOLDS):
        evaluate_fold(workspace, make_fold(workspace, name, fold))
    return workspace.folder


def make_fold(workspace: Workspace, name: str, fold: int) -> Run:
    more: dict[str, Any] = {"finds": fold, "surely": 1.0 + fold} if name == THREE else {}
    tag = "sure" if name == THREE else ""
    return finish(workspace, new_record(workspace, CONFIGURATIONS[name], fold, tag=tag), **more)


def found_by(workspace: Workspace, run: Run) -> Iterator[tuple[str, Path, Any]]:
    """What a fold finds in each case that it held back, its own way: case, reference, what was exported."""
    record = read_record(run)
    store = Store(workspace.preprocessed("2d" if record.configuration == "2d" else "3d_fullres"))
    previous = predict_previous_stage(workspace, record, CPU)
    predictor = load_runs([run], CPU, previous_stage=False)
    for case in workspace.dataset().select(record.val_cases):
        stored = store.case(case.identifier)
        geometry = CaseGeometry.from_json(stored.properties["geometry"])
        prepared = PreprocessedCase(network_input(stored, record, previous), None, geometry)
        ((_, found),) = predictor.export([(None, prepared)], Wanted(probabilities=True))
        assert case.label
        yield case.identifier, case.label, found


def evaluate_fold(workspace: Workspace, run: Run) -> None:
    pairs = []
    for case, reference, found in found_by(workspace, run):
        target = run.validation / f"{case}.nii.gz"
        write_label_map(target, found.labels, read_label_map(reference).grid)
        pairs.append((case, target, reference))
    evaluation = evaluate_pairs(pairs, Task(workspace.dataset().description), workers=1)
    write_summary(run.validation / "summary.json", evaluation)


@pytest.fixture
def own(evaluated: Path, tmp_path: Path) -> Workspace:
    return open_workspace(Path(shutil.copytree(evaluated, tmp_path / "work")))


def select(workspace: Workspace, **options: Any) -> Selection:
    return select_model(workspace, device="cpu", precision="fp32", **options)


def by_hand(labels: NDArray[Any], reference: NDArray[Any], label: int) -> float:
    one, other = labels == label, reference == label
    both = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / both if both else math.nan


def mean(values: list[float]) -> float:
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers)


def computed_whole(workspace: Workspace, names: tuple[str, str]) -> dict[str, float]:
    """The mean Dice of each label over all cases, of two models averaged."""
    dices: dict[str, list[float]] = {str(label): [] for label in (1, 2, 3, 4)}
    for fold in FOLDS:
        one, other = (list(found_by(workspace, Run(workspace.runs / name / f"fold_{fold}"))) for name in names)
        for (_, reference, found), (_, _, too) in zip(one, other, strict=True):
            labels = ((found.probabilities.astype(float) + too.probabilities) / 2).argmax(0)
            for label, values in dices.items():
                values.append(by_hand(labels, read_label_map(reference).labels, int(label)))
    return {label: mean(values) for label, values in dices.items()}


def test_pairs_are_the_mean_of_what_the_folds_that_held_a_case_back_find(own: Workspace) -> None:
    selection = select(own)
    assert selection.is_complete
    assert (selection.cases, selection.folds) == (5, (0, 1, 2, 3, 4))
    found = {each.models: each for each in selection.candidates}
    assert set(found) == {(ONE,), (TWO,), (THREE,), (TWO, ONE), (TWO, THREE), (ONE, THREE)}
    for names in ((TWO, ONE), (TWO, THREE), (ONE, THREE)):
        expected = computed_whole(own, names)
        assert found[names].labels == pytest.approx(expected, abs=1e-3)
        assert found[names].dice == pytest.approx(mean(list(expected.values())), abs=1e-3)
    for name in CONFIGURATIONS:
        summaries = [json.loads(path.read_text()) for path in (own.runs / name).glob("fold_*/validation/summary.json")]
        cases = [case["labels"] for summary in summaries for case in summary["cases"]]
        of_labels = [mean([math.nan if case[n]["dice"] is None else case[n]["dice"] for case in cases]) for n in "1234"]
        assert found[name,].dice == pytest.approx(mean(of_labels))
    dices = [each.dice for each in selection.candidates]
    assert dices == sorted(dices, reverse=True)
    written = json.loads((own.folder / "select.json").read_text())
    assert written["chosen"] == list(selection.chosen.models)
    assert [each["models"] for each in written["candidates"]] == [list(each.models) for each in selection.candidates]
    assert written["commands"] == list(selection.commands)


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts which model predicted how many cases for pairs."""
    count: Counter[str] = Counter()
    export = Predictor.export

    def counting(self: Predictor, cases: Any, *arguments: Any) -> Iterator[Any]:
        name = "__".join(filter(None, (self.record.model, self.record.configuration, self.record.tag)))
        for each in export(self, cases, *arguments):
            count[name] += 1
            yield each

    monkeypatch.setattr(Predictor, "export", counting)
    return count


def test_each_model_predicts_each_case_once_and_never_again(own: Workspace, predicted: Counter[str]) -> None:
    first = select(own)
    assert predicted == {ONE: 5, TWO: 5, THREE: 5}
    predicted.clear()
    steps: list[Progress] = []
    shutil.rmtree(own.preprocessed("2d"))  # no longer needed
    again = select(own, on_progress=steps.append)
    assert predicted == {}
    assert [(step.done, step.total) for step in steps] == [(5, 5)]
    assert again == first


def test_a_stopped_one_goes_on(own: Workspace, predicted: Counter[str]) -> None:
    def stop(progress: Progress) -> None:
        if progress.task == "pairs" and progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        select(own, on_progress=stop)
    assert not (own.folder / "select.json").exists()
    predicted.clear()
    stopped = select(own)
    assert predicted == {ONE: 3, TWO: 3, THREE: 3}
    shutil.rmtree(own.folder / "select")
    assert select(own) == stopped


@pytest.mark.parametrize("what", ["weights", "reference", "damaged", "garbage"])
def test_what_changed_is_predicted_again(own: Workspace, predicted: Counter[str], what: str, tmp_path: Path) -> None:
    names = (ONE, THREE)
    dices_of_pairs(own, names, FOLDS, device="cpu", precision="fp32")
    (case,) = read_record(own.run("unet", "2d", 1)).val_cases
    kept = own.folder / "select/fold_1" / f"{case}.json"
    predicted.clear()
    if what == "weights":
        finish(own, new_record(own, "3d_fullres", 1), finds=3)
    elif what == "reference":
        moved = Path(shutil.copytree(own.dataset_folder, tmp_path / own.dataset_folder.name))
        (own.folder / "workspace.json").write_text(json.dumps({"format": 1, "dataset": str(moved)}))
        (moved / "labelsTr" / f"{case}.nii.gz").touch()
        with pytest.raises(InputError, match="from other files"):  # the preprocessed case is of the old ones
            dices_of_pairs(own, names, FOLDS, device="cpu", precision="fp32")
        return
    elif what == "damaged":
        kept.write_text(kept.read_text()[:50])
    else:
        kept.write_text('{"format": 1, "source": [], "pairs": [{"models": ["a"]}]}')
    dices_of_pairs(own, names, FOLDS, device="cpu", precision="fp32")
    assert predicted == {ONE: 1, THREE: 1}


def test_a_new_model_leaves_what_is_kept(own: Workspace, predicted: Counter[str]) -> None:
    both = select(own, models=[ONE, TWO])
    predicted.clear()
    other = select(own, models=[THREE, TWO])
    assert predicted == {TWO: 5, THREE: 5}
    predicted.clear()
    assert select(own, models=[ONE, TWO]).candidates == both.candidates
    assert predicted == {}
    all_three = select(own)
    assert predicted == {ONE: 5, THREE: 5}
    found = {frozenset(each.models): each.dice for each in all_three.candidates}
    for each in (*both.candidates, *other.candidates):
        assert found[frozenset(each.models)] == pytest.approx(each.dice)


def test_nothing_is_predicted_without_pairs(own: Workspace, predicted: Counter[str]) -> None:
    selection = select(own, pairs=False)
    assert {each.models for each in selection.candidates} == {(ONE,), (TWO,), (THREE,)}
    assert not (own.folder / "select").exists()
    assert predicted == {}
    assert select(own, models=[TWO]).chosen.models == (TWO,)


def test_a_case_that_is_not_preprocessed_is_said_before_any_is_predicted(
    own: Workspace, predicted: Counter[str]
) -> None:
    (case,) = read_record(own.run("unet", "2d", 4)).val_cases
    (own.preprocessed("2d") / f"{case}.json").unlink()
    with pytest.raises(InputError, match="not preprocessed for 2d") as raised:
        select(own)
    assert "-c 2d" in raised.value.next_step
    assert predicted == {}


def test_a_cascade_gets_what_the_fold_that_held_the_case_back_found(
    tiny_workspace: Path, tmp_path: Path, predicted: Counter[str]
) -> None:
    own = add_cascade(Path(shutil.copytree(tiny_workspace, tmp_path / "work")))
    finish_lowres(own, *FOLDS)  # fold k finds label k
    names = tuple(f"unet__{LOWRES}/fold_{fold}" for fold in FOLDS)
    for fold in FOLDS:
        evaluate_fold(own, finish(own, new_record(own, CASCADE, fold, previous_runs=names)))
        evaluate_fold(own, make_fold(own, ONE, fold))
    pair = (ONE, f"unet__{CASCADE}")
    predicted.clear()
    dices = dices_of_pairs(own, pair, FOLDS, device="cpu", precision="fp32")[pair]
    assert predicted == {ONE: 5, f"unet__{CASCADE}": 5}
    expected = computed_whole(own, pair)
    for label, dice in expected.items():
        assert mean([each[label] for each in dices.values()]) == pytest.approx(dice, abs=1e-3)
    predicted.clear()
    finish(own, new_record(own, LOWRES, 3), finds=1)  # of which every fold of the cascade is made
    dices_of_pairs(own, pair, FOLDS, device="cpu", precision="fp32")
    assert predicted == {ONE: 5, f"unet__{CASCADE}": 5}


def test_incomplete_models_are_left_out_with_the_command(own: Workspace) -> None:
    for fold in (2, 4):
        own.run("unet", "3d_fullres", fold, "sure").checkpoint("final").unlink()
    (own.run("unet", "2d", 3).validation / "summary.json").unlink()
    shutil.copytree(own.runs / ONE / "fold_0", own.runs / "unet__3d_lowres" / "fold_all")
    selection = select(own)
    assert [each.models for each in selection.candidates] == [(ONE,)]
    assert selection.is_complete
    left = {each.model: each for each in selection.left_out}
    where = shlex.quote(str(own.folder))
    assert left[THREE].why == "folds 2,4 are not trained and evaluated"
    assert left[THREE].command == f"umamba train {where} -c 3d_fullres -m unet --tag sure -f 2,4"
    assert left[TWO].why == "fold 3 is not trained and evaluated"
    assert left[TWO].command == f"umamba train {where} -c 2d -m unet -f 3"
    assert left["unet__3d_lowres"].command == f"umamba train {where} -c 3d_lowres -m unet -f 0-4"
    assert json.loads((own.folder / "select.json").read_text())["left_out"][0]["model"] == TWO


def test_models_of_other_cases_other_labels_or_damaged_are_left_out(own: Workspace) -> None:
    shutil.copytree(own.runs / ONE, own.runs / "unet__3d_fullres__again")
    summary = own.runs / TWO / "fold_1/validation/summary.json"
    content = json.loads(summary.read_text())
    content["cases"][0]["case"] = "somebody"
    summary.write_text(json.dumps(content))
    (own.runs / THREE / "fold_0/validation/summary.json").write_text("{")
    for path in (own.runs / "unet__3d_fullres__again").glob("fold_*/validation/summary.json"):
        path.write_text(path.read_text().replace('"liver"', '"spleen"'))
    selection = select(own)
    assert [each.models for each in selection.candidates] == [(ONE,)]
    left = {each.model: each.why for each in selection.left_out}
    assert left[TWO] == "fold 1 held back other cases than splits.json has for it"
    assert "summary.json is no valid JSON" in left[THREE]
    assert left["unet__3d_fullres__again"] == "it has other labels than the others"


def test_models_without_all_folds_are_compared_on_those_that_they_have_in_common(own: Workspace) -> None:
    for name, folds in ((ONE, (3, 4)), (TWO, (1, 4)), (THREE, (0, 1, 2))):
        for fold in folds:
            shutil.rmtree(own.runs / name / f"fold_{fold}")
    selection = select(own)
    assert not selection.is_complete
    assert (selection.folds, selection.all_folds, selection.cases) == ((0, 2), 5, 2)
    assert {each.models for each in selection.candidates} == {(ONE,), (TWO,), (TWO, ONE)}
    assert [each.model for each in selection.left_out] == [THREE]
    where = shlex.quote(str(own.folder))
    assert selection.to_train == (
        f"umamba train {where} -c 2d -m unet -f 1,4",
        f"umamba train {where} -c 3d_fullres -m unet -f 3-4",
    )
    cases = {f"fold_{fold}/{case}" for fold in (0, 2) for case in read_record(own.run("unet", "2d", fold)).val_cases}
    assert {f"{path.parent.name}/{path.stem}" for path in (own.folder / "select").rglob("*.json")} == cases


def test_nothing_to_select_from_is_said(own_workspace: Path) -> None:
    with pytest.raises(InputError, match="no model with a fold that is trained and evaluated") as raised:
        select(open_workspace(own_workspace))
    assert "umamba train" in raised.value.next_step
    with pytest.raises(InputError, match="holds no unet__2d"):
        select(open_workspace(own_workspace), models=["unet__2d"])


def crossed(*folds: int) -> CrossValidation:
    nothing = Result({}, {}, Overlap(0, 0))
    return CrossValidation("", {}, dict.fromkeys(folds, nothing), ())


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ([(0, 1, 2, 3, 4), (0, 1)], (0, 1, 2, 3, 4)),
        ([(0, 1, 2, 3, 4, 5)], (0, 1, 2, 3, 4)),  # a sixth is of other splits
        ([(0, 1), (0, 1, 2), (0,)], (0, 1)),
        ([(0, 1), (1, 2), (1,)], (1,)),
        ([(0, 1, 2), (0, 1, 3), (2, 3), (2, 3)], (0, 1)),  # of as many the first
        ([(0, 1), (2, 3), (2, 3, 0), (0, 1), (0, 1)], (0, 1)),
        ([(2, 3), (0, 1), (2, 3), (0, 1), (2, 3)], (2, 3)),  # which more have
        ([(0,), (1, 2)], (1, 2)),  # nothing in common
        ([(3,)], (3,)),
        ([], ()),
    ],
)
def test_folds_to_compare_on(models: list[tuple[int, ...]], expected: tuple[int, ...]) -> None:
    assert common_folds({str(index): crossed(*folds) for index, folds in enumerate(models)}, 5) == expected


def candidate(dice: float, *models: str) -> Candidate:
    return Candidate(models, dice, {"1": dice})


def test_a_pair_must_be_clearly_better() -> None:
    single, pair = candidate(0.8, "a"), candidate(0.80005, "a", "b")
    chosen, reason = choose([pair, single])
    assert chosen is single
    assert "a + b is better by less than 0.0001" in reason
    better = candidate(0.8002, "a", "b")
    assert choose([better, single]) == (better, "")
    assert choose([single, candidate(0.7, "a", "b")]) == (single, "")
    nothing = candidate(math.nan, "a")
    assert choose([better, nothing]) == (better, "")
    assert choose([nothing, candidate(math.nan, "a", "b")]) == (nothing, "")


def with_summaries(workspace: Workspace, name: str, dice: Callable[[int], float], folds: Any = FOLDS) -> Path:
    """A model whose summaries are made up."""
    for fold in folds:
        run = Run(workspace.runs / name / f"fold_{fold}")
        (case,) = new_record(workspace, "2d", fold).val_cases
        entry = {"case": case, "labels": {"1": {"dice": dice(fold), "iou": 0.5}}}
        run.validation.mkdir(parents=True)
        write_record(run, new_record(workspace, "2d", fold))
        (run.validation / "summary.json").write_text(json.dumps({"label_names": {"1": "liver"}, "cases": [entry]}))
        run.checkpoint("final").touch()
    return workspace.runs / name


def test_the_commands(own_workspace: Path, tmp_path: Path) -> None:
    workspace = open_workspace(Path(shutil.move(own_workspace, tmp_path / "my work")))
    best = with_summaries(workspace, "unet__2d", lambda fold: 0.9)
    with_summaries(workspace, "unet__3d_fullres", lambda fold: 0.8)
    model = shlex.quote(str(best))
    predict = f"umamba predict {model} -i IMAGES -o predictions"
    assert select(workspace, pairs=False).commands == (predict,)
    file = postprocessing_file(best)
    write_postprocessing(file, Postprocessing())
    assert select(workspace, pairs=False).commands == (predict,)  # nothing was found to help
    write_postprocessing(file, Postprocessing(steps=(Step(operation="keep_largest", labels=(1,)),)))
    apply = f"umamba postprocess apply {model} -i predictions -o postprocessed"
    assert select(workspace, pairs=False).commands == (predict, apply)
    (best / "fold_7").mkdir()
    Run(best / "fold_7").checkpoint("final").touch()
    folds = " ".join(f"-f {fold}" for fold in FOLDS)
    command = f"umamba predict {model} {folds} -i IMAGES -o predictions"
    assert select(workspace, pairs=False).commands == (command, apply)


def test_the_commands_of_a_pair(own_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = open_workspace(own_workspace)
    for name in ("unet__2d", "unet__3d_fullres"):
        write_postprocessing(
            postprocessing_file(with_summaries(workspace, name, lambda fold: 0.8)),
            Postprocessing(steps=(Step(operation="keep_largest", labels=(1,)),)),
        )
    pair = ("unet__2d", "unet__3d_fullres")
    monkeypatch.setattr(
        module, "dices_of_pairs", lambda *_, **__: {pair: {(fold, "case"): {"1": 0.9} for fold in FOLDS}}
    )
    folders = [workspace.runs / name for name in pair]
    assert select(workspace).commands == (f"umamba ensemble {shlex.join(map(str, folders))} -i IMAGES -o predictions",)
    for folder in folders:
        for fold in (2, 3, 4):
            shutil.rmtree(folder / f"fold_{fold}")
    assert "fold_" not in select(workspace).commands[0]
    (folders[0] / "fold_9").mkdir()
    Run(folders[0] / "fold_9").checkpoint("final").touch()
    named = [folder / f"fold_{fold}" for folder in folders for fold in (0, 1)]
    assert select(workspace).commands == (f"umamba ensemble {shlex.join(map(str, named))} -i IMAGES -o predictions",)


def test_only_some_folds_are_named(own_workspace: Path) -> None:
    workspace = open_workspace(own_workspace)
    model = with_summaries(workspace, "unet__2d", lambda fold: 0.8, (1, 3))
    (command,) = select(workspace).commands
    assert command == f"umamba predict {shlex.quote(str(model))} -f 1 -f 3 -i IMAGES -o predictions"


def test_cases_count_once_each_whatever_their_fold(own_workspace: Path) -> None:
    workspace = open_workspace(own_workspace)
    names = [case.identifier for case in workspace.dataset().cases]
    record = new_record(workspace, "2d", 0)
    write_folds(workspace.splits_file, [Fold(tuple(names[3:]), tuple(names[:3])), Fold(tuple(names[:3]), (names[3],))])
    for fold, dices in enumerate(((0.9, 0.6, math.nan), (0.3,))):
        run = Run(workspace.runs / "unet__2d" / f"fold_{fold}")
        entries = [
            {"case": name, "labels": {"1": {"dice": None if math.isnan(dice) else dice, "iou": None}}}
            for name, dice in zip(names[:3] if fold == 0 else names[3:], dices, strict=False)
        ]
        run.validation.mkdir(parents=True)
        write_record(run, record)
        (run.validation / "summary.json").write_text(json.dumps({"label_names": {"1": "liver"}, "cases": entries}))
        run.checkpoint("final").touch()
    assert select(workspace).chosen.dice == pytest.approx((0.9 + 0.6 + 0.3) / 3)


def test_dice_is_that_of_an_evaluation(tmp_path: Path, tiny_dataset: Path) -> None:
    """With regions and a label that is not to count."""
    description = DatasetDescription(
        channel_names={"0": "CT"},
        labels={"background": 0, "whole": (1, 2, 3), "core": (2, 3), "ignore": 4},
        regions_class_order=(1, 2),
        file_ending=".nii.gz",
    )
    reference = sorted((tiny_dataset / "labelsTr").iterdir())[0]
    wanted = read_label_map(reference)
    found = np.roll(wanted.labels, 2, axis=2) % 4
    write_label_map(tmp_path / "found.nii.gz", found, wanted.grid)
    expected = evaluate_case("case", tmp_path / "found.nii.gz", reference, Task(description))
    dices = module._dice_of_labels(found, wanted.labels, description)
    assert dices == {str(label): metrics.dice for label, metrics in expected.labels.items()}
    evaluation = Evaluation((expected,), description.targets)
    assert set(dices) == set(evaluation.to_json()["label_names"])
