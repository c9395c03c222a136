"""Named regions of the surface and named points on it."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix, diags
from scipy.sparse.csgraph import connected_components
from scipy.spatial import ConvexHull

from scripts.build_open_template.landmarks import OVAL
from scripts.build_open_template.models import JOINTS, Models
from scripts.build_open_template.rest_pose import FINGERS, SIDES
from scripts.build_open_template.source import PARTS, BaseMesh, Wheel

REGIONS = (
    "torso",
    "left_arm",
    "right_arm",
    "left_hand",
    "right_hand",
    "neck",
    "face",
    "scalp",
    "legs",
    "left_eyeball",
    "right_eyeball",
    "lower_teeth",
    "upper_teeth",
    "tongue",
    "mouth_cavity",
    "eye_sockets",
)
# Boxes (u, v) of the source atlas around its charts for the insides of the head. Whole charts are tested.
_CAVITY_BOX, _SOCKET_BOX = ((0.75, 1.0), (0.0, 0.145)), ((0.0, 0.16), (0.54, 0.64))
_PART_REGION = {
    "helper-l-eye": "left_eyeball",
    "helper-r-eye": "right_eyeball",
    "helper-upper-teeth": "upper_teeth",
    "helper-lower-teeth": "lower_teeth",
    "helper-tongue": "tongue",
}


def head_insides(mesh: BaseMesh, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(F,) bool each: the mouth cavity and the eye sockets."""
    chart = charts(mesh.uv_faces)
    centre = mesh.uv[mesh.uv_faces].mean(1)
    on_head = weights[:, [JOINTS.index("head"), JOINTS.index("jaw")]].sum(1)[mesh.faces].mean(1) > 0.5
    out = []
    for (u0, u1), (v0, v1) in (_CAVITY_BOX, _SOCKET_BOX):
        inside = (
            (centre[:, 0] > u0) & (centre[:, 0] < u1) & (centre[:, 1] > v0) & (centre[:, 1] < v1) & on_head
        )
        members = [c for c in np.unique(chart[inside]) if inside[chart == c].all()]
        out.append(np.isin(chart, members) & (mesh.part == 0))
    return out[0], out[1]


def charts(uv_faces: np.ndarray) -> np.ndarray:
    """(F,) number of the connected piece of the atlas that each face belongs to."""
    rows = np.concatenate([uv_faces[:, 0], uv_faces[:, 1]])
    cols = np.concatenate([uv_faces[:, 1], uv_faces[:, 2]])
    count = uv_faces.max() + 1
    _, labels = connected_components(
        coo_matrix((np.ones(len(rows)), (rows, cols)), shape=(count, count)), False
    )
    return labels[uv_faces[:, 0]]


def face_regions(mesh: BaseMesh, models: Models, landmark_positions: np.ndarray) -> np.ndarray:
    """(F,) index into ``REGIONS``.

    Args:
        landmark_positions: (478, 3) in the head's frame; the face is what FaceMesh's oval encloses.
    """
    weights = models.body.weights
    score = np.zeros((len(weights), len(REGIONS)))

    def add(region: str, *joints: str) -> None:
        score[:, REGIONS.index(region)] += weights[:, [JOINTS.index(j) for j in joints]].sum(1)

    add("torso", "pelvis", "spine1", "spine2", "spine3", "left_collar", "right_collar")
    add("neck", "neck")
    add("scalp", "head", "jaw", "left_eye_smplhf", "right_eye_smplhf")
    for side in SIDES:
        add(f"{side}_arm", f"{side}_shoulder", f"{side}_elbow")
        add(f"{side}_hand", f"{side}_wrist", *[f"{side}_{f}{k}" for f in FINGERS for k in (1, 2, 3)])
        add("legs", *[f"{side}_{j}" for j in ("hip", "knee", "ankle", "foot")])
    edges = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    near = coo_matrix((np.ones(len(edges)), edges.T), shape=(len(weights),) * 2)
    near = (near + near.T).tocsr()
    near = diags(1 / np.asarray(near.sum(1)).ravel()) @ near
    for _ in range(6):  # straighter borders
        score = 0.5 * (score + near @ score)
    # The two triangles of a quad go together, so that borders follow edge loops.
    half = len(mesh.faces) // 2
    quads = np.concatenate([mesh.faces[:half], mesh.faces[half:, 2:]], 1)
    region = score[quads].mean(1).argmax(1)

    slot = np.full(len(mesh.used), -1)
    slot[models.head_vertex_ids] = np.arange(len(models.head_vertex_ids))
    on_head = (slot[quads] >= 0).all(1) & np.isin(region, [REGIONS.index("scalp"), REGIONS.index("neck")])
    centre = models.head.v_template[slot[quads[on_head]]].mean(1)
    oval = _sphere(landmark_positions[list(OVAL)])
    oval = 0.5 * (oval + oval[-np.arange(len(oval))] * [-1, 1])
    oval = oval[ConvexHull(oval).vertices]
    middle = np.array([0.0, 0.5 * (oval[:, 1].min() + oval[:, 1].max())])
    oval = middle + (oval - middle) * 1.04
    inside = _inside(_sphere(centre), oval) & (centre[:, 2] > -0.07)
    region[np.where(on_head)[0][inside]] = REGIONS.index("face")

    region = np.concatenate([region, region])
    # The source's hand charts decide where a hand begins: no sliver of another chart belongs to it.
    chart = charts(mesh.uv_faces)
    for side in SIDES:
        hand, arm = REGIONS.index(f"{side}_hand"), REGIONS.index(f"{side}_arm")
        for c in np.unique(chart[region == hand]):
            mine = chart == c
            if (region[mine] == hand).mean() > 0.5:
                region[mine] = hand
            else:
                region[mine & (region == hand)] = arm
    cavity, sockets = head_insides(mesh, weights)
    region[cavity], region[sockets] = REGIONS.index("mouth_cavity"), REGIONS.index("eye_sockets")
    for part, name in _PART_REGION.items():
        region[mesh.part == PARTS.index(part)] = REGIONS.index(name)
    return _without_crumbs(mesh, region)


