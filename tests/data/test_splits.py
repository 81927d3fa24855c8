from __future__ import annotations

from pathlib import Path

import pytest

from umamba_cli.pipeline.data.dataset import open_dataset
from umamba_cli.pipeline.data.files import write_json
from umamba_cli.pipeline.data.splits import choose_fold, fold_notes, make_folds, read_folds, write_folds
from umamba_cli.pipeline.errors import InputError

CASES = [f"case_{number:02d}" for number in range(23)]


def test_folds_are_those_of_nnunet(shared: Path) -> None:
    identifiers = [case.identifier for case in open_dataset(shared / "data/Dataset004_Hippocampus").cases]
    assert make_folds(identifiers) == read_folds(shared / "goldens/nnunet_model/splits_final.json")


def test_every_case_is_held_back_once() -> None:
    folds = make_folds(CASES)
    assert sorted(case for fold in folds for case in fold.val) == CASES
    assert all(sorted((*fold.train, *fold.val)) == CASES for fold in folds)


def test_order_of_the_cases_does_not_matter() -> None:
    assert make_folds(CASES[::-1]) == make_folds(CASES)


def test_cases_of_one_patient_stay_together() -> None:
    visits = [f"patient{number:02d}_visit{visit}" for number in range(9) for visit in range(3)]
    for fold in make_folds(visits, group_by=r"patient\d+"):
        assert not {case[:9] for case in fold.train} & {case[:9] for case in fold.val}


def test_the_first_group_of_the_expression_names_the_patient() -> None:
    cases = [f"{scanner}_{number}" for number in range(6) for scanner in ("ct", "mr")]
    for fold in make_folds(cases, group_by=r"_(\d)$"):
        assert not {case[-1] for case in fold.train} & {case[-1] for case in fold.val}


@pytest.mark.parametrize("expression", ["(", "nobody"])
def test_a_bad_expression_is_refused(expression: str) -> None:
    with pytest.raises(InputError, match="--group-by"):
        make_folds(CASES, group_by=expression)


def test_few_cases_make_fewer_folds_and_one_makes_none() -> None:
    assert len(make_folds(CASES[:3])) == 3
    assert make_folds(CASES[:1]) == []
    with pytest.raises(InputError, match="one group"):
        make_folds(CASES, group_by="^")
    with pytest.raises(InputError, match="single case"):
        choose_fold([], 0, CASES[:1])


def test_folds_that_do_not_fit_the_cases_are_noted() -> None:
    folds = make_folds(CASES)
    assert fold_notes(folds, CASES) == ()
    gone, new = fold_notes(folds, [*CASES[1:], "another"])
    assert f"names 1 cases that are not in the dataset, {CASES[0]}" in gone
    assert "does not name 1 of the cases, another" in new


def test_file_round_trip(tmp_path: Path) -> None:
    folds = make_folds(CASES)
    write_folds(tmp_path / "splits.json", folds)
    assert read_folds(tmp_path / "splits.json") == folds


@pytest.mark.parametrize(
    "content", [[{"train": ["a", "b"], "val": ["b"]}], [{"train": [], "val": ["a"]}], {"a": 1}, [{"train": ["a"]}], [3]]
)
def test_a_file_that_holds_no_folds_is_refused(tmp_path: Path, content: object) -> None:
    write_json(tmp_path / "splits.json", content)
    with pytest.raises(InputError, match=r"splits\.json"):
        read_folds(tmp_path / "splits.json")


def test_choosing_a_fold() -> None:
    folds = make_folds(CASES)
    assert choose_fold(folds, 2, CASES) == folds[2]
    assert choose_fold(folds, "all", CASES).train == tuple(CASES)
    with pytest.raises(InputError, match="no fold 5"):
        choose_fold(folds, 5, CASES)
