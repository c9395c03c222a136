"""Source and target pictures for training, as the release samples them (Sec. 3.4)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from guava.body import EHM, Identity, Pose, Template
from guava.camera import Camera
from guava.data.parameters import ModelSizes, clip_camera, clip_identity, clip_pose, part_boxes
from guava.data.release import Damage, ReleaseClip, ReleaseDataset, tell
from guava.errors import FileFormatError, InputError
from guava.model.source import SourceBatch


@dataclass(frozen=True)
class TrainingView:
    """B pictures and what was tracked in them.

    Attributes:
        image: (B, 3, S, S) float32 RGB in [0, 1].
        mask: (B, 1, S, S) float32 person alpha in [0, 1].
        identity, pose: B.
        camera: (B, ...), for pictures of S pixels.
    """

    image: Tensor
    mask: Tensor
    identity: Identity
    pose: Pose
    camera: Camera

    def to(self, device=None) -> TrainingView:
        """The same on another device."""
        return TrainingView(*(getattr(self, f.name).to(device=device) for f in fields(self)))

    def source_batch(self, model: EHM, template: Template) -> SourceBatch:
        """What a network takes in: the posed and the rest mesh of every person.

        Args:
            model: ``EHM(template)`` on the device of this view.
            template: Its template.
        """
        neutral = Pose.rest(template, len(self.image)).to(device=self.image.device)
        posed = model(self.identity, self.pose)
        rest, _ = model.rest(self.identity, neutral)
        return SourceBatch(self.image, self.mask, posed.vertices, rest, self.camera)


@dataclass(frozen=True)
class TrainingPair:
    """B source and target views of the same people.

    Attributes:
        source: ``image`` is masked (the person on black), S the encoder's picture size.
        target: ``image`` is not masked; the loss does that.
        part_boxes: (B, 3, 4) int64 left, right, top, bottom in pixels of the target: head, left, right hand.
        clips, source_frames, target_frames: B names.
    """

    source: TrainingView
    target: TrainingView
    part_boxes: Tensor
    clips: tuple[str, ...]
    source_frames: tuple[str, ...]
    target_frames: tuple[str, ...]

    def to(self, device=None) -> TrainingPair:
        """The same on another device; boxes stay where they are."""
        return replace(self, source=self.source.to(device), target=self.target.to(device))


class ReleasePairs(Dataset):
    """Pairs of pictures of one person, from a folder of the authors' data.

    Every frame of the split is a target once. It can be given to the worker processes of a DataLoader (fork
    or spawn); each opens the LMDB itself.

    Args:
        dataset: Of :func:`open_release_dataset`, with pictures.
        template: "smplx-flame"; only its sizes are kept.
        split: "train", "valid", "test", or None for every frame.
        source: "random", another frame of the clip, drawn anew for every epoch; "first", the clip's first
            frame. None takes "random" for "train" and "first" otherwise. In a clip of one frame that frame is
            its own source.
        seed: Of the draw; the same seed, epoch and index give the same pair in any process.
        source_size, target_size: Sides of the pictures.
        damaged: "raise" refuses a split with damaged frames, naming them; a damaged picture raises when it is
            drawn. "skip" decodes every picture once now, leaves out what is damaged, warns with the count,
            and keeps the list in ``skipped``.
        progress: Called with (frames done, frames in all) while pictures are checked.

    Raises:
        InputError: No such split, no pictures, or nothing usable.
        FileFormatError: Damage, with "raise".
        TemplateMismatchError: The template is not made of SMPL-X and FLAME.
    """

    def __init__(
        self,
        dataset: ReleaseDataset,
        template: Template,
        split: str | None = "train",
        *,
        source: Literal["random", "first"] | None = None,
        seed: int = 10,
        source_size: int = 518,
        target_size: int = 512,
        damaged: Literal["raise", "skip"] = "raise",
        progress: Callable[[int, int], None] | None = None,
    ):
        self.sizes = ModelSizes.of(template)
        if dataset.images is None:
            raise InputError(f"'{dataset.path}' has no pictures to train on.", "It needs 'img_lmdb'.")
        if split is not None and split not in dataset.splits:
            known = ", ".join(dataset.splits) or "none; use split=None for all frames"
            raise InputError(f"'{dataset.path}' has no split '{split}'.", f"Recorded: {known}.")
        self.source = source or ("random" if split == "train" else "first")
        self.seed, self.source_size, self.target_size = seed, source_size, target_size
        # Shared memory, so that workers that are kept between epochs see the change.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self.skipped: tuple[Damage, ...] = ()
        self.clips: dict[str, ReleaseClip] = {}
        self._usable: dict[str, np.ndarray] = {}
        self._index: list[tuple[str, int]] = []
        self._fill(dataset, split, damaged == "skip", progress)

    def _fill(
        self,
        dataset: ReleaseDataset,
        split: str | None,
        skip: bool,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        if split is None:
            wanted = [(c, f) for c in dataset.clip_names for f in dataset.frames_of(c)]
        else:
            wanted = list(dataset.splits[split])
        damage: list[Damage] = []
        for name in dict.fromkeys(clip for clip, _ in wanted):
            try:
                clip = dataset.clip(name)
            except (FileFormatError, InputError) as error:
                damage.append(Damage(name, error.message))
                continue
            self.clips[name] = clip
            self._usable[name] = clip.usable.copy()
            damage += clip.damage
        if skip:
            damage += self._check_pictures(progress)
        for name, frame in wanted:
            if name not in self.clips:
                continue
            if frame not in self.clips[name]:
                damage.append(Damage(f"{name}/{frame}", "listed, but not tracked"))
            elif self._usable[name][self.clips[name].row(frame)]:
                self._index.append((name, self.clips[name].row(frame)))
        if damage and not skip:
            raise FileFormatError(
                f"'{dataset.path}' is damaged in {len(damage)} places: {tell(damage, 5)}.",
                "With damaged='skip' they are left out.",
            )
        if damage:
            self.skipped = tuple(damage)
            warnings.warn(
                f"'{dataset.path}': {len(damage)} damaged entries, {len(wanted) - len(self._index)} of "
                f"{len(wanted)} frames are left out: {tell(damage)}",
                stacklevel=3,
            )
        if not self._index:
            raise InputError(f"'{dataset.path}' has no usable frame" + (f" in '{split}'." if split else "."))

    def _check_pictures(self, progress: Callable[[int, int], None] | None) -> list[Damage]:
        """Decode everything that may be drawn, once."""
        damage, done, total = [], 0, sum(int(usable.sum()) for usable in self._usable.values())
        for name, clip in self.clips.items():
            for row in np.flatnonzero(self._usable[name]):
                try:
                    _read_picture(clip, clip.frames[row])
                except FileFormatError as error:
                    damage.append(Damage(f"{name}/{clip.frames[row]}", error.message))
                    self._usable[name][row] = False
                done += 1
                if progress is not None:
                    progress(done, total)
        return damage

    def __len__(self) -> int:
        return len(self._index)

    def set_epoch(self, epoch: int) -> None:
        """Draw other sources; workers that are running see it too."""
        self._epoch[0] = epoch

    def __getitem__(self, index: int) -> TrainingPair:
        """One pair, B = 1.

        Raises:
            FileFormatError: One of its pictures is missing or damaged.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        name, target = self._index[index]
        clip = self.clips[name]
        source = self._draw_source(name, target, index)
        return TrainingPair(
            source=self._view(clip, source, self.source_size, masked=True),
            target=self._view(clip, target, self.target_size, masked=False),
            part_boxes=part_boxes(clip, [target], self.target_size),
            clips=(name,),
            source_frames=(clip.frames[source],),
            target_frames=(clip.frames[target],),
        )

    def _draw_source(self, name: str, target: int, index: int) -> int:
        usable = np.flatnonzero(self._usable[name])
        if self.source == "first":
            return int(usable[0])
        others = usable[usable != target]
        if not len(others):
            return target
        rng = np.random.default_rng([self.seed, int(self._epoch[0]), index])
        return int(others[rng.integers(len(others))])

    def _view(self, clip: ReleaseClip, row: int, size: int, *, masked: bool) -> TrainingView:
        image, mask = _read_picture(clip, clip.frames[row])
        if masked:
            image = image * mask
        return TrainingView(
            image=_resize(image, size),
            mask=_resize(mask, size),
            identity=clip_identity(clip, self.sizes),
            pose=clip_pose(clip, [row], self.sizes),
            camera=clip_camera(clip, [row]).resized(size, size),
        )


