"""The avatar: Gaussians in a canonical rest pose, their bindings to the template, and the file they live in."""

from guava.avatar.avatar import Avatar, Provenance, SourceView
from guava.avatar.gaussians import BindingKind, Gaussians, Layer

__all__ = ["Avatar", "BindingKind", "Gaussians", "Layer", "Provenance", "SourceView"]
