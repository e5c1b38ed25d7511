"""Damaged files by seed: each is read right or refused by its name, and nothing else escapes.

A few of each kind run with the other tests. ``HSSL_MUTATIONS=1000`` (``make test-reliability``) runs so many.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hssl.config import AggregateConfig
from hssl.errors import HsslError, attempt
from hssl.sources import find_sources
from hssl.sources.files import read_image, read_label
from hssl.store import Store, aggregate

MUTATIONS = int(os.environ.get("HSSL_MUTATIONS", "20"))
SHAPE = (9, 8, 5)
AFFINE = np.array([[-1.0, 0.1, 0, 20], [0.1, 1.0, 0, -30], [0, 0, 3.0, 7], [0, 0, 0, 1]])
NIFTI_HEADER = 352  # bytes
ODD = (b"\x00", b"\xff", b"\x80", b"\x7f")


def mutated(content: bytes, rng: np.random.Generator, header: int) -> bytes:
    """A file after what disks, networks and bad programs do to one; the header is hit more often than its size asks."""
    changed = bytearray(content)
    kind = rng.integers(6)
    reach = min(header, len(changed)) if rng.random() < 0.7 else len(changed)
    place = int(rng.integers(reach))
    if kind == 0:
        changed[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        changed[place : place + 4] = ODD[rng.integers(len(ODD))] * 4
    elif kind == 2:
        changed[place : place + 4] = rng.bytes(4)
    elif kind == 3:
        del changed[place:]
    elif kind == 4:
        del changed[place : place + int(rng.integers(1, 64))]
    else:
        changed[place:place] = rng.bytes(int(rng.integers(1, 64)))
    return bytes(changed)


def is_refused_by_name(read: Callable[[], object], folder: Path) -> bool:
    """Whether a reader refuses; every other exception fails the test, as does an error that names no file."""
    error = attempt(lambda _: read(), None)
    if not isinstance(error, HsslError):
        return False
    assert error.path is not None, error
    assert Path(error.path).is_relative_to(folder), error
    assert "\n" not in str(error)
    return True


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Four scans with masks."""
    rng = np.random.default_rng(0)
    for number in range(4):
        image = rng.normal(100, 20, SHAPE).astype(np.int16)
        for part, array in (("images", image), ("labels", (image > 110).astype(np.uint8))):
            (tmp_path / "raw" / part).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, AFFINE), tmp_path / "raw" / part / f"{number}.nii.gz")
    return tmp_path / "raw"


@pytest.mark.parametrize("part", ["images", "labels"])
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_compressed_scan_is_read_right_or_refused(part: str, scans: Path) -> None:
    path = scans / part / "2.nii.gz"
    whole, read = path.read_bytes(), read_image if part == "images" else read_label
    right, refused = read(path), 0
    for seed in range(MUTATIONS):
        path.write_bytes(mutated(whole, np.random.default_rng(seed), len(whole)))
        if is_refused_by_name(lambda: read(path), scans):
            refused += 1
        else:
            np.testing.assert_array_equal(read(path), right)
    assert refused > 0.9 * MUTATIONS


