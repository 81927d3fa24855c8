"""Names: those that two files share, that no system agrees on, or that nothing stands behind."""

from __future__ import annotations

import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from raw_datasets import RawDataset, bad_cases, error_lines, stored_arrays

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Müller-é") for form in ("NFC", "NFD"))

ODD_NAMES = ("Fall 1 (äöü)", "症例 2", "ω-3.v1.2", "_0000", "-x", "b_seg", "2019_0001", COMPOSED)


def tells_forms_apart(folder: Path) -> bool:
    """Whether the file system takes the two forms of a name for two files; that of macOS does not."""
    (folder / COMPOSED).touch()
    return not (folder / DECOMPOSED).exists()


@pytest.fixture
def two_forms(tmp_path: Path) -> None:
    if not tells_forms_apart(tmp_path):
        pytest.skip("the file system takes both forms of a letter for one name")


def test_a_case_with_and_without_channel_number(refused: Callable) -> None:
    said = refused(lambda raw: shutil.copy(raw.image(), raw.image(channel=None)))
    assert said == "b.nii.gz has no channel number"


def test_two_label_maps_of_one_name(refused: Callable, two_forms: None) -> None:
    def spoil(raw: RawDataset) -> None:
        raw.image("b").rename(raw.image(COMPOSED))
        raw.label("b").rename(raw.label(COMPOSED))
        shutil.copy(raw.label(COMPOSED), raw.label(DECOMPOSED))

    said = refused(spoil)
    assert said == f"{raw_name(DECOMPOSED)} and {raw_name(COMPOSED)} have the same name"


def raw_name(identifier: str, end: str = ".nii.gz") -> str:
    return ascii(f"{identifier}{end}")


def test_two_images_of_one_name(refused: Callable, two_forms: None) -> None:
    def spoil(raw: RawDataset) -> None:
        raw.label("b").rename(raw.label(COMPOSED))
        raw.image("b").rename(raw.image(COMPOSED))
        shutil.copy(raw.image(COMPOSED), raw.image(DECOMPOSED))

    end = "_0000.nii.gz"
    assert refused(spoil) == f"{raw_name(DECOMPOSED, end)} and {raw_name(COMPOSED, end)} have the same name"


def test_a_case_whose_image_would_take_the_place_of_anothers_labels(refused: Callable) -> None:
    def spoil(raw: RawDataset) -> None:
        raw.image("b").rename(raw.image("a_seg"))
        raw.label("b").rename(raw.label("a_seg"))

    assert "one file, a_seg.b2nd" in refused(spoil)


@pytest.mark.parametrize("form", [COMPOSED, DECOMPOSED])
def test_an_image_and_its_label_may_write_a_letter_in_different_ways(
    umamba: Callable, tmp_path: Path, two_forms: None, form: str
) -> None:
    raw = RawDataset(tmp_path / "Dataset001_Names", cases=("a", "b"), channels=2)
    other = DECOMPOSED if form == COMPOSED else COMPOSED
    raw.image("b", 0).rename(raw.image(COMPOSED, 0))
    raw.image("b", 1).rename(raw.image(DECOMPOSED, 1))
    raw.label("b").rename(raw.label(form))
    assert umamba("check", raw.folder, "-j", 1).code == 0
    work = tmp_path / "work"
    assert umamba("plan", raw.folder, "-w", work, "-j", 1).code == 0
    folds = (work / "splits.json").read_text()
    (work / "splits.json").write_text(folds.replace(form, other))
    assert umamba("preprocess", work, "-c", "2d", "-j", 1).code == 0
    (stored,) = (array for name, array in stored_arrays(work).items() if name in (f"2d/{COMPOSED}", f"2d/{DECOMPOSED}"))
    assert stored.shape[0] == 2
    assert not np.array_equal(stored[0], stored[1])


def test_the_channels_of_a_case_keep_their_order_however_a_letter_is_written(tmp_path: Path, two_forms: None) -> None:
    from umamba_cli.pipeline.data.dataset import find_images

    for name in (f"{COMPOSED}_0000.png", f"{DECOMPOSED}_0001.png"):
        (tmp_path / name).touch()
    (paths,) = find_images(tmp_path, ".png").values()
    assert [path.stem[-4:] for path in paths] == ["0000", "0001"]