def _read_picture(clip: ReleaseClip, frame: str) -> tuple[Tensor, Tensor]:
    """(1, 3, S, S) and (1, 1, S, S) in [0, 1]."""
    image, mask = clip.image(frame), clip.mask(frame)
    if image.shape[1:] != mask.shape or mask.shape[0] != mask.shape[1]:
        raise FileFormatError(
            f"'{clip.key(frame, 'body_image')}' has {image.shape[2]} x {image.shape[1]} pixels, its mask "
            f"{mask.shape[1]} x {mask.shape[0]}; both must be the same square."
        )
    alpha = torch.from_numpy(mask.copy())[None, None]
    return torch.from_numpy(image)[None].float() / 255, alpha.float() / 255


def _resize(picture: Tensor, size: int) -> Tensor:
    if picture.shape[-1] == size:
        return picture
    return F.interpolate(picture, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


def collate_pairs(pairs: Sequence[TrainingPair]) -> TrainingPair:
    """Batch pairs: ``DataLoader(..., collate_fn=collate_pairs)``."""

    def views(which: str) -> TrainingView:
        parts = [getattr(pair, which) for pair in pairs]
        names = [f.name for f in fields(TrainingView)]
        return TrainingView(*(_concatenate([getattr(part, name) for part in parts]) for name in names))

    return TrainingPair(
        views("source"),
        views("target"),
        torch.cat([pair.part_boxes for pair in pairs]),
        *(sum((getattr(p, n) for p in pairs), ()) for n in ("clips", "source_frames", "target_frames")),
    )


def _concatenate(parts: list):
    """Tensors, or dataclasses of tensors, along the first dimension."""
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    changes = {
        f.name: torch.cat([getattr(part, f.name) for part in parts])
        for f in fields(parts[0])
        if isinstance(getattr(parts[0], f.name), Tensor)
    }
    return replace(parts[0], **changes)
