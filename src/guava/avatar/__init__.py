"""The avatar: Gaussians in a canonical rest pose, their bindings to the template, and their file."""

from guava.avatar.animate import Animator, over
from guava.avatar.avatar import Avatar, BakeReport, Provenance, RefinerReference, SourceView
from guava.avatar.file import load_avatar, open_avatar, save_avatar
from guava.avatar.gaussians import BindingKind, Gaussians, Layer

__all__ = [
    "Animator", "Avatar", "BakeReport", "BindingKind", "Gaussians", "Layer", "Provenance",
    "RefinerReference", "SourceView", "load_avatar", "open_avatar", "over", "save_avatar",
]
