"""What is believed about the expression before it is fitted (L_reg of Eq. 7)."""

from __future__ import annotations

import torch

from guava.body import Template
from guava.camera import Camera
from guava.tracking.config import FaceFitConfig
from guava.tracking.fit.face import ExpressionPrior, FaceObservation

UNSEEN_UNITS = ("jawForward", "mouthClose", "tongueOut")
"""Units that face landmarks do not show; they stay 0. eyeLook* units stay 0 too: gaze is in the eye joints, and
using both would count it twice."""


def flat_prior(template: Template, frames: int, config: FaceFitConfig) -> ExpressionPrior:
    """Weak pull to zero, for landmark layouts without a regressor."""
    units = template.head.num_expression
    upper = torch.ones(units, dtype=torch.float64)
    for i, name in enumerate(template.expression_names):
        if name in UNSEEN_UNITS or name.startswith("eyeLook"):
            upper[i] = 0
    return ExpressionPrior(
        torch.zeros(frames, units, dtype=torch.float64),
        torch.full((frames, units), config.expression_sigma**-2, dtype=torch.float64),
        torch.full((units,), config.expression_sparsity, dtype=torch.float64),
        upper,
    )


def expression_prior(
    template: Template, camera: Camera, observation: FaceObservation, config: FaceFitConfig
) -> ExpressionPrior:
    """The best prior that there is for this template and landmark layout."""
    return flat_prior(template, observation.points.shape[0], config)
