#!/usr/bin/env python3
"""Build the release's files: a source distribution and a wheel for every platform, on one machine.

    pip install hatchling ziglang
    python native/wheels.py --out dist                 all of native/build.py's WHEEL_TARGETS
    python native/wheels.py --out dist x86_64-linux    only that one

Every wheel is compiled by zig, also this machine's, because zig compiles against old C libraries: the tag
manylinux2014 is true then. Each is opened again and checked.
"""

from __future__ import annotations

import argparse
import email.parser
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import binaries
import build


def make(kind: str, folder: Path, **environment: str) -> Path:
    """Run hatchling ("sdist" or "wheel"); the new file."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", fresh]
        subprocess.run(command, cwd=build.ROOT, env={**os.environ, **environment}, check=True)
        made, = Path(fresh).iterdir()
        return made.replace(folder / made.name)


def problems(wheel: Path, target: build.Target) -> list[str]:
    """What is wrong with a wheel for a target; empty if nothing is."""
    tag = f"py3-none-{build.wheel_platform(target, 'zig')}"
    found = [] if wheel.name.endswith(f"-{tag}.whl") else [f"it is not named for {tag}"]
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        names = archive.namelist()
        information, = (name for name in names if name.endswith(".dist-info/WHEEL"))
        fields = email.parser.Parser().parsestr(archive.read(information).decode())
        if fields["Root-Is-Purelib"] != "false" or fields.get_all("Tag") != [tag]:
            found.append(f"its WHEEL file says {dict(fields)}")
        libraries = [name for name in names if name.endswith((".so", ".dylib", ".dll", ".pyd", ".a", ".lib"))]
        if libraries != [f"guava/native/{target.library}"]:
            return [*found, f"its libraries are {libraries}"]
        library = Path(archive.extract(libraries[0], folder))
        found += binaries.problems(library, target.system, target.arch, target.abi)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", default=build.WHEEL_TARGETS, metavar="TARGET")
    parser.add_argument("--out", type=Path, default=build.ROOT / "dist")
    parser.add_argument("--no-sdist", action="store_true")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    wrong = False
    if not arguments.no_sdist:
        print(f"wheels: {make('sdist', out).name}", flush=True)
    for name in arguments.targets:
        target = build.parse_target(name)
        wheel = make("wheel", out, GUAVA_TARGET=target.zig, GUAVA_CXX="zig", GUAVA_NATIVE_BUILD="require")
        found = problems(wheel, target)
        megabytes = wheel.stat().st_size / 1e6
        print(f"wheels: {wheel.name}, {megabytes:.1f} MB: {'; '.join(found) or 'ok'}", flush=True)
        wrong |= bool(found)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
