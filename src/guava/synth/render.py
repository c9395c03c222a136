"""Pictures of made-up people with everything known about them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from guava.body import EHM, EHMOutput, Identity, Pose, Template
from guava.camera import Camera
from guava.rendering.mesh import rasterize_mesh, vertex_normals
from guava.rendering.threads import KERNEL_LOCK
from guava.synth import shading
from guava.synth.appearance import PAINT_PIXEL
from guava.synth.person import SyntheticPerson
from guava.synth.shading import linear
from guava.synth.surface import FINGERS, SIDES, Surface, surface_of

GARMENT_PART, HAIR_PART = 1000, 1001
"""``SyntheticView.part_ids`` of clothes and locks; smaller ids index ``Template.part_names``."""

_IRIS_ANGLE = 0.40
"""Angular radius of the iris seen from the eyeball's centre, radians."""

_MATERIALS = {
    "torso": shading.BODY,
    "left_arm": shading.BODY,
    "right_arm": shading.BODY,
    "left_hand": shading.HAND,
    "right_hand": shading.HAND,
    "neck": shading.BODY,
    "face": shading.FACE,
    "scalp": shading.SCALP,
    "legs": shading.LEGS,
    "left_eyeball": shading.LEFT_EYE,
    "right_eyeball": shading.RIGHT_EYE,
    "lower_teeth": shading.TEETH,
    "upper_teeth": shading.TEETH,
    "tongue": shading.TONGUE,
    "mouth_cavity": shading.CAVITY,
    "eye_sockets": shading.SOCKET,
}


@dataclass(frozen=True)
class Light:
    """One key light and a hemisphere of fill; linear colours.

    Attributes:
        direction: (3,) unit, world axes, towards the light.
        color: (3,) of the key light.
        sky, ground: (3,) fill from above and below.
    """

    direction: np.ndarray
    color: np.ndarray
    sky: np.ndarray
    ground: np.ndarray


@dataclass(frozen=True)
class SyntheticView:
    """A picture and its truth. H = camera.height, W = camera.width.

    Attributes:
        rgb: (H, W, 3) uint8 sRGB, person over background.
        alpha: (H, W) float32 coverage by the person, clothes and hair included.
        depth: (H, W) float32 metres at one sample of the pixel; infinite off the person.
        part_ids: (H, W) int32: template part, ``GARMENT_PART``, ``HAIR_PART``, or -1.
        body_mask: (H, W) float32 coverage by the bare body alone (what the template can explain).
        pose: B = 1, the truth.
        identity: B = 1, the truth.
        camera: The camera.
        joints3d: (J, 3) float32 posed joints, world.
        vertices: (V, 3) float32 posed body vertices, world.
        gaze: (2, 3) float32 unit vectors, left and right eyeball centre to pupil, world.
        landmarks2d: (478, 2) float32 MediaPipe landmarks projected; trust them by the template's weights.
        hands_visible: (2,) bool: left, right (the person's own): inside the frame and mostly unoccluded.
        hand_visibility: (2,) float32: share of a hand's 21 points that are inside the frame and unoccluded.
        face_visible: The nose is inside the frame and the head turned less than 60 degrees from the camera.
    """

    rgb: np.ndarray
    alpha: np.ndarray
    depth: np.ndarray
    part_ids: np.ndarray
    body_mask: np.ndarray
    pose: Pose
    identity: Identity
    camera: Camera
    joints3d: np.ndarray
    vertices: np.ndarray
    gaze: np.ndarray
    landmarks2d: np.ndarray
    hands_visible: np.ndarray
    hand_visibility: np.ndarray
    face_visible: bool


