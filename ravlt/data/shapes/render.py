"""Rendering of one scene of the shapes data set.

Class, size, pose, colour and texture are sampled independently of each other, so that
classes differ in their outline only.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

Size = tuple[int, int]

# Objects with a smaller visible part are not placed, because their class could not be
# recognised. A crowd needs a larger part to be recognised as a crowd.
_MIN_VISIBLE_PIXELS = 30
_MIN_VISIBLE_SHARE = 0.4
_MIN_CROWD_SHARE = 0.6

# Lengths are in pixels of an image with this shorter side, and scale with the side.
_REFERENCE_SIDE = 128
_OBJECT_DIAMETER = (20, 48)
_NUM_OBJECTS = (4, 9)
_MEMBER_DIAMETER = (8, 10.5)
_CROWD_CHANCE = 0.08
_PLACING_ATTEMPTS = 50
_COLOUR_ATTEMPTS = 30
_MIN_CONTRAST = 60
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class Instance:
    """One annotated object, or a crowd of several.

    Attributes:
        label: Index of the class in ``OUTLINES``.
        mask: Visible pixels, a boolean array (H, W).
        crowd: Whether the mask is the union of several shapes.
    """

    label: int
    mask: np.ndarray
    crowd: bool


@dataclass(frozen=True)
class _Placed:
    """A placed object: its outline of shape (N, 2), or those of a crowd's members."""

    label: int
    outlines: list[np.ndarray]
    crowd: bool


def _spokes(radii: list[float]) -> np.ndarray:
    angle = np.arange(len(radii)) * (2 * math.pi / len(radii))
    return np.stack((np.cos(angle), np.sin(angle)), 1) * np.array(radii)[:, None]


def _plus(length: float, half_width: float) -> np.ndarray:
    a, b = length, half_width
    arm = np.array([(a, -b), (a, b), (b, b)])
    quarter_turn = np.array([(0, 1), (-1, 0)])
    return np.concatenate(
        [arm @ np.linalg.matrix_power(quarter_turn, k) for k in range(4)]
    )


# With these radii areas are similar, so that the class does not depend on the size.
OUTLINES = {
    "disk": _spokes([0.95] * 64),
    "square": _spokes([1.2] * 4),
    "triangle": _spokes([1.32] * 3),
    "star": _spokes([1.3, 0.56] * 5),
    "cross": _plus(1.1, 0.36),
}
_UNIT_OUTLINES = tuple(OUTLINES.values())


def draw_scene(
    rng: np.random.Generator, size: Size
) -> tuple[np.ndarray, list[Instance]]:
    """Render an image and the masks of its visible objects.

    Args:
        rng: Generator of all random numbers; the same state gives the same scene.
        size: Height and width, in pixels.

    Returns:
        The RGB image, uint8 of shape (H, W, 3), and the instances, back to front.
        Their masks do not overlap.
    """
    objects, instances = _place(rng, size)
    canvas = _background(rng, size)
    for placed in objects:
        for outline in placed.outlines:
            canvas = _paint_over(rng, canvas, _coverage(outline, size))
    return _photograph(rng, canvas), instances


def _place(
    rng: np.random.Generator, size: Size
) -> tuple[list[_Placed], list[Instance]]:
    """Place objects such that enough of each is visible; return them back to front."""
    crowds = [False] * int(rng.integers(*_NUM_OBJECTS, endpoint=True))
    if rng.random() < _CROWD_CHANCE:
        crowds.insert(int(rng.integers(len(crowds) + 1)), True)
    covered = np.zeros(size, bool)
    objects, instances = [], []
    # Front to back, because objects that are placed later then hide no earlier one.
    for crowd in crowds:
        for _ in range(_PLACING_ATTEMPTS):
            placed = _pose(rng, size, crowd)
            masks = [_coverage(outline, size) >= 0.5 for outline in placed.outlines]
            mask = np.logical_or.reduce(masks)
            visible = mask & ~covered
            if np.count_nonzero(visible) >= _min_visible_area(placed):
                covered |= mask
                objects.insert(0, placed)
                instances.insert(0, Instance(placed.label, visible, crowd))
                break
    return objects, instances


def _min_visible_area(placed: _Placed) -> float:
    area = sum(cv2.contourArea(o.astype(np.float32)) for o in placed.outlines)
    share = _MIN_CROWD_SHARE if placed.crowd else _MIN_VISIBLE_SHARE
    return max(_MIN_VISIBLE_PIXELS, share * area)


def _pose(rng: np.random.Generator, size: Size, crowd: bool) -> _Placed:
    """Sample class, position and size of an object, or of a crowd's members."""
    scale = min(size) / _REFERENCE_SIDE
    label = int(rng.integers(len(_UNIT_OUTLINES)))
    centre = rng.uniform((0, 0), size[::-1])
    if not crowd:
        diameter = scale * math.exp(rng.uniform(*np.log(_OBJECT_DIAMETER)))
        return _Placed(label, [_outline(rng, label, centre, diameter)], False)
    diameter = scale * rng.uniform(*_MEMBER_DIAMETER)
    centres = centre + diameter * _sunflower(rng, int(rng.integers(6, 13)))
    return _Placed(label, [_outline(rng, label, c, diameter) for c in centres], True)


def _sunflower(rng: np.random.Generator, count: int) -> np.ndarray:
    """Arrange points in a sunflower spiral, a little over 1 apart; shape (count, 2)."""
    index = np.arange(count)
    angle = index * math.pi * (3 - math.sqrt(5)) + rng.uniform(0, 2 * math.pi)
    points = np.stack((np.cos(angle), np.sin(angle)), 1)
    points *= 0.62 * np.sqrt(index + 0.5)[:, None]
    return points + rng.uniform(-0.1, 0.1, points.shape)


