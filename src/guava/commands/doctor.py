"""``guava doctor``: what works here, and what to do about the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from guava import __version__
from guava.commands.console import say

OK, ABSENT, BROKEN = "ok", "--", "!!"


@dataclass(frozen=True)
class Config:
    """Say what is installed, which parts of Guava are usable, and how to get the others.

    Marks: "ok" works; "--" an optional part is absent; "!!" something that Guava needs is broken. Exit
    status: 0 if 'guava reconstruct' and 'guava animate' can work here, 1 if not.
    """

    verbose: bool = False
    """Also list the versions of all packages that Guava uses."""
    template: str | None = None
    """A body template that must be usable, besides the open one."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        mark: "ok", "--" (optional, absent) or "!!" (needed, broken).
        name: What was looked at.
        text: What was found.
        advice: What to do about it; may be empty.
    """

    mark: Literal["ok", "--", "!!"]
    name: str
    text: str
    advice: str = ""


def run(config: Config) -> int:
    """Print the report; returns the exit status."""
    findings = examine()
    if config.template is not None:
        findings += _wanted(config.template)
    say(f"guava-avatar {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for finding in findings:
        say(f"  {finding.mark}  {finding.name:<14} {finding.text}")
        if finding.advice:
            say(f"      {'':<14} -> {finding.advice}")
    if config.verbose:
        say("packages")
        for name in PACKAGES:
            say(f"      {name:<22} {_version(name) or 'not installed'}")
    broken = [f.name for f in findings if f.mark == BROKEN]
    say(f"Not usable yet: {', '.join(broken)}." if broken else "Ready: guava demo")
    return 1 if broken else 0


PACKAGES = (
    "numpy",
    "scipy",
    "torch",
    "safetensors",
    "pillow",
    "numba",
    "av",
    "tqdm",
    "tyro",
    "platformdirs",
    "mediapipe",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
    "opencv-python",
    "protobuf",
    "onnxruntime",
    "scikit-image",
    "gsplat",
    "transformers",
    "lmdb",
)


def examine() -> list[Finding]:
    """Look at everything; a check that fails in an unforeseen way becomes a finding itself."""
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            findings += list(check())
        except Exception as error:  # noqa: BLE001 - the doctor must finish, whatever is broken
            findings.append(Finding(BROKEN, check.__name__.strip("_"), f"{type(error).__name__}: {error}"))
    return findings


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _can_import(module: str) -> str:
    """ "" if a fresh interpreter imports the module, else the last line of its complaint.

    A fresh one, because a broken native library can kill the process that loads it.
    """
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "GLOG_minloglevel": "3"},
    )
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"the interpreter died (status {done.returncode})"


def _python() -> Iterator[Finding]:
    version = sys.version_info[:2]
    if version < (3, 10):
        yield Finding(BROKEN, "Python", platform.python_version(), "Guava needs Python 3.10 or later.")
    elif version > (3, 12):
        yield Finding(
            ABSENT,
            "Python",
            f"{platform.python_version()} is too new for MediaPipe (the last release with "
            "models, 0.10.21, goes up to Python 3.12)",
            "To track and reconstruct use Python 3.12, or --detector simcc with a model of yours.",
        )
    else:
        yield Finding(OK, "Python", platform.python_version())


def _core() -> Iterator[Finding]:
    for package, module in (
        ("numpy", "numpy"),
        ("scipy", "scipy"),
        ("torch", "torch"),
        ("safetensors", "safetensors"),
        ("pillow", "PIL"),
        ("numba", "numba"),
        ("tqdm", "tqdm"),
        ("tyro", "tyro"),
    ):
        if importlib.util.find_spec(module) is None:
            yield Finding(BROKEN, package, "not installed", "pip install guava-avatar")
            continue
        problem = _can_import(module)
        if problem:
            yield Finding(BROKEN, package, problem, f"pip install --force-reinstall {package}")
        elif package == "torch":
            yield from _torch()


def _torch() -> Iterator[Finding]:
    import torch

    threads = torch.get_num_threads()
    yield Finding(OK, "torch", f"{torch.__version__}, {threads} thread{'s' * (threads > 1)} on the CPU")
    if torch.cuda.is_available():
        yield Finding(OK, "CUDA", torch.cuda.get_device_name(0))
        if importlib.util.find_spec("gsplat") is None:
            yield Finding(
                ABSENT,
                "gsplat",
                "not installed: rendering on the GPU is slow",
                'pip install "guava-avatar[gpu]"',
            )
        else:
            yield Finding(OK, "gsplat", _version("gsplat"))
    else:
        yield Finding(ABSENT, "CUDA", "no usable GPU; everything runs on the CPU")


def _template() -> Iterator[Finding]:
    from guava.body import installed_templates, load_template
    from guava.body.template import PLAIN_HEAD
    from guava.errors import GuavaError

    for name in installed_templates():
        if name.endswith(PLAIN_HEAD):
            continue
        try:
            template = load_template(name)  # checks the hash
        except GuavaError as error:
            yield Finding(BROKEN if name == "open" else ABSENT, "template", error.message, error.hint)
            continue
        yield Finding(OK, "template", f"'{name}', hash {template.hash[:12]} matches its content")


def _wanted(name: str) -> Iterator[Finding]:
    """The template that the user asked about."""
    from guava.body import load_template
    from guava.errors import GuavaError

    try:
        template = load_template(name)
    except GuavaError as error:
        yield Finding(BROKEN, "template", error.message, error.hint)
    else:
        yield Finding(OK, "template", f"'{name}', hash {template.hash[:12]}")


def _weights() -> Iterator[Finding]:
    """Learned weights of the user's; there need not be any."""
    from guava.body import installed_templates
    from guava.model.weights import list_weights

    for info in list_weights():
        named = f"'{info.name}'"
        if info.problem or info.config is None:
            yield Finding(ABSENT, "weights", f"{named}: {info.problem}", f"guava weights remove {info.name}")
        elif info.template_name not in installed_templates():
            what = f"{named} need the template '{info.template_name}', which is not installed"
            yield Finding(ABSENT, "weights", what, "guava assets add --help")
        elif info.config.encoder.kind == "dinov2" and importlib.util.find_spec("transformers") is None:
            what = f"{named} need the package 'transformers', which is not installed"
            yield Finding(ABSENT, "weights", what, 'pip install "guava-avatar[network]"')
        else:
            text = f"{named} for --model {info.preset}, {info.size / 1e6:.0f} MB, {info.precision}"
            yield Finding(OK, "weights", text)


