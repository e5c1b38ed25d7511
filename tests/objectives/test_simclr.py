from __future__ import annotations

from collections.abc import Callable

import torch

from hssl.networks import UNet
from hssl.objectives import Domains, PretrainBatch, build_objective
from hssl.objectives.ntxent import nt_xent


def test_every_other_image_is_a_negative(
    network: UNet, make_batch: Callable[..., PretrainBatch], three_tasks: Domains
) -> None:
    batch = make_batch(6)
    objective = build_objective("simclr", network, three_tasks, {"temperature": 0.2})
    head = objective.get_submodule("head")
    first, second = head(network.encode(torch.cat((batch.first.image, batch.second.image)))[-1]).split(6)
    torch.testing.assert_close(objective(network, batch)["image"], nt_xent(first, second, 0.2))