def _outline(
    rng: np.random.Generator, label: int, centre: np.ndarray, diameter: float
) -> np.ndarray:
    """Stretch, rotate and move a class's outline; (x, y) in pixels, shape (N, 2)."""
    stretch = math.sqrt(rng.uniform(1, 1.3))
    axis, turn = rng.uniform(0, 2 * math.pi, 2)
    shape = _UNIT_OUTLINES[label] @ _rotation(axis)
    shape = shape * (stretch, 1 / stretch) @ _rotation(turn)
    return centre + shape * (diameter / 2)


def _rotation(angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([(cos, -sin), (sin, cos)])


def _coverage(outline: np.ndarray, size: Size) -> np.ndarray:
    """Compute the share of each pixel inside the outline, float32 (H, W)."""
    height, width = size
    fine = np.zeros((height * _SUPERSAMPLING, width * _SUPERSAMPLING), np.uint8)
    # OpenCV's origin is the centre of the first pixel, that of outlines its corner.
    corners = np.round((outline * _SUPERSAMPLING - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(fine, [corners], 255, shift=4)
    coarse = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)
    return coarse.astype(np.float32) / 255


def _background(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Blend two textures by smooth noise; float32 (H, W, 3) in [0, 255]."""
    blend = _smooth(rng, size)[..., None]
    first, second = (_mix(_pattern(rng, size), *_colours(rng)) for _ in range(2))
    return first + (second - first) * (0.6 * blend)


def _paint_over(
    rng: np.random.Generator, canvas: np.ndarray, coverage: np.ndarray
) -> np.ndarray:
    """Blend a random texture over the canvas, in colours that contrast with it."""
    pattern = _pattern(rng, coverage.shape)
    inside = (coverage > 0).astype(np.uint8)
    rim = cv2.dilate(inside, np.ones((5, 5), np.uint8)) > inside
    colours = _contrasting(rng, canvas[rim], pattern[rim])
    paint = _mix(pattern, *colours)
    return canvas + (paint - canvas) * coverage[..., None]


def _contrasting(
    rng: np.random.Generator, around: np.ndarray, pattern: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sample colours until most of an outline has contrast; else return the best ones.

    Args:
        rng: Generator of the colours.
        around: Colours of the canvas along the outline, (N, 3).
        pattern: The new texture at the same pixels, (N,).
    """
    best, best_contrast = None, -1.0
    for _ in range(_COLOUR_ATTEMPTS):
        colours = _colours(rng)
        distance = np.linalg.norm(_mix(pattern, *colours) - around, axis=-1)
        contrast = float(np.quantile(distance, 0.15)) if distance.size else 0.0
        if contrast > best_contrast:
            best, best_contrast = colours, contrast
        if contrast >= _MIN_CONTRAST:
            break
    return best


def _colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    base = rng.uniform(20, 235, 3)
    return base, np.clip(base + rng.normal(0, 24, 3), 10, 245)


def _mix(pattern: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return (low + pattern[..., None] * (high - low)).astype(np.float32)


def _pattern(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Sample a texture, float32 (H, W) in [0, 1]."""
    kinds = (_ramp, _smooth, _stripes, _speckle)
    return kinds[int(rng.integers(len(kinds)))](rng, size)


def _direction(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Compute the coordinate along a random direction, in pixels from the centre."""
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    y, x = y - (size[0] - 1) / 2, x - (size[1] - 1) / 2
    return math.cos(angle) * x + math.sin(angle) * y


def _ramp(rng: np.random.Generator, size: Size) -> np.ndarray:
    along = _direction(rng, size)
    return (along / np.abs(along).max() + 1) / 2


def _stripes(rng: np.random.Generator, size: Size) -> np.ndarray:
    period = rng.uniform(4, 14) * min(size) / _REFERENCE_SIDE
    sharpness = rng.uniform(0.5, 4)
    wave = np.sin(_direction(rng, size) * (2 * math.pi / period))
    return np.clip(wave * sharpness, -1, 1) / 2 + 0.5


def _smooth(rng: np.random.Generator, size: Size) -> np.ndarray:
    return _noise(rng, size, rng.uniform(12, 48))


def _speckle(rng: np.random.Generator, size: Size) -> np.ndarray:
    threshold = rng.uniform(0.4, 0.65)
    return np.clip((_noise(rng, size, rng.uniform(2, 4)) - threshold) * 6, 0, 1)


def _noise(rng: np.random.Generator, size: Size, cell: float) -> np.ndarray:
    """Interpolate a coarse random grid whose cells have a side of ``cell`` pixels."""
    cell *= min(size) / _REFERENCE_SIDE
    grid = rng.random([math.ceil(side / cell) + 1 for side in size], np.float32)
    fine = cv2.resize(grid, size[::-1], interpolation=cv2.INTER_CUBIC)
    return (fine - fine.min()) / (fine.max() - fine.min())


def _photograph(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Apply light, gamma, blur and sensor noise; return uint8 (H, W, 3)."""
    size = canvas.shape[:2]
    light = rng.uniform(0.65, 1.1) * (
        1 + rng.uniform(0, 0.5) * (_ramp(rng, size) - 0.5)
    )
    image = np.clip(canvas / 255 * light[..., None], 0, 1) ** rng.uniform(0.75, 1.3)
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 0.9))
    noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(2, 9)
    return np.clip(np.round(image * 255 + noise), 0, 255).astype(np.uint8)