def sample_light(rng: np.random.Generator) -> Light:
    """A lamp or window before the person, somewhere above; total brightness near that of a good photo."""
    azimuth, elevation = np.radians(np.clip(rng.normal(0, 32), -65, 65)), np.radians(rng.uniform(12, 55))
    direction = np.array(
        [np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)]
    )
    warmth = rng.normal(0, 0.06)
    key = rng.uniform(0.5, 0.9)
    fill = rng.uniform(0.42, 0.75)
    tint = rng.normal(0, 0.04)
    return Light(
        direction,
        key * np.array([1 + warmth, 1, 1 - warmth]),
        fill * np.array([1 - tint, 1, 1 + tint]),
        0.55 * fill * np.array([1.04, 1, 0.95]),
    )


def sample_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width, 3) float32 sRGB: plain walls, gradients, and out-of-focus rooms."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(height, width)
    base = np.clip(rng.uniform(0.15, 0.95) + rng.normal(0, 0.04, 3), 0, 1)
    out = np.broadcast_to(base, (height, width, 3)).astype(np.float32).copy()
    angle, drop = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.35)
    out += (((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)) * drop)[..., None]
    if rng.random() < 0.6:
        for _ in range(int(rng.integers(2, 9))):
            color = np.clip(base + rng.normal(0, 0.14) + rng.normal(0, 0.09, 3), 0, 1)
            cx, cy, w, h = (
                rng.uniform(0, 1),
                rng.uniform(0, 1),
                rng.uniform(0.05, 0.4),
                rng.uniform(0.05, 0.6),
            )
            if rng.random() < 0.7:
                mask = (np.abs(x - cx) < w / 2) & (np.abs(y - cy) < h / 2)
            else:
                mask = (x - cx) ** 2 + (y - cy) ** 2 < (w / 2) ** 2
            out[mask] = color
        out = gaussian_filter(out, (rng.uniform(0.008, 0.03) * width,) * 2 + (0,))
    out += rng.normal(0, 0.012, (height, width, 1)).astype(np.float32)
    return np.clip(out, 0, 1)


def frame_person(
    rng: np.random.Generator,
    person: SyntheticPerson,
    pose: Pose,
    template: Template,
    *,
    kind: str = "upper_body",
    camera: Camera | None = None,
) -> Pose:
    """Place a pose before :meth:`Camera.frontal`, as photographers frame people.

    Args:
        kind: "upper_body" (head to hips; raised hands inside), "head" (head and shoulders) or "full_body"
            (crown to soles).

    Returns:
        The pose with its translation set.
    """
    camera = camera or Camera.frontal()
    output = _model(template)(person.identity, replace(pose, translation=torch.zeros(1, 3)))
    joints = output.joints[0].numpy().astype(float)
    vertices = output.vertices[0].numpy().astype(float)
    top, pelvis, neck = vertices[:, 1].max(), joints[0], joints[template.joint("neck")]
    focal = float(camera.intrinsics[0, 0]) / camera.width
    if kind == "head":
        height = (top - neck[1]) * rng.uniform(1.5, 2.4)
        middle = np.array([joints[template.joint("head")][0], (top + neck[1]) / 2 + rng.uniform(-0.06, 0.02)])
    elif kind == "full_body":
        low, high = vertices.min(0), vertices.max(0)
        height = (high - low)[:2].max() * rng.uniform(1.08, 1.25)
        middle = (low + high)[:2] / 2 + rng.normal(0, 0.015, 2)
    else:
        hands = vertices[torch.cat(template.hand_vertex_ids).numpy()]
        hands = hands[hands[:, 1] > pelvis[1] + 0.1]
        points = (
            np.concatenate([vertices[vertices[:, 1] > neck[1] - 0.02], hands])
            if len(hands)
            else vertices[vertices[:, 1] > neck[1] - 0.02]
        )
        low = pelvis[1] - rng.uniform(-0.12, 0.06)
        margin = rng.uniform(1.08, 1.3)
        width = np.ptp(np.concatenate([points[:, 0], joints[[16, 17], 0]])) * 1.08
        height = max(top - low, width) * margin
        center = (points[:, 0].max() + points[:, 0].min()) / 2
        middle = np.array(
            [0.6 * center + 0.4 * neck[0] + rng.normal(0, 0.02), (top + low) / 2 + rng.normal(0, 0.015)]
        )
    distance = focal * height
    shift = torch.tensor([[-middle[0], -middle[1], -distance - neck[2]]]).float()
    return replace(pose, translation=shift)


