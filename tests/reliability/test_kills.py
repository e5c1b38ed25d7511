"""A stage that is killed at any moment loses nothing: the same command ends as if nothing had happened, byte by byte.

Two kills a stage run with the other tests; ``HSSL_KILLS=50`` (``make test-reliability``) makes so many of each.
"""

from __future__ import annotations

import gzip
import hashlib
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

KILLS = int(os.environ.get("HSSL_KILLS", "2"))
SMALL = ("--patch-size", "16", "--set", "network={features: [4, 8, 8, 8]}", "--set", "checkpoint_every=2")
SMALL += ("--set", "workers=0", "--steps", "6", "--batch-size", "4")
VOLATILE = {"run.json", "progress.png", "tensorboard"}  # times and machines are in them
PROCESSES = multiprocessing.get_context("forkserver")  # which has everything imported, so that a start costs nothing
PROCESSES.set_forkserver_preload(["hssl.training.pretrain", "hssl.training.finetune", "hssl.evaluation", "hssl.export"])


def command(arguments: Sequence[str]) -> None:
    """One ``hssl`` command, as a process of its own."""
    from hssl.cli import main

    os.environ.pop("HSSL_KILLS", None)  # of which the program would warn
    raise SystemExit(main(["--quiet", *arguments]))


def run(arguments: Sequence[str], seconds: float | None = None) -> bool:
    """Whether a command came to its end; after so many seconds it is killed."""
    process = PROCESSES.Process(target=command, args=(arguments,))
    process.start()
    process.join(seconds)
    killed = process.is_alive()
    if killed:
        process.kill()
        process.join()
    else:
        assert process.exitcode == 0, arguments
    return not killed


def checksum(path: Path) -> str:
    whole = path.read_bytes()
    return hashlib.sha256(
        gzip.decompress(whole) if path.suffix == ".gz" else whole
    ).hexdigest()  # gzip has a time in it


def content(folder: Path) -> dict[str, str]:
    """The checksum of every file that the same command always writes the same; hidden files are no results."""
    return {
        str(path.relative_to(folder)): checksum(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and VOLATILE.isdisjoint(path.parts) and "/." not in str(path.relative_to(folder.parent))
    }


@pytest.fixture(scope="module")
def work(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with raw data of three tasks."""
    folder = tmp_path_factory.mktemp("kills")
    for source in sorted(path for path in phantom_root.iterdir() if path.is_dir())[:3]:
        shutil.copytree(source, folder / "raw" / source.name)
    return folder


@pytest.fixture(scope="module")
def trained(work: Path) -> Path:
    """The same folder with a store and a fine-tuned run."""
    assert run(arguments_of("aggregate", work, work / "store"))
    assert run([*arguments_of("finetune", work, work / "fine"), "--no-validation"])
    return work


def first_task(work: Path) -> str:
    return min(path.name for path in (work / "raw").iterdir())


def arguments_of(stage: str, work: Path, output: Path) -> list[str]:
    store, fine, task = str(work / "store"), str(work / "fine"), first_task(work)
    images = work / "raw" / task / "imagesTr"
    return {
        "phantoms": ["phantoms", "-o", str(output), "--subjects", "4"],
        "aggregate": ["aggregate", str(work / "raw"), "-o", str(output), "--workers", "1"],
        "aggregate more": ["aggregate", str(work / "raw"), "-o", str(output), "--workers", "1"],
        "pretrain": ["pretrain", store, "-o", str(output), *SMALL],
        "finetune": ["finetune", store, "-o", str(output), "--task", task, "--labels", "1", *SMALL],
        "predict": ["predict", fine, str(images), "-o", str(output), "--device", "cpu"],
        "evaluate": ["evaluate", str(output), "--store", store, "--device", "cpu"],
        "export": ["export", fine, "--to", "nnunet", "-o", str(output / "weights.pth")],
    }[stage]


def prepare(stage: str, work: Path, output: Path) -> None:
    """What has to be there before a stage."""
    shutil.rmtree(output, ignore_errors=True)
    if stage == "aggregate more":  # a store with one of the tasks
        assert run(["aggregate", str(work / "raw" / first_task(work)), "-o", str(output), "--workers", "1"])
    elif stage == "evaluate":
        shutil.copytree(work / "fine", output)
    elif stage == "export":
        output.mkdir()


@pytest.mark.parametrize("stage", ["phantoms", "aggregate", "aggregate more"])
def test_data_that_is_being_made_survives_kills(stage: str, work: Path, tmp_path: Path) -> None:
    assert_survives(stage, work, tmp_path / "output")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "finetune", "predict", "evaluate", "export"])
def test_a_run_survives_kills(stage: str, trained: Path, tmp_path: Path) -> None:
    assert_survives(stage, trained, tmp_path / "output")


def assert_survives(stage: str, work: Path, output: Path) -> None:
    """Kills a stage again and again at random moments, and compares what comes of it with a run that was left alone."""
    rng, arguments = random.Random(stage), arguments_of(stage, work, output)
    prepare(stage, work, output)
    began = time.monotonic()
    assert run(arguments)
    seconds, whole = time.monotonic() - began, content(output)
    assert whole
    kills = 0
    while kills < KILLS:
        prepare(stage, work, output)
        before = content(output)
        for _ in range(3):
            if run(arguments, rng.uniform(0, seconds)):
                break
            kills += 1
            if stage in ("phantoms", "predict", "evaluate", "export"):  # of what is there each file is whole
                assert content(output).items() <= (before | whole).items()
        # What is finished already may be refused, as a file that is there is never replaced.
        if content(output) != whole:
            assert run(arguments)
        assert content(output) == whole
