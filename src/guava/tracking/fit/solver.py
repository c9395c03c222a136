"""Damped Gauss-Newton for many frames at once.

The unknowns are P values a frame and S values that all frames share. Frames touch each other only through the
shared values and through smoothness between neighbours, so the normal equations are an arrow with a block
tridiagonal shaft and are solved exactly, in time linear in the number of frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

STALLED = 1e-4
"""Relative gain over several steps below which a fit goes nowhere any more."""


@dataclass
class NormalEquations:
    """A quadratic model of the cost around the present values: cost + g.d + d.H.d / 2.

    Attributes:
        cost: () half the weighted sum of squares.
        frame_gradient: (T, P).
        shared_gradient: (S,).
        frame_hessian: (T, P, P).
        cross_hessian: (T, P, S).
        shared_hessian: (S, S).
    """

    cost: Tensor
    frame_gradient: Tensor
    shared_gradient: Tensor
    frame_hessian: Tensor
    cross_hessian: Tensor
    shared_hessian: Tensor

    @staticmethod
    def zero(frames: int, per_frame: int, shared: int) -> NormalEquations:
        new = lambda *shape: torch.zeros(shape, dtype=torch.float64)  # noqa: E731
        return NormalEquations(
            new(),
            new(frames, per_frame),
            new(shared),
            new(frames, per_frame, per_frame),
            new(frames, per_frame, shared),
            new(shared, shared),
        )

    def add(
        self,
        residual: Tensor,
        frame_jacobian: Tensor,
        shared_jacobian: Tensor | None = None,
        *,
        rows: slice = slice(None),
        columns: Sequence[slice] | None = None,
        cost: Tensor | None = None,
    ) -> None:
        """Add residuals (n, M), already divided by their spreads, with Jacobians (n, M, C) and (n, M, S).

        Args:
            residual, frame_jacobian, shared_jacobian: Of the frames ``rows``; the derivatives may be in
                single precision.
            rows: Which frames (n of the T).
            columns: Runs of together C frame values that the residuals depend on; all P if left out.
            cost: () the true cost where robust weights have been folded into the residuals.
        """
        self.cost = self.cost + (0.5 * residual.square().sum() if cost is None else cost)
        residual = residual.to(frame_jacobian.dtype)
        transposed = frame_jacobian.transpose(1, 2)
        gradient = (transposed @ residual[..., None])[..., 0]
        square = transposed @ frame_jacobian
        cross = None if shared_jacobian is None else transposed @ shared_jacobian
        # Run by run: indexing by lists of columns would cost as much as the products.
        runs = [slice(0, gradient.shape[1])] if columns is None else columns
        ends = list(accumulate(run.stop - run.start for run in runs))
        parts = [(run, slice(end - run.stop + run.start, end)) for run, end in zip(runs, ends, strict=True)]
        for run, part in parts:
            self.frame_gradient[rows, run] += gradient[:, part]
            for other, across in parts:
                self.frame_hessian[rows, run, other] += square[:, part, across]
            if cross is not None:
                self.cross_hessian[rows, run] += cross[:, part]
        if shared_jacobian is not None:
            flat = shared_jacobian.reshape(-1, shared_jacobian.shape[-1])
            self.shared_gradient += flat.T @ residual.reshape(-1)
            self.shared_hessian += flat.T @ flat

    def add_prior(self, value: Tensor, mean: Tensor, precision: Tensor, columns: slice | Tensor) -> None:
        """Add independent Gaussian priors on the frame values (T, n) in ``columns``."""
        difference = value - mean
        self.cost = self.cost + 0.5 * (precision * difference.square()).sum()
        self.frame_gradient[:, columns] += precision * difference
        self.frame_hessian.diagonal(dim1=1, dim2=2)[:, columns] += precision

    def add_shared_prior(self, value: Tensor, precision: Tensor, columns: slice) -> None:
        """Add independent zero-mean Gaussian priors on shared values (n,)."""
        self.cost = self.cost + 0.5 * (precision * value.square()).sum()
        self.shared_gradient[columns] += precision * value
        self.shared_hessian.diagonal()[columns] += precision


@dataclass(frozen=True)
class Smoothness:
    """Penalty on changes between neighbouring frames, sum_t link_t * sum_p precision_p (x_{t+1,p} -
    x_{t,p})^2 / 2.

    Attributes:
        links: (T-1,) 1 where the two frames belong together, 0 across cuts and next to invalid frames.
        precision: (P,) inverse squared spreads; 0 for values that may jump.
    """

    links: Tensor
    precision: Tensor

    def add_to(self, equations: NormalEquations, values: Tensor) -> None:
        """Add cost, gradient and diagonal blocks; the off-diagonal blocks are ``-links *
        diag(precision)``."""
        if not len(self.links):
            return
        step = (values[1:] - values[:-1]) * self.links[:, None]
        equations.cost = equations.cost + 0.5 * (step.square() * self.precision).sum()
        push = step * self.precision
        equations.frame_gradient[1:] += push
        equations.frame_gradient[:-1] -= push
        diagonal = torch.zeros_like(equations.frame_gradient)
        diagonal[1:] += self.links[:, None] * self.precision
        diagonal[:-1] += self.links[:, None] * self.precision
        equations.frame_hessian.diagonal(dim1=1, dim2=2).add_(diagonal)


def add_shared_limits(
    equations: NormalEquations,
    shared: Tensor,
    slopes: Tensor,
    limits: tuple[float, float],
    spread: float,
) -> None:
    """Soft limits of n sizes, linear in the shared values and 1 where those are zero; no cost between them.

    No picture tells a small person nearby from a large one far off, and the small one's face and body follow
    the points at a smaller cost of shape. Evidence grows with every frame and the priors do not: without
    limits the systematic errors of a clip's landmarks shrink people to a fifth.

    Args:
        equations: Added to.
        shared: (S,).
        slopes: (n, S).
        limits: Smallest and largest size.
        spread: Beyond a limit.
    """
    sizes = 1 + slopes @ shared
    beyond = (sizes - limits[1]).clamp(min=0) + (sizes - limits[0]).clamp(max=0)
    active = slopes[beyond != 0] / spread
    residual = beyond[beyond != 0] / spread
    equations.cost = equations.cost + 0.5 * residual.square().sum()
    equations.shared_gradient += residual @ active
    equations.shared_hessian += active.T @ active


def extent_slopes(points: Tensor, directions: Tensor) -> Tensor:
    """(S,) how the relative size of points (n, 3) changes with the values that move them by directions
    (n, 3, S): the scale that fits best."""
    arms = points - points.mean(0)
    return torch.einsum("nc,ncs->s", arms, directions) / arms.square().sum()


def robust_weight(distance: Tensor, threshold: float) -> Tensor:
    """Weights with which least squares minimises the Huber cost of ``distance`` (linear beyond
    ``threshold``)."""
    return torch.where(distance > threshold, threshold / distance.clamp(min=1e-12), torch.ones_like(distance))


def huber_cost(distance: Tensor, threshold: float) -> Tensor:
    """The cost that goes with :func:`robust_weight`, elementwise."""
    return torch.where(distance > threshold, threshold * (distance - threshold / 2), distance.square() / 2)


def _solve(
    equations: NormalEquations, smoothness: Smoothness | None, damping: float, free: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Newton step (T, P), (S,). Values whose ``free`` (T, P) is 0 stay where they are; None frees all."""
    gradient, hessian, cross = equations.frame_gradient, equations.frame_hessian, equations.cross_hessian
    plain = hessian.diagonal(dim1=1, dim2=2).clone()
    damped = plain * (1 + damping) + 1e-9
    if free is not None:
        gradient, hessian, cross = gradient * free, hessian * free[:, :, None], cross * free[..., None]
        hessian *= free[:, None, :]
        damped = damped * free + (1 - free)
    right = torch.cat([-gradient[..., None], cross], 2)  # solve for gradient and S columns
    # Chunks of frames have large Hessians: the damping is put in and taken out again.
    hessian.diagonal(dim1=1, dim2=2).copy_(damped)
    try:
        step, response = _solve_frames(hessian, smoothness, free, right)
    finally:
        hessian.diagonal(dim1=1, dim2=2).copy_(plain)
    count = len(equations.shared_gradient)
    if not count:
        return step, step.new_zeros(0)
    shared = equations.shared_hessian.clone()
    shared.diagonal().mul_(1 + damping).add_(1e-9)
    schur = shared - torch.einsum("tps,tpr->sr", cross, response)
    gradient = -equations.shared_gradient - torch.einsum("tps,tp->s", cross, step)
    shared_step = torch.linalg.solve(schur, gradient)
    return step - response @ shared_step, shared_step


