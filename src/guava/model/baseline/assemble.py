"""Photo + tracked frame -> the learning-free canonical avatar (Sec. 3.2 without a network)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import datetime, timezone

import numpy as np
import torch
from torch import Tensor

from guava import __version__
from guava.avatar import Avatar, Gaussians, Layer, Provenance, SourceView
from guava.avatar.posing import TriangleFrames, bind_to_skin, rig_to_triangles, triangle_frames
from guava.body import EHMOutput, Pose, Template
from guava.camera import Camera
from guava.errors import InputError, NoPersonError, TemplateMismatchError
from guava.model.baseline.displacement import DisplacementConfig, displace
from guava.model.baseline.eyes_and_mouth import finish_face, lid_texels, shut_eyes
from guava.model.baseline.hair import hair_mask, head_window
from guava.model.baseline.matte import SourcePicture, cut_out
from guava.model.baseline.shell import Shell, ShellConfig, pixel_shell
from guava.model.baseline.surface import (
    PosedSurface,
    SurfaceTables,
    displacement_directions,
    pose_template,
    see,
    split_samples,
    surface_tables,
    to_camera,
    to_world,
)
from guava.model.baseline.texture import Projection, Texture, project_texels, texture
from guava.model.stages import Progress, Stages
from guava.photo import Photo
from guava.rotation import matrix_to_quaternion, quaternion_multiply
from guava.tracking.sequence import TrackedSequence

THICKNESS = 4e-4
"""Standard deviation of every disc across its surface, metres."""

SIDES = ("left", "right")

LID_SPLIT = 3
"""Lid texels become so many Gaussians a side."""

STAGES = ("pose", "matte", "hair", "displacement", "texture", "shell", "assemble")


@dataclass(frozen=True)
class BaselineConfig:
    """Settings of the learning-free avatar.

    Attributes:
        texture_size: Side of the UV atlas in texels; one Gaussian a texel.
        work_size: Side of the square picture in which mattes and silhouettes are solved.
        color_size: Side of the picture that colours are taken from, where the photo has so many pixels.
        hair: Look for hair. Without it, hair is whatever lies on the head.
        shell: Add the pixel shell.
        displacement: Settings of the silhouette solve; None leaves the surface bare.
        shell_settings: Settings of the pixel shell.
        disc_size: Standard deviation of a UV Gaussian, in texels.
        min_disc, max_disc: Its limits, metres.
        opacity: Of a UV Gaussian.
        below_picture: Metres of body kept below the photo's lower edge.
    """

    texture_size: int = 512
    work_size: int = 512
    color_size: int = 1024
    hair: bool = True
    shell: bool = True
    displacement: DisplacementConfig | None = field(default_factory=DisplacementConfig)
    shell_settings: ShellConfig = field(default_factory=ShellConfig)
    disc_size: float = 0.62
    min_disc: float = 1e-4
    max_disc: float = 0.006
    opacity: float = 0.96
    below_picture: float = 0.06


def reconstruct_baseline(
    photo: Photo,
    tracked: TrackedSequence,
    *,
    template: Template,
    config: BaselineConfig | None = None,
    frame: int = 0,
    progress: Progress | None = None,
    stages: Stages | None = None,
) -> Avatar:
    """Build an avatar from one picture, without learning and without optimising anything on the picture.

    Args:
        photo: The picture that was tracked (for a clip: frame ``frame`` of it).
        tracked: Its tracked parameters, with the detector's person mask.
        template: The template of ``tracked``.
        config: Settings.
        frame: Which frame of ``tracked`` the photo is.
        progress: Called with (stage, done, total).
        stages: Filled with stage times.

    Raises:
        NoPersonError: The frame is flagged as showing nobody, or the fitted person lies outside the photo.
        TemplateMismatchError: ``tracked`` belongs to another template.
        InputError: ``tracked`` carries no person mask.
    """
    config = config or BaselineConfig()
    stages = stages or Stages(STAGES, progress)
    if tracked.template_hash != template.hash:
        raise TemplateMismatchError(
            f"The tracked parameters belong to another template ({tracked.template_hash[:12]}).",
            f"Track again with the template '{template.name}'.",
        )
    if not bool(tracked.valid[frame]):
        raise NoPersonError(f"Nobody was tracked in frame {frame} of '{tracked.media.name}'.")

    with stages("pose"):
        tables = surface_tables(template, config.texture_size)
        pose, identity = tracked.pose[frame : frame + 1], tracked.identity
        posed = pose_template(template, identity, pose)
        rest = pose_template(template, identity, Pose.rest(template))
        shut = pose_template(template, identity, shut_eyes(template))
        source_camera = tracked.camera[frame]
        camera = source_camera.resized(config.work_size, config.work_size)
        vertices = to_camera(posed.vertices[0], camera)
        shown_hands = hands_seen(tracked, frame)
        guessed = guessed_faces(tracked, tables, frame)
        bare = see(vertices, tables, camera, guessed)
        if bare.covered.sum() < 200:
            raise NoPersonError("The fitted person lies outside the photo.")

    with stages("matte"):
        picture = matte_person(photo, tracked, bare, tables, config, frame)

    with stages("hair"):
        hair = hair_mask(picture, bare, tables) if config.hair else np.zeros_like(bare.covered)

    with stages("displacement"):
        surface = bare
        if config.displacement is not None:
            directions = displacement_directions(bare.normals, tables)
            offsets = displace(
                vertices, directions, picture.alpha, picture.inside, camera, tables,
                config.displacement, guessed,
            )
            surface = see(vertices + offsets[:, None] * directions, tables, camera, guessed)

    with stages("texture"):
        fine_size = picture.fine_image.shape[0]
        fine = see(surface.vertices, tables, camera.resized(fine_size, fine_size), guessed)
        projection = project_texels(picture, surface, fine, tables)
        skin = texture(picture, surface, tables, projection, hair, shown_hands)
        colors = finish_face(skin, projection, fine, tables)

    with stages("shell"):
        shell = pixel_shell(picture, surface, tables, hair, config.shell_settings) if config.shell else None

    with stages("assemble"):
        kept = kept_texels(projection, tables, config)
        parts = [
            uv_gaussians(surface.vertices, posed, rest, shut, colors, kept, tables, camera, config),
        ]
        if shell is not None and len(shell.points):
            parts.append(shell_gaussians(shell, posed, camera, config))
        gaussians = Gaussians.concatenate(*parts)
        weight = gaussians.opacities
        seen = float((weight * gaussians.observed).sum() / weight.sum().clamp(min=1e-6))
        provenance = Provenance(
            generator="baseline",
            settings=dataclasses.asdict(config),
            software=f"guava-avatar {__version__}",
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            observed_fraction=seen,
            notes=(*photo.notes, *tracked.quality.notes, *picture.notes),
        )
        source = SourceView(
            pose,
            source_camera,
            tracked.crop_from_image[frame],
            photo.width,
            photo.height,
            photo.sha256 or tracked.media.sha256,
            photo.name or tracked.media.name,
            hands_seen=shown_hands,
        )
    return Avatar(
        gaussians, identity, template.hash, source, provenance, template_name=template.name
    )


def hands_seen(tracked: TrackedSequence, frame: int) -> tuple[bool, bool]:
    """Left and right: whether the detector found that hand. Without any keypoints (a render's truth) both
    hands are where they are said to be."""
    if not tracked.keypoints:
        return True, True
    left, right = (
        f"{side}_hand" in tracked.keypoints
        and bool((tracked.keypoints[f"{side}_hand"].confidence[frame] > 0).any())
        for side in SIDES
    )
    return left, right


def guessed_faces(tracked: TrackedSequence, tables: SurfaceTables, frame: int = 0) -> np.ndarray:
    """(F,) bool: hands that were not seen. Their place is a guess, which must not cover what the photo
    shows."""
    seen = zip(SIDES, hands_seen(tracked, frame), strict=True)
    return tables.faces_of(*(f"{side}_hand" for side, shown in seen if not shown))


def matte_person(
    photo: Photo,
    tracked: TrackedSequence,
    bare: PosedSurface,
    tables: SurfaceTables,
    config: BaselineConfig,
    frame: int = 0,
) -> SourcePicture:
    """Cut the tracked person out of the photo, guided by the fitted mesh.

    Raises:
        InputError: ``tracked`` carries no person mask.
    """
    if tracked.masks is None:
        raise InputError("The tracked parameters carry no person mask.", "Track the photo again with masks.")
    size = config.work_size
    zoom = size / tracked.camera.width
    probability = torch.nn.functional.interpolate(
        tracked.masks[frame].float()[None, None] / 255,
        size=(size, size),
        mode="bilinear",
        align_corners=False,
    )[0, 0].numpy()
    crop_from_image = np.diag([zoom, zoom, 1.0]) @ tracked.crop_from_image[frame].double().numpy()
    return cut_out(
        photo.pixels,
        crop_from_image,
        size,
        config.color_size,
        probability,
        bare.covered,
        head_window(bare, tables),
        photo.alpha,
    )


def kept_texels(projection: Projection, tables: SurfaceTables, config: BaselineConfig) -> np.ndarray:
    """(N,) bool: all but the body far below the photo's lower edge, which nobody has seen."""
    rest_height = tables.texel_rest[:, 1]
    trunk = tables.texels_of("torso", "legs")
    shown = trunk & projection.inside
    if not shown.any():
        shown = tables.texels_of("neck", "face")
    lowest = rest_height[shown].min() - config.below_picture
    return ~trunk | (rest_height >= lowest)


def uv_gaussians(
    displaced: np.ndarray,
    posed: EHMOutput,
    rest: EHMOutput,
    shut: EHMOutput,
    colors: Texture,
    kept: np.ndarray,
    tables: SurfaceTables,
    camera: Camera,
    config: BaselineConfig,
) -> Gaussians:
    """One disc a texel, rigged to its triangle (Eq. 3).

    The discs are laid on the displaced surface in the photo's pose, where it was solved, so that the photo's
    own view is exact, and carried to the rest pose by the rig.

    Args:
        displaced: (V, 3) displaced vertices, camera coordinates.
        posed, rest: The EHM in the photo's pose and in the identity's rest pose.
        shut: The EHM in the rest pose with shut eyes.
        colors: Of all N texels.
        kept: (N,) bool.
        tables: The template's tables.
        camera: Of the working picture.
        config: Settings.
    """
    world = to_world(displaced, camera)
    # Discs beside a seam of the atlas reach over it, or the seam shows.
    size = config.disc_size * tables.texel_size * np.where(tables.texel_border, 1.5, 1.0)
    lid = lid_texels(tables).share > 0
    open_skin = np.nonzero(kept & ~lid)[0]
    parts = [(open_skin, tables.texel_barycentrics[open_skin], size[open_skin], posed, world)]
    lids = np.nonzero(kept & lid)[0]
    if len(lids):
        # Shut lids are stretched several times: finer discs, sized for shut eyes, cover them without covering
        # open eyes.
        index = np.repeat(lids, LID_SPLIT**2)
        _, barycentrics = split_samples(
            tables.texel_face[lids], tables.texel_barycentrics[lids], LID_SPLIT, tables.texel_jacobian
        )
        parts.append((index, barycentrics, size[index] / LID_SPLIT, shut, shut.vertices[0].double().numpy()))

    faces = tables.template.faces
    vertices = posed.vertices[0]
    frames = triangle_frames(vertices, faces, "mean_edge")
    out = []
    for index, barycentrics, disc_size, shape, shape_surface in parts:
        face_ids = tables.texel_face[index]
        ids, weights = torch.from_numpy(face_ids), torch.from_numpy(barycentrics).float()
        # The arm from the undisplaced surface, taken between differences: world coordinates are ten metres
        # off.
        arm = world[tables.faces[face_ids]] - vertices.double().numpy()[tables.faces[face_ids]]
        arm = torch.from_numpy(np.einsum("nk,nkc->nc", barycentrics, arm)).float()
        sigma = frames.sigma[ids].clamp(min=1e-9)[:, None]
        local = (arm[:, None] @ frames.rotation[ids])[:, 0] / sigma
        shape_frames = frames if shape is posed else triangle_frames(shape.vertices[0], faces, "mean_edge")
        turn, scale = _discs_in_frames(shape_surface, shape_frames, tables, face_ids, disc_size, config)
        out.append(
            rig_to_triangles(
                rest.vertices[0],
                faces,
                ids,
                weights,
                local_offset=local,
                rotations=turn,
                scales=scale,
                opacities=torch.full((len(ids),), config.opacity),
                features=torch.from_numpy(colors.colors[index]).float(),
                layer=Layer.UV,
                observed=torch.from_numpy(colors.observed[index]),
            )
        )
    return Gaussians.concatenate(*out)


def _discs_in_frames(
    vertices: np.ndarray,
    frames: TriangleFrames,
    tables: SurfaceTables,
    face_ids: np.ndarray,
    size: np.ndarray,
    config: BaselineConfig,
) -> tuple[Tensor, Tensor]:
    """Discs that tile a mesh (V, 3), as quaternions (n, 4) in and scales (n, 3) in units of the frames of all
    F triangles."""
    # All texels of a triangle make the same steps.
    steps = tables.texel_jacobian @ vertices[tables.faces]
    ids = torch.from_numpy(face_ids)
    rotation, unit = discs(steps, 1.0, np.inf)
    turn = quaternion_multiply(
        _conjugate(matrix_to_quaternion(frames.rotation)),
        matrix_to_quaternion(torch.from_numpy(rotation).float()),
    )
    extent = np.clip(unit[face_ids, :2] * size[:, None], config.min_disc, config.max_disc)
    scale = np.concatenate([extent, np.full((len(extent), 1), THICKNESS)], 1)
    return turn[ids], torch.from_numpy(scale).float() / frames.sigma[ids].clamp(min=1e-9)[:, None]


def shell_gaussians(shell: Shell, posed: EHMOutput, camera: Camera, config: BaselineConfig) -> Gaussians:
    """The shell's discs with skinning weights of their own, carried to the rest pose by undoing their
    skinning."""
    rotation_w2c = camera.world_to_camera[:3, :3].double().numpy()
    points = torch.from_numpy(to_world(shell.points, camera))
    rotation, scale = discs(shell.tangents @ rotation_w2c, config.shell_settings.disc_size, config.max_disc)
    weights = torch.from_numpy(shell.weights)
    # The record keeps the largest few weights; undo exactly what posing will do with those.
    bound = bind_to_skin(
        points.float(),
        weights.float(),
        rotations=matrix_to_quaternion(torch.from_numpy(rotation)).float(),
        scales=torch.from_numpy(scale).float(),
        opacities=torch.from_numpy(shell.opacities).float(),
        features=torch.from_numpy(shell.colors).float(),
        layer=Layer.SHELL,
        observed=torch.from_numpy(shell.observed),
    )
    transforms = posed.joint_transforms[0].double()[bound.skin_indices.long()]
    blend = torch.einsum("nk,nkrc->nrc", bound.skin_weights.double(), transforms)
    inverse = torch.linalg.inv(blend[:, :3, :3])
    positions = (inverse @ (points - blend[:, :3, 3])[..., None]).squeeze(-1)
    turned = quaternion_multiply(_conjugate(matrix_to_quaternion(blend[:, :3, :3])), bound.rotations.double())
    return dataclasses.replace(bound, positions=positions.float(), rotations=turned.float())


def discs(steps: np.ndarray, size: float | np.ndarray, largest: float) -> tuple[np.ndarray, np.ndarray]:
    """Flat Gaussians that tile a surface.

    Args:
        steps: (n, 2, 3) one sample to the right and one down along the surface, metres.
        size: Standard deviation in samples, one or (n,).
        largest: Cap of the standard deviation, metres.

    Returns:
        Rotations (n, 3, 3) with the disc's axes as columns, normal last; and scales (n, 3) in metres.
    """
    right, down = steps[:, 0], steps[:, 1]
    normal = np.cross(right, down)
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    flat = length[:, 0] < 1e-14
    normal = np.where(flat[:, None], [0.0, 0.0, 1.0], normal / np.maximum(length, 1e-14))
    width = np.linalg.norm(right, axis=1)
    x = np.where(width[:, None] > 1e-9, right / np.maximum(width, 1e-9)[:, None], [1.0, 0.0, 0.0])
    x = x - (x * normal).sum(1, keepdims=True) * normal
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    y = np.cross(normal, x)
    height = np.maximum(np.abs((down * y).sum(1)), 0.3 * np.linalg.norm(down, axis=1))
    extent = np.stack([np.minimum(size * width, largest), np.minimum(size * height, largest)], 1)
    thin = np.full((len(steps), 1), THICKNESS)
    return np.stack([x, y, normal], -1), np.concatenate([extent, thin], 1)


def _conjugate(quaternion: Tensor) -> Tensor:
    return quaternion * quaternion.new_tensor([1.0, -1, -1, -1])


__all__ = ["STAGES", "BaselineConfig", "guessed_faces", "matte_person", "reconstruct_baseline"]
