"""The drawings behind the phantoms: five kinds of scan, each a function that paints one subject.

Coordinates are in half widths of the image: along the first axis from -1 to 1, along the second as far as
its pixels go, along the slices from -1 to 1. They are warped before a drawing starts, so that the shapes
here can be plain ellipsoids and yet no two subjects are alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Triple = tuple[float, float, float]


def smooth_field(rng: np.random.Generator, shape: tuple[int, ...], cells: tuple[int, ...]) -> Array:
    """A smooth random field of mean 0 and deviation 1, with about `cells` bumps along each axis.

    It is a cubic B-spline with random coefficients, evaluated axis by axis.
    """
    values = rng.standard_normal([count + 3 for count in cells], dtype=np.float32)
    for size, count in zip(shape, cells, strict=True):
        place = (np.arange(size) + 0.5) * count / size
        distance = np.abs(place[:, None] - np.arange(-1, count + 2))
        weights = np.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, np.clip(2 - distance, 0, None) ** 3 / 6)
        weights /= np.sqrt((weights**2).sum(axis=1, keepdims=True))
        values = np.tensordot(values, weights.astype(np.float32), axes=(0, 1))
    return values


@dataclass
class Canvas:
    """One subject while it is painted.

    Attributes:
        rng: Source of everything that varies from subject to subject.
        x: First coordinate of every voxel, float32 ``[columns, rows, slices]``.
        y: Second coordinate.
        z: Coordinate along the slices.
        phase: 0 at rest, 1 at the end of a contraction.
        image: Intensity of every voxel, float32.
        label: Label of every voxel, uint8.
    """

    rng: np.random.Generator
    x: Array
    y: Array
    z: Array
    phase: float = 0.0
    image: Array = field(init=False)
    label: NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        self.image = np.zeros(self.x.shape, np.float32)
        self.label = np.zeros(self.x.shape, np.uint8)

    def vary(self, value: float, share: float = 0.12) -> float:
        """`value`, up or down by at most `share` of it."""
        return value * (1 + self.rng.uniform(-share, share))

    def shift(self, value: float, by: float = 0.03) -> float:
        """`value`, up or down by at most `by`."""
        return value + self.rng.uniform(-by, by)

    def texture(self, bumps: int, slices: int = 3) -> Array:
        """A random field over the canvas with `bumps` bumps across."""
        return smooth_field(self.rng, self.x.shape, (bumps, bumps, slices))

    def ellipsoid(self, centre: Triple, radii: Triple, degrees: float = 0.0, power: int = 2) -> Mask:
        """Inside of an ellipsoid turned in plane; a `power` above 2 makes it a rounded box."""
        dx, dy = self.x - centre[0], self.y - centre[1]
        cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        along, across, through = cos * dx + sin * dy, cos * dy - sin * dx, self.z - centre[2]
        distance = (
            np.abs(along / radii[0]) ** power + np.abs(across / radii[1]) ** power + np.abs(through / radii[2]) ** power
        )
        return np.asarray(distance < 1)

    def disc(self, centre: tuple[float, float], radius: float) -> Mask:
        """Inside of a tube along the slices."""
        return np.asarray((self.x - centre[0]) ** 2 + (self.y - centre[1]) ** 2 < radius**2)

    def paint(self, mask: Mask, value: float | NDArray[np.floating], label: int = 0) -> None:
        """Sets intensity and label; what was painted before is hidden."""
        self.image[mask] = value[mask] if isinstance(value, np.ndarray) else value
        self.label[mask] = label

    def add(self, mask: Mask, value: float | NDArray[np.floating]) -> None:
        """Adds to the intensity and leaves the label."""
        self.image[mask] += value[mask] if isinstance(value, np.ndarray) else value


def abdomen(c: Canvas) -> None:
    """Abdominal CT in HU: liver, spleen, kidneys and aorta among bowel, stomach, bones and vessels."""
    rng, vary, shift = c.rng, c.vary, c.shift
    enhancement = rng.uniform(0, 1)  # from unenhanced to the portal venous phase
    fat, muscle = rng.uniform(-115, -85), rng.uniform(40, 65)
    thick = rng.uniform(0.03, 0.13)
    width, depth = vary(0.86, 0.06), vary(0.6, 0.08)
    c.image[:] = -1000
    c.paint(np.asarray((c.y > 0.68) & (c.y < 0.71)), -300)  # the table
    c.paint(c.ellipsoid((0, 0, 0), (width, depth, 9)), fat)
    wall = c.ellipsoid((0, 0, 0), (width - thick, depth - thick, 9))
    c.paint(wall, muscle)
    cavity = c.ellipsoid((0, -0.02, 0), (width - thick - 0.09, depth - thick - 0.08, 9))
    c.paint(cavity, fat + 12 * c.texture(8))
    angle = np.arctan2(c.y / depth, c.x / width)
    ribs = np.asarray(wall & ~cavity & (np.cos(9 * angle + 4 * c.z) > 0.82) & (c.z > shift(-0.2, 0.2)))
    c.paint(ribs, rng.uniform(250, 500))

    bowel = np.asarray(cavity & (c.texture(9, 4) + 0.9 * (-c.z - c.y) > 0.6))
    c.paint(bowel, rng.uniform(15, 60) + 15 * c.texture(12))
    c.paint(np.asarray(bowel & (c.texture(7, 4) > 1.1)), rng.uniform(-850, -400))
    stomach = c.ellipsoid((shift(0.27), shift(-0.22), 0.45), (vary(0.24), vary(0.18), 0.5), shift(0, 30)) & cavity
    c.paint(stomach, rng.uniform(5, 70))
    c.paint(np.asarray(stomach & (c.y < shift(-0.28, 0.06))), -800)
    for side in (-1, 1):
        c.paint(c.ellipsoid((side * 0.2, 0.42, 0), (vary(0.13), 0.12, 9)), muscle - 5)
        c.paint(c.ellipsoid((side * 0.15, 0.28, -0.7), (0.08, 0.09, 0.7)), muscle)

    soft = rng.uniform(40, 65)
    parenchyma = soft + enhancement * rng.uniform(30, 60)
    liver = c.ellipsoid((shift(-0.36), shift(-0.05, 0.05), shift(0.4, 0.15)), (vary(0.38), vary(0.36), vary(0.95)))
    liver |= c.ellipsoid((shift(-0.02, 0.06), -0.24, 0.55), (vary(0.34, 0.25), vary(0.14), 0.55))
    liver &= cavity
    c.paint(liver, parenchyma + 5 * c.texture(14), 1)
    c.add(np.asarray(liver & (np.abs(c.texture(7, 4)) < 0.12)), enhancement * 45 - 8)  # its vessels
    c.add(np.asarray(liver & (c.texture(6, 4) > 2.1)), rng.uniform(-50, -15))  # its lesions
    spleen = c.ellipsoid(
        (shift(0.56), shift(0.14, 0.06), shift(0.5, 0.1)),
        (vary(0.15, 0.2), vary(0.25), vary(0.55)),
        shift(15, 15),
    )
    c.paint(spleen & cavity, soft - 4 + enhancement * rng.uniform(40, 80) + 4 * c.texture(14), 2)
    for side, label in ((-1, 4), (1, 3)):
        centre = (side * shift(0.33), shift(0.24), shift(-0.25 + 0.1 * side, 0.1))
        radii = (vary(0.13), vary(0.15), vary(0.62))
        kidney = c.ellipsoid(centre, radii, 25 * side)
        c.paint(kidney, soft - 12 + enhancement * rng.uniform(70, 150), label)
        c.add(c.ellipsoid(centre, (0.08, 0.1, 0.5), 25 * side), -35 * enhancement)  # the medulla
        c.paint(c.ellipsoid((centre[0] - side * 0.09, centre[1], centre[2]), (0.07, 0.05, 0.25)), fat)

    bone = rng.uniform(180, 320)
    c.paint(c.ellipsoid((0, 0.4, 0), (vary(0.14), vary(0.11), 9)), bone + 60 * c.texture(20))
    c.paint(c.ellipsoid((0, 0.53, 0), (0.05, 0.05, 9)), 25)
    c.paint(c.ellipsoid((0, 0.6, 0), (0.03, 0.07, 9)), 1.4 * bone)
    blood = soft - 8 + enhancement * rng.uniform(60, 160)
    c.paint(c.disc((shift(0.05, 0.02), 0.25), vary(0.055)), blood, 5)
    c.paint(c.disc((shift(-0.1, 0.02), 0.24), vary(0.06)), blood * rng.uniform(0.7, 1.05))
    c.paint(c.ellipsoid((0.0, 0.1, 0.1), (vary(0.3), 0.05, 0.25), shift(-15, 15)) & cavity, parenchyma - 20)


def heart(c: Canvas) -> None:
    """Short-axis cardiac MR: both ventricles and the myocardium, with lungs, liver, stomach and aorta."""
    rng, vary, shift = c.rng, c.vary, c.shift
    blood, wall = rng.uniform(160, 230), rng.uniform(60, 105)
    fat, muscle, lung = rng.uniform(130, 250), rng.uniform(70, 110), rng.uniform(8, 30)
    c.image[:] = 4
    c.paint(c.ellipsoid((0, 0, 0), (0.96, 0.85, 9)), fat)
    c.paint(c.ellipsoid((0, 0, 0), (vary(0.88, 0.05), vary(0.76, 0.05), 9)), muscle + 12 * c.texture(12))
    for side in (-1, 1):
        c.paint(c.ellipsoid((side * 0.45, -0.02, 0), (0.38, vary(0.58), 9), -12 * side), lung + 6 * c.texture(14))
    c.paint(c.ellipsoid((0, -0.05, 0), (vary(0.3), 0.66, 9)), fat * rng.uniform(0.5, 0.75) + 15 * c.texture(10))
    dome = 0.12 + 0.5 * c.z + 0.12 * c.texture(3)
    c.paint(
        np.asarray((c.y > dome + 0.25) & c.ellipsoid((-0.3, 0.3, 0), (0.6, 0.5, 9))),
        rng.uniform(70, 130) + 8 * c.texture(16),
    )
    c.paint(
        np.asarray((c.y > dome + 0.3) & c.ellipsoid((0.5, 0.35, 0), (0.3, 0.28, 9))),
        rng.uniform(30, 220) + 15 * c.texture(8),
    )
    c.paint(c.ellipsoid((0, 0.68, 0), (0.17, 0.14, 9)), rng.uniform(60, 120))
    c.paint(c.disc((shift(0.22), shift(0.48)), vary(0.075)), blood * rng.uniform(0.8, 1.05))

    x, y = shift(0.12, 0.12), shift(-0.08, 0.12)
    turn = np.deg2rad(rng.uniform(-35, 15))
    squeeze = 1 - c.phase * rng.uniform(0.2, 0.4)
    base, apex = rng.uniform(0.55, 0.8), rng.uniform(-1.0, -0.75)
    depth = np.clip((c.z - apex) / (base - apex), 0, 1)
    taper = np.sqrt(depth) * (1.05 - 0.15 * depth)
    size, thickness = vary(0.185, 0.2), vary(0.075, 0.25)
    inner, outer = size * squeeze * taper, (size + thickness * (1 + 0.15 * c.phase)) * np.maximum(taper, 0.3)
    distance = np.hypot(c.x - x, (c.y - y) * vary(1, 0.1))
    right_x, right_y = x - 0.24 * np.cos(turn), y - 0.24 * np.sin(turn)
    along = (c.x - right_x) * np.cos(turn) + (c.y - right_y) * np.sin(turn)
    across = (c.y - right_y) * np.cos(turn) - (c.x - right_x) * np.sin(turn)
    reach = np.sqrt(np.clip((depth - 0.12) / 0.88, 0, 1)) * vary(1, 0.15) * (1 - 0.7 * (1 - squeeze))
    with np.errstate(divide="ignore", invalid="ignore"):
        right = np.asarray((along / (0.2 * reach)) ** 2 + (across / (0.29 * reach)) ** 2 < 1)
    ventricles = np.asarray((c.z > apex) & (c.z < base))
    c.paint(np.asarray(right & ventricles), blood * rng.uniform(0.85, 1.0) - 25 * np.maximum(c.texture(14), 0), 1)
    muscle_ring = np.asarray((distance < outer) & ventricles)
    c.paint(muscle_ring, wall + 6 * c.texture(16), 2)
    cavity = np.asarray((distance < inner) & ventricles)
    c.paint(cavity, blood, 3)
    for degrees in (50, 150):
        place = np.deg2rad(shift(degrees, 20))
        papillary = c.disc((x + 0.6 * size * squeeze * np.cos(place), y + 0.6 * size * squeeze * np.sin(place)), 0.035)
        c.image[papillary & cavity] = wall * 1.1
    above = np.asarray(c.z >= base)
    c.paint(c.ellipsoid((x - 0.05, y + 0.1, 0), (0.28, vary(0.2), 9)) & above, blood * 0.95)
    c.paint(c.disc((x - 0.12, y - 0.14), 0.1) & above, blood)


def brain(c: Canvas) -> None:
    """FLAIR-like brain MR: ventricles, deep grey nuclei and lesions, under skull and folded cortex."""
    rng, vary, shift = c.rng, c.vary, c.shift
    white, fluid = rng.uniform(85, 115), rng.uniform(15, 45)
    grey = white * rng.uniform(1.1, 1.3)
    radii = (vary(0.66, 0.06), vary(0.82, 0.05), 1.45)
    c.image[:] = 3
    c.paint(c.ellipsoid((0, 0, 0), (radii[0] + 0.15, radii[1] + 0.13, 1.7)), rng.uniform(110, 220))
    c.paint(c.ellipsoid((0, 0, 0), (radii[0] + 0.09, radii[1] + 0.08, 1.6)), 12)
    c.paint(c.ellipsoid((0, 0, 0), (radii[0] + 0.03, radii[1] + 0.03, 1.5)), fluid)
    depth = 1 - np.sqrt((c.x / radii[0]) ** 2 + (c.y / radii[1]) ** 2 + (c.z / radii[2]) ** 2)
    folds = np.abs(c.texture(13, 4))
    c.paint(np.asarray(depth > 0), grey + 5 * c.texture(20))
    c.paint(np.asarray((depth > 0.02) & (depth < 0.22) & (folds < 0.13)), fluid * 1.5)  # the sulci
    white_matter = np.asarray((depth > 0.1) & (depth > 0.3 - 0.25 * folds))
    c.paint(white_matter, white + 4 * c.texture(16))
    c.paint(np.asarray((np.abs(c.x) < 0.012) & (depth > 0) & (np.abs(c.y) > 0.35)), fluid)

    wide = rng.uniform(0.7, 1.6)
    for side in (-1, 1):
        nucleus = (side * shift(0.2, 0.02), shift(0.06), shift(-0.1, 0.1))
        c.paint(
            c.ellipsoid(nucleus, (vary(0.1), vary(0.17), vary(0.6)), 14 * side),
            grey * rng.uniform(0.95, 1.08),
            2,
        )
        front = c.ellipsoid((side * 0.09 * wide, -0.2, 0.2), (0.055 * wide, vary(0.2), vary(0.55)), 12 * side)
        back = c.ellipsoid((side * 0.13 * wide, 0.3, 0.2), (0.06 * wide, vary(0.2), vary(0.5)), -22 * side)
        c.paint(front | back, fluid, 1)
    c.paint(c.ellipsoid((0, 0.05, -0.3), (0.025 * wide, 0.12, 0.3)), fluid, 1)

    bright = grey * rng.uniform(1.15, 1.6)
    rough = c.texture(9, 4)
    for _ in range(rng.integers(1, 4)):
        direction, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.8)
        x, y = reach * radii[0] * np.cos(direction), reach * radii[1] * np.sin(direction)
        size = rng.uniform(0.07, 0.22)
        distance = np.sqrt((c.x - x) ** 2 + (c.y - y) ** 2 + (0.35 * (c.z - rng.uniform(-0.6, 0.6))) ** 2)
        lesion = np.asarray((distance + 0.05 * rough < size) & (depth > 0.03) & (c.label != 1))
        c.paint(lesion, bright + 12 * rough, 3)
        c.add(np.asarray((distance < 0.4 * size) & lesion), rng.uniform(-60, 10))  # a core that may be necrotic
    for _ in range(3):  # vessels and coil artefacts as bright as lesions
        direction = rng.uniform(0, 2 * np.pi)
        spot = (1.02 * radii[0] * np.cos(direction), 1.02 * radii[1] * np.sin(direction), rng.uniform(-1, 1))
        c.paint(c.ellipsoid(spot, (0.05, 0.05, 0.3)), bright)


def spine(c: Canvas) -> None:
    """Sagittal spine MR: vertebral bodies and spinal canal, with discs, processes, vessels and bowel."""
    rng, vary, shift = c.rng, c.vary, c.shift
    marrow, muscle, fat = rng.uniform(90, 150), rng.uniform(45, 80), rng.uniform(150, 230)
    fluid = rng.uniform(40, 220)  # from T1 to T2 weighting
    c.image[:] = muscle + 12 * c.texture(18)
    loops = c.texture(8)
    c.paint(np.asarray(c.x < -0.2), fat * 0.6 + 45 * loops)
    c.paint(np.asarray((c.x < -0.25) & (loops > 0.7)), rng.uniform(40, 150))
    c.paint(np.asarray(c.x < -0.85), 5)
    c.paint(
        np.asarray(c.x > 0.45 + 0.06 * c.texture(12)),
        muscle * 1.2 + 0.25 * fat * np.maximum(c.texture(20), 0),
    )
    skin = 0.78 + 0.08 * np.sin(2 * c.y + 0.5)
    c.paint(np.asarray(c.x > skin), fat)
    c.paint(np.asarray(c.x > skin + 0.16), 5)

    middle = shift(-0.02, 0.06) + rng.uniform(0.05, 0.16) * np.sin(rng.uniform(1.4, 2.2) * c.y + rng.uniform(-0.8, 0.8))
    offset = c.x - middle
    pitch, start = rng.uniform(0.34, 0.44), rng.uniform(-1, -0.7)
    level = (c.y + rng.uniform(-0.15, 0.25) * offset - start) / pitch
    number = np.floor(level).astype(int)
    along = level - number - 0.5
    half = vary(0.165, 0.15)
    column = np.asarray((np.abs(offset) < half) & (np.abs(c.z) < 0.85))
    discs = rng.uniform(0.3, 1.3, 32).astype(np.float32)[np.clip(number + 8, 0, 31)]
    c.paint(column, muscle * discs)
    waist = half * (0.9 + 0.5 * along**2)
    ends = rng.uniform(0.36, 0.41)
    bodies = np.asarray((offset / waist) ** 4 + (along / ends) ** 6 + (c.z / 0.85) ** 4 < 1)
    c.paint(column & np.asarray(np.abs(along) < ends + 0.05) & ~bodies, 20)  # cortical bone is dark
    tone = rng.uniform(0.8, 1.2, 32).astype(np.float32)[np.clip(number + 8, 0, 31)]
    c.paint(bodies, marrow * tone + 8 * c.texture(24), 1)
    c.add(np.asarray(bodies & (c.texture(9) > 2)), rng.uniform(-50, 70))
    edge, wide = half + 0.03, vary(0.12, 0.2)
    canal = np.asarray((offset > edge) & (offset < edge + wide) & (np.abs(c.z) < 0.38))
    c.paint(canal, fluid, 2)
    cord = np.asarray(canal & (np.abs(offset - edge - wide / 2) < 0.25 * wide) & (c.y < shift(0.1, 0.3)))
    c.image[cord] = rng.uniform(70, 120)
    process = np.asarray(
        ((offset - edge - wide - 0.17) / 0.14) ** 2 + ((along - 0.25) / 0.27) ** 2 + (c.z / 0.25) ** 2 < 1
    )
    c.paint(process, marrow * rng.uniform(0.9, 1.15))
    facet = np.asarray(
        (np.abs(np.abs(c.z) - 0.55) < 0.2) & (np.abs(offset - edge - 0.06) < 0.09) & (np.abs(along) < 0.33)
    )
    c.paint(facet, marrow * rng.uniform(0.8, 1.0))
    vessel = np.asarray((np.abs(offset + half + rng.uniform(0.08, 0.16)) < 0.055) & (np.abs(c.z - 0.2) < 0.5))
    c.paint(vessel, rng.uniform(8, 200))


def chest(c: Canvas) -> None:
    """A chest X-ray, bright where dense: lungs and heart, under ribs, clavicles, spine and devices."""
    rng, vary, shift = c.rng, c.vary, c.shift
    trunk = c.ellipsoid((0, 0.5, 0), (vary(0.95, 0.04), 1.35, 9), power=4)
    neck = np.asarray((np.abs(c.x) < 0.3) & (c.y < 0))
    c.paint(trunk | neck, 0.5)
    c.add(np.asarray((np.abs(c.x) > 0.68) & trunk), 0.1)
    aerated = rng.uniform(0.2, 0.4)
    vessels = np.maximum(c.texture(16), 0) * np.exp(-(((np.abs(c.x) - 0.25) / 0.18) ** 2))
    domes = []
    for side in (-1, 1):
        middle, width = side * vary(0.4, 0.06), vary(0.28, 0.12)
        lung = c.ellipsoid((middle, shift(0.02, 0.05), 0), (width, vary(0.66, 0.1), 9), -6 * side, power=3)
        floor = shift(0.42 + 0.04 * side, 0.1)
        dome = floor + 0.9 * (c.x - middle) ** 2 + 0.25 * np.abs(c.x - middle)
        domes.append(np.asarray((c.y > dome) & (np.sign(c.x) == side) & trunk))
        lung = np.asarray(lung & (c.y < dome))
        c.label[lung] = 1
        c.add(lung, -aerated + 0.05 * vessels)
        for _ in range(rng.integers(0, 4)):  # consolidations, still lung
            spot = (middle + rng.uniform(-0.2, 0.2), rng.uniform(-0.4, 0.45), 0.0)
            opacity = lung & c.ellipsoid(spot, (rng.uniform(0.06, 0.25), rng.uniform(0.06, 0.25), 9))
            c.add(opacity, rng.uniform(0.06, aerated) + 0.03 * c.texture(12))
    for below in domes:
        c.add(below, rng.uniform(0.12, 0.2))
    c.add(
        c.ellipsoid((shift(0.4), shift(0.68), 0), (vary(0.14, 0.4), vary(0.08, 0.4), 9)),
        -rng.uniform(0.0, 0.3),
    )
    c.add(c.ellipsoid((0, 0.1, 0), (vary(0.13), 1.2, 9)), 0.16)
    c.add(np.asarray((np.abs(c.x) < 0.08) & (np.cos(c.y * 34) > 0)), 0.05)
    lean = shift(0.12, 0.05)
    muscle = c.ellipsoid((lean, shift(0.24, 0.05), 0), (vary(0.3, 0.2), vary(0.22, 0.15), 9), shift(28, 12))
    c.paint(muscle, np.maximum(c.image, rng.uniform(0.55, 0.68)), 2)
    c.add(c.ellipsoid((lean - 0.12, -0.2, 0), (vary(0.13), 0.22, 9)), 0.06)  # the great vessels
    pitch, bow = vary(0.16, 0.1), vary(0.5, 0.2)
    wave = (c.y - bow * (np.abs(c.x) - 0.35) ** 2 * np.sign(np.abs(c.x) - 0.2) - 0.35 * np.abs(c.x)) / pitch
    ribs = np.asarray(
        (np.abs(wave - np.round(wave)) < 0.17)
        & (np.abs(c.x) < 0.8)
        & (np.abs(c.x) > 0.08)
        & (c.y < 0.7)
        & (c.y > -0.75)
    )
    c.add(ribs, rng.uniform(0.04, 0.1))
    slope = vary(0.3, 0.3)
    c.add(
        np.asarray(
            (np.abs(c.y + 0.62 + slope * (np.abs(c.x) - 0.4)) < 0.035) & (np.abs(c.x) < 0.75) & (np.abs(c.x) > 0.06)
        ),
        0.12,
    )
    if rng.uniform() < 0.5:  # a line or a tube
        c.add(np.asarray(np.abs(c.x - shift(0, 0.3) - 0.2 * np.sin(3 * c.y + rng.uniform(0, 6))) < 0.014), 0.25)
    c.paint(c.ellipsoid((shift(-0.85), -0.88, 0), (0.06, 0.06, 9), power=6), 1.0)  # the side marker


@dataclass(frozen=True)
class Domain:
    """One phantom challenge.

    Attributes:
        task: Name of its folder.
        modality: As written into ``dataset.json``.
        description: One line on what it imitates.
        labels: Label names from 1 on.
        draw: Paints one subject.
        axes: Where the axes of the drawing point, as three letters.
        stored: Orientations its files have, in turn from subject to subject.
        width: Extent of the first axis in mm.
        aspect: Extent of the second axis, relative to the first.
        thickness: Distance of the slices in mm.
        kind: How it is acquired: ``ct``, ``mr`` or ``xray``.
        frames: Cases of each subject.
        single: One slice a case; then there are four times as many subjects.
        oblique: Largest tilt of the grid against the world axes, in degrees.
    """

    task: str
    modality: str
    description: str
    labels: tuple[str, ...]
    draw: Callable[[Canvas], None]
    axes: str
    stored: tuple[str, ...]
    width: float
    aspect: float
    thickness: float
    kind: str
    frames: int = 1
    single: bool = False
    oblique: float = 0.0


DOMAINS = (
    Domain(
        "Task01_AbdomenCT",
        "CT",
        "Abdominal CT in HU, from unenhanced to portal venous",
        ("liver", "spleen", "left kidney", "right kidney", "aorta"),
        abdomen,
        "LPS",
        ("RAS",),
        width=380,
        aspect=0.8,
        thickness=8,
        kind="ct",
    ),
    Domain(
        "Task02_HeartMR",
        "cine MRI",
        "Short-axis cardiac MRI, end-diastole and end-systole of each subject",
        ("right ventricle", "myocardium", "left ventricle"),
        heart,
        "LPS",
        ("LPS", "RPS"),
        width=280,
        aspect=1.0,
        thickness=10,
        kind="mr",
        frames=2,
        oblique=20,
    ),
    Domain(
        "Task03_BrainMR",
        "FLAIR MRI",
        "Brain MRI with lesions",
        ("ventricles", "deep grey matter", "lesion"),
        brain,
        "LPS",
        ("RAS", "LPS", "PRS"),
        width=180,
        aspect=1.15,
        thickness=6,
        kind="mr",
    ),
    Domain(
        "Task04_SpineMR",
        "MRI",
        "Sagittal spine MRI, T1 to T2 weighted",
        ("vertebral body", "spinal canal"),
        spine,
        "PIL",
        ("PSR", "AIR"),
        width=240,
        aspect=1.1,
        thickness=4.4,
        kind="mr",
    ),
    Domain(
        "Task05_ChestXray",
        "X-ray",
        "Frontal chest X-rays of one slice each",
        ("lung", "heart"),
        chest,
        "LIP",
        ("LIP",),
        width=380,
        aspect=1.0,
        thickness=1,
        kind="xray",
        single=True,
    ),
)
