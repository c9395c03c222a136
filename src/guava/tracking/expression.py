"""What is believed about the expression before it is fitted (L_reg of Eq. 7).

MediaPipe's landmarks follow an expression only in part (they come from a smooth face model of its own), so
a fit with a small reprojection error reads weak expressions. How the landmarks answer to every unit, and
how they vary for all other reasons (other people, poses, lights), was measured on renders with known units
(``scripts/train_landmark_response.py``). Reading an expression is then a small non-negative least-squares
problem.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from guava.body import Template
from guava.body.controls import expression_units, num_expression
from guava.tracking.config import FaceFitConfig
from guava.tracking.fit.face import ExpressionPrior, FaceLandmarkModel, FaceObservation

LANDMARK_RESPONSE = Path(__file__).parent / "data" / "landmark_response.safetensors"
UNSEEN_UNITS = ("jawForward", "mouthClose", "tongueOut")
"""Units that face landmarks do not show; they stay 0."""


@dataclass(frozen=True)
class LandmarkResponse:
    """How face landmarks answer to expression units.

    Attributes:
        stiff: (n,) landmarks that move little with the expression: they align the face.
        projection: (3 L, E): aligned landmark offsets in millimetres -> the linear term of the quadratic
            below.
        offset: (E,) subtracted from that.
        precision: (E, E): psi . precision . psi / 2 - linear . psi is the cost of an expression psi.
    """

    stiff: Tensor
    projection: Tensor
    offset: Tensor
    precision: Tensor


@lru_cache(maxsize=4)
def load_response(template_hash: str, layout: str) -> LandmarkResponse | None:
    """The response that was measured with this template and landmark layout, or None if there is none."""
    if layout != "mediapipe478" or not LANDMARK_RESPONSE.is_file():
        return None
    tensors = load_file(LANDMARK_RESPONSE)
    if bytes(tensors["template_hash"].tolist()).decode() != template_hash:
        return None
    return LandmarkResponse(
        tensors["stiff"].long(),
        tensors["projection"].double(),
        tensors["offset"].double(),
        tensors["precision"].double(),
    )


def align_landmarks(points: Tensor, depth: Tensor, base: Tensor, stiff: Tensor) -> Tensor:
    """Landmarks moved onto the mean neutral face by a similarity transform of their stiff points.

    Args:
        points: (T, L, 2) pixels.
        depth: (T, L) relative depth in pixels, larger is farther.
        base: (L, 3) the mean face in the head model's frame, metres.
        stiff: (n,) landmarks that the transform is found from.

    Returns:
        (T, L, 3) metres.
    """
    flip = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    local = torch.cat([points.double(), depth.double()[..., None]], -1) * flip
    middle = local[:, stiff].mean(1, keepdim=True)
    target = base[stiff] - base[stiff].mean(0)
    source = local[:, stiff] - middle
    u, s, vt = torch.linalg.svd(target.T @ source)
    sign = torch.ones(len(local), 3, dtype=torch.float64)
    sign[:, 2] = torch.sign(torch.linalg.det(u @ vt))
    scale = (s * sign).sum(1) / source.square().sum((1, 2)).clamp(min=1e-9)
    rotation = (u * sign[:, None]) @ vt
    return scale[:, None, None] * (local - middle) @ rotation.transpose(1, 2) + base[stiff].mean(0)


def read_expression(
    response: LandmarkResponse, aligned: Tensor, base: Tensor, upper: Tensor, config: FaceFitConfig
) -> Tensor:
    """Units (T, E) from aligned landmarks (T, L, 3): bounded least squares by projected accelerated
    gradients."""
    offsets = (1000 * (aligned - base)).flatten(1)
    linear = offsets @ response.projection - response.offset - config.response_sparsity
    units = response.precision.shape[0]
    hessian = response.precision + config.response_shrinkage * torch.eye(units, dtype=torch.float64)
    step = 1 / torch.linalg.eigvalsh(hessian)[-1]
    psi = torch.zeros(len(aligned), units, dtype=torch.float64)
    ahead = psi
    for k in range(200):
        moved = torch.minimum((ahead - step * (ahead @ hessian - linear)).clamp(min=0), upper)
        ahead = moved + k / (k + 3) * (moved - psi)
        psi = moved
    return psi


def expression_prior(
    template: Template, observation: FaceObservation, config: FaceFitConfig
) -> ExpressionPrior:
    """The best prior that there is for this template and landmark layout.

    With a measured response the mean is what it reads; otherwise there is a weak pull to zero, and
    expressions come out weaker than they are. Expression directions that are no units (FLAME's) have
    coefficients of unit variance, of either sign.
    """
    frames, units = observation.points.shape[0], num_expression(template)
    mean = torch.zeros(frames, units, dtype=torch.float64)
    names = expression_units(template)
    if not names:
        limit = torch.full((units,), config.coefficient_limit, dtype=torch.float64)
        spread = torch.full((units,), config.coefficient_sigma, dtype=torch.float64)
        change = torch.full((units,), config.smooth_coefficient, dtype=torch.float64)
        precision = spread.pow(-2).expand(frames, units)
        return ExpressionPrior(mean, precision, torch.zeros_like(limit), -limit, limit, change)
    upper = torch.ones(units, dtype=torch.float64)
    for i, name in enumerate(names):
        if name in UNSEEN_UNITS:
            upper[i] = 0
    gaze = torch.tensor([name.startswith("eyeLook") for name in names])
    response = load_response(template.hash, observation.layout)
    if response is None or observation.depth is None:
        # Gaze goes to the eye joints then: lids and irises alone cannot tell the units apart.
        upper[gaze] = 0
        spread, sparsity = (
            torch.full((units,), config.expression_sigma, dtype=torch.float64),
            config.expression_sparsity,
        )
    else:
        base = FaceLandmarkModel(template, observation.layout).base
        aligned = align_landmarks(observation.points, observation.depth, base, response.stiff)
        mean = read_expression(response, aligned, base, upper, config)
        mean[~observation.seen] = 0
        # The irises say where the eyes look; the response only how the lids go with it.
        spread, sparsity = torch.where(gaze, config.gaze_sigma, config.response_sigma).double(), 0.0
    return ExpressionPrior(
        mean,
        spread.pow(-2).expand(frames, units),
        torch.full((units,), sparsity, dtype=torch.float64),
        torch.zeros_like(upper),
        upper,
        torch.full((units,), config.smooth_expression, dtype=torch.float64),
    )


def save_response(path: Path, response: LandmarkResponse, template_hash: str) -> None:
    """Write a measured response (half precision; about 160 kB)."""
    from safetensors.torch import save_file

    save_file(
        {
            "stiff": response.stiff.to(torch.int16),
            "projection": response.projection.half().contiguous(),
            "offset": response.offset.float().contiguous(),
            "precision": response.precision.float().contiguous(),
            "template_hash": torch.from_numpy(np.frombuffer(template_hash.encode(), np.uint8).copy()),
        },
        path,
    )
