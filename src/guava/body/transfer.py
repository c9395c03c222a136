"""ARKit's units in another template's expression coefficients.

A FLAME head has no unit "mouthSmileLeft", but some combination of its expression directions moves the same
landmarks in much the same way. The combination is found once per template, by ridge regression on the
landmarks that both templates know; units that it explains badly are left out, and jaw, lids and gaze
(:mod:`guava.body.controls`) are none of its business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guava.body.controls import CONTROL_UNITS, expression_units, num_expression
from guava.body.ehm import Pose
from guava.body.template import Template, load_template

_EMBEDDING, _OUTER_EYES, _FIRST_IRIS = "mediapipe478", (33, 263), 468
_NOISE = 0.002
"""Metres: how closely landmarks are to be followed, against coefficients of unit variance."""
_LEAST_EXPLAINED = 0.5
"""Share of a unit's squared landmark motion below which it is left out."""
_LIMIT = 3.0
"""Bound of the sum of coefficients, either way."""


@dataclass(frozen=True)
class UnitTransfer:
    """Units as coefficients.

    Attributes:
        names: U names of the open template's units.
        coefficients: (U, E) of a unit at 1; zeros where the template cannot show it.
        explained: (U,) share of the unit's squared landmark motion that they make.
    """

    names: tuple[str, ...]
    coefficients: Tensor
    explained: Tensor

    def expression(self, values: Tensor, names: tuple[str, ...]) -> tuple[Tensor, tuple[str, ...]]:
        """Values (T, n) of named units -> coefficients (T, E), and the names that were shown by them."""
        shown = tuple(
            name for name in names if name in self.names and float(self.explained[self.names.index(name)]) > 0
        )
        rows = [self.names.index(name) for name in shown]
        chosen = values[:, [names.index(name) for name in shown]]
        return (chosen @ self.coefficients[rows].to(values)).clamp(-_LIMIT, _LIMIT), shown


_KNOWN: dict[str, UnitTransfer] = {}


def unit_transfer(template: Template) -> UnitTransfer:
    """The open template's units in the expression coefficients of ``template``, which has no units itself.

    Found once per template hash.
    """
    if template.hash not in _KNOWN:
        _KNOWN[template.hash] = _find(template)
    return _KNOWN[template.hash]


def put_units(
    pose: Pose, template: Template, values: Tensor, names: tuple[str, ...]
) -> tuple[Pose, tuple[str, ...]]:
    """``pose`` (of ``template``, which has no units) with the expression that comes nearest to these units.

    Args:
        pose: B = T; its jaw, lids and gaze stay.
        template: The template.
        values: (T, n).
        names: Of the n units.

    Returns:
        The pose, and the units that the coefficients show.
    """
    expression, shown = unit_transfer(template).expression(values, names)
    place = "expression" if template.expressive_head else "body_expression"
    return replace(pose, **{place: expression}), shown


def _find(template: Template) -> UnitTransfer:
    source = load_template()
    names, count = source.expression_names, num_expression(template)
    nothing = UnitTransfer(names, torch.zeros(len(names), count), torch.zeros(len(names)))
    if count == 0 or expression_units(template) or _EMBEDDING not in template.landmarks:
        return nothing
    both = (source.landmarks[_EMBEDDING].weights > 0) & (template.landmarks[_EMBEDDING].weights > 0)
    both[_FIRST_IRIS:] = False
    if not bool(both[list(_OUTER_EYES)].all()):
        return nothing
    theirs, wide = _motions(source, both)
    mine, own_wide = _motions(template, both)
    theirs = theirs * own_wide / wide
    a, b = mine.flatten(0, 1), theirs.flatten(0, 1)
    system = a.T @ a + _NOISE**2 * torch.eye(count, dtype=torch.float64)
    solved = torch.linalg.solve(system, a.T @ b)
    explained = 1 - (a @ solved - b).square().sum(0) / b.square().sum(0).clamp(min=1e-12)
    known = explained > _LEAST_EXPLAINED
    known &= torch.tensor([name not in CONTROL_UNITS for name in names])
    known &= b.square().sum(0) > 1e-8
    return UnitTransfer(names, (solved.T * known[:, None]).float(), (explained * known).float())


def _motions(template: Template, chosen: Tensor) -> tuple[Tensor, float]:
    """(n, 3, E) motion of the chosen landmarks by expression, and the distance of the outer eye corners."""
    model = template.head if template.expressive_head else template.body
    rows = template.head_vertex_ids if template.expressive_head else torch.arange(model.num_vertices)
    slot = torch.zeros(template.body.num_vertices, dtype=torch.long)
    slot[rows] = torch.arange(len(rows))
    table = template.landmarks[_EMBEDDING]
    corners = slot[template.faces[table.faces]]

    def at(values: Tensor, which: Tensor | list[int]) -> Tensor:
        return torch.einsum(
            "lc,lc...->l...", table.barycentrics[which].double(), values[corners[which]].double()
        )

    eyes = at(model.v_template, list(_OUTER_EYES))
    return at(model.expression_dirs, chosen), float((eyes[0] - eyes[1]).norm())
