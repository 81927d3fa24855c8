from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from msd_tasks import OBLIQUE, ORIGIN, SHAPE, SPACING, convert, edit, files_in, make_task, patch, write_nifti

from umamba_cli.pipeline.data.checks import check_dataset
from umamba_cli.pipeline.data.dataset import open_dataset
from umamba_cli.pipeline.data.images import read_image, read_label_map
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.interop.msd import ConvertedDataset, convert_msd
from umamba_cli.pipeline.progress import Progress, ignore_progress


def channels_of(path: Path) -> list[sitk.Image]:
    """What SimpleITK makes of each volume of a 4D file, with the 3x3 part of its direction."""
    image = sitk.ReadImage(str(path))
    return [image[:, :, :, index] for index in range(image.GetSize()[3])]


def assert_same(path: Path, expected: sitk.Image) -> None:
    """Voxels, their type and the grid, to the last digit."""
    image = sitk.ReadImage(str(path))
    assert image.GetPixelID() == expected.GetPixelID()
    assert image.GetSpacing() == expected.GetSpacing()
    assert image.GetOrigin() == expected.GetOrigin()
    assert image.GetDirection() == expected.GetDirection()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(expected))


def test_one_channel_is_copied_and_described(task: Path, dataset: Path) -> None:
    converted = convert(task, dataset)
    assert converted == ConvertedDataset(
        dataset, 2, 1, channels=("MRI 0",), labels=("background", "Anterior", "Posterior"), kept=0
    )
    assert files_in(dataset) == [
        "dataset.json",
        "imagesTr/one_0000.nii.gz",
        "imagesTr/two_0000.nii.gz",
        "imagesTs/three_0000.nii.gz",
        "labelsTr/one.nii.gz",
        "labelsTr/two.nii.gz",
    ]
    for name in ("one", "two"):
        image = (dataset / f"imagesTr/{name}_0000.nii.gz").read_bytes()
        assert image == (task / f"imagesTr/{name}.nii.gz").read_bytes()
        assert (dataset / f"labelsTr/{name}.nii.gz").read_bytes() == (task / f"labelsTr/{name}.nii.gz").read_bytes()
    description = json.loads((dataset / "dataset.json").read_text())
    assert list(description["labels"].values()) == [0, 1, 2]
    assert description == {
        "name": "Phantom",
        "description": "Left and right",
        "reference": "nobody",
        "licence": "CC-BY-SA 4.0",
        "release": "1.0 04/05/2018",
        "channel_names": {"0": "MRI 0"},
        "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    opened = open_dataset(dataset)
    assert [case.identifier for case in opened.cases] == ["one", "two"]
    assert check_dataset(opened, workers=1).problems == {}


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_every_channel_of_a_4d_image_becomes_a_file(tmp_path: Path, dataset: Path, kind: type, ending: str) -> None:
    task = make_task(tmp_path / "task", channels=4, kind=kind, ending=ending)
    assert convert(task, dataset).channels == ("MRI 0", "MRI 1", "MRI 2", "MRI 3")
    for split, name in (("Tr", "one"), ("Tr", "two"), ("Ts", "three")):
        volumes = channels_of(task / f"images{split}/{name}{ending}")
        assert len(volumes) == 4
        for index, volume in enumerate(volumes):
            assert_same(dataset / f"images{split}/{name}_{index:04d}.nii.gz", volume)
    assert_same(dataset / "labelsTr/one.nii.gz", sitk.ReadImage(str(task / f"labelsTr/one{ending}")))
    opened = open_dataset(dataset)
    assert opened.description.num_channels == 4
    assert check_dataset(opened, workers=1).problems == {}


def test_the_grid_of_a_4d_image_is_kept(tmp_path: Path, dataset: Path) -> None:
    convert(make_task(tmp_path / "task", channels=2), dataset)
    grid = read_image([dataset / "imagesTr/one_0000.nii.gz", dataset / "imagesTr/one_0001.nii.gz"]).grid
    assert grid.shape == SHAPE
    np.testing.assert_allclose(grid.spacing_mm, SPACING[::-1], rtol=1e-6)
    np.testing.assert_allclose(grid.origin_mm, ORIGIN, atol=1e-4)
    np.testing.assert_allclose(grid.direction, OBLIQUE, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2])
