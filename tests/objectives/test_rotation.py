from __future__ import annotations

import torch

from hssl.objectives.rotation import quarter_turns


def test_each_image_has_its_own_turn() -> None:
    images = torch.rand(4, 1, 5, 5)
    turned = quarter_turns(images, torch.tensor([2, 0, 3, 1]))
    for image, k, result in zip(images, (2, 0, 3, 1), turned, strict=True):
        assert torch.equal(result, image.rot90(k, (1, 2)))