def test_a_name_that_is_a_channel_number_alone(tmp_path: Path) -> None:
    from umamba_cli.pipeline.data.dataset import find_images

    (tmp_path / "_0000.png").touch()
    assert find_images(tmp_path, ".png").keys() == {"_0000"}


def test_folds_may_write_a_letter_in_another_way(tmp_path: Path) -> None:
    from umamba_cli.pipeline.data.dataset import open_dataset

    dataset = open_dataset(RawDataset(tmp_path / "Dataset001_Names", cases=(COMPOSED, "a")).folder)
    assert dataset.select([DECOMPOSED]) == dataset.select([COMPOSED])


def test_names_with_spaces_and_letters_of_any_language(umamba: Callable, tmp_path: Path) -> None:
    raw = RawDataset(tmp_path / "Dataset001_Ünïcode and spaces", cases=ODD_NAMES)
    work = tmp_path / "Arbeit für Fall 1"
    assert umamba("check", raw.folder, "-j", 1).code == 0
    assert umamba("plan", raw.folder, "-w", work, "-j", 1).code == 0
    assert {name for fold in json.loads((work / "splits.json").read_text()) for name in fold["val"]} == set(ODD_NAMES)
    assert umamba("preprocess", work, "-c", "3d_fullres", "-j", 1).code == 0
    names = {f"3d_fullres/{name}{end}" for name in ODD_NAMES for end in ("", "_seg")}
    assert stored_arrays(work).keys() == names
    assert "there already" in umamba("preprocess", work, "-c", "3d_fullres", "-j", 1).out


def test_channel_numbers_are_four_plain_digits(refused: Callable) -> None:
    arabic = "b_" + "\N{ARABIC-INDIC DIGIT ZERO}" * 4 + ".nii.gz"
    assert refused(lambda raw: shutil.copy(raw.image(), raw.image().with_name(arabic))) == "no label in labelsTr"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names that are not in UTF-8")
@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".png"])
def test_a_name_that_is_not_in_utf_8(umamba: Callable, tmp_path: Path, ending: str) -> None:
    raw = RawDataset(tmp_path / "Dataset001_Names", ending, cases=("a", "b"))
    for case, name in (("a", "caf\udce9"), ("b", "na\udcefve")):
        raw.image(case).rename(raw.image(name))
        raw.label(case).rename(raw.label(name))
    # With workers chosen by the size of the largest case, and without.
    for command in (("check", raw.folder), ("plan", raw.folder, "-w", tmp_path / "work", "-j", 1)):
        (first, *_) = error_lines(umamba(*command), code=2)
        assert first == "error: 2 of 2 cases cannot be used"
    assert not (tmp_path / "work").exists()


def test_a_folder_with_the_name_of_an_image(refused: Callable) -> None:
    def spoil(raw: RawDataset) -> None:
        raw.image().unlink()
        raw.image().mkdir()

    assert refused(spoil).endswith("b_0000.nii.gz is a folder")


@pytest.mark.parametrize("which", ["image", "label"])
def test_a_link_to_nothing(refused: Callable, which: str) -> None:
    def spoil(raw: RawDataset) -> None:
        path = getattr(raw, which)()
        path.unlink()
        path.symlink_to(raw.folder / "moved away.nii.gz")

    assert refused(spoil).endswith("does not exist")


def test_workers_are_chosen_though_files_are_missing(tmp_path: Path) -> None:
    from umamba_cli.pipeline.data.dataset import Case
    from umamba_cli.pipeline.data.sizes import describe_case, workers_that_fit

    case = Case("a", (tmp_path / "a_0000.nii.gz",))
    assert workers_that_fit([case]) >= 1
    assert describe_case(case) == "a"


def test_all_bad_cases_are_named_from_several_processes_too(umamba: Callable, tmp_path: Path) -> None:
    raw = RawDataset(tmp_path / "Dataset001_Names", cases=("a", "b", "c d", "é"))
    raw.image("c d").write_text("no image")
    raw.label("é").write_bytes(b"")
    found = bad_cases(umamba("check", raw.folder, "-j", 2))
    assert list(found) == ["c d", "é"]
    report = umamba("check", raw.folder, "-j", 2, "--json")
    assert json.loads(report.out)["bad_cases"].keys() == found.keys()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read(refused: Callable) -> None:
    assert "ermission" in refused(lambda raw: raw.image().chmod(0))
