"""A template's own skeleton, wherever the template keeps it."""

from __future__ import annotations

import torch
from torch import Tensor

from guava.body.template import LinearModel, Template


def rest_joints(template: Template, model: LinearModel) -> tuple[Tensor, Tensor, Tensor]:
    """Rest joints of one of a template's two models alone, before the head is put on: (J, 3), and their
    directions by shape (J, 3, S) and expression (J, 3, E), float64.

    They come from the mesh where the template regresses joints, else from the model's arrays.
    """
    if template.regress_joints:
        used = (model.joint_regressor != 0).any(0)  # a few hundred vertices
        regressor = model.joint_regressor[:, used].double()
        position, by_shape, by_expression = (
            torch.einsum("jv,v...->j...", regressor, values[used].double())
            for values in (model.v_template, model.shape_dirs, model.expression_dirs)
        )
        return position, by_shape, by_expression
    none = torch.zeros(model.num_joints, 3, model.num_expression, dtype=torch.float64)
    return model.joints_template.double(), model.joints_shape_dirs.double(), none
