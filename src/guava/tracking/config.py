"""Settings of the tracker."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class FaceFitConfig:
    """Face stage (Eq. 7), then the eyes."""

    iterations: int = 12
    """Levenberg-Marquardt steps of the face stage."""
    eye_iterations: int = 4
    """Steps of the eye stage."""
    landmark_sigma: float = 0.06
    """Spread of one landmark, in outer-eye distances. Neighbouring landmarks err together, so this is
    several times the true spread of a single one."""
    detail_weight: float = 3.0
    """How much more the points of lids and lips count."""
    contour_weight: float = 0.3
    """How much less the points of the face's outline count: the detector slides them along the silhouette."""
    gap_sigma: float = 0.048
    """Spread of lip gaps and of nearly shut lids' gaps, in outer-eye distances."""
    lid_gap_sigma: float = 0.012
    """Spread of open lids' gaps, in outer-eye distances."""
    response_sigma: float = 0.05
    """Spread of the final expression round what the measured landmark response reads."""
    gaze_sigma: float = 0.25
    """The same for the eyeLook units, which the irises then refine."""
    response_shrinkage: float = 1.2
    """Pull to zero, quadratic, while reading the landmark response."""
    response_sparsity: float = 0.5
    """Pull to zero, linear, while reading the landmark response."""
    expression_sparsity: float = 0.6
    """Linear cost of every unit where no expression regressor is available."""
    expression_sigma: float = 0.35
    """Prior spread of a unit where no expression regressor is available."""
    coefficient_sigma: float = 1.0
    """Prior spread of an expression coefficient that is no unit (FLAME's have unit variance)."""
    coefficient_limit: float = 4.0
    """Bound of such a coefficient, either way."""
    jaw_sigma: tuple[float, float, float] = (0.25, 0.04, 0.03)
    """Prior spread of the jaw's turn where its joint opens the mouth, radians: opening, turn, tilt."""
    jaw_limits: tuple[tuple[float, float, float], tuple[float, float, float]] = (
        (0.0, -0.2, -0.2),
        (0.8, 0.2, 0.2),
    )
    """Least and greatest turn of the jaw, radians."""
    eyelid_sigma: float = 0.7
    """Prior spread of the lids' own factors (0 open, 1 shut)."""
    shape_sigma: float = 1.0
    """Prior spread of the head's shape coefficients."""
    size_limits: tuple[float, float] = (0.85, 1.15)
    """Smallest and largest head, relative to the template's; people lie well between them."""
    size_limit_sigma: float = 0.005
    """Spread beyond these limits."""
    shape_components: int = 150
    """How many of the head's shape coefficients are fitted; landmarks cannot tell the last ones."""
    smooth_expression: float = 0.08
    """Spread of a unit's change from frame to frame (L_smo of Eq. 7)."""
    smooth_coefficient: float = 0.25
    """The same for expression coefficients that are no units."""
    smooth_jaw: float = 0.03
    """The same for the jaw, radians."""
    smooth_eyelids: float = 0.15
    """The same for the lids' own factors."""
    smooth_rotation: float = 0.05
    """Spread of the head's turn from frame to frame, radians."""
    smooth_translation: float = 0.006
    """Spread of the head's move from frame to frame, metres (sideways; in depth it is ten times as much)."""


@dataclass(frozen=True)
class BodyFitConfig:
    """Hands, then body with hands (Eq. 8)."""

    iterations: int = 25
    """Levenberg-Marquardt steps of the body stage."""
    hand_iterations: int = 15
    """Steps of the fit of each hand alone."""
    point_sigma: float = 4.0
    """Spread of body points, crop pixels at 512."""
    hand_sigma: float = 1.5
    """Spread of hand points, crop pixels at 512."""
    direction_sigma: float = 0.2
    """Spread of the detector's own 3D bone directions (unit vectors)."""
    lifted_direction_factor: float = 0.5
    """Multiplies the measured spread of learned bone directions."""
    lifted_depth_factor: float = 0.7
    """The same for learned depths of hand points. Both factors: by trial on renders."""
    head_sigma: float = 0.003
    """Spread of the 3D guidance by the face stage, metres across the view."""
    head_depth_sigma: float = 0.01
    """The same along the view, relative to the head's own depth."""
    joint_offset_sigma: float = 0.004
    """Prior spread of dJ (Eq. 1), metres."""
    finger_offset_sigma: float = 0.001
    """Prior spread of dJ at finger joints, metres."""
    hand_size_sigma: float = 0.05
    """Prior spread of the hands' relative size."""
    shape_sigma: float = 1.0
    """Prior spread of the body's shape coefficients."""
    size_limits: tuple[float, float] = (0.75, 1.25)
    """Smallest and largest body, relative to the template's."""
    bone_limits: tuple[float, float] = (0.5, 1.5)
    """Shortest and longest bone of torso and limbs, relative to the template's."""
    size_limit_sigma: float = 0.005
    """Spread beyond these limits."""
    shape_components: int = 100
    """How many of the body's shape coefficients are fitted."""
    head_tie_sigma: float = 0.002
    """How closely the body's own eye distance follows the fitted head's, metres."""
    smooth_rotation: float = 0.009
    """Spread of a body joint's change from frame to frame, radians (L_smo of Eq. 8)."""
    smooth_fingers: float = 0.06
    """The same for fingers."""
    smooth_translation: float = 0.0025
    """Spread of the person's move from frame to frame, metres."""


@dataclass(frozen=True)
class TrackingConfig:
    """Everything that the tracker can be told."""

    detector: str = "mediapipe"
    """Which detector; see guava.tracking.detectors."""
    crop_size: int = 512
    """Side of the square crop in pixels."""
    crop_margin: float = 1.1
    """Side of the crop over the larger side of the person's box."""
    identity_frames: int = 48
    """Frames from which the identity of a longer clip is found; clips up to this length are solved at
    once."""
    keep_clip_masks: bool = False
    """Keep the person masks of a clip (a photo's mask is always kept)."""
    chunk: int = 240
    """Frames that are solved together; longer clips are cut with an overlap."""
    overlap: int = 12
    """Frames that neighbouring chunks share."""
    smoothness: float = 1.0
    """Multiplies every smoothness weight; 0 fits each frame alone."""
    face: FaceFitConfig = field(default_factory=FaceFitConfig)
    """Face stage."""
    body: BodyFitConfig = field(default_factory=BodyFitConfig)
    """Hand and body stages."""