def _native() -> Iterator[Finding]:
    """The library of native/, first in an interpreter of its own: a broken one could kill this one."""
    from guava import native

    name = "native"
    problem = "" if os.environ.get("GUAVA_NATIVE", "").lower() == "off" else _can_load_native()
    if problem:
        yield Finding(BROKEN, name, problem, native.REBUILD if native.source_checkout() else native.REINSTALL)
        return
    try:
        with native.context() as context:
            isa, threads = context.isa, context.threads
    except (native.NativeUnavailable, MemoryError, ValueError) as error:
        advice = getattr(error, "hint", "")
        yield Finding(ABSENT, name, f"{getattr(error, 'message', error)} Rendering is slow.", advice)
        return
    info = native.build_info()
    yield Finding(
        OK,
        name,
        f"{isa} kernels, {threads} thread{'s' * (threads > 1)}, interface {native.ABI_VERSION}, "
        f"for {info['target']} by {info['compiler']}",
    )
    if stale := native.stale():
        yield Finding(ABSENT, name, stale, native.REBUILD)


def _can_load_native() -> str:
    """"" if a fresh interpreter survives loading the library, or is refused it in good order."""
    load = "from guava import native; native.available()"
    command = [sys.executable, "-W", "ignore", "-c", load]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode == 0:
        return ""
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return f"an interpreter that loads it dies (status {done.returncode}) {last}".strip()


def _rendering() -> Iterator[Finding]:
    import torch

    from guava import native
    from guava.camera import Camera
    from guava.rendering.splatting import splat

    backend = "native" if native.available() else "numba"
    out = splat(
        torch.tensor([[0.0, 0.0, -1.0]]),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.full((1, 3), 0.01),
        torch.ones(1),
        torch.ones(1, 3),
        Camera.frontal(16),
        backend=backend,
    )
    if not 0.5 < float(out.alpha.max()) <= 1:
        text = f"a test picture came out wrong ({backend})"
        yield Finding(BROKEN, "splatting", text, "Please report this. Meanwhile set GUAVA_NATIVE=off.")
    else:
        yield Finding(OK, "splatting", f"a test picture came out right ({backend})")