def test_scaled_voxels_keep_their_values_and_their_type(tmp_path: Path, dataset: Path, channels: int) -> None:
    task = make_task(tmp_path / "task", channels=channels)
    source = task / "imagesTr/one.nii.gz"
    before = sitk.GetArrayFromImage(sitk.ReadImage(str(source))).astype(float).reshape(channels, *SHAPE)
    patch(source, 112, "<2f", 0.25, -1000.0)  # scl_slope, scl_inter
    convert(task, dataset)
    for index in range(channels):
        image = sitk.ReadImage(str(dataset / f"imagesTr/one_{index:04d}.nii.gz"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), before[index] * 0.25 - 1000)
        assert image.GetMetaData("datatype") == "4"  # int16, as in the source


def test_voxels_that_are_not_finite_are_kept_for_check_to_find(tmp_path: Path, dataset: Path) -> None:
    task = make_task(tmp_path / "task", channels=2, kind=np.float32)
    voxels = np.ones((2, *SHAPE), np.float32)
    voxels[1, 0, 0, :3] = np.nan, np.inf, -np.inf
    write_nifti(task / "imagesTr/two.nii.gz", voxels)
    convert(task, dataset)
    (phrases,) = check_dataset(open_dataset(dataset), workers=1).problems.values()
    assert "3 of" in phrases[0]
    assert "finite" in phrases[0]


def test_a_header_with_an_extension_and_of_the_other_byte_order(tmp_path: Path, dataset: Path) -> None:
    task = make_task(tmp_path / "task", channels=2)
    source = task / "imagesTr/one.nii.gz"
    expected = channels_of(source)
    content = gzip.decompress(source.read_bytes())
    extended = bytearray(
        content[:348] + b"\1\0\0\0" + struct.pack("<2i", 32, 6) + b"a comment".ljust(24) + content[352:]
    )
    struct.pack_into("<f", extended, 108, 384.0)
    source.write_bytes(gzip.compress(extended))
    swapped = bytearray(content)
    for kind, count, at in (("i", 1, 0), ("h", 8, 40), ("f", 3, 56), ("h", 4, 68), ("f", 8, 76), ("f", 3, 108)):
        struct.pack_into(f">{count}{kind}", swapped, at, *struct.unpack_from(f"<{count}{kind}", content, at))
    for kind, count, at in (("i", 2, 32), ("i", 2, 140), ("f", 2, 124), ("h", 2, 252), ("f", 18, 256)):
        struct.pack_into(f">{count}{kind}", swapped, at, *struct.unpack_from(f"<{count}{kind}", content, at))
    swapped[352:] = np.frombuffer(content[352:], "<i2").astype(">i2").tobytes()
    (task / "imagesTr/two.nii.gz").write_bytes(gzip.compress(swapped))
    convert(task, dataset)
    for name in ("one", "two"):
        for index, volume in enumerate(expected):
            assert_same(dataset / f"imagesTr/{name}_{index:04d}.nii.gz", volume)


def test_a_fourth_axis_of_one_is_dropped(task: Path, dataset: Path) -> None:
    labels = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.float32) % 3
    write_nifti(task / "labelsTr/one.nii.gz", labels[None])
    write_nifti(task / "imagesTr/one.nii.gz", labels[None] * 100)
    convert(task, dataset)
    read = read_label_map(dataset / "labelsTr/one.nii.gz")
    np.testing.assert_array_equal(read.labels, labels)
    assert read.labels.dtype == np.float32
    assert check_dataset(open_dataset(dataset), workers=1).problems == {}


def test_names_with_spaces_and_letters_beyond_ascii(tmp_path: Path, dataset: Path) -> None:
    names = ("patient 1 links", "Jürgen.v2", "左")
    for channels in (1, 2):
        task = make_task(tmp_path / f"Aufgabe ä {channels}", names=names, channels=channels)
        target = dataset / f"mit Leerzeichen ü {channels}"
        convert(task, target)
        assert [case.identifier for case in open_dataset(target).cases] == sorted(names[:2])
        assert (target / "imagesTs/左_0000.nii.gz").is_file()