_MODELS: dict[str, EHM] = {}


def _model(template: Template) -> EHM:
    if template.hash not in _MODELS:
        _MODELS[template.hash] = EHM(template).requires_grad_(False)
    return _MODELS[template.hash]


@dataclass(frozen=True)
class _Scene:
    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    canonical: np.ndarray
    frontness: np.ndarray
    extra: np.ndarray
    materials: np.ndarray
    part_ids: np.ndarray


def _scene(person: SyntheticPerson, output: EHMOutput, template: Template, surface: Surface) -> _Scene:
    """The body and what is worn, concatenated."""
    vertices = output.vertices[0]
    normals = vertex_normals(vertices, template.faces).numpy()
    body = vertices.numpy()
    materials = np.array([_MATERIALS[n] for n in template.part_names], np.int32)[surface.parts]
    keep = np.ones(len(surface.faces), bool) if person.garment is None else ~person.garment.covered
    layers = [
        (
            body,
            surface.faces[keep],
            normals,
            surface.vertices,
            surface.normals[:, 2],
            np.zeros((len(body), 3), np.float32),
            materials[keep],
            surface.parts[keep],
        )
    ]
    if person.garment is not None:
        garment = person.garment
        v = garment.pose(body, normals).astype(np.float32)
        n = vertex_normals(torch.from_numpy(v), torch.from_numpy(garment.faces).long()).numpy()
        count = len(garment.faces)
        layers.append(
            (
                v,
                garment.faces,
                n,
                garment.canonical,
                np.zeros(len(v), np.float32),
                np.zeros((len(v), 3), np.float32),
                np.full(count, shading.SHIRT, np.int32),
                np.full(count, GARMENT_PART, np.int32),
            )
        )
    if person.hair is not None:
        hair = person.hair
        joints = output.joint_transforms[0].numpy()
        v, n = hair.pose(joints[template.joint("head")], joints[template.joint("spine3")])
        count = len(hair.faces)
        layers.append(
            (
                v,
                hair.faces,
                n,
                hair.vertices,
                np.zeros(len(v), np.float32),
                hair.extra,
                np.full(count, shading.HAIR, np.int32),
                np.full(count, HAIR_PART, np.int32),
            )
        )
    start = np.cumsum([0] + [len(layer[0]) for layer in layers[:-1]])
    faces = np.concatenate([layer[1] + s for layer, s in zip(layers, start, strict=True)]).astype(np.int32)
    v, n, c, front, extra = (
        np.concatenate([layer[k] for layer in layers]).astype(np.float32) for k in (0, 2, 3, 4, 5)
    )
    m, p = (np.concatenate([layer[k] for layer in layers]).astype(np.int32) for k in (6, 7))
    return _Scene(v, faces, n, c, front, extra, m, p)


