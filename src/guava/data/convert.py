"""A clip of the authors' data as a :class:`TrackedSequence` of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from guava.body import Template
from guava.data.parameters import ModelSizes, clip_camera, clip_identity, clip_pose, part_corners
from guava.data.release import CROP_SIZE, ReleaseClip, tell
from guava.errors import FileFormatError
from guava.tracking.crop import points_box
from guava.tracking.sequence import FitQuality, Keypoints, SourceMedia, TrackedSequence

DEFAULT_FPS = 30.0
"""Frames a second where the caller knows no better: the release records none, its own videos have 30."""
SEEN = 0.3
"""DWPose points with a lower score were set to (-1, -1) by the tracker: they are no coordinates."""
HAND_IN_VIEW = 0.45
"""Mean score of a hand's points below which the authors kept no training frame."""

_BODY, _FACE, _HANDS = slice(0, 18), slice(24, 92), (slice(92, 113), slice(113, 134))
_FIRST_BATCH = 1024
_NAMES = ("head", "left hand", "right hand")


def to_tracked_sequence(
    clip: ReleaseClip,
    template: Template,
    *,
    frames: Sequence[str] | None = None,
    fps: float | None = None,
    picture: Literal["original", "crop"] = "original",
    masks: bool = False,
) -> TrackedSequence:
    """Parameters, cameras, crops and keypoints of a clip, in Guava's records.

    The crop is the release's 1024 body crop, and so are all pixel quantities. What the release does not
    record is said in ``quality.notes``: original frame numbers, times and cuts, and any fit quality (NaN).

    Args:
        clip: Of :meth:`ReleaseDataset.clip`.
        template: "smplx-flame".
        frames: Which frames; all if left out.
        fps: Frames a second if you know them; :data:`DEFAULT_FPS` otherwise, 0 for one frame.
        picture: Which pictures ``crop_from_image`` maps from: the original ones, or the crops that the set
            holds (:meth:`ReleaseClip.photo`), for which it is the identity.
        masks: Also read the person masks (a megabyte a frame).

    Returns:
        A sequence in which damaged frames are flagged invalid. "face" has the 68 iBUG points, "body" the 18
        of OpenPose; both come with the single-clip folders only. Without them boxes are those of the
        release's part crops, which are wider.

    Raises:
        InputError: The clip has no such frame, or masks are wanted and there are no pictures.
        FileFormatError: No frame is usable, or a mask is missing or damaged.
        TemplateMismatchError: The template is not made of SMPL-X and FLAME.
    """
    sizes = ModelSizes.of(template)
    rows = np.arange(len(clip)) if frames is None else np.array([clip.row(f) for f in frames], np.int64)
    valid = clip.usable[rows]
    if not valid.any():
        first = f": {clip.damage[0]}" if clip.damage else ""
        raise FileFormatError(f"No frame of the clip '{clip.name}' is usable{first}.")
    count = len(rows)
    known = np.flatnonzero(valid)
    nearest = rows[known[np.abs(np.arange(count)[:, None] - known[None]).argmin(1)]]
    rate = 0.0 if count == 1 else float(fps or DEFAULT_FPS)
    crop = torch.from_numpy(clip.body_crop[nearest]).float()
    media = SourceMedia(clip.name, "", *_original_size(clip, nearest))
    if picture == "crop":
        crop = torch.eye(3).expand(count, 3, 3).clone()
        media = replace(media, width=CROP_SIZE, height=CROP_SIZE)
    keypoints, face_boxes, hand_boxes = _points_and_boxes(clip, rows, valid)
    blank = torch.full((count,), torch.nan)
    pixels = None
    if masks:
        pixels = torch.stack([_mask(clip, row, ok) for row, ok in zip(rows, valid, strict=True)])
    return TrackedSequence(
        identity=clip_identity(clip, sizes),
        pose=clip_pose(clip, nearest, sizes),
        camera=clip_camera(clip, nearest),
        fps=rate,
        timestamps=torch.arange(count, dtype=torch.float64) / (rate or 1.0),
        frame_indices=torch.tensor([_number(clip.frames[row], row) for row in rows], dtype=torch.int64),
        valid=torch.from_numpy(valid.copy()),
        shots=torch.zeros(count, dtype=torch.int64),
        crop_from_image=crop,
        face_boxes=face_boxes,
        hand_boxes=hand_boxes,
        keypoints=keypoints,
        quality=FitQuality(
            blank, torch.full((count, 2), torch.nan), blank, blank, _notes(clip, rows, valid, fps, media)
        ),
        media=media,
        template_hash=template.hash,
        template_name=template.name,
        expression_names=template.expression_names,
        detector="ehm-tracker",
        masks=pixels,
    )


