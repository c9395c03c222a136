"""Seconds from photos on disk to avatar files, tracking included; the first photo only warms up.

    python benchmarks/photo_to_avatar.py PHOTO PHOTO [...]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from guava.avatar import save_avatar
from guava.model import reconstruct
from guava.photo import load_photo
from guava.tracking import track_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="+", type=Path)
    photos = parser.parse_args().photos
    if len(photos) < 2:
        parser.error("at least two photos are needed: the first only warms up.")
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for path in photos:
            start = time.perf_counter()
            photo = load_photo(path)
            save_avatar(reconstruct(photo, track_image(photo)), Path(folder) / "avatar.guava")
            seconds.append(time.perf_counter() - start)
            print(f"{path.name:24} {seconds[-1]:6.2f} s", flush=True)
    median = statistics.median(seconds[1:])
    print(f"first {seconds[0]:.2f} s, median of the other {len(seconds) - 1}: {median:.2f} s")


if __name__ == "__main__":
    main()
