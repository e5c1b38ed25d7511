from __future__ import annotations

import weakref
from itertools import permutations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter
from torch import Tensor, nn

from hssl.config import FinetuneConfig, NetworkConfig
from hssl.errors import ConfigError, RunError, SourceError, StoreError
from hssl.networks import SegmentationNetwork, build_network
from hssl.prediction import Predictor, predict
from hssl.prediction.masks import label_mask
from hssl.prediction.tiling import SLAB, predict_volume
from hssl.runs import ComponentRule, Run, RunInfo
from hssl.sources.base import Geometry
from hssl.store import Preprocessing, TaskInfo


def volume(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


class ByIntensity(nn.Module):
    """Reads the class off the intensity: 0, 1/2 and 1 are 0, 1 and 2."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return -((x - self.levels) ** 2)


def task(plan: Preprocessing, channel: int | None = None) -> TaskInfo:
    labels = {1: "one", 2: "two"}
    return TaskInfo(
        name="T",
        modality="",
        labels=labels,
        preprocessing=plan,
        layout="nifti",
        origin="",
        channel=channel,
        fingerprint="",
    )


VOLUMES = Preprocessing(orientation="PLS", spacing=(1.5, 1.5), window=(0, 80))
PICTURES = Preprocessing(orientation="", spacing=(1.0, 1.0), window=(0, 200))
GEOMETRY = np.array([[-1.5, 0, 0, 30], [0, 1.5, 0, -12.5], [0, 0, 5, 3], [0, 0, 0, 1]])


def use_network(monkeypatch: pytest.MonkeyPatch, info: TaskInfo, patch_size: int = 16) -> None:
    config = FinetuneConfig(task="T", patch_size=patch_size, precision="32")
    run = SimpleNamespace(config=config, info=SimpleNamespace(components=ComponentRule()))
    monkeypatch.setattr("hssl.prediction.predictor.load_segmentation", lambda path: (ByIntensity(), run, info))


@pytest.fixture
def volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    use_network(monkeypatch, task(VOLUMES))


def truth(*shape: int) -> np.ndarray:
    """Blocks of labels 1 and 2 that no axis swap or flip leaves in place."""
    mask = np.zeros(shape, np.uint8)
    rows, columns, *_ = shape
    mask[2 : rows // 2, 3 : columns // 3] = 1
    mask[rows // 2 : rows - 1, 1 : columns // 2] = 2
    mask[..., : shape[-1] // 3] = 0
    return mask


def save(path: Path, mask: np.ndarray, affine: np.ndarray = GEOMETRY) -> Path:
    nib.save(nib.Nifti1Image((mask * 40).astype(np.int16), affine), path)
    return path


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))
@pytest.mark.usefixtures("volumes")
def test_any_orientation_gives_the_mask_on_the_grid_of_its_image(
    tmp_path: Path, axes: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    # The affine's columns are the array axes: their lengths are (1.5, 1.5, 5) in the body, whatever the order.
    affine = np.eye(4)
    affine[:3, :3] = (np.diag([1.5, 1.5, 5.0]) * signs)[:, axes]
    affine[:3, 3] = -17, 40, 3.25
    mask = truth(*np.array([14, 20, 9])[list(axes)])
    image = save(tmp_path / "a.nii.gz", mask, affine)
    (path,) = predict("run", [image], tmp_path / "out")
    result = nib.load(path)
    np.testing.assert_array_equal(np.asanyarray(result.dataobj), mask)
    np.testing.assert_array_equal(result.affine, nib.load(image).affine)
    assert result.get_data_dtype() == np.uint8


@pytest.mark.parametrize("spacing", [1.5, 1.2])
def test_a_mask_in_slabs_is_that_of_all_scores(monkeypatch: pytest.MonkeyPatch, spacing: float) -> None:
    """Of many slices no more scores are held than of three slabs: one is made, one waits, one is read."""
    use_network(monkeypatch, task(VOLUMES))
    predictor = Predictor("run", device="cpu")
    geometry = Geometry((18, 14, 3 * SLAB + 5), np.diag([spacing, spacing, 5.0, 1.0]))
    image = volume(*VOLUMES.stored_shape(geometry))
    held: list[weakref.ref[np.ndarray]] = []
    most = []

    def watched(*arguments: Any, **options: Any) -> np.ndarray:
        scores = predict_volume(*arguments, **options)
        held.append(weakref.ref(scores))
        most.append(sum(reference() is not None for reference in held))
        return scores

    monkeypatch.setattr("hssl.prediction.tiling.predict_volume", watched)
    masks = [predictor.mask(image, geometry), predictor.mask(image)]
    scores = predict_volume(ByIntensity(), image, patch_size=16, amp=False)
    for mask, place in zip(masks, (geometry, None), strict=True):
        np.testing.assert_array_equal(mask, label_mask(predictor.task, scores, place))
    assert len(most) == 2 * 4
    assert max(most) <= 3
    with pytest.raises(StoreError, match="do not fit"):
        predictor.mask(image[:-1], geometry)


@pytest.mark.usefixtures("volumes")
def test_another_spacing_than_the_tasks_is_resampled_and_back(tmp_path: Path) -> None:
    mask = truth(40, 54, 4)
    image = save(tmp_path / "fine.nii.gz", mask, np.diag([0.8, 0.7, 3.0, 1]))
    (path,) = predict("run", [image], tmp_path / "out")
    found = np.asanyarray(nib.load(path).dataobj)
    assert found.shape == mask.shape
    # Only voxels at the edge of a label may change: those with another label within two voxels, one stored pixel.
    inner = maximum_filter(mask, (5, 5, 1)) == minimum_filter(mask, (5, 5, 1))
    np.testing.assert_array_equal(found[inner], mask[inner])


@pytest.mark.usefixtures("volumes")
def test_the_header_of_the_image_is_kept(tmp_path: Path) -> None:
    image = nib.Nifti1Image((truth(14, 20, 9) * 40).astype(np.float32), GEOMETRY)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(GEOMETRY, code=1)
    sheared = GEOMETRY.copy()
    sheared[0, 1] = 0.2
    image.set_sform(sheared, code=2)
    image.header["cal_max"] = 80
    nib.save(image, tmp_path / "a.nii")
    (path,) = predict("run", [tmp_path / "a.nii"], tmp_path / "out")
    assert path == tmp_path / "out" / "a.nii"
    before, after = nib.load(tmp_path / "a.nii").header, nib.load(path).header
    for name in ("dim", "pixdim", "qform_code", "sform_code", "srow_x", "quatern_b", "qoffset_x", "xyzt_units"):
        np.testing.assert_array_equal(before[name], after[name])
    assert (after["datatype"], after["cal_max"]) == (2, 0)
    assert after.get_slope_inter() in ((1, 0), (None, None))


@pytest.mark.usefixtures("volumes")
def test_a_nifti_2_image_gets_a_nifti_2_mask(tmp_path: Path) -> None:
    mask = truth(14, 20, 9)
    nib.save(nib.Nifti2Image((mask * 40).astype(np.int16), GEOMETRY), tmp_path / "a.nii.gz")
    (path,) = predict("run", [tmp_path / "a.nii.gz"], tmp_path / "out")
    found = nib.load(path)
    assert isinstance(found, nib.Nifti2Image)
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), mask)
    np.testing.assert_array_equal(found.affine, GEOMETRY)


@pytest.mark.usefixtures("volumes")
def test_a_mask_says_nothing_of_the_patient(tmp_path: Path) -> None:
    image = nib.Nifti1Image((truth(14, 20, 9) * 40).astype(np.int16), GEOMETRY)
    image.header["descrip"] = b"DOE^JOHN"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"PatientName=DOE^JOHN"))
    nib.save(image, tmp_path / "a.nii")
    (path,) = predict("run", [tmp_path / "a.nii"], tmp_path / "out")
    assert b"DOE" in (tmp_path / "a.nii").read_bytes()
    assert b"DOE" not in path.read_bytes()


@pytest.mark.usefixtures("volumes")
def test_a_trailing_axis_of_one_and_a_chosen_channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = truth(14, 20, 9)
    save(tmp_path / "one.nii.gz", mask[..., None])
    save(tmp_path / "two.nii.gz", np.stack([np.zeros_like(mask), mask], axis=-1))
    with pytest.raises(SourceError, match="2 channels"):
        predict("run", [tmp_path / "two.nii.gz"], tmp_path / "out")
    first, second = predict("run", [tmp_path / "one.nii.gz", tmp_path / "two.nii.gz"], tmp_path / "out", channel=1)
    np.testing.assert_array_equal(np.asanyarray(nib.load(first).dataobj), mask[..., None])
    np.testing.assert_array_equal(np.asanyarray(nib.load(second).dataobj), mask)
    use_network(monkeypatch, task(VOLUMES, channel=1))
    (again,) = predict("run", [tmp_path / "two.nii.gz"], tmp_path / "again")
    np.testing.assert_array_equal(np.asanyarray(nib.load(again).dataobj), mask)


def test_pictures_give_png_masks_of_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_network(monkeypatch, task(PICTURES))
    mask = truth(30, 41)
    for name in ("a.png", "b.tif", "c.PNG"):
        Image.fromarray(mask * 100).save(tmp_path / name)
    paths = predict("run", [tmp_path], tmp_path / "out")
    assert [path.name for path in paths] == ["a.png", "b.png", "c.png"]
    for path in paths:
        with Image.open(path) as result:
            assert result.mode == "L"
            np.testing.assert_array_equal(np.asarray(result), mask)


def test_masks_hold_the_label_values_of_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_network(monkeypatch, task(PICTURES).model_copy(update={"labels": {255: "two", 4: "one"}}))
    mask = truth(30, 41)
    Image.fromarray(mask * 100).save(tmp_path / "a.png")
    (path,) = predict("run", [tmp_path / "a.png"], tmp_path / "out")
    with Image.open(path) as result:
        np.testing.assert_array_equal(np.asarray(result), np.array([0, 4, 255], np.uint8)[mask])


@pytest.mark.usefixtures("volumes")
def test_masks_beside_images_are_not_segmented(tmp_path: Path) -> None:
    for name in ("a", "a_mask", "b"):
        save(tmp_path / f"{name}.nii.gz", truth(14, 20, 9))
    assert [path.name for path in predict("run", [tmp_path], tmp_path / "out")] == ["a.nii.gz", "b.nii.gz"]


def test_a_folder_of_several_channels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_network(monkeypatch, task(VOLUMES).model_copy(update={"layout": "nnunet"}))
    for number in range(2):
        save(tmp_path / f"a_000{number}.nii.gz", truth(14, 20, 9))
    with pytest.raises(SourceError, match=r"files of several channels.*\(name the files of the channel of 'T'\)"):
        predict("run", [tmp_path], tmp_path / "out")
    assert len(predict("run", [tmp_path / "a_0001.nii.gz"], tmp_path / "out")) == 1


@pytest.mark.usefixtures("volumes")
def test_a_folder_is_every_image_in_it_in_order(tmp_path: Path) -> None:
    masks = {f"{name}.nii.gz": np.roll(truth(14, 20, 9), shift, 0) for shift, name in enumerate("cab")}
    for name, mask in masks.items():
        save(tmp_path / name, mask)
    (tmp_path / "notes.txt").write_text("not an image")
    paths = predict("run", [tmp_path], tmp_path / "out" / "deep")
    assert [path.name for path in paths] == sorted(masks)
    assert sorted(path.name for path in (tmp_path / "out" / "deep").iterdir()) == sorted(masks)
    for path in paths:
        np.testing.assert_array_equal(np.asanyarray(nib.load(path).dataobj), masks[path.name])


@pytest.mark.usefixtures("volumes")
def test_bad_inputs_are_named_before_anything_is_predicted(tmp_path: Path) -> None:
    good = save(tmp_path / "good.nii.gz", truth(14, 20, 9))
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(good.read_bytes()[:60])
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("a,b")
    (tmp_path / "sub").mkdir()
    twin = save(tmp_path / "sub" / "good.nii.gz", truth(14, 20, 9))
    (tmp_path / "file").write_text("")
    for folder in ("task/images", "task/img", "msd/imagesTr", "msd/imagesTs"):
        (tmp_path / folder).mkdir(parents=True)
        if folder != "task/img":
            save(tmp_path / folder / "a.nii.gz", truth(14, 20, 9))
    out = tmp_path / "out"
    for inputs, output, message in [
        ([good, tmp_path / "none.nii.gz"], out, "none.nii.gz: no such file"),
        ([good, cut], out, "cut.nii.gz: cannot be read"),
        ([good, tmp_path / "empty"], out, "empty: holds no images"),
        ([tmp_path / "task"], out, r"task: holds no images; they are in images/ \(give .*task/images\)"),
        ([tmp_path / "msd"], out, r"they are in imagesTr/ and imagesTs/ \(give .*msd/imagesTr or .*msd/imagesTs\)"),
        ([good, tmp_path / "table.csv"], out, "table.csv: is not an image"),
    ]:
        with pytest.raises(SourceError, match=message):
            predict("run", inputs, output)
    for inputs, output, message in [
        ([good, twin], out, "masks of the same name"),
        ([good], tmp_path, "would replace an image"),
        ([good], tmp_path / "file", "not a folder"),
        ([good], tmp_path / "mask.nii.gz", "names a file"),
    ]:
        with pytest.raises(ConfigError, match=message):
            predict("run", inputs, output)
    assert not out.exists()


@pytest.mark.usefixtures("volumes")
def test_an_image_that_turns_out_bad_leaves_no_partial_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = save(tmp_path / "a.nii.gz", truth(14, 20, 9))
    nib.save(nib.Nifti1Image(np.full((14, 20, 9), np.nan, np.float32), GEOMETRY), tmp_path / "b.nii.gz")
    with pytest.raises(SourceError, match=r"b\.nii\.gz: .*NaN"):
        predict("run", [good, tmp_path / "b.nii.gz"], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.nii.gz"]  # what came before it is there

    def full(image: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("nibabel.save", full)
    with pytest.raises(OSError, match="no space"):
        predict("run", [good], tmp_path / "full")
    assert list((tmp_path / "full").iterdir()) == []


@pytest.mark.usefixtures("volumes")
def test_prediction_goes_on_after_bad_images_and_names_them_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good = [save(tmp_path / f"{name}.nii.gz", truth(14, 20, 9)) for name in "aceg"]
    nan = tmp_path / "b.nii.gz"
    nib.save(nib.Nifti1Image(np.full((14, 20, 9), np.nan, np.float32), GEOMETRY), nan)
    text, torn = tmp_path / "d.nii.gz", tmp_path / "f.nii.gz"
    text.write_bytes(b"no scan")
    torn.write_bytes(good[0].read_bytes()[:-4])
    save_mask = nib.save

    def full(image: nib.Nifti1Image, path: Path) -> None:
        if "g.nii" in str(path):
            raise SourceError("cannot be written", path=path, hint="give another image")
        save_mask(image, path)

    monkeypatch.setattr("nibabel.save", full)
    with pytest.raises(SourceError, match="4 of 7 images were left out") as last:
        predict("run", [tmp_path], tmp_path / "out", skip_bad=True)
    assert last.value.path == text  # headers are checked first
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.nii.gz", "c.nii.gz", "e.nii.gz"]
    for name in "ace":
        np.testing.assert_array_equal(
            np.asanyarray(nib.load(tmp_path / f"out/{name}.nii.gz").dataobj), truth(14, 20, 9)
        )
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["left out"] * 4


def test_a_run_folder_predicts_what_its_network_does(tmp_path: Path) -> None:
    shape = NetworkConfig(features=(4, 4, 4))
    torch.manual_seed(0)
    network = SegmentationNetwork(build_network(shape), 3)
    config = FinetuneConfig(task="T", patch_size=16, precision="32", network=shape)
    info = RunInfo(stage="finetune", network=shape, task=task(VOLUMES), subjects_seen={}, masks_seen={}, provenance={})
    run = Run.prepare(tmp_path / "run", config, info).create()
    run.save_weights(network)
    image = save(tmp_path / "a.nii.gz", truth(16, 16, 3), np.diag([1.5, 1.5, 5, 1]))
    with pytest.raises(RunError, match="is incomplete"):
        predict(tmp_path / "run", [image], tmp_path / "out", device="cpu")
    run.finish({})
    (path,) = predict(tmp_path / "run", [image], tmp_path / "out", device="cpu")
    planes = truth(16, 16, 3).transpose(2, 1, 0)[:, ::-1, ::-1] / 2  # RAS to slices of rows P, columns L
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(planes.astype(np.float32).copy())[:, None]).argmax(1).numpy()
    np.testing.assert_array_equal(np.asanyarray(nib.load(path).dataobj), expected[:, ::-1, ::-1].transpose(2, 1, 0))
    with pytest.raises(ConfigError, match="device 'cuda:77'"):
        predict(tmp_path / "run", [image], tmp_path / "out", device="cuda:77")


@pytest.mark.parametrize("folder", ["Task03_Cardiac", "Task06_BrainTumour", "Task07_Vertebrae"])
def test_real_images_of_another_plan_get_masks_on_their_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_data: Path, folder: str
) -> None:
    use_network(monkeypatch, task(Preprocessing(orientation="PLS", spacing=(1.3, 1.7))), patch_size=96)
    image = sorted((real_data / folder / "imagesTr").glob("*.nii.gz"))[0]
    (path,) = predict("run", [image], tmp_path)
    before, after = nib.load(image), nib.load(path)
    np.testing.assert_array_equal(after.affine, before.affine)
    found, pixels = np.asanyarray(after.dataobj), np.asanyarray(before.dataobj)
    assert found.shape == pixels.shape
    # The network reads classes off the intensities: brighter classes lie where the image is brighter.
    means = [pixels[found == label].mean() for label in (0, 1, 2)]
    assert means[0] < means[1] < means[2]
    assert np.corrcoef(found.ravel(), pixels.ravel())[0, 1] > 0.8


@pytest.mark.usefixtures("volumes")
def test_probabilities_and_uncertainty_lie_on_the_grid_of_the_image(tmp_path: Path) -> None:
    mask = truth(14, 20, 9)
    image = save(tmp_path / "a.nii.gz", mask)
    (path,) = predict("run", [image], tmp_path / "out", probabilities=True, uncertainty=True)
    assert {file.name for file in path.parent.iterdir()} == {
        "a.nii.gz",
        "a_probabilities.npz",
        "a_uncertainty.nii.gz",
    }
    with np.load(path.with_name("a_probabilities.npz"), allow_pickle=False) as content:
        assert content["labels"].tolist() == [0, 1, 2]
        probabilities = content["probabilities"]
    assert probabilities.dtype == np.float16
    assert probabilities.shape == (3, *mask.shape)
    np.testing.assert_array_equal(probabilities.argmax(0), mask)
    uncertainty = nib.load(path.with_name("a_uncertainty.nii.gz"))
    np.testing.assert_allclose(uncertainty.affine, nib.load(image).affine)
    p = probabilities.astype(np.float64)
    np.testing.assert_allclose(uncertainty.get_fdata(), -(p * np.log(p)).sum(0) / np.log(3), atol=1e-3)


def test_uncertainty_of_a_picture_is_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_network(monkeypatch, task(PICTURES))
    Image.fromarray((truth(20, 30) * 100).astype(np.uint8)).save(tmp_path / "a.png")
    predict("run", [tmp_path / "a.png"], tmp_path / "out", uncertainty=True)
    with Image.open(tmp_path / "out" / "a_uncertainty.png") as picture:
        assert picture.size == (30, 20)
        assert picture.mode == "L"
        assert 100 < np.asarray(picture).mean() < 256
