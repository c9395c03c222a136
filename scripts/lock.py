"""Write requirements.lock: exact versions of everything, for every Python that Guava supports.

Usage: python scripts/lock.py PYTHON3.10 PYTHON3.11 PYTHON3.12 PYTHON3.13 > requirements.lock

pip's own resolver runs once under each interpreter (dry run, wheels only). Versions that differ between
them get a ``python_version`` marker. The lock is installed with ``--no-deps``, which is how two packages
are kept out:

* ``opencv-contrib-python``, which MediaPipe asks for, needs libGL; its ``-headless`` build has the same
module.
* ``jax``, ``sounddevice`` and ``sentencepiece`` (300 MB), which nothing that Guava calls in MediaPipe
  imports.

torch's CUDA libraries are left out: the Makefile installs torch last, with whatever its build asks for.
"""

from __future__ import annotations

import json
import subprocess
import sys

WANTED = """
hatchling>=1.25
editables
numpy>=1.26,<2; python_version < "3.13"
numpy>=2; python_version >= "3.13"
scipy>=1.11
torch==2.13.0
safetensors>=0.4.3
pillow>=10
numba>=0.60
av>=12
tqdm>=4.65
tyro>=0.9.2
platformdirs>=4
mediapipe==0.10.21; python_version < "3.13"
absl-py; python_version < "3.13"
attrs; python_version < "3.13"
flatbuffers>=2; python_version < "3.13"
matplotlib; python_version < "3.13"
opencv-contrib-python-headless<4.12; python_version < "3.13"
protobuf>=4.25.3,<5; python_version < "3.13"
scikit-image>=0.22
pytest>=8
hypothesis>=6.100
ruff>=0.6
onnx>=1.16,<1.18; python_version < "3.13"
onnx>=1.18; python_version >= "3.13"
onnxruntime>=1.17
transformers>=5.20
lmdb>=1.4
colorama; sys_platform == "win32"
"""

NO_DEPENDENCIES = {"mediapipe"}
LEFT_TO_TORCH = ("nvidia-", "cuda-", "triton")
PLATFORM = {
    # MediaPipe 0.10.21 has wheels for Linux x86-64, macOS (both) and Windows x86-64 only.
    "mediapipe": "(sys_platform != 'linux' or platform_machine == 'x86_64')",
    "tzdata": "sys_platform == 'win32'",
}


def resolve(python: str) -> tuple[str, dict[str, str]]:
    """The interpreter's version ("3.11"), and the exact version of every package by name."""
    lines = [line for line in WANTED.strip().splitlines() if line.split("=")[0] not in NO_DEPENDENCIES]
    command = [
        python, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--only-binary=:all:",
        "--report", "-", "-r", "/dev/stdin",
    ]
    report = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
    if report.returncode:
        sys.exit(report.stderr)
    content = json.loads(report.stdout)
    versions = {
        item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"].split("+")[0]
        for item in content["install"]
        if not item["metadata"]["name"].lower().startswith(LEFT_TO_TORCH)
    }
    pinned = [line for line in WANTED.strip().splitlines() if line.split("=")[0] in NO_DEPENDENCIES]
    short = ".".join(content["environment"]["python_full_version"].split(".")[:2])
    for line in pinned:
        if tuple(map(int, short.split("."))) < (3, 13):
            name, version = line.split(";")[0].split("==")
            versions[name] = version
    return short, versions


def main() -> None:
    found = dict(resolve(python) for python in sys.argv[1:])
    pythons = sorted(found, key=lambda v: int(v.split(".")[1]))
    print("# Written by scripts/lock.py; installed with --no-deps by the Makefile.")
    for name in sorted({name for versions in found.values() for name in versions}):
        for version, first, last in _runs(name, pythons, found):
            markers = []
            if first > 0:
                markers.append(f"python_version >= '{pythons[first]}'")
            if last < len(pythons) - 1:
                markers.append(f"python_version < '{pythons[last + 1]}'")
            if name in PLATFORM:
                markers.append(PLATFORM[name])
            print(f"{name}=={version}" + (f" ; {' and '.join(markers)}" if markers else ""))


def _runs(name: str, pythons: list[str], found: dict[str, dict[str, str]]) -> list[tuple[str, int, int]]:
    """(version, first, last) for every stretch of neighbouring Pythons that share a version of a
    package.
    """
    runs: list[tuple[str, int, int]] = []
    for place, python in enumerate(pythons):
        version = found[python].get(name)
        if version is None:
            continue
        if runs and runs[-1][0] == version and runs[-1][2] == place - 1:
            runs[-1] = (version, runs[-1][1], place)
        else:
            runs.append((version, place, place))
    return runs


if __name__ == "__main__":
    main()