@pytest.mark.parametrize("part", ["images", "labels"])
@pytest.mark.filterwarnings("ignore")
def test_a_scan_with_a_damaged_header_becomes_a_case_or_is_named(part: str, scans: Path, tmp_path: Path) -> None:
    path = scans / part / "2.nii.gz"
    with gzip.open(path, "rb") as stream:
        whole = stream.read()
    kinds = (".nii", ".nii.gz")
    path.unlink()
    refused = 0
    for seed in range(MUTATIONS):
        name = path.with_name("2" + kinds[seed % 2])
        content = mutated(whole, np.random.default_rng(seed), NIFTI_HEADER)
        name.write_bytes(content if seed % 2 == 0 else gzip.compress(content, 1))
        output = tmp_path / "store"
        refused += is_refused_by_name(lambda: aggregate(scans, tmp_path / "store"), scans)
        if output.exists():
            store = Store.open(output)
            store.verify()
            assert all(np.isfinite(store.image(case)).all() for case in store.cases())
            shutil.rmtree(output)
        name.unlink()
    assert 0 < refused < MUTATIONS


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_slice_of_a_series_is_read_or_named(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom", reason="needs the dicom extra: pip install '.[dicom]'")
    paths = write_series(pydicom, tmp_path / "raw")
    whole = paths[1].read_bytes()
    refused = 0
    for seed in range(MUTATIONS):
        paths[1].write_bytes(mutated(whole, np.random.default_rng(seed), len(whole) - 2 * 64))

        def read() -> None:
            slices = 0
            for source in find_sources(tmp_path / "raw"):
                for case in source.cases():
                    geometry = case.read_geometry()
                    image = case.read_image()
                    assert image.shape == geometry.shape
                    assert np.isfinite(image).all()
                    assert np.isfinite(geometry.affine).all()
                    slices += geometry.shape[2]
            assert slices == 3, "a slice has been passed over without a word"

        refused += is_refused_by_name(read, tmp_path / "raw")
    assert 0 < refused < MUTATIONS


@pytest.mark.parametrize("name", ["dataset.json", "labels.json", "index.json", "splits.json"])
def test_damaged_lists_and_indexes_are_read_or_named(name: str, scans: Path, tmp_path: Path) -> None:
    listing = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "bright"},
        "training": [{"image": f"images/{n}.nii.gz", "label": f"labels/{n}.nii.gz"} for n in range(3)],
        "test": ["images/3.nii.gz"],
    }
    store = aggregate(scans, tmp_path / "store", config=AggregateConfig(workers=1))
    if name == "dataset.json":
        (scans / name).write_text(json.dumps(listing))
    elif name == "labels.json":
        (scans / name).write_text(json.dumps({"bright": 1}))
    path = (scans if name in ("dataset.json", "labels.json") else store.path) / name
    layout = {"dataset.json": "msd", "labels.json": "nifti"}.get(name)

    def read() -> None:
        if layout is None:
            opened = Store.open(store.path)
            opened.check()
            assert opened.hash
        else:
            for source in find_sources(scans, layout=layout):
                assert all(isinstance(value, int) for value in source.labels)
                for case in source.cases():
                    case.read_geometry()

    whole, refused = path.read_bytes(), 0
    for seed in range(MUTATIONS):
        rng = np.random.default_rng(seed)
        path.write_bytes(mutated(whole, rng, len(whole)) if seed % 2 else swapped(whole, rng))
        refused += is_refused_by_name(read, tmp_path)
    assert refused > 0.2 * MUTATIONS


def swapped(content: bytes, rng: np.random.Generator) -> bytes:
    """The same JSON with one value, somewhere, of another kind."""
    tree = json.loads(content)
    values = [None, True, -1, 1e30, "", "../x", [], {}, [[]], {"a": {}}, float("nan"), float("inf"), "x" * 1000]
    node, places = tree, []
    while isinstance(node, dict | list) and node:
        key = [*node][rng.integers(len(node))] if isinstance(node, dict) else int(rng.integers(len(node)))
        places.append((node, key))
        node = node[key]
    holder, key = places[rng.integers(len(places))]
    holder[key] = values[rng.integers(len(values))]
    return json.dumps(tree).encode()


def write_series(pydicom: object, folder: Path) -> list[Path]:
    """Three small CT slices."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(parents=True)
    rng, paths = np.random.default_rng(0), []
    for number in range(3):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, f"1.2.3.{number}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, f"1.2.3.{number}"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2", "1.3", "1.4"
        dataset.Modality, dataset.PatientID, dataset.SeriesNumber = "CT", "P1", 3
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 2.5 * number], [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness = [0.75, 0.5], 2.5
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.Rows = dataset.Columns = 8
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.PixelData = rng.integers(0, 3000, (8, 8), dtype=np.int16).tobytes()
        paths.append(folder / f"{number}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths
