"""The body template ("EHM", paper Sec. 3.1, Eq. 1): a body model whose head is replaced by an expressive
head."""

from guava.body.ehm import EHM, EHMOutput, Identity, Pose, canonical_vertices
from guava.body.installed import choose_template, installed_templates, template_for
from guava.body.template import (
    LandmarkEmbedding,
    LinearModel,
    Template,
    UVTable,
    load_template,
    plain_head,
    save_template,
)

__all__ = [
    "EHM",
    "EHMOutput",
    "Identity",
    "LandmarkEmbedding",
    "LinearModel",
    "Pose",
    "Template",
    "UVTable",
    "canonical_vertices",
    "choose_template",
    "installed_templates",
    "load_template",
    "plain_head",
    "save_template",
    "template_for",
]