def render_person(
    person: SyntheticPerson,
    pose: Pose,
    camera: Camera,
    template: Template,
    *,
    background: np.ndarray | tuple[float, float, float] = (1.0, 1.0, 1.0),
    light: Light | None = None,
    supersample: int = 2,
) -> SyntheticView:
    """Draw a person.

    Args:
        person: Who.
        pose: B = 1; ``frame_person`` places it.
        camera: One camera (no batch).
        template: The person's.
        background: (H, W, 3) sRGB in [0, 1], or one colour.
        light: A soft frontal light if None.
        supersample: Samples per pixel side.

    Raises:
        ValueError: The person belongs to another template, or ``pose`` is not one frame.
    """
    if person.template_hash != template.hash:
        raise ValueError("The person was made for another template.")
    if pose.joints.shape[0] != 1:
        raise ValueError(f"render_person draws one frame, got {pose.joints.shape[0]}.")
    surface = surface_of(template)
    light = light or sample_light(np.random.default_rng(0))
    with torch.no_grad():
        output = _model(template)(person.identity, pose)
    body = output.vertices[0]
    scene = _scene(person, output, template, surface)
    large = camera.resized(camera.width * supersample, camera.height * supersample)
    fragments = rasterize_mesh(torch.from_numpy(scene.vertices), torch.from_numpy(scene.faces).long(), large)
    radiance, covered = _shade(person, surface, scene, fragments, large, light)
    s, height, width = supersample, camera.height, camera.width

    def reduce(image: np.ndarray) -> np.ndarray:
        return image.reshape(height, s, width, s, *image.shape[2:]).mean((1, 3))

    alpha = reduce(covered.astype(np.float32))
    back = np.broadcast_to(np.asarray(background, np.float32), (height, width, 3))
    mixed = reduce(shading.displayed(radiance)) + (1 - alpha[..., None]) * back
    rgb = np.clip(mixed * 255 + 0.5, 0, 255).astype(np.uint8)
    middle = s // 2
    face_ids, depth = fragments.face_ids.numpy(), fragments.depth.numpy()
    centre = face_ids[middle::s, middle::s]
    part_ids = np.where(centre >= 0, scene.part_ids[np.maximum(centre, 0)], -1).astype(np.int32)
    bare = rasterize_mesh(body, template.faces, large)

    joints = output.joints[0]
    embedding = template.landmarks["mediapipe478"]
    marks = (body[template.faces[embedding.faces]] * embedding.barycentrics[..., None]).sum(1)
    marks2d, _ = camera.project(marks)
    visibility = np.array(
        [_hand_visibility(output, template, s, camera, depth, supersample) for s in SIDES], np.float32
    )
    nose, nose_depth = camera.project(body[surface_nose(template)][None])
    inside = bool((nose > 0).all() and nose[0, 0] < width and nose[0, 1] < height and nose_depth[0] > 0)
    head = output.joint_transforms[0, template.joint("head"), :3, :3]
    forward = camera.world_to_camera[:3, :3] @ (head @ torch.tensor([0.0, 0.0, 1.0]))
    return SyntheticView(
        rgb=rgb,
        alpha=alpha.astype(np.float32),
        depth=depth[middle::s, middle::s].astype(np.float32),
        part_ids=part_ids,
        body_mask=reduce((bare.face_ids.numpy() >= 0).astype(np.float32)).astype(np.float32),
        pose=pose,
        identity=person.identity,
        camera=camera,
        joints3d=joints.numpy(),
        vertices=body.numpy(),
        gaze=_gaze(body.numpy(), surface),
        landmarks2d=marks2d.numpy().astype(np.float32),
        hands_visible=visibility >= 0.6,
        hand_visibility=visibility,
        face_visible=inside and bool(forward[2] < -0.5),
    )


def surface_nose(template: Template) -> int:
    """A vertex at the tip of the nose."""
    embedding = template.landmarks["mediapipe478"]
    if not float(embedding.weights[4]) > 0:
        surface = surface_of(template)
        return int(np.linalg.norm(surface.vertices - surface.landmarks[4], axis=1).argmin())
    corner = int(embedding.barycentrics[4].argmax())
    return int(template.faces[int(embedding.faces[4]), corner])


def _gaze(vertices: np.ndarray, surface: Surface) -> np.ndarray:
    """World directions of the pupils: the eyeball's rigid motion (Kabsch) applied to its canonical axis."""
    out = np.zeros((2, 3), np.float32)
    for side, part in enumerate(("left_eyeball", "right_eyeball")):
        ids = np.flatnonzero(surface.part_vertices(part))
        a, b = surface.vertices[ids].astype(float), vertices[ids].astype(float)
        u, _, vt = np.linalg.svd((a - a.mean(0)).T @ (b - b.mean(0)))
        flip = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
        axis = surface.eye_axes[side] @ (u @ flip @ vt)
        out[side] = axis / np.linalg.norm(axis)
    return out


