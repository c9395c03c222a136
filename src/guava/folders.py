"""Where the user's own files live: body templates, weights."""

from __future__ import annotations

import os
from pathlib import Path


def user_folder() -> Path:
    """Folder of the user's templates and weights; need not exist.

    The environment variable ``GUAVA_HOME`` overrides the platform's data folder.
    """
    if home := os.environ.get("GUAVA_HOME"):
        return Path(home).expanduser()
    from platformdirs import user_data_path

    return user_data_path("guava", appauthor=False)


def templates_folder() -> Path:
    """``NAME.template`` files that the user added; need not exist."""
    return user_folder() / "templates"


def weights_folder() -> Path:
    """``NAME.weights`` files that the user added; need not exist."""
    return user_folder() / "weights"
