from __future__ import annotations

import gzip
import json
import pickle
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from hssl.errors import ConfigError, SourceError
from hssl.registry import LAYOUTS
from hssl.sources.discovery import check_no_patients, find_sources
from hssl.sources.folder import parse_labels, safe_name, subject_of

AFFINE = np.array([[-2.0, 0, 0, 5], [0, 0, 3.0, 6], [0, 1.5, 0, 7], [0, 0, 0, 1]])
VOLUME = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
MASK = (VOLUME % 3).astype(np.uint8)
PICTURE = np.arange(12, dtype=np.uint8).reshape(3, 4)


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def write_picture(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_msd(root: Path, modality: dict[str, str] | None = None, ids: tuple[str, ...] = ("b", "a")) -> Path:
    modality = modality or {"0": "MRI"}
    channels = [VOLUME + 100 * number for number in range(len(modality))]
    image = np.stack(channels, axis=-1) if len(channels) > 1 else channels[0]
    for case in ids:
        write_nifti(root / f"imagesTr/{case}.nii.gz", image)
        write_nifti(root / f"labelsTr/{case}.nii.gz", MASK)
    write_nifti(root / "imagesTs/c.nii.gz", image)
    listing = {
        "modality": modality,
        "labels": {"0": "background", "1": "liver", "2": "spleen"},
        "training": [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in ids],
        "test": ["./imagesTs/c.nii.gz"],
    }
    write_json(root / "dataset.json", listing)
    return root


def write_nnunet(root: Path, ending: str = ".nii.gz", channels: tuple[str, ...] = ("T1", "T2")) -> Path:
    for number, _ in enumerate(channels):
        for part, case in (("Tr", "b"), ("Tr", "a"), ("Ts", "c")):
            path = root / f"images{part}/{case}_{number:04d}{ending}"
            if ending == ".png":
                write_picture(path, PICTURE + 100 * number)
            else:
                write_nifti(path, VOLUME + 100 * number)
    for case in "ab":
        path = root / f"labelsTr/{case}{ending}"
        write_picture(path, PICTURE % 3) if ending == ".png" else write_nifti(path, MASK)
    listing = {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": {"background": 0, "liver": 1, "spleen": 2},
        "file_ending": ending,
        "numTraining": 2,
    }
    write_json(root / "dataset.json", listing)
    return root


def write_plain(root: Path) -> Path:
    for case in "bac":
        write_nifti(root / f"images/{case}.nii.gz", VOLUME)
    for case in "ab":
        write_nifti(root / f"labels/{case}.nii.gz", MASK)
    write_json(root / "labels.json", {"liver": 1, "spleen": 2})
    return root


def write_pictures(root: Path) -> Path:
    for case in "bac":
        write_picture(root / f"images/{case}.png", PICTURE)
    for case in "ab":
        write_picture(root / f"masks/{case}_mask.png", PICTURE % 3)
    write_json(root / "labels.json", {"1": "liver", "2": "spleen"})
    return root


WRITERS = {"msd": write_msd, "nnunet": write_nnunet, "nifti": write_plain, "images2d": write_pictures}


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_keeps_the_contract(layout: str, tmp_path: Path) -> None:
    root = WRITERS[layout](tmp_path / "Task01_Organs")
    array, mask = (PICTURE[..., None], PICTURE[..., None] % 3) if layout == "images2d" else (VOLUME, MASK)

    source = find_sources(root)[0]

    assert source.layout == layout
    assert source.path == root
    assert source.task == safe_name(source.task)
    assert source.task.startswith("Task01_Organs")
    assert dict(source.labels) == {1: "liver", 2: "spleen"}
    cases = list(source.cases())
    assert [case.id for case in cases] == ["a", "b", "c"]
    assert [case.subject for case in cases] == ["a", "b", "c"]
    assert {case.task for case in cases} == {source.task}
    for case in cases:
        case = pickle.loads(pickle.dumps(case))  # noqa: S301  (cases go to worker processes)
        geometry, image = case.read_geometry(), case.read_image()
        assert geometry.shape == image.shape == array.shape
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image, array)
        assert geometry.ndim == (2 if layout == "images2d" else 3)
        assert case.image_path.is_file()
    for case in cases[:2]:
        assert case.read_label is not None
        assert case.label_path is not None
        label = case.read_label()
        assert label.dtype.kind in "iu"
        np.testing.assert_array_equal(label, mask)
    assert cases[2].label_path is None
    assert cases[2].read_label is None