def _hand_visibility(output, template, side, camera, depth, s) -> float:
    """Share of a hand's points (wrist, finger joints, fingertips) that the picture shows."""
    names = [f"{side}_wrist"] + [f"{side}_{finger}{k}" for finger in FINGERS for k in (1, 2, 3)]
    points = torch.cat(
        [
            output.joints[0, [template.joint(n) for n in names]],
            output.vertices[0, [template.surface_points[f"{side}_{finger}_tip"] for finger in FINGERS]],
        ]
    )
    pixels, z = camera.project(points)
    x, y = (pixels[:, 0] * s).long().numpy(), (pixels[:, 1] * s).long().numpy()
    inside = (x >= 0) & (y >= 0) & (x < depth.shape[1]) & (y < depth.shape[0])
    seen = np.zeros(len(x), bool)
    # Joints lie inside the flesh and behind the hand's own back, hence the slack.
    seen[inside] = depth[y[inside], x[inside]] > z.numpy()[inside] - 0.045
    return float(seen.mean())


def _shade(person, surface, scene, fragments, camera, light) -> tuple[np.ndarray, np.ndarray]:
    """Linear radiance (H, W, 3), zero off the person, and coverage (H, W) bool, at the supersampled size."""
    look = person.appearance
    ids = fragments.face_ids.numpy()
    shape = ids.shape
    albedo, normal, gloss = (
        np.zeros((*shape, 3), np.float32),
        np.zeros((*shape, 3), np.float32),
        np.zeros((*shape, 2), np.float32),
    )
    eyes = surface.eye_centers.mean(0)
    waist = float(surface.joints[3, 1]) - 0.06
    scalars = np.array(
        [
            look.cover,
            look.hairline,
            look.freckles,
            look.mottle,
            look.gloss,
            eyes[1],
            eyes[2],
            waist,
            _IRIS_ANGLE,
        ]
    )
    cloth_colors = linear(np.stack([look.shirt.colors, look.trousers.colors]))
    cloth_scalars = np.array([[c.scale, c.weave, c.seed, c.pattern] for c in (look.shirt, look.trousers)])
    bary = fragments.barycentrics.numpy()
    with KERNEL_LOCK:
        shading.shade_pixels(
            ids,
            bary,
            scene.faces,
            scene.materials,
            scene.normals,
            scene.canonical,
            scene.frontness,
            scene.extra,
            shading.NOISE_LATTICE,
            look.noise_offset,
            linear(look.skin),
            linear(look.lips),
            linear(look.brow),
            linear(look.hair),
            linear(look.iris),
            linear(look.sclera),
            linear(look.nail),
            scalars,
            cloth_colors,
            cloth_scalars,
            look.paint,
            look.paint_origin,
            PAINT_PIXEL,
            surface.eye_centers.astype(float),
            surface.eye_axes.astype(float),
            surface.nails.reshape(10, 4, 3).astype(float),
            _knuckles(surface),
            np.array([eyes[1], surface.landmarks[13, 2]]),
            albedo,
            normal,
            gloss,
        )
    covered = ids >= 0
    depth = np.where(covered, fragments.depth.numpy(), 0)
    occlusion = _occlusion(depth, covered, float(camera.intrinsics[0, 0]))
    # World points from depth: the camera is rigid.
    k, w2c = camera.intrinsics.double().numpy(), camera.world_to_camera.double().numpy()
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]] + 0.5
    cam = np.stack([(x - k[0, 2]) / k[0, 0] * depth, (y - k[1, 2]) / k[1, 1] * depth, depth], -1)
    points = ((cam - w2c[:3, 3]) @ w2c[:3, :3]).astype(np.float32)
    # The lighting kernel's viewer looks along -z: turn normals and light into its axes (y up, z back).
    to_view = np.diag([1.0, -1.0, -1.0]) @ w2c[:3, :3]
    shadow, matrix = _shadow_map(scene, light.direction)
    out = np.zeros((*shape, 3), np.float32)
    with KERNEL_LOCK:
        shading.light_pixels(
            ids,
            scene.materials,
            albedo,
            (normal @ to_view.T).astype(np.float32),
            gloss,
            occlusion,
            points,
            to_view @ light.direction,
            light.color,
            light.sky,
            light.ground,
            shadow,
            matrix,
            0.006,
            np.array([0.42, 0.2, 0.14]),
            out,
        )
    return out, covered


