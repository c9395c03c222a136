"""Print the licence that every installed package states, for NOTICE.md.

Usage: python scripts/licences.py [PACKAGE ...]    (default: everything in requirements.lock)
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path


def stated(name: str) -> tuple[str, str]:
    """Version and licence as the package's metadata states them; ("", "") if it is not installed."""
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return "", ""
    classifiers = metadata.get_all("Classifier") or []
    names = [c.split("::")[-1].strip() for c in classifiers if c.startswith("License ::")]
    text = (metadata.get("License") or "").strip().splitlines()
    fallback = ", ".join(names) or (text[0] if text else "?")
    return metadata["Version"], metadata.get("License-Expression") or fallback


def main() -> None:
    lock = Path(__file__).parent.parent / "requirements.lock"
    locked = dict.fromkeys(re.findall(r"^([\w.-]+)==", lock.read_text(), re.M))
    for name in sys.argv[1:] or locked:
        version, licence = stated(name)
        print(f"{name:<34} {version or 'not installed':<14} {licence}")


if __name__ == "__main__":
    main()