def _solve_frames(
    hessian: Tensor, smoothness: Smoothness | None, free: Tensor | None, right: Tensor
) -> tuple[Tensor, Tensor]:
    """First column (T, P) and the other columns (T, P, S) of what solves all frames' equations."""
    if smoothness is not None and len(smoothness.links) > 0 and bool((smoothness.links > 0).any()):
        solved = _solve_tridiagonal(hessian, smoothness, free, right)
    else:
        solved = torch.cholesky_solve(right, torch.linalg.cholesky(hessian))
    return solved[..., 0], solved[..., 1:]


def _solve_tridiagonal(
    diagonal: Tensor, smoothness: Smoothness, free: Tensor | None, right: Tensor
) -> Tensor:
    """Block Thomas algorithm; the off-diagonal blocks are diagonal matrices."""
    frames = diagonal.shape[0]
    # (T - 1, P): nothing couples frames across cuts, where whole blocks of it are zero.
    off = -smoothness.links[:, None] * smoothness.precision
    off = off if free is None else off * free[:-1] * free[1:]
    coupled = (off != 0).any(1).tolist()
    inverses, reduced = [], []
    for t in range(frames):
        block, value = diagonal[t], right[t]
        if t and coupled[t - 1]:
            link = off[t - 1]
            block = block - link[:, None] * inverses[-1] * link
            value = value - link[:, None] * reduced[-1]
        # The blocks are well damped, and their inverses are needed whole.
        inverses.append(torch.cholesky_inverse(torch.linalg.cholesky(block)))
        reduced.append(inverses[-1] @ value)
    solved: list[Tensor] = [reduced[-1]]
    for t in range(frames - 2, -1, -1):
        ahead = inverses[t] @ (off[t][:, None] * solved[-1]) if coupled[t] else 0
        solved.append(reduced[t] - ahead)
    return torch.stack(solved[::-1])