def _knuckles(surface: Surface) -> np.ndarray:
    """(30, 7): finger joints, bone direction, crease strength; canonical."""
    names = [f"{side}_{finger}{k}" for side in SIDES for finger in FINGERS for k in (1, 2, 3)]
    order = {n: i for i, n in enumerate(_HAND_JOINTS)}
    rows = []
    for name in names:
        here = surface.joints[order[name]].astype(float)
        last = name.endswith("3")
        other = surface.joints[order[name[:-1] + ("2" if last else str(int(name[-1]) + 1))]].astype(float)
        bone = (here - other) if last else (other - here)
        rows.append([*here, *(bone / np.linalg.norm(bone)), 0.35 if name.endswith("1") else 1.0])
    return np.array(rows)


_HAND_JOINTS = tuple(
    [None] * 25
    + [
        f"{side}_{finger}{k}"
        for side in SIDES
        for finger in ("index", "middle", "pinky", "ring", "thumb")
        for k in (1, 2, 3)
    ]
)
"""Hand joints at their place in SMPL-X order."""


def _occlusion(depth: np.ndarray, covered: np.ndarray, focal: float) -> np.ndarray:
    """Ambient light that reaches each pixel, [0, 1]: less where the neighbourhood is nearer."""
    if not covered.any():
        return np.ones(depth.shape, np.float32)
    rows, columns = depth.shape
    scale = focal / float(np.median(depth[covered]))  # pixels per metre
    weight = covered.astype(np.float32)
    log = np.zeros(depth.shape, np.float32)
    for radius, strength, stride in ((0.004, 70.0, 1), (0.015, 16.0, 2)):
        near, known = (depth * weight)[::stride, ::stride].astype(np.float32), weight[::stride, ::stride]
        sigma = max(0.7, radius * scale / stride)
        mean = gaussian_filter(near, sigma, truncate=2.0) / np.maximum(
            gaussian_filter(known, sigma, truncate=2.0), 1e-4
        )
        mean = mean.repeat(stride, 0).repeat(stride, 1)[:rows, :columns]
        log -= strength * np.clip(depth - mean, 0, 0.03)
    out = np.exp(log)
    return np.maximum(out, 0.12)


def _shadow_map(scene: _Scene, direction: np.ndarray, size: int = 640) -> tuple[np.ndarray, np.ndarray]:
    """Depth from a distant light and the (3, 4) map from world to its pixels and depth."""
    upper = scene.vertices[scene.canonical[:, 1] > -0.3]
    middle = (upper.max(0) + upper.min(0)).astype(float) / 2
    forward = -direction / np.linalg.norm(direction)
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    radius = float(np.abs((upper - middle) @ rotation.T)[:, :2].max()) * 1.02
    far = 200.0  # so distant that its rays are parallel
    w2c = torch.eye(4, dtype=torch.float64)
    w2c[:3, :3] = torch.from_numpy(rotation)
    w2c[:3, 3] = torch.from_numpy(-rotation @ middle + [0, 0, far])
    focal = far * size / (2 * radius)
    intrinsics = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], dtype=torch.float64)
    camera = Camera(w2c, intrinsics, size, size)
    fragments = rasterize_mesh(torch.from_numpy(scene.vertices), torch.from_numpy(scene.faces).long(), camera)
    matrix = np.zeros((3, 4))
    matrix[:2, :3], matrix[2, :3] = rotation[:2] * focal / far, rotation[2]
    matrix[:, 3] = [size / 2, size / 2, far] - matrix[:, :3] @ middle
    return fragments.depth.numpy(), matrix
