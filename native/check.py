#!/usr/bin/env python3
"""Check the native code: unit tests, sanitizers, emulated processors, the finished library.

    python native/check.py                    everything that can be done here
    python native/check.py sanitizers         only that (several may be named)

Each line of the summary is "ok", "FAILED" or "skipped" with the reason; the exit status is 1 if anything
failed. The unit tests and the sanitizers cannot be skipped: without a compiler for them they fail.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import binaries
import build

TIME_LIMIT = 1200  # seconds for one run of the unit tests, emulated ones too


class Skipped(Exception):
    """A step cannot be done here; the message says what is missing."""


def unit_tests() -> None:
    """The unit tests, with every instruction set of this machine."""
    _run([build.build(unit_tests=True, say=_say).path])


def sanitizers() -> None:
    """The unit tests under the address (with leaks) and undefined-behaviour sanitizers."""
    program = build.build(unit_tests=True, sanitize="address,undefined", say=_say).path
    _run([program], ASAN_OPTIONS="detect_leaks=1:strict_string_checks=1", UBSAN_OPTIONS="print_stacktrace=1")


def threads() -> None:
    """The unit tests under the thread sanitizer."""
    try:
        program = build.build(unit_tests=True, sanitize="thread", say=_say).path
    except build.BuildError as error:
        # Older run-time libraries do not cope with some kernels' address randomisation.
        raise Skipped(f"no thread sanitizer: {str(error).splitlines()[0]}") from error
    _run([program], TSAN_OPTIONS="halt_on_error=1")


def qemu_x86_64() -> None:
    """The unit tests on an emulated Nehalem, which has no AVX: none may have leaked into the baseline."""
    emulator = _emulator("qemu-x86_64")
    _run([emulator, "-cpu", "Nehalem", _static_program("x86_64")])


def qemu_aarch64() -> None:
    """The unit tests on an emulated 64-bit ARM."""
    emulator = _emulator("qemu-aarch64")
    _run([emulator, _static_program("aarch64")])


def library() -> None:
    """What this machine's library exports and needs; kernels of different processors share no code."""
    built = build.build(say=_say)
    problems = binaries.problems(built.path, built.target.system, built.target.arch, built.target.abi)
    if built.target.elf:
        for unit in build.units(built.compiler, built.target):
            _, _, isa = unit.name.partition(".")
            if isa:
                shared = binaries.shared_isa_symbols(built.objects / f"{unit.name}.o", isa)
                problems += [f"{unit.name} has code that others may use: {symbol}" for symbol in shared]
    if problems:
        raise build.BuildError(f"{built.path.name}: {'; '.join(problems)}")


STEPS: dict[str, Callable[[], None]] = {
    "unit-tests": unit_tests,
    "sanitizers": sanitizers,
    "threads": threads,
    "library": library,
    "qemu-x86_64": qemu_x86_64,
    "qemu-aarch64": qemu_aarch64,
}


def _emulator(name: str) -> str:
    path = shutil.which(name) or shutil.which(f"{name}-static")
    if path is None:
        raise Skipped(f"there is no {name} (Debian: apt install qemu-user)")
    return path


def _static_program(arch: str) -> Path:
    """The unit tests without shared libraries, so that no foreign system is needed to emulate them."""
    if importlib.util.find_spec("ziglang") is None:
        raise Skipped(f"there is no cross compiler (pip install {build.ZIGLANG})")
    target = build.parse_target(f"{arch}-linux-musl")
    return build.build(target, "zig", unit_tests=True, say=_say).path


def _run(command: list, **environment: str) -> None:
    words = [str(word) for word in command]
    print(f"check: {' '.join(words)}", flush=True)
    status = subprocess.run(words, env={**os.environ, **environment}, timeout=TIME_LIMIT).returncode
    if status:
        raise build.BuildError(f"exit status {status}")


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(STEPS))
    names = parser.parse_args().steps or list(STEPS)
    if unknown := set(names) - set(STEPS):
        parser.error(f"there is no step {', '.join(sorted(unknown))}; choose from {', '.join(STEPS)}")
    summary, failed = [], False
    for name in names:
        try:
            STEPS[name]()
        except Skipped as reason:
            summary.append(f"skipped  {name}: {reason}")
        except (build.BuildError, subprocess.TimeoutExpired) as error:
            failed = True
            summary.append(f"FAILED   {name}: {error}")
        else:
            summary.append(f"ok       {name}")
    print(f"native code on {platform.machine()}:")
    for line in summary:
        print(f"  {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