def _sphere(points: np.ndarray) -> np.ndarray:
    """Azimuth and elevation about the middle of the head."""
    x, y, z = (points - [0, -0.01, -0.08]).T
    return np.stack([np.arctan2(x, z), np.arctan2(y, np.hypot(x, z))], 1)


def _inside(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Even-odd rule."""
    inside = np.zeros(len(points), bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        crosses = (y0 > points[:, 1]) != (y1 > points[:, 1])
        at = x0 + (points[:, 1] - y0) * (x1 - x0) / np.where(y1 == y0, 1e-12, y1 - y0)
        inside ^= crosses & (points[:, 0] < at)
    return inside


def _without_crumbs(mesh: BaseMesh, region: np.ndarray, smallest: int = 40) -> np.ndarray:
    """Small pieces cut off from their region join the region around them."""
    region = region.copy()
    for _ in range(3):
        for r in range(len(REGIONS)):
            members = np.where(region == r)[0]
            if REGIONS[r] in _PART_REGION.values() or not len(members):
                continue
            labels = charts(mesh.faces[members])
            for label, size in zip(*np.unique(labels, return_counts=True), strict=True):
                if size < smallest:
                    piece = members[labels == label]
                    corners = np.isin(mesh.faces, mesh.faces[piece])
                    around = np.where((corners.sum(1) >= 2) & (region != r) & (mesh.part == 0))[0]
                    if len(around):
                        region[piece] = np.bincount(region[around]).argmax()
    return region


def surface_points(
    wheel: Wheel, mesh: BaseMesh, models: Models, landmark_positions: np.ndarray
) -> dict[str, int]:
    """Named vertices: fingertips, ears, nose tip, chin, mouth and eye corners, top of the head, heels and
    toes."""
    vertices, weights = models.body.v_template, models.body.weights
    head = models.head.v_template
    part = np.zeros(len(vertices), int)
    part[mesh.faces] = mesh.part[:, None]
    points: dict[str, int] = {}

    def both(name: str, left: int) -> None:
        points[f"left_{name}"], points[f"right_{name}"] = int(left), int(models.mirror[left])

    for finger in FINGERS:
        j = JOINTS.index(f"left_{finger}3")
        members = np.where(weights[:, j] > 0.5)[0]
        distance = np.linalg.norm(vertices[members] - models.body.joints_template[j], axis=1)
        both(f"{finger}_tip", members[distance.argmax()])
    skin = np.where(part[models.head_vertex_ids] == 0)[0]

    def at(position: np.ndarray) -> int:
        return int(models.head_vertex_ids[skin[np.linalg.norm(head[skin] - position, axis=1).argmin()]])

    # MediaPipe's and COCO's ear point is the middle of the ear: what the ear's size target moves.
    moved = wheel.target("mpfb2/targets/ears/l-ear-scale-incr.target.gz", len(mesh.vertices))[mesh.used]
    ear = np.linalg.norm(moved[models.head_vertex_ids], axis=1) > 1e-3
    middle = head[ear].mean(0)
    outer = np.where(ear & (np.linalg.norm(head - middle, axis=1) < 0.02))[0]
    both("ear", models.head_vertex_ids[outer[head[outer, 0].argmax()]])
    both("mouth_corner", at(landmark_positions[291]))
    both("eye_inner", at(landmark_positions[362]))
    both("eye_outer", at(landmark_positions[263]))
    central = skin[np.abs(head[skin, 0]) < 0.004]
    points["nose_tip"] = int(models.head_vertex_ids[central[head[central, 2].argmax()]])
    points["head_top"] = int(models.head_vertex_ids[central[head[central, 1].argmax()]])
    points["chin"] = at(landmark_positions[152])
    foot = np.where(weights[:, [JOINTS.index("left_ankle"), JOINTS.index("left_foot")]].sum(1) > 0.5)[0]
    both("heel", foot[vertices[foot, 2].argmin()])
    both("toe", foot[vertices[foot, 2].argmax()])
    return points
