"""What an INPUT argument means: folders, files, lists, DICOM; and what is refused."""

from __future__ import annotations

from pathlib import Path

import dicom_files
import numpy as np
import pytest
import SimpleITK as sitk

from umamba_cli.pipeline.data.inputs import InputCase, choose_series, find_cases
from umamba_cli.pipeline.errors import InputError


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")


def write_series(folder: Path, number: int, description: str) -> None:
    """A DICOM series of three flat slices, whose value is its number."""
    files = dicom_files.write_series(
        folder / "one",
        np.full((3, 4, 5), number, np.int16),
        uid=f"1.2.3.{number}",
        number=number,
        description=description,
        spacing=(2.5, 1.0, 1.0),
    )
    for index, path in enumerate(files):
        path.rename(folder / f"{number}_{index}.dcm")
    (folder / "one").rmdir()


def names(cases: tuple[InputCase, ...]) -> list[str]:
    return [case.identifier for case in cases]


def test_a_folder_is_read_by_the_trainings_ending_first(tmp_path: Path) -> None:
    touch(tmp_path, "b_0000.nii.gz", "b_0001.nii.gz", "a.nii.gz", "preview.png", ".hidden.nii.gz", "notes.txt")
    found = find_cases([tmp_path], ".nii.gz")
    assert names(found.cases) == ["a", "b"]
    assert [path.name for path in found.cases[1].sources] == ["b_0000.nii.gz", "b_0001.nii.gz"]
    assert "1 images" in found.notes[0]


def test_otherwise_all_images_of_a_folder_are_taken(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.mha", "b.NRRD", "c.tif", "readme.md")
    found = find_cases([tmp_path], ".nii.gz")
    assert [(case.identifier, case.ending) for case in found.cases] == [("a", ".mha"), ("b", ".NRRD"), ("c", ".tif")]
    assert not found.notes


def test_a_file_means_its_case_with_all_channels(tmp_path: Path) -> None:
    touch(tmp_path, "b_0000.nii.gz", "b_0001.nii.gz", "a.nii.gz")
    (case,) = find_cases([tmp_path / "b_0001.nii.gz"], ".nii.gz").cases
    assert [path.name for path in case.sources] == ["b_0000.nii.gz", "b_0001.nii.gz"]


def test_a_list_names_files_and_folders_from_where_it_lies(tmp_path: Path) -> None:
    touch(tmp_path / "images", "a.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz")
    touch(tmp_path / "more", "c.nii.gz")
    listed = tmp_path / "list.txt"
    listed.write_text("# what to predict\nimages/a.nii.gz\nimages/b_0000.nii.gz\n\nimages/b_0001.nii.gz\nmore\n")
    assert names(find_cases([listed], ".nii.gz").cases) == ["a", "b", "c"]
    listed.write_text("images/a.nii.gz\nimages/z.nii.gz\nlist.txt\n")
    with pytest.raises(InputError, match="2 of 3 paths") as refused:
        find_cases([listed], ".nii.gz")
    assert [Path(line).name for line in refused.value.details] == ["z.nii.gz", "list.txt"]
    listed.write_text("\n")
    with pytest.raises(InputError, match="names no image"):
        find_cases([listed], ".nii.gz")


def test_several_inputs_are_one_work_and_a_name_is_used_once(tmp_path: Path) -> None:
    touch(tmp_path / "x", "a.nii.gz")
    touch(tmp_path / "y", "b.nii.gz")
    both = [tmp_path / "x", tmp_path / "y", tmp_path / "x/a.nii.gz"]
    assert names(find_cases(both, ".nii.gz").cases) == ["a", "b"]
    touch(tmp_path / "y", "a.nii.gz")
    with pytest.raises(InputError, match="1 cases have the name of another"):
        find_cases(both, ".nii.gz")


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.docx")
    for path, text in ((tmp_path, "holds no"), (tmp_path / "a.docx", "no image"), (tmp_path / "b", "not exist")):
        with pytest.raises(InputError, match=text):
            find_cases([path], ".nii.gz")
    assert not find_cases([tmp_path], ".nii.gz", may_be_empty=True).cases


def test_a_dicom_folder_is_one_case(tmp_path: Path) -> None:
    write_series(tmp_path / "patient", 1, "T1")
    (case,) = find_cases([tmp_path / "patient"], ".nii.gz").cases
    assert (case.identifier, case.ending) == ("patient", "")
    image = case.read(1)
    assert image.voxels.shape == (1, 3, 4, 5)
    assert image.grid.spacing_mm == pytest.approx((2.5, 1, 1))


def test_a_single_dicom_file_is_one_case_and_no_channel_of_another(tmp_path: Path) -> None:
    write_series(tmp_path, 1, "X-ray")
    (tmp_path / "1_2.dcm").rename(tmp_path / "IM_0002")
    for name, identifier in (("1_1.dcm", "1_1"), ("IM_0002", "IM_0002")):
        (case,) = find_cases([tmp_path / name], ".nii.gz").cases
        assert (case.identifier, case.sources) == (identifier, (tmp_path / name,))
        assert case.read(1).voxels.shape == (1, 1, 4, 5)


def test_header_and_voxels_in_two_files_are_one_case(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((3, 4, 5), np.int16)), str(tmp_path / "a.hdr"))
    (case,) = find_cases([tmp_path], ".nii.gz").cases
    assert case.read(1).voxels.shape == (1, 3, 4, 5)