def _number(frame: str, row: int) -> int:
    """The number in a key such as "frame_000012"; the row where there is none."""
    digits = frame.rpartition("_")[2]
    return int(digits) if digits.isdecimal() and len(digits) < 18 else int(row)


def _original_size(clip: ReleaseClip, rows: np.ndarray) -> tuple[int, int]:
    return clip.original_size(clip.frames[int(rows[0])]) or (0, 0)


def _mask(clip: ReleaseClip, row: int, usable: bool) -> Tensor:
    if not usable:
        return torch.zeros(CROP_SIZE, CROP_SIZE, dtype=torch.uint8)
    frame = clip.frames[row]
    mask = clip.mask(frame)
    if mask.shape != (CROP_SIZE, CROP_SIZE):
        raise FileFormatError(
            f"The picture '{clip.key(frame, 'body_mask')}' has {mask.shape[1]} x {mask.shape[0]} pixels, not "
            f"{CROP_SIZE} x {CROP_SIZE}."
        )
    return torch.from_numpy(mask.copy())


def _points_and_boxes(
    clip: ReleaseClip, rows: np.ndarray, valid: np.ndarray
) -> tuple[dict[str, Keypoints], Tensor, Tensor]:
    corners = torch.from_numpy(part_corners(clip, rows)).float()
    corners[~torch.from_numpy(valid)] = torch.nan
    boxes = torch.cat([corners.amin(2), corners.amax(2)], -1)  # NaN stays NaN
    face, hands = boxes[:, 0], boxes[:, 1:]
    if clip.keypoints is None or clip.scores is None:
        return {}, face, hands
    scores = torch.from_numpy(np.nan_to_num(clip.scores[rows]))
    confidence = torch.where(scores < SEEN, 0, scores.clamp(0, 1))
    points = torch.where(confidence[..., None] > 0, torch.from_numpy(clip.keypoints[rows]), 0)
    parts = {"face": _FACE, "body": _BODY, "left_hand": _HANDS[0], "right_hand": _HANDS[1]}
    depth = torch.zeros_like(confidence)
    keypoints = {
        name: Keypoints(points[:, part].clone(), confidence[:, part].clone(), depth[:, part].clone())
        for name, part in parts.items()
    }
    # Boxes of the points that were seen: the release's own take in the (-1, -1) of those that were not.
    recorded = torch.from_numpy(np.isfinite(clip.scores[rows]).all(1))

    def own(name: str, other: Tensor) -> Tensor:
        box = points_box(keypoints[name].points, keypoints[name].confidence, 1.3)
        return torch.where(recorded[:, None], box, other)

    hands = torch.stack([own("left_hand", hands[:, 0]), own("right_hand", hands[:, 1])], 1)
    return keypoints, own("face", face), hands


def _notes(
    clip: ReleaseClip, rows: np.ndarray, valid: np.ndarray, fps: float | None, media: SourceMedia
) -> tuple[str, ...]:
    count = len(rows)
    notes = []
    if count > 1:
        rate = "" if fps else f"; {DEFAULT_FPS:g} frames a second are assumed"
        notes.append(
            "The authors' tracker drops frames and renumbers the rest: numbers and times are those of the "
            f"kept frames, and cuts are unknown{rate}."
        )
    if not valid.all():
        flagged = {f"{clip.name}/{clip.frames[row]}" for row in rows[~valid]}
        wrong = [damage for damage in clip.damage if damage.where in flagged]
        notes.append(
            f"{int((~valid).sum())} of {count} frames are damaged and flagged invalid: {tell(wrong)}."
        )
    if not media.width:
        notes.append("The original pictures and their size are not in this set.")
    if clip.scores is None:
        notes.append("Keypoints are not in this set; boxes are those of the release's part crops.")
    else:
        scores = clip.scores[rows][valid]
        _note_boxes(scores, notes)
        for name, part in zip(_NAMES[1:], _HANDS, strict=True):
            low = int((scores[:, part].mean(1) < HAND_IN_VIEW).sum())
            if low:
                where = f"in {low} of {len(scores)} frames"
                notes.append(f"The {name} is hardly seen {where}: its pose is a guess.")
    if len(clip) > _FIRST_BATCH:
        notes.append(
            f"The clip is longer than {_FIRST_BATCH} frames: the head's shape is that of the tracker's last "
            "batch, earlier frames were fitted with another."
        )
    return tuple(notes)


def _note_boxes(scores: np.ndarray, notes: list[str]) -> None:
    """The tracker sets unseen points to (-1, -1) before it makes the part crops from them."""
    for name, part in zip(_NAMES, (_FACE, *_HANDS), strict=True):
        unseen = int((scores[:, part] < SEEN).any(1).sum())
        if unseen:
            notes.append(
                f"The release's crop of the {name} takes in points that were not seen in {unseen} of "
                f"{len(scores)} frames: it may reach to the picture's corner."
            )
