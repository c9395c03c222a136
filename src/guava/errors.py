"""The errors that Guava raises on purpose.

Each carries a ``hint``: what the reader can do about it. The command line prints both and exits with
status 2.
"""

from __future__ import annotations


class GuavaError(Exception):
    """Base of every deliberate error.

    Args:
        message: What was wrong, with which file or value.
        hint: What to do about it; may be empty.
    """

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InputError(GuavaError):
    """A picture, video or argument that cannot be used."""


class NoPersonError(InputError):
    """No person, or no usable face, was found in a picture or video."""


class FileFormatError(GuavaError):
    """A file that is damaged, foreign, or written by a newer Guava."""


class TemplateMismatchError(GuavaError):
    """Two things that belong to different templates were put together."""


class MissingDependencyError(GuavaError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed.",
            f'Install it with: pip install "guava-avatar[{extra}]"',
        )


class MissingAssetError(GuavaError):
    """A body model or weight file that the user must supply is not there."""