def test_several_series_are_listed_by_name_and_chosen(tmp_path: Path) -> None:
    write_series(tmp_path, 3, "T1 axial")
    write_series(tmp_path, 7, "T2 axial")
    with pytest.raises(InputError, match="2 DICOM series") as refused:
        find_cases([tmp_path], ".nii.gz")
    assert ["T1 axial" in refused.value.details[0], "T2 axial" in refused.value.details[1]] == [True, True]
    assert "--series" in refused.value.next_step
    for wanted in ("7", "T2 axial", "t2", "1.2.3.7"):
        (case,) = find_cases([tmp_path], ".nii.gz", series=[wanted]).cases
        assert case.read(1).voxels.max() == 7
    (case,) = find_cases([tmp_path], ".nii.gz", series=["T2", "T1"]).cases  # two channels
    assert case.read(2).voxels[:, 0, 0, 0].tolist() == [7, 3]
    for wanted in ("axial", "9"):
        with pytest.raises(InputError, match="series of"):
            choose_series(tmp_path, [wanted])


def test_folders_below_are_searched_for_dicom(tmp_path: Path) -> None:
    write_series(tmp_path / "anna/study", 1, "T1")
    write_series(tmp_path / "bert", 1, "T1")
    write_series(tmp_path / "bert", 2, "T2")
    write_series(tmp_path / ".trash", 1, "T1")
    cases = find_cases([tmp_path], ".nii.gz").cases
    assert names(cases) == ["anna_study", "bert"]
    with pytest.raises(InputError, match="2 DICOM series"):
        cases[1].read(1)


def test_pictures_hide_no_dicom_and_what_is_left_out_is_told(tmp_path: Path) -> None:
    write_series(tmp_path / "anna", 1, "T1")
    touch(tmp_path, "logo.png")
    touch(tmp_path / "anna", "preview.jpg")
    found = find_cases([tmp_path], ".nii.gz")
    assert names(found.cases) == ["anna"]
    assert "1 images" in found.notes[0]
    assert names(find_cases([tmp_path / "anna"], ".nii.gz").cases) == ["anna"]
    touch(tmp_path, "bert.mha")
    assert names(find_cases([tmp_path], ".nii.gz").cases) == ["anna", "bert"]
    touch(tmp_path, "carl.nii.gz")
    found = find_cases([tmp_path], ".nii.gz")
    assert names(found.cases) == ["carl"]
    assert "2 images of other formats and 1 DICOM folders" in found.notes[0]


def test_a_loop_of_links_and_endless_names_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").symlink_to(tmp_path / "b.nii.gz")
    (tmp_path / "b.nii.gz").symlink_to(tmp_path / "a.nii.gz")
    assert names(find_cases([tmp_path], ".nii.gz").cases) == ["a", "b"]  # reading them says what is wrong
    with pytest.raises(InputError, match="cannot be read"):
        find_cases([tmp_path / ("x" * 300)], ".nii.gz")


def test_in_a_watched_folder_cases_of_one_name_stop_no_others(tmp_path: Path) -> None:
    touch(tmp_path / "x", "a.nii.gz", "b.nii.gz")
    touch(tmp_path / "y", "a.nii.gz")
    found = find_cases([tmp_path / "x", tmp_path / "y"], ".nii.gz", may_be_empty=True)
    assert names(found.cases) == ["b"]
    assert "same name" in found.notes[0]
