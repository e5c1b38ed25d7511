from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hssl.distributed import gather, rank, world_size

SCRIPT = Path(__file__).with_name("two_ranks.py")
Found = tuple[dict[str, Tensor], dict[str, Tensor]]


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What one process finds on the whole batch, and two processes together on halves of it."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, SCRIPT, number, world, folder], env=environment)
        for number, world in (("0", "1"), ("0", "2"), ("1", "2"))
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return load_file(folder / "1.safetensors"), load_file(folder / "2.safetensors")


def test_gather_keeps_the_order_of_ranks(one_and_two: Found) -> None:
    assert one_and_two[1]["ranks"].tolist() == [0, 1]


@pytest.mark.parametrize("what", ["ntxent", "hierarchical", "simclr", "global_local", "codebook", "dice_ce"])
def test_two_ranks_do_what_one_does(one_and_two: Found, what: str) -> None:
    one, two = ({key: x for key, x in found.items() if key.startswith(what)} for found in one_and_two)
    assert all(x.abs().max() > 1e-4 for x in one.values())
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)


def test_all_ranks_seed_the_same_centres(one_and_two: Found) -> None:
    first, second = one_and_two[1]["unseeded"]
    assert first.any(-1).all()  # also of the task that the first rank was not shown
    assert torch.equal(first, second)


def test_without_a_process_group() -> None:
    x = torch.rand(3, 2)
    assert gather(x) is x
    assert (rank(), world_size()) == (0, 1)