def test_every_registered_layout_is_under_the_contract() -> None:
    assert set(WRITERS) | {"dicom"} >= set(LAYOUTS)


@pytest.mark.parametrize("layout", WRITERS)
def test_a_named_layout_is_used(layout: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path / "raw")
    assert find_sources(tmp_path / "raw", layout=layout)[0].layout == layout
    other = next(name for name in WRITERS if name != layout)
    with pytest.raises(SourceError, match=f"looked for {other}: "):
        find_sources(tmp_path / "raw", layout=other)


def test_nifti_geometry_is_that_of_the_header(tmp_path: Path) -> None:
    geometry = next(find_sources(write_plain(tmp_path))[0].cases()).read_geometry()
    np.testing.assert_array_equal(geometry.affine, AFFINE)
    assert geometry.spacing == (2.0, 1.5, 3.0)
    assert geometry.orientation == "LSA"


def test_nifti_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOLUME, AFFINE)
    image.header.set_slope_inter(0.5, -7)
    nib.save(image, tmp_path / "a.nii.gz")
    read = next(find_sources(tmp_path)[0].cases()).read_image()
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, VOLUME * 0.5 - 7)


@pytest.mark.parametrize(("unit", "spacing"), [("micron", 2.0), ("meter", 2e6), ("mm", 2000.0), ("unknown", 2000.0)])
def test_units_of_a_nifti_header_become_mm(unit: str, spacing: float, tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOLUME, np.diag([2000.0, 2000.0, 2000.0, 1.0]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii.gz")
    assert next(find_sources(tmp_path)[0].cases()).read_geometry().spacing == pytest.approx((spacing,) * 3)


def test_an_unknown_unit_is_named(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOLUME, AFFINE)
    image.header["xyzt_units"] = 127
    nib.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(SourceError, match=r"a\.nii\.gz: has a unit of length that NIfTI does not know"):
        next(find_sources(tmp_path)[0].cases()).read_geometry()


def test_complex_voxels_are_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(VOLUME.astype(np.complex64), AFFINE), tmp_path / "a.nii.gz")
    case = next(find_sources(tmp_path)[0].cases())
    for read in (case.read_geometry, case.read_image):
        with pytest.raises(SourceError, match="holds complex voxels"):
            read()


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1000.0), ("micron", 0.001)])
def test_a_small_voxel_has_an_inverse_in_any_unit(unit: str, mm: float, tmp_path: Path) -> None:
    sizes = np.array([0.5, 0.5, 3.0]) / (1000 if unit == "meter" else 1)
    image = nib.Nifti1Image(VOLUME, np.diag([*sizes, 1.0]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii.gz")
    assert next(find_sources(tmp_path)[0].cases()).read_geometry().spacing == pytest.approx(tuple(sizes * mm))


def test_a_nifti_of_two_axes_lies_as_one_of_a_single_slice(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", VOLUME[..., 0])
    write_nifti(tmp_path / "b.nii", VOLUME[..., :1])
    flat, slice_ = find_sources(tmp_path)[0].cases()
    assert flat.read_geometry().shape == flat.read_image().shape == (2, 3, 1)
    assert flat.read_geometry().ndim == slice_.read_geometry().ndim == 3
    np.testing.assert_array_equal(flat.read_geometry().affine, slice_.read_geometry().affine)
    np.testing.assert_array_equal(flat.read_image(), slice_.read_image())


def test_a_folder_of_challenges_gives_all_of_them_sorted(tmp_path: Path) -> None:
    write_msd(tmp_path / "Task02_B")
    write_nnunet(tmp_path / "Dataset001_A", channels=("CT",))
    write_pictures(tmp_path / "xray")
    (tmp_path / "notes").mkdir()
    (tmp_path / ".hidden").mkdir()
    sources = find_sources(tmp_path)
    assert [source.task for source in sources] == ["Dataset001_A", "Task02_B", "xray"]
    assert [source.layout for source in sources] == ["nnunet", "msd", "images2d"]


def test_a_single_file_is_a_source_of_one_case(tmp_path: Path) -> None:
    write_plain(tmp_path / "scans")
    (source,) = find_sources(tmp_path / "scans/images/b.nii.gz")
    assert [(case.id, case.label_path) for case in source.cases()] == [("b", None)]


@pytest.mark.parametrize("writer", [write_msd, write_nnunet])
def test_channels_are_one_task_each_or_chosen(writer: object, tmp_path: Path) -> None:
    root = tmp_path / "Brain"
    write_msd(root, {"0": "T1", "1": "T2"}) if writer is write_msd else write_nnunet(root)
    both = find_sources(root)
    assert [(source.task, source.modality) for source in both] == [("Brain_T1", "T1"), ("Brain_T2", "T2")]
    for number, source in enumerate(both):
        case = next(source.cases())
        np.testing.assert_array_equal(case.read_image(), VOLUME + 100 * number)
        assert case.read_geometry().shape == VOLUME.shape
    listing = json.loads((root / "dataset.json").read_text())
    name = "modality" if writer is write_msd else "channel_names"
    write_json(root / "dataset.json", listing | {name: {"1": "T2", "0": "T1"}})
    assert [source.task for source in find_sources(root)] == ["Brain_T1", "Brain_T2"]
    for wanted in ("T2", 1, "1"):
        assert [source.task for source in find_sources(root, channel=wanted)] == ["Brain_T2"]
    with pytest.raises(SourceError, match=r"no channel 'FLAIR' \(there are: 0 T1, 1 T2\)"):
        find_sources(root, channel="FLAIR")


def test_channels_of_plain_nifti_are_numbered(tmp_path: Path) -> None:
    write_nifti(tmp_path / "scans/a.nii.gz", np.stack([VOLUME, VOLUME + 100], axis=-1))
    assert [source.task for source in find_sources(tmp_path / "scans")] == ["scans_0", "scans_1"]
    (second,) = find_sources(tmp_path / "scans", channel=1)
    np.testing.assert_array_equal(next(second.cases()).read_image(), VOLUME + 100)


def test_a_colour_picture_in_nnunet_is_one_task(tmp_path: Path) -> None:
    write_nnunet(tmp_path / "D", ".png", channels=("R",))
    write_json(
        tmp_path / "D/dataset.json",
        {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0}, "file_ending": ".png"},
    )
    (source,) = find_sources(tmp_path / "D")
    assert (source.task, len(list(source.cases()))) == ("D", 3)


def test_nnunet_picture_channels(tmp_path: Path) -> None:
    second = find_sources(write_nnunet(tmp_path / "D", ".png"))[1]
    np.testing.assert_array_equal(next(second.cases()).read_image()[..., 0], PICTURE + 100)


def test_the_task_can_be_named(tmp_path: Path) -> None:
    write_msd(tmp_path / "a", {"0": "T1", "1": "T2"})
    assert [s.task for s in find_sources(tmp_path / "a", task="My brain")] == ["My_brain_T1", "My_brain_T2"]
    write_msd(tmp_path / "b")
    with pytest.raises(ConfigError, match="task 'x' cannot name 2 folders"):
        find_sources(tmp_path, task="x")


def test_nothing_found_says_what_was_looked_for(tmp_path: Path) -> None:
    write_nifti(tmp_path / "one/two/a.nii.gz", VOLUME)
    with pytest.raises(SourceError) as caught:
        find_sources(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "\n" not in message
    assert "--layout" in message
    for layout in LAYOUTS.values():
        assert f"{layout.name}: {layout.looks_for}" in message


def test_several_layouts_in_one_folder_must_be_named(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", VOLUME)
    write_picture(tmp_path / "b.png", PICTURE)
    with pytest.raises(SourceError, match=r"may be read as nifti and images2d \(choose one with --layout\)"):
        find_sources(tmp_path)
    assert [case.id for case in find_sources(tmp_path, layout="images2d")[0].cases()] == ["b"]


def test_bad_options_are_named(tmp_path: Path) -> None:
    write_msd(tmp_path)
    with pytest.raises(ConfigError, match="no layout 'bids'"):
        find_sources(tmp_path, layout="bids")
    with pytest.raises(ConfigError, match="not a regular expression"):
        find_sources(tmp_path, subject="(")
    with pytest.raises(SourceError, match="no such file or folder"):
        find_sources(tmp_path / "missing")


@pytest.mark.parametrize(
    ("case_id", "subject"),
    [
        ("patient001_frame01", "patient001"),
        ("patient001_frame12", "patient001"),
        ("p7_t3", "p7"),
        ("p7_visit-2", "p7"),
        ("p7_ses2_t1", "p7"),
        ("p7_ED", "p7"),
        ("p7_flair", "p7"),
        ("p7_t1ce", "p7"),
        ("p7_t1", "p7"),
        ("sub-01_ses-2_T1w", "sub-01"),
        ("hippocampus_001", "hippocampus_001"),
        ("TCGA_CS_4941", "TCGA_CS_4941"),
        ("la_06SR5RBREL16DQ6M8LWS", "la_06SR5RBREL16DQ6M8LWS"),
        ("frame_01", "frame_01"),
    ],
)
def test_default_subject(case_id: str, subject: str) -> None:
    assert subject_of(case_id, None, Path("x")) == subject


def test_subject_rule(tmp_path: Path) -> None:
    root = write_msd(tmp_path, ids=("s1-x", "s1-y"))
    cases = find_sources(root, subject=r"^(s\d)|c")[0].cases()
    with pytest.raises(SourceError, match=r"imagesTs/c.nii.gz: subject rule .* finds nothing in case 'c'"):
        list(cases)
    assert [case.subject for case in find_sources(root, subject=r"^(?:s\d|c)")[0].cases()] == [
        "c",
        "s1",
        "s1",
    ]


def test_ids_are_safe_and_unique(tmp_path: Path) -> None:
    write_picture(tmp_path / "scan 1.png", PICTURE)
    assert [case.id for case in find_sources(tmp_path)[0].cases()] == ["scan_1"]
    write_picture(tmp_path / "scan_1.png", PICTURE)
    with pytest.raises(SourceError, match="two cases are called 'scan_1'"):
        list(find_sources(tmp_path)[0].cases())


def test_a_listed_file_that_is_missing_is_named(tmp_path: Path) -> None:
    root = write_msd(tmp_path)
    (root / "labelsTr/b.nii.gz").unlink()
    with pytest.raises(SourceError, match=r"labelsTr/b.nii.gz: no such file, though case 'b' needs it"):
        list(find_sources(root)[0].cases())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "lists no 'labels'"),
        ({"labels": {"0": "background", "1": "a", "b": "c"}}, "label 'b': 'c' is not"),
        ({"training": [{"image": "./imagesTr/a.nii.gz"}]}, "does not name an 'image' and a 'label'"),
        ({"training": {"image": "a"}}, "'training' is not a list of cases"),
        ({"modality": {"1": "T1", "2": "T2"}}, r"channels are numbered 1, 2 \(number them from 0\)"),
    ],
)
def test_a_bad_dataset_json_is_named(change: dict[str, object], message: str, tmp_path: Path) -> None:
    root = write_msd(tmp_path)
    write_json(root / "dataset.json", json.loads((root / "dataset.json").read_text()) | change)
    with pytest.raises(SourceError, match=message) as caught:
        find_sources(root)
    assert caught.value.path == root / "dataset.json"


@pytest.mark.parametrize("how", ["parts", "absolute", "link", "linked folder"])
def test_a_list_cannot_name_files_outside_of_its_folder_unless_that_is_allowed(how: str, tmp_path: Path) -> None:
    root = write_msd(tmp_path / "set")
    secret = write_nifti(tmp_path / "outside" / "secret.nii.gz", VOLUME)
    entry = {"parts": "../outside/secret.nii.gz", "absolute": str(secret)}.get(how, "more/secret.nii.gz")
    if how == "link":
        (root / "more").mkdir()
        (root / "more" / "secret.nii.gz").symlink_to(secret)
    elif how == "linked folder":
        (root / "more").symlink_to(secret.parent)
    listing = json.loads((root / "dataset.json").read_text())
    write_json(root / "dataset.json", listing | {"test": [entry]})
    with pytest.raises(SourceError, match=r"dataset\.json: lists .*outside of its folder.*--follow-links") as raised:
        find_sources(root)
    assert raised.value.path == root / "dataset.json"
    cases = [case.id for case in find_sources(root, follow_links=True)[0].cases()]
    assert cases == ["a", "b", "secret"]


@pytest.mark.parametrize("entry", ["x" * 1000, "a\0b.nii.gz", "\ud800.nii.gz"])
def test_a_name_that_no_disk_takes_is_refused(entry: str, tmp_path: Path) -> None:
    root = write_msd(tmp_path)
    listing = json.loads((root / "dataset.json").read_text())
    write_json(root / "dataset.json", listing | {"test": [entry]})
    with pytest.raises(SourceError):
        list(find_sources(root)[0].cases())


def test_a_challenge_may_be_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(write_msd(tmp_path / "set"))
    assert len([*find_sources(tmp_path / "link")[0].cases()]) == 3


def test_a_list_of_hundreds_of_megabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    root = write_msd(tmp_path)
    with (root / "dataset.json").open("ab") as stream:
        stream.truncate(300_000_000)
    with pytest.raises(SourceError, match="has 300,000,000 bytes"):
        find_sources(root)
    (root / "dataset.json").write_text("[" * 100_000)
    with pytest.raises(SourceError, match="not a readable JSON file"):
        find_sources(root)


def test_a_label_number_is_a_whole_number() -> None:
    for wrong in (1.7, True, None, "1.5"):
        with pytest.raises(SourceError, match="is not a name and an integer"):
            parse_labels({"liver": wrong}, Path("dataset.json"))
    assert parse_labels({"liver": 1.0, "0": "background"}, Path("dataset.json")) == {1: "liver"}


def test_a_list_of_the_decathlon_may_be_empty(tmp_path: Path) -> None:
    root = write_msd(tmp_path)
    listed = json.loads((root / "dataset.json").read_text())
    write_json(root / "dataset.json", listed | {"test": None})
    (source,) = find_sources(root)
    assert len([*source.cases()]) == len(listed["training"])


def test_a_broken_dataset_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(SourceError, match=r"dataset.json: not a readable JSON file"):
        find_sources(tmp_path)


def test_regions_share_their_values() -> None:
    regions = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    assert parse_labels(regions, Path("x")) == {1: "label_1", 2: "label_2", 3: "enhancing"}
    assert parse_labels({"liver": 1, "ignore": 2}, Path("x")) == {1: "liver", 2: "ignore"}
    with pytest.raises(SourceError, match="one value, 1"):
        parse_labels({"liver": 1, "spleen": 1}, Path("x"))


def test_labels_that_nobody_listed_are_the_values_in_the_masks(tmp_path: Path) -> None:
    (write_plain(tmp_path) / "labels.json").unlink()
    assert dict(find_sources(tmp_path)[0].labels) == {1: "label_1", 2: "label_2"}


def test_images_without_masks_have_no_labels(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", VOLUME)
    (source,) = find_sources(tmp_path)
    assert dict(source.labels) == {}
    assert next(source.cases()).read_label is None


def test_masks_may_lie_beside_their_images(tmp_path: Path) -> None:
    for name, array in (("a", VOLUME), ("a_seg", MASK), ("b", VOLUME)):
        write_nifti(tmp_path / f"{name}.nii.gz", array)
    cases = list(find_sources(tmp_path)[0].cases())
    assert [(case.id, case.label_path) for case in cases] == [("a", tmp_path / "a_seg.nii.gz"), ("b", None)]


@pytest.mark.parametrize("mask", ["p_gt", "p_seg"])
def test_what_is_called_a_mask_is_no_image(mask: str, tmp_path: Path) -> None:
    write_nifti(tmp_path / "p_flair.nii.gz", VOLUME)
    write_nifti(tmp_path / f"{mask}.nii.gz", MASK)
    with pytest.raises(SourceError, match=f"{mask}.nii.gz: is called a mask, and no image is called 'p'"):
        find_sources(tmp_path)
    write_nifti(tmp_path / "p.nii.gz", VOLUME)
    cases = {case.id: case.label_path for case in find_sources(tmp_path)[0].cases()}
    assert cases == {"p": tmp_path / f"{mask}.nii.gz", "p_flair": None}


def test_folders_of_patients_are_no_challenges(tmp_path: Path) -> None:
    for number in range(3):
        for frame in (1, 12):
            write_nifti(tmp_path / f"patient{number}" / f"patient{number}_frame{frame:02d}.nii.gz", VOLUME)
    with pytest.raises(SourceError, match="3 folders of one subject each, which seem to be patients"):
        find_sources(tmp_path)
    write_nifti(tmp_path / "patient0" / "other.nii.gz", VOLUME)
    assert len(find_sources(tmp_path)) == 3


@pytest.mark.parametrize("names", [("t1", "seg"), ("{p}-t1n", "{p}-seg"), ("{p}_4d", "{p}_frame01", "{p}_frame01_gt")])
def test_patients_of_any_naming_are_no_challenges(names: tuple[str, ...], tmp_path: Path) -> None:
    folders = [tmp_path / f"p{number}" for number in range(3)]
    for folder in folders:
        for name in names:
            array = MASK if name.endswith(("seg", "gt")) else VOLUME
            write_nifti(folder / f"{name.format(p=folder.name)}.nii.gz", array)
    with pytest.raises(
        SourceError, match=r"seem to be patients|does not say of which image|is called a mask"
    ) as raised:
        find_sources(tmp_path)
    page, _, heading = re.search(r"(docs/\S+\.md)(, ')([^']+)'", str(raised.value)).groups()
    assert f"\n### {heading}" in (Path(__file__).parents[2] / page).read_text()


def test_patients_given_one_by_one_are_no_challenges(tmp_path: Path) -> None:
    folders = [tmp_path / f"p{number}" for number in range(3)]
    for folder in folders:
        write_nifti(folder / "t1.nii.gz", VOLUME)
        write_nifti(folder / "t2.nii.gz", VOLUME)
    found = [source for folder in folders for source in find_sources(folder)]
    with pytest.raises(SourceError, match="3 folders with files of the same names, which seem to be patients"):
        check_no_patients(found)
    check_no_patients(found[:2])


def test_sequences_in_folders_of_their_own_are_challenges(tmp_path: Path) -> None:
    for sequence in ("t1", "t2", "flair"):
        for patient in ("p0", "p1"):
            write_nifti(tmp_path / sequence / "images" / f"{patient}.nii.gz", VOLUME)
            write_nifti(tmp_path / sequence / "labels" / f"{patient}.nii.gz", MASK)
    assert len(find_sources(tmp_path)) == 3


@pytest.mark.parametrize("mask", ["a-label", "a.seg", "a_Mask", "a_GT"])
def test_marks_of_masks_in_other_spellings(mask: str, tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", VOLUME)
    write_nifti(tmp_path / f"{mask}.nii.gz", MASK)
    cases = [(case.id, case.label_path) for case in find_sources(tmp_path)[0].cases()]
    assert cases == [("a", tmp_path / f"{mask}.nii.gz")]


def test_a_mask_that_names_no_image_is_told(tmp_path: Path) -> None:
    write_nifti(tmp_path / "t1.nii.gz", VOLUME)
    write_nifti(tmp_path / "seg.nii.gz", MASK)
    with pytest.raises(SourceError, match=r"seg.nii.gz: is called a mask, and does not say of which image"):
        find_sources(tmp_path)
    (tmp_path / "seg.nii.gz").rename(tmp_path / "_mask.nii.gz")
    with pytest.raises(SourceError, match=r"_mask.nii.gz: is called a mask, and does not say of which image"):
        find_sources(tmp_path)


def test_parts_of_a_challenge_are_told(tmp_path: Path) -> None:
    for folder in ("imagesTr", "labelsTr"):
        write_nifti(tmp_path / folder / "a.nii.gz", VOLUME)
    with pytest.raises(SourceError, match=f"labelsTr: is a folder of masks .give {tmp_path}"):
        find_sources(tmp_path / "labelsTr")
    with pytest.raises(SourceError, match=f"imagesTr: is a part of a challenge.*give {tmp_path}"):
        find_sources(tmp_path / "imagesTr")
    assert len(list(find_sources(tmp_path / "imagesTr", layout="nifti")[0].cases())) == 1
    with pytest.raises(SourceError, match=r"holds imagesTr and no dataset.json .*images and labels"):
        find_sources(tmp_path)


def test_masks_as_jpeg_are_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "images/a.png", PICTURE)
    write_picture(tmp_path / "labels/a.jpg", PICTURE)
    (case,) = find_sources(tmp_path)[0].cases()
    assert case.read_label is not None
    with pytest.raises(SourceError, match="a mask as JPEG, compressed with loss, which changes label numbers"):
        case.read_label()


def test_one_channel_needs_no_choice(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", VOLUME)
    with pytest.raises(SourceError, match=r"has one channel .leave --channel out"):
        find_sources(tmp_path, channel="T1")


def test_a_mask_without_an_image_is_named(tmp_path: Path) -> None:
    write_nifti(write_plain(tmp_path) / "labels/other.nii.gz", MASK)
    with pytest.raises(SourceError, match=r"other.nii.gz: this mask has no image"):
        find_sources(tmp_path)


def test_two_masks_of_one_image_are_named(tmp_path: Path) -> None:
    write_nifti(write_plain(tmp_path) / "labels/a_seg.nii.gz", MASK)
    with pytest.raises(SourceError, match="a second mask of 'a'"):
        find_sources(tmp_path)
    write_nifti(tmp_path / "masks/a.nii.gz", MASK)
    with pytest.raises(SourceError, match="a 'labels' and a 'masks' folder"):
        find_sources(tmp_path)


@pytest.mark.parametrize("listed", [None, {"lung": 1}, {"lung": 255}])
def test_black_and_white_masks_have_one_label(listed: dict[str, int] | None, tmp_path: Path) -> None:
    write_picture(tmp_path / "images/a.png", PICTURE)
    write_picture(tmp_path / "masks/a.png", np.where(PICTURE > 5, 255, 0).astype(np.uint8))
    if listed:
        write_json(tmp_path / "labels.json", listed)
    (source,) = find_sources(tmp_path)
    case = next(source.cases())
    assert dict(source.labels) == {1: "lung" if listed else "label_1"}
    assert case.read_label is not None
    np.testing.assert_array_equal(case.read_label()[..., 0], PICTURE > 5)


def test_grey_levels_are_not_labels(tmp_path: Path) -> None:
    write_picture(tmp_path / "images/a.png", PICTURE)
    write_picture(tmp_path / "masks/a.png", np.arange(200, dtype=np.uint8).reshape(10, 20))
    with pytest.raises(SourceError, match="cannot all be labels"):
        find_sources(tmp_path)


def test_colour_becomes_luminance_and_alpha_is_left_out(tmp_path: Path) -> None:
    colours = np.zeros((2, 2, 4), np.uint8)
    colours[0, 0], colours[0, 1], colours[1, 0], colours[1, 1] = (
        (100, 0, 0, 9),
        (0, 100, 0, 0),
        (0, 0, 100, 9),
        255,
    )
    write_picture(tmp_path / "a.png", colours)
    write_picture(tmp_path / "b.png", colours[..., :3])
    for case in find_sources(tmp_path)[0].cases():
        np.testing.assert_allclose(case.read_image()[..., 0], [[29.9, 58.7], [11.4, 255]], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_tiff_keeps_its_depth_and_spacing(dtype: type, tmp_path: Path) -> None:
    pixels = (PICTURE.astype(dtype) * 1000).astype(dtype)
    write_picture(tmp_path / "a.tif", pixels, resolution_unit=3, x_resolution=20.0, y_resolution=40.0)
    case = next(find_sources(tmp_path)[0].cases())
    np.testing.assert_array_equal(case.read_image()[..., 0], pixels)
    np.testing.assert_allclose(case.read_geometry().affine, np.diag([0.25, 0.5, 1, 1]))


def test_the_resolution_for_a_printer_is_no_spacing(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.tif", PICTURE, resolution_unit=2, x_resolution=72.0, y_resolution=72.0)
    np.testing.assert_array_equal(next(find_sources(tmp_path)[0].cases()).read_geometry().affine, np.eye(4))


def test_a_picture_without_resolution_has_pixels_of_a_millimetre(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", PICTURE)
    write_picture(tmp_path / "b.tiff", PICTURE)
    for case in find_sources(tmp_path)[0].cases():
        np.testing.assert_array_equal(case.read_geometry().affine, np.eye(4))
        assert case.read_geometry().shape == (3, 4, 1)


def test_a_stack_of_pages_is_refused(tmp_path: Path) -> None:
    page = Image.fromarray(PICTURE)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    with pytest.raises(SourceError, match="holds 2 pages"):
        next(find_sources(tmp_path)[0].cases()).read_image()


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.png", "a.tif", "a.jpg"])
def test_a_truncated_file_is_named(name: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 6), dtype=np.uint8)
    path = tmp_path / name
    write_nifti(path, noise) if ".nii" in name else write_picture(path, noise[..., 0])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    case = next(find_sources(tmp_path)[0].cases())
    with pytest.raises(SourceError, match="truncated or damaged") as caught:
        case.read_image()
    assert caught.value.path == path


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.png", "a.tif"])
@pytest.mark.parametrize(
    "content",
    [b"", b"not an image at all", gzip.compress(b"nor this", mtime=0)],
    ids=["empty", "text", "gzip"],
)
def test_a_file_that_is_something_else_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    case = next(find_sources(tmp_path)[0].cases())
    for read in (case.read_geometry, case.read_image):
        with pytest.raises(SourceError, match=name):
            read()


@pytest.mark.parametrize(
    ("array", "affine", "message"),
    [
        (np.stack([VOLUME, VOLUME], axis=-1), AFFINE, "has 2 channels where one is expected"),
        (VOLUME, np.diag([0.0, 1, 1, 1]), "affine in the header has no inverse"),
    ],
)
def test_a_bad_header_is_named(array: np.ndarray, affine: np.ndarray, message: str, tmp_path: Path) -> None:
    root = write_msd(tmp_path)
    image = nib.Nifti1Image(array, None)
    image.header.set_sform(affine, 1)
    nib.save(image, root / "imagesTr/a.nii.gz")
    with pytest.raises(SourceError, match=message):
        next(find_sources(root)[0].cases()).read_geometry()


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_a_mask_of_fractions_is_named(value: float, tmp_path: Path) -> None:
    root = write_msd(tmp_path)
    write_nifti(root / "labelsTr/a.nii.gz", np.full(VOLUME.shape, value, np.float32))
    case = next(find_sources(root)[0].cases())
    assert case.read_label is not None
    with pytest.raises(SourceError, match="not whole numbers"):
        case.read_label()


def test_a_mask_stored_as_float_is_read_as_integers(tmp_path: Path) -> None:
    root = write_msd(tmp_path)
    write_nifti(root / "labelsTr/a.nii.gz", MASK.astype(np.float64))
    case = next(find_sources(root)[0].cases())
    assert case.read_label is not None
    label = case.read_label()
    assert label.dtype.kind == "i"
    np.testing.assert_array_equal(label, MASK)


def test_a_colour_mask_is_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "images/a.png", PICTURE)
    write_json(tmp_path / "labels.json", {"lung": 1})
    write_picture(tmp_path / "masks/a.png", np.stack([PICTURE, PICTURE, 0 * PICTURE], axis=-1))
    case = next(find_sources(tmp_path)[0].cases())
    assert case.read_label is not None
    with pytest.raises(SourceError, match="a mask in colours"):
        case.read_label()


def test_real_challenges(real_data: Path) -> None:
    sources = {source.task: source for source in find_sources(real_data)}
    assert list(sources) == sorted(sources)
    cardiac = list(sources["Task03_Cardiac"].cases())
    assert (len(cardiac), len({case.subject for case in cardiac})) == (96, 48)
    for source in sources.values():
        case = next(source.cases())
        assert case.read_label is not None
        image, label = case.read_image(), case.read_label()
        assert image.shape == label.shape == case.read_geometry().shape
        assert set(np.unique(label).tolist()) <= {0, *source.labels}
