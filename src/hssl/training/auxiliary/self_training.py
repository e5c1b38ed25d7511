"""Self-training: the network's own masks of the scans without masks, learned under a disturbance.

A teacher, the moving average of the network (Tarvainen and Valpola, *Mean teachers*, NeurIPS 2017), labels the
undisturbed view of a window; the network learns that label on the disturbed view of the same place (Sohn et al.,
*FixMatch*, NeurIPS 2020). Boxes are exchanged between the windows (Yun et al., *CutMix*, ICCV 2019; French et al., BMVC
2020) and with the labelled patches (as Bai et al. do, *Bidirectional copy-paste*, CVPR 2023), whose labels are
true. What a class must reach to be believed follows what the teacher reaches on that class (as in Zhang et al.,
*FlexMatch*, NeurIPS 2021): one threshold for all would let large classes through and starve small ones.

A guard compares how much of the windows each class covers with what it covers in the labelled masks. Where a class
vanishes or floods, the weight goes down, and the network returns to what the masks teach.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Generator, Tensor

from hssl.config import Fraction, ViewConfig
from hssl.distributed import gather
from hssl.errors import ConfigError
from hssl.metrics import IGNORE, dice_ce_loss
from hssl.networks import SegmentationNetwork
from hssl.objectives import WATCH
from hssl.training.auxiliary.base import Auxiliary, AuxiliaryBatch, AuxiliaryOptions, LabelledView, Setting
from hssl.training.data import cut, draw_corner, drawn_slices
from hssl.views import make_view

MEMORY = 0.99
"""Decay per step of what the teacher is known to reach, and of what the classes cover."""
TELL_EVERY = 50
"""Steps between looks at the guard; each waits for the device."""
logger = logging.getLogger(__name__)


class SelfTrainingOptions(AuxiliaryOptions):
    """Options of self-training.

    Attributes:
        weight: Weight of its loss once the ramp is over.
        batch_size: Windows without masks a step, over all devices.
        start: Share of the steps with masks alone, before the teacher is good enough.
        ramp: Share of the steps over which the weight then rises from 0.
        confidence: Probability that a pixel of the best known class needs to be believed; other classes need less,
            in proportion to what the teacher reaches on them. 0 believes every pixel.
        per_class: Whether classes have thresholds of their own; otherwise all have `confidence`.
        cutmix: Probability that a window gets a box of another image.
        paste: Share of these boxes that come from a labelled patch, with its true label.
        box: Smallest and largest share of the patch's area in a box.
        guard: How many times more, or less, than in the labelled masks a class may cover; 0 switches the guard off.
        view: Ranges of the disturbance; None is that of the labelled patches.
    """

    weight: NonNegativeFloat = 1.0
    batch_size: PositiveInt = 8
    start: Fraction = 0.2
    ramp: Fraction = 0.2
    confidence: Fraction = 0.9
    per_class: bool = True
    cutmix: Fraction = 0.5
    paste: Fraction = 0.5
    box: tuple[PositiveFloat, PositiveFloat] = (0.02, 0.4)
    guard: float = Field(10.0, ge=0)
    view: ViewConfig | None = None


class SelfTraining(Auxiliary):
    """Learns from the moving average's labels of windows without masks.

    Raises:
        ConfigError: There is no moving average (``ema_decay: 0``).
    """

    Options = SelfTrainingOptions

    def __init__(self, options: SelfTrainingOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        if not setting.config.ema_decay:
            raise ConfigError("auxiliary 'self_training' needs a moving average", hint="set ema_decay above 0")
        self.options, self.steps = options, setting.config.steps
        self.patch_size, self.view = setting.config.patch_size, options.view or setting.config.view
        task = setting.store.tasks[setting.config.task]
        self.class_names = ["background", *(task.labels[label] for label in sorted(task.labels))]
        self.reached: Tensor
        self.covered: Tensor
        self.expected: Tensor
        self.held: Tensor
        self.register_buffer("reached", torch.full((task.classes,), 1 / task.classes))
        self.register_buffer("expected", torch.tensor(self._coverage(setting), dtype=torch.float32))
        self.register_buffer("covered", self.expected.clone())
        #: Share of the weight that the guard leaves.
        self.register_buffer("held", torch.ones(()))
        self.told = False

    def forward(self, network: SegmentationNetwork, batch: AuxiliaryBatch) -> dict[str, Tensor]:
        """Dice and cross-entropy against the believed pixels of the teacher's labels; nothing before the start."""
        rise = self._rise(batch.step)
        if rise == 0:
            return {}
        if batch.step % TELL_EVERY == 0:
            self._tell()
        view = make_view(batch.windows.window, self.patch_size, self.view, batch.generator)
        label, believed = self._teach(batch.average, view.clean)
        image, label, believed = self._mix(view.image, label, believed, batch.labelled, batch.generator)
        loss = dice_ce_loss(network(image).float(), label, believed)
        return {
            "dice_ce": rise * self.held * loss,
            f"{WATCH}believed": believed.mean(),
            f"{WATCH}held": self.held.clone(),
        }

    def after_step(self, network: SegmentationNetwork) -> None:
        """Lowers or raises what the guard leaves of the weight."""
        if not self.options.guard:
            return
        _, off = self._compare()
        self.held.copy_(torch.where(off.any(), self.held * 0.98, self.held + 0.02).clamp(0, 1))

    def describe(self) -> str:
        """What it starts with."""
        return (
            f"own masks from step {int(self.options.start * self.steps)} on, {self.options.batch_size} windows a step"
        )

    def _rise(self, step: int) -> float:
        start, ramp = self.options.start * self.steps, self.options.ramp * self.steps
        return 0.0 if step < start else min(1.0, (step - start + 1) / max(ramp, 1))

    def _compare(self) -> tuple[Tensor, Tensor]:
        """How many times what it covers in the labelled masks each class covers, and whether that is too far off."""
        ratio = (self.covered + 1e-7) / (self.expected + 1e-7)
        off = ((ratio > self.options.guard) | (ratio < 1 / self.options.guard)) & (self.expected > 0)
        off[0] = False  # the background is what the others leave
        return ratio, off

    def _tell(self) -> None:
        """Warns, once, where the guard holds back."""
        if self.told or not bool(self.held < 0.5):
            return
        self.told = True
        ratio, off = self._compare()
        names = ", ".join(
            f"'{self.class_names[number]}' covers {float(ratio[number]):.2g} times"
            for number in torch.nonzero(off).flatten().tolist()
        )
        logger.warning("self-training is held back: %s what it covers in the labelled masks", names)

    @torch.no_grad()
    def _teach(self, teacher: SegmentationNetwork, image: Tensor) -> tuple[Tensor, Tensor]:
        """Label of each pixel, int64 ``[B, P, P]``, and whether it is believed, float32 of the same shape."""
        probability = teacher(image).float().softmax(1)
        certain, label = probability.max(1)
        one_hot = torch.zeros_like(probability).scatter_(1, label[:, None], 1.0)
        pixels, summed = (gather(each[None]).sum(0) for each in _by_class(one_hot, certain))
        found = summed / pixels.clamp(min=1)
        self.reached.copy_(torch.where(pixels > 0, MEMORY * self.reached + (1 - MEMORY) * found, self.reached))
        self.covered.mul_(MEMORY).add_(pixels / pixels.sum(), alpha=1 - MEMORY)
        return label, (certain >= thresholds(self.reached, self.options)[label]).float()

    def _mix(
        self, image: Tensor, label: Tensor, believed: Tensor, labelled: LabelledView, generator: Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Puts a box of another image into some images, its label and what is believed of it too."""
        count, side, device = len(image), image.shape[-1], image.device

        def draw(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(count, generator=generator, device=device)

        other = torch.randperm(count, generator=generator, device=device)
        own = torch.randint(len(labelled.image), (count,), generator=generator, device=device)
        pasted = draw(0, 1) < self.options.paste
        known = (labelled.label != IGNORE).float()
        pick = pasted[:, None, None]
        new_image = torch.where(pick[:, None], labelled.image[own], image[other])
        new_label = torch.where(pick, labelled.label[own], label[other])
        new_believed = torch.where(pick, known[own], believed[other])
        area, aspect = draw(*self.options.box), torch.exp(draw(-0.7, 0.7))
        height, width = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
        top, left = draw(0, 1) * (1 - height), draw(0, 1) * (1 - width)
        place = (torch.arange(side, device=device) + 0.5) / side
        rows = (place >= top[:, None]) & (place < (top + height)[:, None])
        columns = (place >= left[:, None]) & (place < (left + width)[:, None])
        box = rows[:, :, None] & columns[:, None, :] & (draw(0, 1) < self.options.cutmix)[:, None, None]
        return (
            torch.where(box[:, None], new_image, image),
            torch.where(box, new_label, label),
            torch.where(box, new_believed, believed),
        )

    @staticmethod
    def _coverage(setting: Setting) -> Sequence[float]:
        """Share of each class in windows of the labelled subjects, drawn as those without masks are."""
        store, config = setting.store, setting.config
        task, rng = store.tasks[config.task], np.random.default_rng((config.seed, 5))
        counts = np.zeros(task.classes)
        for case in store.cases(config.task, subjects=setting.labelled, labelled=True):
            label = store.label(case)
            for plane in task.to_channels(label[drawn_slices(label, task, config.labelled_slices)]):
                window = cut(plane, draw_corner(plane.shape, config.window, rng), config.window)
                counts += np.bincount(window.ravel(), minlength=task.classes)[: task.classes]
        shares: Sequence[float] = (counts / max(counts.sum(), 1)).tolist()
        return shares


def thresholds(reached: Tensor, options: SelfTrainingOptions) -> Tensor:
    """What a pixel of each class needs to be believed.

    Args:
        reached: Mean probability that the teacher reaches on each class, ``[classes]``.
        options: Confidence, and whether classes have thresholds of their own.

    Returns:
        Probabilities, ``[classes]``.
    """
    needed = torch.full_like(reached, options.confidence)
    return needed * reached / reached.max() if options.per_class else needed


def _by_class(one_hot: Tensor, certain: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels of each class, and the sum of the teacher's probability over them, ``[classes]`` each."""
    return one_hot.sum((0, 2, 3)), (one_hot * certain[:, None]).sum((0, 2, 3))
