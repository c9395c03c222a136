"""What the verbs share: progress bars, sentences on the terminal, and the settings beside every result."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from guava import __version__
from guava.errors import InputError


def say(text: str = "") -> None:
    """A line for the user; results go to standard output, progress and warnings to standard error."""
    print(text, flush=True)


def warn(notes: Iterable[str]) -> None:
    """Notes from tracking, reconstruction and the like, one a line."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr, flush=True)


def bar(items: Iterable | None = None, **options: Any):
    """A tqdm progress bar on standard error; rarely redrawn where that is not a terminal."""
    from tqdm import tqdm

    options.setdefault("mininterval", 0.1 if sys.stderr.isatty() else 5.0)
    options.setdefault("dynamic_ncols", True)
    return tqdm(items, file=sys.stderr, **options)


@contextmanager
def stage_bar(description: str, *, eta: bool = False) -> Iterator:
    """A bar for the ``progress(stage, done, total)`` callbacks of tracking, reconstruction and baking.

    Args:
        description: Of the job.
        eta: Show the time that is left, too: for totals that are in units of time.
    """
    times = "{elapsed}<{remaining}" if eta else "{elapsed}"
    layout = "{desc}: {percentage:3.0f}%|{bar}| " + times + "{postfix}"
    with bar(total=1, desc=description, bar_format=layout) as shown:
        pause = 0.1 if sys.stderr.isatty() else 5.0
        drawn = [time.monotonic() - pause, ""]
        began = [0.0, 0]

        def progress(stage: str, done: int, total: int) -> None:
            now = time.monotonic()
            if stage != drawn[1]:
                began[:] = [now, done]
            elif now - drawn[0] < pause and done < total:
                return
            shown.total, shown.n = max(total, 1), done
            counted = not eta and 12 < total < 10**6  # frames, not bytes
            text = f"{stage} {done}/{total}" if counted else stage
            if counted and done > began[1] and now > began[0]:
                rate = (done - began[1]) / (now - began[0])
                text += f", {rate:.1f} frames/s, {clock_time((total - done) / rate)} left"
            shown.set_postfix_str(text, refresh=False)
            shown.refresh()
            drawn[:] = [now, stage]

        yield progress
        shown.n = shown.total
        shown.set_postfix_str("")
        shown.refresh()


def clock_time(seconds: float) -> str:
    """``95`` -> "1:35"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def check_output(path: Path, *suffixes: str) -> Path:
    """Refuse a result's path before the work begins, not after it.

    Raises:
        InputError: The suffix is none of ``suffixes``, or the folder does not exist.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise InputError(f"Cannot write '{path}': its name must end in {' or '.join(suffixes)}.")
    if path.is_dir():
        raise InputError(f"Cannot write '{path}': it is a folder.")
    if not path.parent.is_dir():
        raise InputError(f"Cannot write '{path}': there is no folder '{path.parent}'.", "Make it first.")
    return path


def settings_of(config: Any) -> dict[str, Any]:
    """A command's settings as JSON values; folders of paths are left out (they tell about the user's
    disk).
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return value.name
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return value

    return plain(asdict(config))


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def sidecar(result: Path) -> Path:
    """``OUT.mp4`` -> ``OUT.mp4.json``."""
    return result.with_name(result.name + ".json")


def write_sidecar(result: Path, command: str, config: Any, **facts: Any) -> None:
    """Write how a picture, video or motion was made, beside it."""
    from guava.container import write_atomically  # brings torch along, which --help can do without

    document = {
        "command": command,
        "settings": settings_of(config),
        "software": f"guava-avatar {__version__}",
        "created": now(),
        **facts,
    }
    write_atomically(sidecar(result), json.dumps(document, indent=2, sort_keys=True).encode())


def read_sidecar(result: Path) -> dict[str, Any]:
    """What :func:`write_sidecar` wrote; empty if there is none or it cannot be read."""
    try:
        document = json.loads(sidecar(result).read_text())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def parse_color(text: str) -> tuple[float, float, float]:
    """ "white", "black", "grey", "green" or "#rrggbb" -> RGB in [0, 1].

    Raises:
        InputError: Anything else.
    """
    named = {
        "white": "#ffffff",
        "black": "#000000",
        "grey": "#808080",
        "gray": "#808080",
        "green": "#00b140",
    }
    digits = re.fullmatch(r"#([0-9a-fA-F]{6})", named.get(text.lower(), text))
    if not digits:
        raise InputError(f"'{text}' is not a colour.", "Use white, black, grey, green or #rrggbb.")
    red, green, blue = (int(digits[1][i : i + 2], 16) / 255 for i in (0, 2, 4))
    return red, green, blue