@dataclass(frozen=True)
class Bounds:
    """Box bounds of the frame values (P,); infinite where there are none."""

    low: Tensor
    high: Tensor


def minimise(
    build: Callable[[Tensor, Tensor], NormalEquations],
    frame_values: Tensor,
    shared_values: Tensor,
    *,
    iterations: int,
    smoothness: Smoothness | None = None,
    bounds: Bounds | None = None,
    damping: float = 1e-3,
    patience: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Levenberg-Marquardt with box bounds (projected, active set).

    Args:
        build: Gives the normal equations, smoothness left out, at frame values (T, P) and shared values (S,).
        frame_values, shared_values: Where to start.
        iterations: Most steps tried, rejected ones included.
        smoothness: Coupling of neighbouring frames.
        bounds: Of the frame values.
        damping: At the start, relative to the Hessian's diagonal.
        patience: Ends when that many steps together gained less than a ten-thousandth of the cost; None never
            for that reason.

    Returns:
        The best frame and shared values found. Deterministic.
    """

    def evaluate(values: Tensor, shared: Tensor) -> NormalEquations:
        equations = build(values, shared)
        if smoothness is not None:
            smoothness.add_to(equations, values)
        return equations

    equations = evaluate(frame_values, shared_values)
    costs = [float(equations.cost)]
    for _ in range(iterations):
        if costs[-1] <= 0:
            break
        if patience and len(costs) > patience and costs[-1 - patience] - costs[-1] < STALLED * costs[-1]:
            break
        free = None
        if bounds is not None:
            free, gradient = torch.ones_like(frame_values), equations.frame_gradient
            free[(frame_values <= bounds.low) & (gradient > 0)] = 0
            free[(frame_values >= bounds.high) & (gradient < 0)] = 0
        try:
            step, shared_step = _solve(equations, smoothness, damping, free)
        except torch.linalg.LinAlgError:
            damping = max(damping * 10, 1e-6)
            costs.append(costs[-1])
            continue
        tried = frame_values + step
        if bounds is not None:
            tried = torch.minimum(torch.maximum(tried, bounds.low), bounds.high)
        tried_shared = shared_values + shared_step
        candidate = evaluate(tried, tried_shared)
        # Robust weights change with the residuals, so costs are compared through the true robust cost that
        # ``build`` reports, not through the quadratic model.
        if bool(candidate.cost < equations.cost):
            gain = float((equations.cost - candidate.cost) / equations.cost.clamp(min=1e-12))
            frame_values, shared_values, equations = tried, tried_shared, candidate
            damping = max(damping * 0.3, 1e-7)
            if gain < 1e-5:
                break
        else:
            damping = max(damping * 8, 1e-5)
            if damping > 1e6:
                break
        costs.append(float(equations.cost))
    return frame_values, shared_values