def test_channels_are_ordered_by_number_and_without_test_images_it_works_too(tmp_path: Path, dataset: Path) -> None:
    task = make_task(tmp_path / "task", channels=11)
    edit(task / "dataset.json", test=None, name=None, labels={"0": "back ground", "1": "a", "2": "b"})
    assert convert(task, dataset).channels[9:] == ("MRI 9", "MRI 10")
    description = json.loads((dataset / "dataset.json").read_text())
    assert list(description["channel_names"]) == [str(index) for index in range(11)]
    assert description["labels"] == {"background": 0, "a": 1, "b": 2}
    assert not (dataset / "imagesTs").exists()


# Again, and after a kill


def test_a_second_time_keeps_everything_and_a_changed_source_is_done_again(tmp_path: Path, dataset: Path) -> None:
    task = make_task(tmp_path / "task", channels=2)
    convert(task, dataset)
    before = {name: (dataset / name).stat().st_mtime_ns for name in files_in(dataset)}
    assert convert(task, dataset).kept == 3
    assert before == {name: (dataset / name).stat().st_mtime_ns for name in files_in(dataset)}
    (dataset / "imagesTr/one_0001.nii.gz").unlink()
    changed = np.full((2, *SHAPE), 5, np.int16)
    write_nifti(task / "imagesTr/two.nii.gz", changed)
    later = (dataset / "imagesTr/two_0000.nii.gz").stat().st_mtime_ns + 10**9
    os.utime(task / "imagesTr/two.nii.gz", ns=(later, later))
    done: list[str] = []
    assert convert_msd(task, dataset, workers=1, on_progress=lambda progress: done.append(progress.step)).kept == 1
    assert done == ["", "one", "two"]
    assert (read_image([dataset / "imagesTr/two_0000.nii.gz"]).voxels == 5).all()
    assert len(files_in(dataset)) == len(before)


def test_a_killed_conversion_is_no_dataset_and_goes_on(task: Path, dataset: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from umamba_cli.pipeline.interop.msd import convert_msd\n"
        "def kill(progress):\n    if progress.done == 1:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "convert_msd(Path(sys.argv[1]), Path(sys.argv[2]), workers=1, on_progress=kill)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(task), str(dataset)], check=False)
    assert done.returncode == -9
    assert files_in(dataset) == ["imagesTr/one_0000.nii.gz", "labelsTr/one.nii.gz"]
    with pytest.raises(InputError, match=r"dataset\.json does not exist"):
        open_dataset(dataset)
    (dataset / "imagesTr/.two_0000.partial-x.nii.gz").write_bytes(b"what a kill amid writing leaves")
    (dataset / "labelsTr/one.nii.gz").unlink()
    assert convert(task, dataset).kept == 0
    (dataset / "labelsTr/two.nii.gz").unlink()
    assert convert(task, dataset).kept == 2
    assert check_dataset(open_dataset(dataset), workers=1).problems == {}


def test_the_description_goes_before_work_and_comes_after_it(task: Path, dataset: Path) -> None:
    convert(task, dataset)
    (dataset / "labelsTr/two.nii.gz").unlink()

    def stop(progress: Progress) -> None:
        if progress.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_msd(task, dataset, workers=1, on_progress=stop)
    assert (dataset / "labelsTr/two.nii.gz").is_file()
    assert not (dataset / "dataset.json").exists()
    assert convert(task, dataset).kept == 3
    assert (dataset / "dataset.json").is_file()


# The command, and real data


def test_the_command(umamba: Callable, task: Path, tmp_path: Path) -> None:
    target = tmp_path / "Dataset 4"
    done = umamba("convert", "msd", task, target, "-j", 1)
    assert done.code == 0
    said, advice = done.out.splitlines()
    assert said.startswith("2 training cases and 1 test images (MRI 0; background, Anterior, Posterior) are in ")
    assert advice == f"next: umamba plan '{target}'"
    assert "convert 3/3: three" in done.err
    again = json.loads(umamba("convert", "msd", task, target, "-j", 2, "--json").out)
    assert again["kept"] == 3
    assert again["folder"] == str(target)
    quiet = umamba("convert", "msd", task, target, "-q")
    assert (quiet.out, quiet.err) == ("", "")


