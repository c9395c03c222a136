"""How a made-up person looks: colours and face paint, as functions of canonical coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from guava.synth.surface import EYE_PARTS, Surface
from guava.tracking.fit.face import FACE_LAYOUTS

PAINT_PIXEL = 0.0003
"""Size of one pixel of the face paint, metres."""
PAINT_CHANNELS = ("lips", "brow", "lash", "lid", "dark", "blush", "beard", "crease")

_SKIN_TONES = (
    np.array(
        [
            (243, 214, 197),
            (232, 192, 166),
            (217, 168, 135),
            (193, 139, 104),
            (152, 102, 73),
            (108, 71, 52),
            (80, 53, 42),
        ]
    )
    / 255.0
)
_HAIR_TONES = (
    np.array(
        [
            (22, 18, 17),
            (38, 27, 21),
            (62, 42, 29),
            (96, 66, 43),
            (138, 100, 62),
            (190, 152, 102),
            (120, 58, 32),
            (150, 146, 142),
        ]
    )
    / 255.0
)
_IRIS_TONES = (
    np.array([(58, 36, 22), (82, 54, 32), (92, 88, 52), (80, 112, 128), (96, 112, 96), (104, 116, 126)])
    / 255.0
)


@dataclass(frozen=True)
class Cloth:
    """A procedural fabric.

    Attributes:
        colors: (2, 3) sRGB ground and second colour.
        pattern: 0 plain, 1 horizontal stripes, 2 vertical stripes, 3 checks, 4 blotches, 5 chest print.
        scale: Pattern period, metres.
        weave: Relative strength of the fabric's fine noise.
        seed: Lattice offset of its noise.
    """

    colors: np.ndarray
    pattern: int
    scale: float
    weave: float
    seed: float


@dataclass(frozen=True)
class Appearance:
    """Colours of one person; sRGB in [0, 1].

    Attributes:
        skin: (3,) mean skin colour.
        lips: (3,).
        brow: (3,).
        hair: (3,) scalp, locks and beard.
        iris: (3,).
        sclera: (3,).
        nail: (3,).
        cover: How far the scalp is hair-coloured, [0, 1]; 0 is bald.
        hairline: Metres by which the painted hairline lies above the eyes.
        freckles: Strength of small spots, [0, 1].
        mottle: Strength of large-scale skin variation, [0, 1].
        gloss: Strength of the skin's highlight.
        noise_offset: (3,) where in noise space this person lives.
        shirt, trousers: Fabrics.
        paint: (rows, columns, 8) float32 in [0, 1], frontal map of the face, see ``PAINT_CHANNELS``.
        paint_origin: (2,) canonical x and y of the paint's top-left corner, metres.
    """

    skin: np.ndarray
    lips: np.ndarray
    brow: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    sclera: np.ndarray
    nail: np.ndarray
    cover: float
    hairline: float
    freckles: float
    mottle: float
    gloss: float
    noise_offset: np.ndarray
    shirt: Cloth
    trousers: Cloth
    paint: np.ndarray
    paint_origin: np.ndarray


def sample_cloth(rng: np.random.Generator, away_from: np.ndarray | None = None) -> Cloth:
    """A fabric; its ground colour is kept apart from ``away_from`` (a skin colour) and from skin at large."""
    while True:
        value, saturation, hue = rng.uniform(0.07, 0.95), rng.beta(1.2, 2.0), rng.random()
        ground = _hsv(hue, saturation, value)
        looks_bare = (hue < 0.13 or hue > 0.95) and 0.12 < saturation < 0.75 and value > 0.3
        if away_from is None or (np.abs(ground - away_from).sum() > 0.45 and not looks_bare):
            break
    second = _hsv(rng.random(), rng.beta(1.2, 2.0), rng.uniform(0.07, 0.95))
    pattern = int(rng.choice(6, p=(0.5, 0.1, 0.08, 0.1, 0.08, 0.14)))
    return Cloth(
        np.stack([ground, second]),
        pattern,
        float(rng.uniform(0.02, 0.07)),
        float(rng.uniform(0.04, 0.16)),
        float(rng.uniform(0, 50)),
    )


def sample_appearance(rng: np.random.Generator, surface: Surface, *, feminine: float = 0.5) -> Appearance:
    """Draw the colours of a person.

    Args:
        rng: Source of randomness.
        surface: Of the template.
        feminine: [0, 1]; lowers the odds of a beard and raises those of redder lips.
    """
    tone = rng.uniform(0, len(_SKIN_TONES) - 1)
    skin = _lerp_table(_SKIN_TONES, tone) * (1 + rng.normal(0, 0.025, 3))
    dark = tone / (len(_SKIN_TONES) - 1)
    odds = (
        np.array([1, 1, 1, 0.6, 0.4, 0.3, 0.25, 0.35])
        if dark < 0.45
        else np.array([3, 1.5, 0.4, 0, 0, 0, 0, 0.4])
    )
    hair = _HAIR_TONES[rng.choice(len(_HAIR_TONES), p=odds / odds.sum())] * rng.uniform(0.8, 1.2)
    odds = np.array([2, 2, 1, 1, 1, 1]) if dark < 0.4 else np.array([3, 1, 0.1, 0, 0, 0])
    iris = _IRIS_TONES[rng.choice(len(_IRIS_TONES), p=odds / odds.sum())] * rng.uniform(0.85, 1.15)
    made_up = rng.random() < 0.5 * feminine
    lips = skin * np.array([0.86, 0.62, 0.62])
    if made_up:
        lips = 0.45 * lips + 0.55 * np.array(
            [rng.uniform(0.55, 0.8), rng.uniform(0.1, 0.3), rng.uniform(0.15, 0.35)]
        )
    beard = 0.0
    if rng.random() > 0.35 + 0.65 * feminine:
        beard = rng.choice([0.25, 0.5, 0.9])
    paint, origin = _paint_face(rng, surface, feminine, made_up, beard)
    return Appearance(
        skin=np.clip(skin, 0.02, 0.97),
        lips=np.clip(lips, 0.02, 0.97),
        brow=np.clip(0.65 * hair + 0.05, 0.03, 0.45),
        hair=np.clip(hair, 0.02, 0.9),
        iris=np.clip(iris, 0.02, 0.9),
        sclera=np.array([0.9, 0.88, 0.86]) * rng.uniform(0.93, 1.03),
        nail=np.clip(0.55 * skin + 0.45 * np.array([0.95, 0.78, 0.74]), 0, 1),
        cover=0.0 if rng.random() < 0.08 * (1 - feminine) else 1.0,
        hairline=float(rng.uniform(0.060, 0.078)),
        freckles=float(rng.random() ** 3),
        mottle=float(rng.uniform(0.3, 1)),
        gloss=float(rng.uniform(0.25, 0.8)),
        noise_offset=rng.uniform(0, 60, 3),
        shirt=sample_cloth(rng, np.clip(skin, 0, 1)),
        trousers=sample_cloth(rng, np.clip(skin, 0, 1)),
        paint=paint,
        paint_origin=origin,
    )


_BROWS = (
    ((70, 63, 105, 66, 107), (46, 53, 52, 65, 55)),
    ((300, 293, 334, 296, 336), (276, 283, 282, 295, 285)),
)
_LIPS = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
_MOUTH_LINE = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)


def _paint_face(
    rng, surface: Surface, feminine: float, made_up: bool, beard: float
) -> tuple[np.ndarray, np.ndarray]:
    """The paint map (see ``PAINT_CHANNELS``) and its origin."""
    points = surface.landmarks[:, :2].astype(float)
    eyes = surface.eye_centers[:, :2].mean(0)
    origin = eyes + [-0.1, 0.12]
    columns, rows = int(0.2 / PAINT_PIXEL), int(0.27 / PAINT_PIXEL)

    def px(xy) -> np.ndarray:
        xy = np.asarray(xy, float)
        return np.stack([(xy[..., 0] - origin[0]) / PAINT_PIXEL, (origin[1] - xy[..., 1]) / PAINT_PIXEL], -1)

    def canvas():
        image = Image.new("L", (columns, rows))
        return image, ImageDraw.Draw(image)

    def done(image, blur: float) -> np.ndarray:
        return gaussian_filter(np.asarray(image, np.float32) / 255, blur / PAINT_PIXEL)

    def line(draw, xy, width: float, fill=255) -> None:
        pixels = [tuple(p) for p in px(xy)]
        draw.line(pixels, fill=fill, width=max(1, round(width / PAINT_PIXEL)), joint="curve")

    layers = {}
    image, draw = canvas()
    draw.polygon([tuple(p) for p in px(_smooth_loop(points[list(_LIPS)]))], fill=255)
    layers["lips"] = done(image, 0.0009)

    image, draw = canvas()
    soft, soft_draw = canvas()
    thick = (1.15 - 0.45 * feminine) * rng.uniform(0.75, 1.2)
    lift, tilt = rng.normal(0, 0.0012), rng.normal(0, 0.0008)
    for upper, lower in _BROWS:
        top, bottom = _resample(points[list(upper)], 24), _resample(points[list(lower)], 24)
        t = np.linspace(0, 1, 24)[:, None]  # 0 at the temple, 1 at the nose
        middle = (top + bottom) / 2 + [0, lift] + [[0, 1]] * (tilt * (1 - 2 * t))
        half = (top - bottom) / 2 * thick * (0.35 + 0.65 * t**0.7)
        outline = np.concatenate([middle + half, (middle - half)[::-1]])
        soft_draw.polygon([tuple(p) for p in px(outline)], fill=150)
        outward = np.sign(middle[0, 0] - middle[-1, 0])
        for _ in range(170):
            k = rng.uniform(0, 23)
            i, w = int(min(k, 22)), k - int(min(k, 22))
            root = middle[i] * (1 - w) + middle[i + 1] * w + half[i] * rng.uniform(-1, 1)
            lean = np.array([outward * rng.uniform(0.7, 1.0), (0.9 if k > 18 else 0.25 if k > 8 else -0.25)])
            line(
                draw,
                [root, root + lean * rng.uniform(0.003, 0.006)],
                0.00035,
                fill=int(rng.uniform(120, 255)),
            )
    layers["brow"] = np.clip(done(soft, 0.0012) * 0.75 + done(image, 0.0002) * 0.7, 0, 1)

    image, draw = canvas()
    lids, lid_draw = canvas()
    crease, crease_draw = canvas()
    for loop in _eye_loops(surface):
        loop = loop[:, :2].astype(float)
        corners = loop[np.argmin(loop[:, 0])], loop[np.argmax(loop[:, 0])]
        chord = corners[0][1] + (loop[:, 0] - corners[0][0]) / np.ptp(loop[:, 0]) * (
            corners[1][1] - corners[0][1]
        )
        closed = np.concatenate([loop, loop[:1]])
        above = np.concatenate([loop[:, 1] > chord, [False]])
        for a, b, up in zip(closed[:-1], closed[1:], above[:-1], strict=True):
            shift = np.array([0, 0.0004 if up else -0.0002])
            line(
                draw,
                [a + shift, b + shift],
                0.0019 * (1.25 if made_up else 1.0) if up else 0.0008,
                255 if up else 110,
            )
            if up:
                line(lid_draw, [a + [0, 0.004], b + [0, 0.004]], 0.008, 255)
                line(crease_draw, [a + [0, 0.0052], b + [0, 0.0052]], 0.001, 160)
            else:
                line(crease_draw, [a - [0, 0.008], b - [0, 0.008]], 0.0012, 70)
        if made_up or feminine > 0.6:
            outer = corners[0] if loop[:, 0].mean() < 0 else corners[1]
            line(draw, [outer, outer + [np.sign(outer[0]) * 0.004, 0.0018]], 0.0009)
    layers["lash"] = done(image, 0.00035)
    layers["lid"] = done(lids, 0.002) * (rng.uniform(0.5, 1.0) if made_up else 0.35)

    image, draw = canvas()
    for a, b in ((98, 97), (327, 326)):
        c = px(points[a] * 0.35 + points[b] * 0.65 + [0, 0.0022])
        w, h = 0.0032 / PAINT_PIXEL, 0.0017 / PAINT_PIXEL
        draw.ellipse([c[0] - w, c[1] - h, c[0] + w, c[1] + h], fill=255)
    layers["dark"] = done(image, 0.0008)

    image, draw = canvas()
    for k, radius, level in ((205, 0.019, 150), (425, 0.019, 150), (4, 0.012, 170), (152, 0.012, 60)):
        c, r = px(points[k]), radius / PAINT_PIXEL
        draw.ellipse([c[0] - r, c[1] - r, c[0] + r, c[1] + r], fill=level)
    layers["blush"] = done(image, 0.007) * rng.uniform(0.4, 1.0)

    layers["beard"] = _beard(rng, points, px, canvas, done, columns, rows, beard)
    for chain in ((129, 203, 206, 216), (358, 423, 426, 436)):  # nasolabial folds
        line(crease_draw, points[list(chain)], 0.0016, int(rng.uniform(20, 110)))
    line(crease_draw, points[list(_MOUTH_LINE)], 0.0012, 170)
    layers["crease"] = done(crease, 0.0007)
    return np.stack([layers[n] for n in PAINT_CHANNELS], -1).astype(np.float32), origin


def _beard(rng, points, px, canvas, done, columns, rows, strength: float) -> np.ndarray:
    if strength == 0:
        return np.zeros((rows, columns), np.float32)
    jaw = [
        234,
        93,
        132,
        58,
        172,
        136,
        150,
        149,
        176,
        148,
        152,
        377,
        400,
        378,
        379,
        365,
        397,
        288,
        361,
        323,
        454,
    ]
    upper = [425, 426, 327, 2, 98, 206, 205]
    image, draw = canvas()
    outline = np.concatenate([points[jaw] * [1.05, 1] - [0, 0.008], points[upper]])
    draw.polygon([tuple(p) for p in px(outline)], fill=255)
    hole, hole_draw = canvas()
    hole_draw.polygon([tuple(p) for p in px(points[list(_LIPS)])], fill=255)
    mask = done(image, 0.005) * (1 - done(hole, 0.0012))
    grain = gaussian_filter(rng.standard_normal((rows, columns)).astype(np.float32), (1.6, 0.7))
    grain = np.clip(0.62 + 0.3 * grain / grain.std(), 0, 1)
    return mask * strength * grain


def _eye_loops(surface: Surface) -> list[np.ndarray]:
    """The lids' edges, where the skin meets the socket: one ordered loop (n, 3) per eye, left first.

    Where a template's skin goes on behind the lids, and so that seam lies deeper, or where it has no sockets,
    the landmarks round the eyes stand in.
    """
    layout = FACE_LAYOUTS["mediapipe478"]
    marked = [surface.landmarks[list(ids)] for ids in (layout.left_eye, layout.right_eye)]
    inner = surface.part_faces("eye_sockets")
    outer = surface.part_faces("face")
    edges: dict[tuple[int, int], int] = {}
    for mask, flag in ((outer, 1), (inner, 2)):
        for face in surface.faces[mask]:
            for k in range(3):
                a, b = int(face[k]), int(face[(k + 1) % 3])
                key = (min(a, b), max(a, b))
                edges[key] = edges.get(key, 0) | flag
    seam = np.array([key for key, flag in edges.items() if flag == 3], int)
    loops = []
    for center, outline in zip(surface.eye_centers, marked, strict=True):
        ids = np.unique(seam)
        near = ids[np.linalg.norm(surface.vertices[ids] - center, axis=1) < 0.05]
        ring = surface.vertices[near]
        high = np.ptp(ring[:, 1]) if len(ring) else np.inf
        loops.append(_ordered(ring if high < 1.5 * np.ptp(outline[:, 1]) else outline))
    return loops


def _ordered(ring: np.ndarray) -> np.ndarray:
    """Points (n, 3) in the order of their angle about their middle."""
    middle = ring[:, :2].mean(0)
    return ring[np.argsort(np.arctan2(ring[:, 1] - middle[1], ring[:, 0] - middle[0]))]


def _resample(points: np.ndarray, count: int) -> np.ndarray:
    t = np.linspace(0, len(points) - 1, count)
    return np.stack([np.interp(t, np.arange(len(points)), points[:, k]) for k in range(points.shape[1])], 1)


def _smooth_loop(points: np.ndarray) -> np.ndarray:
    dense = _resample(np.concatenate([points, points[:1]]), len(points) * 6)[:-1]
    return np.stack([gaussian_filter(dense[:, k], 2.5, mode="wrap") for k in (0, 1)], 1)


def _lerp_table(table: np.ndarray, t: float) -> np.ndarray:
    i = int(min(t, len(table) - 2))
    return table[i] + (t - i) * (table[i + 1] - table[i])


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    k = (np.array([5.0, 3.0, 1.0]) + 6 * hue) % 6
    return value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1))


__all__ = [
    "Appearance",
    "Cloth",
    "EYE_PARTS",
    "PAINT_CHANNELS",
    "PAINT_PIXEL",
    "sample_appearance",
    "sample_cloth",
]
