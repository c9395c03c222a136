"""What the renders need to know about the template's surface, in its own canonical coordinates.

Canonical coordinates are the mean person's rest pose with a neutral face: a colour that is a function of them
moves with the skin. Everything here is looked up by part, joint and landmark names, never by vertex number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from guava.body import EHM, Identity, Pose, Template, load_template
from guava.rendering.mesh import vertex_normals

EYE_PARTS = ("left_eyeball", "right_eyeball")
FINGERS = ("thumb", "index", "middle", "ring", "pinky")
SIDES = ("left", "right")


@dataclass(frozen=True)
class Surface:
    """Canonical tables of one template.

    Attributes:
        vertices: (V, 3) float32 canonical positions.
        normals: (V, 3) float32.
        faces: (F, 3) int32.
        parts: (F,) int32 index into ``part_names``.
        part_names: Of the template.
        joints: (J, 3) float32 rest joints.
        landmarks: (478, 3) float32 MediaPipe landmarks; those that the template does not know are about
            where the open template has them.
        landmark_weights: (478,) float32.
        eye_centers: (2, 3) left and right eyeball centres (spheres fitted to the eyeball's back half).
        eye_axes: (2, 3) unit, centre to pupil.
        finger_axes: (2, 5, 3, 3) per side, finger and phalanx the rotation axis that curls it to the palm.
        palm_normals: (2, 3) out of the palms.
        nails: (2, 5, 4, 3) per side and finger: nail centre, finger direction, outward normal, and half sizes
            (length, width, thickness) in metres.
        head_scalp: (V,) float32, 1 on vertices of the part "scalp".
    """

    vertices: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    parts: np.ndarray
    part_names: tuple[str, ...]
    joints: np.ndarray
    landmarks: np.ndarray
    landmark_weights: np.ndarray
    eye_centers: np.ndarray
    eye_axes: np.ndarray
    finger_axes: np.ndarray
    palm_normals: np.ndarray
    nails: np.ndarray
    head_scalp: np.ndarray

    def part_faces(self, *names: str) -> np.ndarray:
        """(F,) bool: the faces of the named parts; names that the template lacks are skipped."""
        wanted = [self.part_names.index(name) for name in names if name in self.part_names]
        return np.isin(self.parts, wanted)

    def part_vertices(self, *names: str) -> np.ndarray:
        """(V,) bool: vertices with a face in the named parts."""
        out = np.zeros(len(self.vertices), bool)
        out[self.faces[self.part_faces(*names)].ravel()] = True
        return out


def _carried_over(landmarks: np.ndarray, placed: np.ndarray) -> np.ndarray:
    """The open template's landmarks that are not ``placed``, moved as those that are (thin-plate spline)."""
    from scipy.interpolate import RBFInterpolator

    known = surface_of(load_template()).landmarks
    warp = RBFInterpolator(known[placed], landmarks[placed], kernel="thin_plate_spline", smoothing=1e-6)
    return warp(known[~placed]).astype(np.float32)


@lru_cache(maxsize=2)
def _surface(holder: _Holder) -> Surface:
    template = holder.template
    with torch.no_grad():
        output = EHM(template)(Identity.neutral(template), Pose.rest(template))
    vertices = output.vertices[0]
    normals = vertex_normals(vertices, template.faces)
    v, n = vertices.numpy().astype(np.float32), normals.numpy().astype(np.float32)
    faces = template.faces.numpy().astype(np.int32)
    parts = template.face_parts.numpy().astype(np.int32)
    joints = output.joints[0].numpy().astype(np.float32)
    embedding = template.landmarks["mediapipe478"]
    corners = vertices[template.faces[embedding.faces]]
    landmarks = (corners * embedding.barycentrics[..., None]).sum(1).numpy().astype(np.float32)
    placed = embedding.weights.numpy() > 0
    if not placed.all():
        landmarks[~placed] = _carried_over(landmarks, placed)

    centers, axes = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)
    for side, (part, iris) in enumerate(zip(EYE_PARTS, (473, 468), strict=True)):
        ball = v[np.unique(faces[parts == template.part_names.index(part)])]
        back = ball[ball[:, 2] < ball[:, 2].mean()]
        system = np.concatenate([2 * back, np.ones((len(back), 1))], 1)
        centers[side] = np.linalg.lstsq(system, (back**2).sum(1), rcond=None)[0][:3]
        axis = landmarks[iris] - centers[side]
        axes[side] = axis / np.linalg.norm(axis)

    curl, palms, nails = (
        np.zeros((2, 5, 3, 3), np.float32),
        np.zeros((2, 3), np.float32),
        np.zeros((2, 5, 4, 3), np.float32),
    )
    for s, side in enumerate(SIDES):
        wrist, index, pinky = (joints[template.joint(f"{side}_{x}")] for x in ("wrist", "index1", "pinky1"))
        palm = np.cross(index - wrist, pinky - wrist) * (1 if side == "left" else -1)
        palm /= np.linalg.norm(palm)
        if palm[1] > 0:  # the palms look down in the T pose
            palm = -palm
        palms[s] = palm
        for f, finger in enumerate(FINGERS):
            chain = [joints[template.joint(f"{side}_{finger}{k}")] for k in (1, 2, 3)]
            tip = v[template.surface_points[f"{side}_{finger}_tip"]]
            chain.append(tip)
            towards = palm
            if finger == "thumb":  # the thumb folds across the palm, towards the little finger's root
                towards = 0.5 * palm + 0.9 * (pinky - index) / np.linalg.norm(pinky - index)
            for k in range(3):
                bone = chain[k + 1] - chain[k]
                axis = np.cross(bone, towards)
                curl[s, f, k] = axis / np.linalg.norm(axis)
            bone = (tip - chain[2]) / np.linalg.norm(tip - chain[2])
            outward = -np.cross(curl[s, f, 2], bone)
            outward /= np.linalg.norm(outward)
            near = np.linalg.norm(v - (tip - 0.007 * bone), axis=1) < 0.012
            height = ((v[near] - tip) @ outward).max() if near.any() else 0.004
            width = 0.0065 if finger == "thumb" else 0.0045 if finger == "pinky" else 0.0052
            nails[s, f] = tip - 0.0065 * bone + height * outward, bone, outward, (0.0065, width, 0.005)

    scalp = np.zeros(len(v), np.float32)
    scalp[np.unique(faces[parts == template.part_names.index("scalp")])] = 1
    return Surface(
        v,
        n,
        faces,
        parts,
        template.part_names,
        joints,
        landmarks,
        embedding.weights.numpy().astype(np.float32),
        centers,
        axes,
        curl,
        palms,
        nails,
        scalp,
    )


class _Holder:
    """Lets a template, which holds tensors, be a cache key by its hash."""

    def __init__(self, template: Template):
        self.template = template

    def __hash__(self):
        return hash(self.template.hash)

    def __eq__(self, other):
        return self.template.hash == other.template.hash


def surface_of(template: Template) -> Surface:
    """The template's canonical surface; computed once per template hash."""
    return _surface(_Holder(template))
