"""What the verbs that show an avatar share: its settings, and frames that become a video."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from guava.commands.console import bar, warn

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from guava.avatar import Animator, Avatar
    from guava.body import Pose, Template
    from guava.camera import Camera


@dataclass(frozen=True, kw_only=True)
class Showing:
    """Settings of how an avatar is shown."""

    template: str | None = None
    """The body template that the avatar must belong to. Files find theirs by themselves; this only checks
    it."""
    weights: str | None = None
    """Name or file of the weights that the avatar was made with, if they are not installed by that name."""
    coarse: Annotated[bool, tyro.conf.arg(aliases=["--no-refiner"])] = False
    """Show the Gaussians' own colours, without the refiner (of avatars that have one)."""
    device: str = "cpu"
    """Where everything runs: cpu or cuda."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the refiner. On a CPU, bf16 is for those with AMX; on others it may be slower."""
    noise: int | None = None
    """Seed of the random noise that the authors' refiner draws at every frame; without it there is none."""


def open_animator(avatar: Avatar, template: Template, config: Showing) -> Animator:
    """The avatar ready to be shown as ``config`` says; tells what is to be known of its network.

    Raises:
        InputError: Settings that do not fit the avatar.
        GuavaError: Its refiner's weights are not there, or are others.
    """
    from guava.avatar import Animator
    from guava.avatar.animate import PRECISIONS, find_device
    from guava.errors import InputError

    if avatar.refiner is None and config.weights is not None:
        raise InputError("This avatar needs no weights to be shown.", "Leave out --weights.")
    warn([note for note in avatar.provenance.notes if "RANDOM" in note])
    refined = avatar.refiner is not None and not config.coarse
    if refined:
        warn(precision_notes(find_device(config.device), config.precision))
    refiner = None
    if config.weights is not None and refined:
        from guava.model.generate import load_refiner

        refiner = load_refiner(avatar, config.weights)
        refiner = refiner.to(find_device(config.device), PRECISIONS[config.precision])
    return Animator(
        avatar,
        template,
        refiner=refiner,
        coarse=config.coarse,
        device=config.device,
        precision=config.precision,
        noise=config.noise,
    )


def precision_notes(device: torch.device, precision: str) -> list[str]:
    """What is to be said of a precision before it costs time (docs/animation.md has the figures).

    AMX makes bfloat16 faster than single precision. AVX-512's dot product of bfloat16 does as many
    multiplications a cycle as Intel's two single-precision units, and what has neither converts back and
    forth.
    """
    import torch

    if device.type != "cpu" or precision == "fp32":
        return []
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: None)()  # not in every version
    if precision == "bf16" and (has_amx or has_amx is None):
        return []
    reason = "has no AMX" if precision == "bf16" else "computes with fp16 no faster"
    return [f"This CPU {reason}: --precision {precision} may be slower here than fp32."]


def facts_of(animator: Animator) -> dict[str, Any]:
    """What a result's sidecar says of the avatar and how it was shown."""
    avatar = animator.avatar
    baked = avatar.provenance.baked
    return {
        "generator": avatar.provenance.generator,
        "refiner": None if animator.refiner is None else asdict(avatar.refiner),
        "baked": baked and {"weights": baked.weights, "hash": baked.hash, "mean": baked.mean},
        "template": animator.template.name,
        "template_hash": avatar.template_hash,
        "source_sha256": avatar.source.sha256,
        "synthetic_media": True,
    }


@dataclass(frozen=True)
class FrameTimes:
    """What a video's frames cost.

    Attributes:
        frames: How many.
        seconds: From the first frame to the finished file, everything.
        stages: Milliseconds a frame of :attr:`guava.avatar.Animator.seconds`, in their order. Encoding ran
            beside them and took its share of the processor.
        encode: Milliseconds a frame on the encoder's thread.
        waited: Milliseconds a frame that drawing waited for the encoder.
    """

    frames: int
    seconds: float
    stages: dict[str, float]
    encode: float
    waited: float

    @property
    def rate(self) -> float:
        """Frames a second, everything."""
        return self.frames / max(self.seconds, 1e-9)

    @property
    def rate_without_encoding(self) -> float:
        """Frames a second of the stages alone."""
        return 1000 / max(sum(self.stages.values()), 1e-6)

    def facts(self) -> dict[str, Any]:
        """For the sidecar."""
        import torch

        return {
            "frames_per_second": round(self.rate, 2),
            "frames_per_second_without_encoding": round(self.rate_without_encoding, 2),
            "ms_per_frame": {stage: round(ms, 2) for stage, ms in self.stages.items()},
            "encoding_ms_per_frame": round(self.encode, 2),
            "waited_for_encoder_ms_per_frame": round(self.waited, 2),
            "torch_threads": torch.get_num_threads(),
        }

    def __str__(self) -> str:
        stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in self.stages.items())
        return (
            f"a frame: {stages} ms ({self.rate_without_encoding:.1f} frames/s); beside them, encoding "
            f"{self.encode:.1f} ms, waited for {self.waited:.1f} ms"
        )


def write_video(
    animator: Animator,
    shots: Iterable[tuple[Pose, Camera]],
    count: int,
    output: Path,
    *,
    fps: float,
    size: tuple[int, int],
    background: tuple[float, float, float] | Tensor,
    description: str,
) -> FrameTimes:
    """Draw and encode, each on a thread of its own, with a progress bar that tells frames/s and what is left.

    Args:
        animator: Of the avatar.
        shots: Pose (B = 1) and camera of every frame.
        count: How many there are.
        output: The video.
        fps: Its frames a second.
        size: Its width and height.
        background: As for :func:`guava.avatar.over`.
        description: Of the progress bar.

    Raises:
        InputError: The file cannot be written.
    """
    import torch

    from guava.avatar.framing import samples
    from guava.photo import VideoWriter

    before, start = dict(animator.seconds), time.perf_counter()
    with VideoWriter(output, fps, size) as writer:
        for pose, view in bar(shots, desc=description, unit="frame", total=count):
            buffer = torch.from_numpy(writer.buffer())
            animator.frame(pose, view, samples(view, pose), background, out=buffer)
            writer.submit()
    seconds = time.perf_counter() - start
    warn(writer.notes)
    per_frame = 1000 / max(count, 1)
    stages = {name: (spent - before.get(name, 0.0)) * per_frame for name, spent in animator.seconds.items()}
    return FrameTimes(count, seconds, stages, writer.seconds * per_frame, writer.waited * per_frame)
