"""Two augmented views of each image beside other people's augmentation, one core; on a GPU beside kornia as well.

Every contestant turns 32 windows of 176x176 (as training reads them) twice into a float32 batch ``[32, 1, 128, 128]``,
and is given the windows in the form that suits it best. Ranges and probabilities are those of ``ViewConfig``: scale
0.7-1.3, rotation +-20 degrees and shift in one resampling, always; contrast, brightness, gamma, bias field, blur and
noise with probability 0.5 each; 30 % hidden in blocks of 8x8 in the one part, nothing in the other. An operation that a
peer has not is left out in its favour, and named. Peers that cannot resample to a smaller size resample the window and
crop. Ours gives the map, the clean pixels and the hidden blocks along with each view, which the others do not.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable

import numpy as np
import torch
from harness import Row, alternate, pin_threads, publish, row
from torch import Tensor

from hssl.config import ViewConfig
from hssl.views import make_view

BATCH, WINDOW, PATCH = 32, 176, 128
HIDE = 0.3
GOAL = "faster; >= 3x for MONAI"
Views = Callable[[], Tensor]
"""One view of each window, ``[BATCH, 1, PATCH, PATCH]``."""


def main() -> None:
    pin_threads(1)
    windows = make_windows()
    rows: list[Row] = []
    for hide, how in ((HIDE, f"{HIDE:.0%} hidden in 8x8 blocks"), (0.0, "nothing hidden")):
        config = ViewConfig(occlusion_ratio=hide)
        contestants = {"ours": ours(windows, config)}
        for name, peer in PEERS.items():
            try:
                label, view = peer(windows, config)
            except ImportError as error:
                print(f"left out {name}: {error}")
                continue
            contestants[label] = view
        for label, view in contestants.items():
            check(label, view())
        seconds = alternate({label: twice(view) for label, view in contestants.items()})
        rate = {label: BATCH / value for label, value in seconds.items()}
        part = f"two views of {PATCH}x{PATCH}, one core, {how}"
        rows += [row(part, rate["ours"], rate[label], label, "images/s", GOAL, more=True) for label in list(rate)[1:]]
    publish(rows + on_gpu(windows))


def on_gpu(windows: Tensor) -> list[Row]:
    """The same on a GPU beside kornia; nothing without a GPU or without kornia."""
    if not torch.cuda.is_available():
        return []
    config, device = ViewConfig(occlusion_ratio=HIDE), torch.device("cuda")
    try:
        label, peer = kornia(windows.to(device), config)
    except ImportError as error:
        print(f"left out kornia on the GPU: {error}")
        return []

    def waited(view: Views) -> Callable[[], None]:
        def call() -> None:
            twice(view)()
            torch.cuda.synchronize()

        return call

    calls = {"ours": waited(ours(windows.to(device), config)), label: waited(peer)}
    rate = {name: BATCH / value for name, value in alternate(calls, warm_up=3).items()}
    part = f"two views of {PATCH}x{PATCH} on GPU, {HIDE:.0%} hidden in 8x8 blocks"
    return [row(part, rate["ours"], rate[label], label, "images/s", "faster", more=True)]


def make_windows() -> Tensor:
    """Smooth shapes with some noise in [0, 1], float32 ``[BATCH, 1, WINDOW, WINDOW]``."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((BATCH, 1, 11, 11), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(WINDOW, WINDOW), mode="bicubic")
    return (smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


def twice(view: Views) -> Callable[[], tuple[Tensor, Tensor]]:
    """Both views of a training step."""
    return lambda: (view(), view())


def check(label: str, batch: Tensor) -> None:
    """Stops where a contestant does not give what it should."""
    if batch.shape != (BATCH, 1, PATCH, PATCH) or batch.dtype != torch.float32 or not batch.isfinite().all():
        raise SystemExit(f"{label} gives {batch.dtype} {tuple(batch.shape)}")


def ours(windows: Tensor, config: ViewConfig) -> Views:
    """``make_view``, as training calls it."""
    generator = torch.Generator(windows.device).manual_seed(0)
    return lambda: make_view(windows, PATCH, config, generator).image


def shift(config: ViewConfig) -> int:
    """The largest shift in pixels, as ours has it at scale 1; ours depends on the scale, the peers' does not."""
    return round((WINDOW - PATCH) / 2 * config.shift)


def zoom(config: ViewConfig) -> tuple[float, float]:
    """Factors by which things grow, for peers that count that way."""
    return 1 / config.scale[1], 1 / config.scale[0]


def factors(largest: float) -> tuple[float, float]:
    """The range of a factor with this largest absolute logarithm."""
    return math.exp(-largest), math.exp(largest)


def blocks(config: ViewConfig) -> int:
    """Blocks that a view hides on average; the peers' may overlap, so that they hide a little less."""
    return round(config.occlusion_ratio * (PATCH / config.occlusion_size) ** 2)


def albumentations(windows: Tensor, config: ViewConfig) -> tuple[str, Views]:
    """Image by image, by OpenCV."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A
    import cv2

    cv2.setNumThreads(1)
    contrast, p, reach = factors(config.contrast), config.intensity, shift(config)
    side = (config.occlusion_size, config.occlusion_size)
    steps = [
        A.Affine(
            scale=zoom(config),
            rotate=(-config.rotate, config.rotate),
            translate_px=(-reach, reach),
            interpolation=cv2.INTER_LINEAR,
            p=1.0,
        ),
        A.CenterCrop(PATCH, PATCH),
        A.RandomBrightnessContrast(0.0, (contrast[0] - 1, contrast[1] - 1), p=p),
        A.RandomBrightnessContrast((-config.brightness, config.brightness), 0.0, p=p),
        A.RandomGamma(tuple(100 * value for value in factors(config.gamma)), p=p),
        A.GaussianBlur((7, 7), (0.05, config.blur), p=p),
        A.GaussNoise((0.0, config.noise), p=p),
    ]
    if config.occlusion_ratio:
        holes = (blocks(config), blocks(config))
        steps.append(A.CoarseDropout(holes, side, side, fill=0, p=1.0))
    transform = A.Compose(steps, seed=0)
    images = [np.ascontiguousarray(image[0].numpy()[..., None]) for image in windows]

    def view() -> Tensor:
        made = np.stack([transform(image=image)["image"] for image in images])
        return torch.from_numpy(made.reshape(BATCH, 1, PATCH, PATCH))

    return "albumentations (no bias field)", view


def kornia(windows: Tensor, config: ViewConfig) -> tuple[str, Views]:
    """The whole batch at once, in a plain ``Sequential``: its own container takes longer."""
    import kornia.augmentation as K

    p, reach = config.intensity, shift(config) / WINDOW
    steps = [
        K.RandomAffine(config.rotate, (reach, reach), zoom(config), p=1.0),
        K.CenterCrop(PATCH),
        K.RandomContrast(factors(config.contrast), p=p),
        K.RandomBrightness((1 - config.brightness, 1 + config.brightness), p=p),
        K.RandomGamma(factors(config.gamma), p=p),
        K.RandomGaussianBlur((7, 7), (0.05, config.blur), p=p),
        K.RandomGaussianNoise(std=config.noise / 2, p=p),
    ]
    if config.occlusion_ratio:
        steps.append(K.RandomErasing((config.occlusion_ratio, config.occlusion_ratio), (0.5, 2.0), p=1.0))
    transform = torch.nn.Sequential(*steps)

    def view() -> Tensor:
        with torch.no_grad():
            made: Tensor = transform(windows)
        return made

    return f"kornia, batched (no bias field{', one rectangle for all blocks' if config.occlusion_ratio else ''})", view


def monai(windows: Tensor, config: ViewConfig) -> tuple[str, Views]:
    """Array transforms on plain tensors, their fastest way."""
    return "MONAI, arrays without metadata", _monai(windows, config, bias_field=True)


def monai_without_bias_field(windows: Tensor, config: ViewConfig) -> tuple[str, Views]:
    """The same without the one operation that takes MONAI longest."""
    return "MONAI, arrays without metadata (no bias field)", _monai(windows, config, bias_field=False)


def _monai(windows: Tensor, config: ViewConfig, *, bias_field: bool) -> Views:
    import monai.transforms as M
    from monai.data import set_track_meta

    set_track_meta(False)
    p, reach, contrast = config.intensity, shift(config), factors(config.contrast)
    steps = [
        M.RandAffine(
            prob=1.0,
            rotate_range=math.radians(config.rotate),
            translate_range=(reach, reach),
            scale_range=[(config.scale[0] - 1, config.scale[1] - 1)] * 2,
            spatial_size=(PATCH, PATCH),
            padding_mode="zeros",
            cache_grid=True,
        ),
        M.RandScaleIntensityFixedMean(p, factors=(contrast[0] - 1, contrast[1] - 1)),
        M.RandShiftIntensity(config.brightness, prob=p),
        M.RandAdjustContrast(p, factors(config.gamma)),
        *([M.RandBiasField(coeff_range=(0.0, config.bias_field), prob=p)] if bias_field else []),
        M.RandGaussianSmooth((0.05, config.blur), (0.05, config.blur), prob=p),
        M.RandGaussianNoise(p, std=config.noise),
    ]
    if config.occlusion_ratio:
        steps.append(M.RandCoarseDropout(blocks(config), config.occlusion_size, fill_value=0.0, prob=1.0))
    transform = M.Compose(steps).set_random_state(0)
    return lambda: torch.stack([torch.as_tensor(transform(image)) for image in windows])


def torchio(windows: Tensor, config: ViewConfig) -> tuple[str, Views]:
    """Image by image as a volume of one slice, by SimpleITK."""
    import SimpleITK as sitk
    import torchio as tio

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    low, high = zoom(config)
    p, reach, angle = config.intensity, shift(config), config.rotate
    margin = (WINDOW - PATCH) // 2
    transform = tio.Compose(
        [
            tio.RandomAffine(
                scales=(low, high, low, high, 1, 1),
                degrees=(0, 0, 0, 0, -angle, angle),
                translation=(-reach, reach, -reach, reach, 0, 0),
                default_pad_value=0,
            ),
            tio.Crop((margin, margin, 0)),
            tio.RandomGamma(config.gamma, p=p),
            tio.RandomBiasField(config.bias_field, p=p),
            tio.RandomBlur((0, config.blur, 0, config.blur, 0, 0), p=p),
            tio.RandomNoise(std=(0, config.noise), p=p),
        ]
    )
    images = list(windows[..., None])

    def view() -> Tensor:
        return torch.stack([transform(image)[..., 0] for image in images])

    return f"torchio (no contrast, no brightness{', no blocks' if config.occlusion_ratio else ''})", view


def batchgeneratorsv2(windows: Tensor, config: ViewConfig) -> tuple[str, Views]:
    """Image by image, as nnU-Net's loader processes do."""
    part = "batchgeneratorsv2.transforms"
    spatial = importlib.import_module(f"{part}.spatial.spatial")
    bright, contrasts = (importlib.import_module(f"{part}.intensity.{name}") for name in ("brightness", "contrast"))
    gammas, noises = (importlib.import_module(f"{part}.intensity.{name}") for name in ("gamma", "gaussian_noise"))
    blurs, holes = (importlib.import_module(f"{part}.noise.{name}") for name in ("gaussian_blur", "blank_rectangle"))
    random = importlib.import_module(f"{part}.utils.random").RandomTransform
    compose = importlib.import_module(f"{part}.utils.compose").ComposeTransforms
    p, angle = config.intensity, math.radians(config.rotate)
    steps = [
        spatial.SpatialTransform(
            (PATCH, PATCH),
            WINDOW // 2 - shift(config),
            True,
            p_rotation=1,
            rotation=(-angle, angle),
            p_scaling=1,
            scaling=config.scale,
            p_synchronize_scaling_across_axes=1,
        ),
        random(contrasts.ContrastTransform(contrasts.BGContrast(factors(config.contrast)), False, True), p),
        random(bright.BrightnessAdditiveTransform(0.0, config.brightness / 2, False), p),
        random(gammas.GammaTransform(factors(config.gamma), 0, True, 1, 0), p),
        random(blurs.GaussianBlurTransform((0.05, config.blur), True, True), p),
        random(noises.GaussianNoiseTransform((0, config.noise), 1, True), p),
    ]
    if config.occlusion_ratio:
        side = (config.occlusion_size, config.occlusion_size)
        steps.append(holes.BlankRectangleTransform(side, 0.0, blocks(config)))
    transform = compose(steps)

    def view() -> Tensor:
        return torch.stack([transform(image=image)["image"] for image in windows])

    return "batchgeneratorsv2 (no bias field)", view


PEERS: dict[str, Callable[[Tensor, ViewConfig], tuple[str, Views]]] = {
    "albumentations": albumentations,
    "kornia": kornia,
    "MONAI": monai,
    "MONAI without bias field": monai_without_bias_field,
    "torchio": torchio,
    "batchgeneratorsv2": batchgeneratorsv2,
}


if __name__ == "__main__":
    main()