def test_errors_of_the_command(umamba: Callable, task: Path, dataset: Path) -> None:
    (task / "imagesTr/one.nii.gz").unlink()
    for arguments, expected in (
        (("msd", task, dataset), "imagesTr/one.nii.gz"),
        (("msd", task), "DATASET"),
        (("nonsense",), "nonsense"),
    ):
        done = umamba("convert", *arguments)
        assert done.code == 2
        lines = done.err.splitlines()
        assert lines[0].startswith("error: ")
        assert lines[-1].startswith("next: ")
        assert expected in done.err
        assert "Traceback" not in done.err
    assert json.loads(umamba("convert", "msd", task, dataset, "--json").out)["details"] == ["imagesTr/one.nii.gz"]


def test_two_workers_write_what_one_writes(tmp_path: Path, dataset: Path) -> None:
    task = make_task(tmp_path / "task", channels=2)
    convert(task, dataset)
    convert_msd(task, tmp_path / "other", workers=2, on_progress=ignore_progress)
    assert files_in(dataset) == files_in(tmp_path / "other")
    for name in files_in(dataset):
        assert (dataset / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


@pytest.mark.parametrize("channels", [1, 2])
def test_real_images_come_back_voxel_for_voxel(shared: Path, tmp_path: Path, dataset: Path, channels: int) -> None:
    raw = shared / "data/Dataset004_Hippocampus"
    names = sorted(path.name.removesuffix(".nii.gz") for path in (raw / "labelsTr").glob("*.nii.gz"))[:4]
    task = make_task(tmp_path / "task", names=names, channels=channels)
    shutil.rmtree(task / "imagesTr")
    for name in names:
        image = sitk.ReadImage(str(raw / f"imagesTr/{name}_0000.nii.gz"))
        source = task / ("imagesTs" if name == names[-1] else "imagesTr") / f"{name}.nii.gz"
        source.parent.mkdir(exist_ok=True)
        sitk.WriteImage(image if channels == 1 else sitk.JoinSeries([image, 255 - image]), str(source))
        if name != names[-1]:
            shutil.copy(raw / f"labelsTr/{name}.nii.gz", task / f"labelsTr/{name}.nii.gz")
    convert(task, dataset)
    opened = open_dataset(dataset)
    assert check_dataset(opened, workers=1).problems == {}
    for case in opened.cases:
        original = sitk.ReadImage(str(raw / f"imagesTr/{case.identifier}_0000.nii.gz"))
        assert_same(case.images[0], original)
        assert case.label is not None
        assert_same(case.label, sitk.ReadImage(str(raw / f"labelsTr/{case.identifier}.nii.gz")))
        if channels == 2:
            assert_same(case.images[1], 255 - original)


def test_a_source_that_was_exchanged_is_converted_again(task: Path, dataset: Path) -> None:
    """Whatever its time of change: another file under the same name, or another name in dataset.json."""
    convert(task, dataset)
    description = json.loads((task / "dataset.json").read_text())
    one, two = description["training"]
    one["label"], two["label"] = two["label"], one["label"]
    (task / "dataset.json").write_text(json.dumps(description))
    shutil.copy(task / two["image"], task / one["image"])
    os.utime(task / one["image"], (0, 0))
    assert convert(task, dataset).kept == 1  # the image to predict
    assert (dataset / "labelsTr/one.nii.gz").read_bytes() == (task / one["label"]).read_bytes()
    assert (dataset / "imagesTr/one_0000.nii.gz").read_bytes() == (task / two["image"]).read_bytes()


def test_a_dataset_in_raw_layout_is_told_apart(task: Path, dataset: Path, tmp_path: Path) -> None:
    convert(task, dataset)
    with pytest.raises(InputError, match="in nnU-Net raw layout already"):
        convert(dataset, tmp_path / "again")