def _detectors() -> Iterator[Finding]:
    usable = []
    version = _version("mediapipe")
    if not version:
        if sys.version_info[:2] > (3, 12):
            advice = "Use Python 3.10 to 3.12, or --detector simcc with a model of yours."
        else:
            advice = 'pip install "guava-avatar[track]"'
        yield Finding(ABSENT, "mediapipe", "not installed", advice)
    elif version != "0.10.21":
        yield Finding(
            ABSENT, "mediapipe", f"{version} does not carry its models", "pip install mediapipe==0.10.21"
        )
    else:
        problem = _can_import("mediapipe, mediapipe.python.solutions.holistic")
        if not problem:
            usable.append("mediapipe")
            yield Finding(OK, "mediapipe", f"{version}, with its models")
        else:
            yield Finding(ABSENT, "mediapipe", problem, _mediapipe_advice(problem))
    if importlib.util.find_spec("onnxruntime") is None:
        yield Finding(
            ABSENT, "onnxruntime", "not installed: no --detector simcc", 'pip install "guava-avatar[onnx]"'
        )
    else:
        problem = _can_import("onnxruntime")
        if problem:
            yield Finding(ABSENT, "onnxruntime", problem, "pip install --force-reinstall onnxruntime")
        else:
            usable.append("simcc")
            text = f"{_version('onnxruntime')}, for --detector simcc with a model of yours"
            yield Finding(OK, "onnxruntime", text)
    if not usable:
        text = "none is usable: 'track' and 'reconstruct' cannot work"
        yield Finding(BROKEN, "detectors", text, "See above.")


def _mediapipe_advice(problem: str) -> str:
    if "libGL" in problem or "libgthread" in problem:
        return (
            "OpenCV wants a display library: pip uninstall -y opencv-contrib-python && "
            "pip install opencv-contrib-python-headless==4.11.0.86 (or: apt install libgl1)"
        )
    if "numpy" in problem.lower() or "_ARRAY_API" in problem:
        return f'MediaPipe needs numpy < 2 (here: {_version("numpy")}): pip install "numpy<2"'
    if "protobuf" in problem.lower() or "descriptor" in problem.lower():
        return 'pip install "protobuf>=4.25.3,<5"'
    return 'pip install --force-reinstall "guava-avatar[track]"'


def _video() -> Iterator[Finding]:
    if importlib.util.find_spec("av") is None:
        yield Finding(BROKEN, "PyAV", "not installed", "pip install av")
        return
    problem = _can_import("av")
    if problem:
        yield Finding(BROKEN, "PyAV", problem, "pip install --force-reinstall av")
        return
    import av

    if "libx264" in av.codecs_available:
        yield Finding(OK, "PyAV", f"{av.__version__}, with the H.264 encoder")
    else:
        yield Finding(
            ABSENT,
            "PyAV",
            f"{av.__version__} has no H.264 encoder (libx264): videos will not play in browsers",
            "pip install --force-reinstall --only-binary av av",
        )


def _demo() -> Iterator[Finding]:
    if importlib.util.find_spec("skimage") is None:
        yield Finding(
            ABSENT,
            "scikit-image",
            "not installed: 'guava demo' needs --photo",
            'pip install "guava-avatar[demo]"',
        )
    else:
        yield Finding(OK, "scikit-image", f"{_version('scikit-image')}, brings the demo's photo")


def _folders() -> Iterator[Finding]:
    from guava.commands.assets import user_folder

    for name, folder in (("your folder", user_folder()), ("temporary", Path(tempfile.gettempdir()))):
        there = folder
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free / 1e9
        if not os.access(there, os.W_OK):
            yield Finding(ABSENT, name, f"{folder} is not writable", "Check its permissions.")
        elif free < 1:
            yield Finding(ABSENT, name, f"{folder}: only {free:.1f} GB free", "Make room.")
        else:
            yield Finding(OK, name, f"{folder}, {free:.0f} GB free")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python,
    _core,
    _template,
    _weights,
    _native,
    _rendering,
    _detectors,
    _video,
    _demo,
    _folders,
)
