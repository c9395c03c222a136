#!/usr/bin/env python3
"""Build the native library, or its unit tests: the one recipe for checkouts, wheels and CI.

    python native/build.py                                   for this machine, into src/guava/native/
    python native/build.py --target aarch64-macos            for another one, into build/native/
    python native/build.py --unit-tests --sanitize address,undefined
    python native/build.py --requirements                    what pip must install first to build here

Needs Python >= 3.10 without packages, and a C++17 compiler: $GUAVA_CXX (or --compiler), else the system's if
it works, else PyPI's ziglang, which is also what builds for other machines. docs/native.md explains.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "native"
PACKAGE = ROOT / "src" / "guava" / "native"
WORK = ROOT / "build" / "native"

ZIGLANG = "ziglang==0.17.1"
"""The compiler from PyPI (about 100 MB): Clang with the headers and libraries of every target."""

# ---- Flags -------------------------------------------------------------------------------------------------

COMPILE = (
    "-std=c++17",
    "-O3",
    "-g0",
    # Only GUAVA_API functions are visible: no symbol of ours or of the C++ library may clash with torch's.
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    # sqrt() need not set errno and operations need not trap: both keep loops from being vectorised. What
    # would drop checks for NaN or reorder sums (-ffinite-math-only, -ffast-math) is not used.
    "-fno-math-errno",
    "-fno-trapping-math",
    # a * b + c in one instruction where there is one; GCC's and Clang's defaults differ.
    "-ffp-contract=fast",
    "-ffunction-sections",
    "-fdata-sections",  # with --gc-sections: only the used parts of the static C++ library
    "-pthread",
    "-Wall",
    "-Wextra",
)
SANITIZED = ("-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")

# Files named *_isa.cpp are compiled once for each of the machine's instruction sets, in a namespace of its
# name. native/src/isa.cpp checks for the same features at run time.
ISAS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "baseline": (),
        "avx2": ("-mavx2", "-mfma", "-mf16c"),
        "avx512": ("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
    },
    "aarch64": {"baseline": ()},
}


# ---- Targets -----------------------------------------------------------------------------------------------


class BuildError(Exception):
    """The library cannot be built; the message is the reason, for people."""


@dataclass(frozen=True)
class Target:
    """What to build for.

    Attributes:
        arch: "x86_64" or "aarch64".
        system: "linux", "macos" or "windows".
        abi: What follows in zig's name of the target: C library and version on Linux ("gnu.2.17", "musl"),
            the oldest system's version on macOS, "gnu" on Windows.
    """

    arch: str
    system: str
    abi: str

    @property
    def zig(self) -> str:
        """"x86_64-linux-gnu.2.17", "aarch64-macos.11.0"."""
        return f"{self.arch}-{self.system}{'.' if self.system == 'macos' else '-'}{self.abi}"

    @property
    def library(self) -> str:
        """The shared library's file name."""
        if self.system == "windows":
            return "guava_native.dll"
        return "libguava_native.dylib" if self.system == "macos" else "libguava_native.so"

    @property
    def elf(self) -> bool:
        return self.system == "linux"


DEFAULT_ABI = {
    ("linux", "x86_64"): "gnu.2.17",  # manylinux2014: every distribution since 2014
    ("linux", "aarch64"): "gnu.2.17",
    ("macos", "x86_64"): "10.13",
    ("macos", "aarch64"): "11.0",  # the first on Apple silicon
    ("windows", "x86_64"): "gnu",
    ("windows", "aarch64"): "gnu",
}
WHEEL_TARGETS = ("x86_64-linux", "aarch64-linux", "aarch64-macos", "x86_64-macos", "x86_64-windows")
"""What releases carry wheels for."""

_ARCHES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
_SYSTEMS = {"linux": "linux", "darwin": "macos", "macos": "macos", "win32": "windows", "windows": "windows"}


def parse_target(text: str) -> Target:
    """"aarch64-linux", "x86_64-linux-gnu.2.17", "aarch64-macos.11.0", "x86_64-windows".

    Raises:
        BuildError: There are no kernels for it.
    """
    match = re.fullmatch(r"([a-z0-9_]+)-(linux|macos|windows)(?:[-.](.+))?", text)
    arch = _ARCHES.get(match[1], "") if match else ""
    if not match or (match[2], arch) not in DEFAULT_ABI:
        known = ", ".join(f"{a}-{s}" for s, a in DEFAULT_ABI)
        raise BuildError(f"There is no target '{text}'; choose one of {known}, or zig's longer names.")
    return Target(arch, match[2], match[3] or DEFAULT_ABI[match[2], arch])


def host_target(system: str = sys.platform, machine: str | None = None) -> Target:
    """This machine (of this interpreter: a 32-bit one on a 64-bit system is none).

    Raises:
        BuildError: There are no kernels for it.
    """
    machine = platform.machine() if machine is None else machine
    found = (_SYSTEMS.get(system, system), _ARCHES.get(machine.lower(), machine))
    if found not in DEFAULT_ABI or sys.maxsize < 2**32:
        raise BuildError(f"There are no native kernels for {system} on {machine}.")
    abi = DEFAULT_ABI[found]
    if found[0] == "linux" and platform.libc_ver()[0] != "glibc":
        abi = "musl"
    return Target(found[1], found[0], abi)


def wheel_platform(target: Target, compiler_kind: str) -> str:
    """The platform tag that a wheel with this library may carry.

    "manylinux2014" promises glibc 2.17; only zig compiles against that. The system's compiler uses the
    system's glibc, so such a wheel is for machines like this one.
    """
    if target.system == "windows":
        return "win_amd64" if target.arch == "x86_64" else "win_arm64"
    if target.system == "macos":
        major, _, minor = target.abi.partition(".")
        return f"macosx_{major}_{minor or 0}_{'arm64' if target.arch == 'aarch64' else target.arch}"
    if compiler_kind == "zig" and target.abi == "gnu.2.17":
        return f"manylinux2014_{target.arch}"
    return f"linux_{target.arch}"


# ---- Compilers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler that was tried and works.

    Attributes:
        command: Its first words.
        kind: "gcc", "clang" or "zig".
        version: As it says itself, one line.
    """

    command: tuple[str, ...]
    kind: str
    version: str


TRIAL = """
#include <atomic>
#include <cstdint>
#include <new>
#include <thread>
#include <vector>
typedef float vector8 __attribute__((vector_size(32)));
extern "C" int guava_trial(int n) {
    try {
        std::vector<float> v(n);
        std::thread([&] { v[0] = 1; }).join();
        vector8 x = {v[0]};
        return static_cast<int>((x + x)[0]);
    } catch (const std::bad_alloc &) { return -1; }
}
#ifdef GUAVA_TRIAL_MAIN
int main() { return guava_trial(1) != 2; }
#endif
"""


def zig_command() -> tuple[str, ...] | None:
    """PyPI's ziglang of this interpreter, or a ``zig`` on the path."""
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "c++")
    zig = shutil.which("zig")
    return (zig, "c++") if zig else None


def find_compiler(target: Target, wish: str | None = None, sanitize: str = "") -> Compiler:
    """The compiler for a target: the wish, $GUAVA_CXX, the system's (for this machine only), zig.

    Raises:
        BuildError: None works; says what was tried and how each failed.
    """
    wish = wish or os.environ.get("GUAVA_CXX", "")
    if wish:
        candidates = [zig_command() if wish == "zig" else tuple(shlex.split(wish, posix=os.name == "posix"))]
    else:
        # On Windows a c++ may be of many kinds with different run-time libraries; zig's is known.
        system = target.system != "windows" and _is_host(target)
        candidates = [(name,) for name in ("c++", "clang++", "g++") if system] + [zig_command()]
    tried = []
    for command in candidates:
        if command is None:
            tried.append("ziglang: not installed")
        elif shutil.which(command[0]) is None:
            tried.append(f"{command[0]}: not found")
        else:
            problem = ""
            compiler = _describe(command)
            try:
                _try(compiler, target, sanitize)
            except BuildError as error:
                problem = str(error)
            if not problem:
                return compiler
            tried.append(f"{shlex.join(command)}: {problem}")
    with_what = f" with -fsanitize={sanitize}" if sanitize else ""
    raise BuildError(
        f"no C++ compiler works for {target.zig}{with_what} ({'; '.join(tried)}). "
        "Install one (Debian: apt install g++; macOS: xcode-select --install; "
        f"anywhere: pip install {ZIGLANG})."
    )


def _is_host(target: Target) -> bool:
    try:
        host = host_target()
    except BuildError:
        return False
    return (target.arch, target.system) == (host.arch, host.system)


def _describe(command: tuple[str, ...]) -> Compiler:
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, errors="replace")
    first = (done.stdout.strip().splitlines() or ["unknown"])[0].replace("=", " ")
    if Path(command[0]).stem == "zig" or "ziglang" in command:
        return Compiler(command, "zig", f"zig {first}")
    return Compiler(command, "clang" if "clang" in first.lower() else "gcc", first)


def _try(compiler: Compiler, target: Target, sanitize: str) -> None:
    """Build a small library (with a sanitizer: a program, and run it) with all flags; raises BuildError."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "trial.cpp"), Path(folder, "trial.bin")
        source.write_text(TRIAL)
        flags = compile_flags(compiler, target, sanitize)
        if sanitize:
            command = [*compiler.command, *flags, "-DGUAVA_TRIAL_MAIN", str(source), "-o", str(out)]
            _run([*command, *link_flags(compiler, target, sanitize, program=True)])
            _run([str(out)])
            return
        best = isa_flags(compiler, target, list(ISAS[target.arch])[-1])
        object_file = Path(folder, "trial.o")
        _run([*compiler.command, *flags, *best, "-c", str(source), "-o", str(object_file)])
        link = link_flags(compiler, target, exports=_version_script(Path(folder)))
        _run([*compiler.command, str(object_file), *link, "-o", str(out)])


def isa_flags(compiler: Compiler, target: Target, isa: str) -> list[str]:
    """Flags for one of :data:`ISAS`."""
    flags = list(ISAS[target.arch][isa])
    if compiler.kind == "gcc" and isa == "avx512":
        # GCC 12's own intrinsics (_mm512_min_ps and others) warn about an operand that is masked out (GCC
        # bug 105593). Clang and the other instruction sets' compilations still look.
        flags += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
    return flags


def compile_flags(
    compiler: Compiler, target: Target, sanitize: str = "", debug: bool = False
) -> list[str]:
    """Flags for every file, before those of its instruction set."""
    flags = [*COMPILE, *_target_flags(compiler, target)]
    if target.system != "windows":
        flags.append("-fPIC")
    if sanitize:
        flags += [*SANITIZED, f"-fsanitize={sanitize}"]
    elif compiler.kind == "zig":
        flags.append("-fno-sanitize=undefined")  # zig adds traps by default in some modes
    if debug:
        flags.append("-g")
    if compiler.kind == "gcc":
        flags.append("-Wno-psabi")  # about vectors as arguments between compilers: our interface has none
    else:
        flags.append("-Wno-unused-command-line-argument")
    return flags


def link_flags(
    compiler: Compiler,
    target: Target,
    sanitize: str = "",
    *,
    program: bool = False,
    exports: Path | None = None,
    debug: bool = False,
) -> list[str]:
    """Flags for a shared library (or a program of the unit tests). ``exports``: an ELF version script."""
    flags = ["-pthread", *_target_flags(compiler, target)]
    if sanitize:
        flags.append(f"-fsanitize={sanitize}")
    elif compiler.kind == "gcc":
        # No C++ run-time library beside ours: torch's, conda's and the system's are of different ages.
        # (zig's libc++ is always static; macOS has one libc++, part of the system.)
        flags += ["-static-libstdc++", "-static-libgcc"]
    if program:
        if target.elf and target.abi == "musl" and compiler.kind == "zig":
            flags.append("-static")  # runs under qemu without a foreign system's files
        return flags
    flags.append("-shared")
    if target.elf:
        # What is not ours stays inside even where its headers ask for visibility (operator new, std's
        # templates); nothing may be left to be found at load time.
        flags += [f"-Wl,--version-script={exports}", "-Wl,-z,defs", "-Wl,--gc-sections"]
    elif target.system == "macos":
        flags += ["-Wl,-dead_strip", "-install_name", f"@rpath/{target.library}"]
    else:
        flags.append("-Wl,--gc-sections")
    if not debug:
        flags.append("-Wl,-x" if target.system == "macos" else "-s")
    return flags


def _target_flags(compiler: Compiler, target: Target) -> list[str]:
    if compiler.kind == "zig":
        # Without a target zig compiles for the very processor that it runs on.
        return ["-target", target.zig]
    if target.system == "macos":
        arch = "arm64" if target.arch == "aarch64" else target.arch
        return ["-arch", arch, f"-mmacosx-version-min={target.abi}"]
    return ["-march=x86-64" if target.arch == "x86_64" else "-march=armv8-a"]


def _version_script(folder: Path) -> Path:
    script = folder / "exports.map"
    script.write_text("{ global: guava_*; local: *; };\n")
    return script


def _run(command: Sequence[str]) -> str:
    """Run; returns what it said on stderr. Raises BuildError with the end of it."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{command[0]} does not run: {error}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
        raise BuildError("\n".join(said[-60:]))
    return done.stderr


# ---- Building ----------------------------------------------------------------------------------------------


def source_hash() -> str:
    """What a library was built from: 16 hex digits over the names and contents of its sources."""
    digest = hashlib.sha256()
    for path in sorted([*(SOURCES / "src").iterdir(), *(SOURCES / "include").iterdir()]):
        if path.suffix in {".cpp", ".h"}:
            digest.update(path.name.encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Unit:
    """One object file: a source with an instruction set's flags."""

    source: Path
    name: str
    flags: tuple[str, ...]


def units(compiler: Compiler, target: Target, unit_tests: bool = False) -> list[Unit]:
    """Every object file of the library, or of the unit tests."""
    found = []
    files = sorted((SOURCES / "src").glob("*.cpp"))
    if unit_tests:
        files += sorted((SOURCES / "tests").glob("*.cpp"))
    for source in files:
        if source.stem.endswith("_isa"):
            for isa in ISAS[target.arch]:
                flags = (f"-DGUAVA_ISA={isa}", *isa_flags(compiler, target, isa))
                found.append(Unit(source, f"{source.stem}.{isa}", flags))
        else:
            found.append(Unit(source, source.stem, ()))
    return found


@dataclass(frozen=True)
class Built:
    """A finished library or program, with what it was made, and the folder of its object files."""

    path: Path
    objects: Path
    target: Target
    compiler: Compiler


def build(
    target: Target | None = None,
    compiler: str | Compiler | None = None,
    out: Path | None = None,
    *,
    sanitize: str = "",
    unit_tests: bool = False,
    debug: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Built:
    """Build the library (or the unit tests' program); only what changed is compiled.

    Args:
        target: This machine by default.
        compiler: A command or "zig"; by default the first that works.
        out: Folder to put it in.
        sanitize: "address,undefined" or "thread"; only for the unit tests.
        debug: Keep symbols and line numbers; the code is the same.
        say: Gets lines about the progress, and the compiler's warnings.

    Raises:
        BuildError: It cannot be built, and why.
    """
    target = target or host_target()
    if sanitize and not unit_tests:
        raise BuildError("Sanitizers are for --unit-tests: a sanitized library does not load into Python.")
    if not isinstance(compiler, Compiler):
        compiler = find_compiler(target, compiler, sanitize)
    if compiler.kind != "zig" and target.abi.startswith("gnu."):
        target = replace(target, abi="gnu")  # the glibc of this system, whichever it is
    say(f"native: {compiler.version}, for {target.zig}")
    kind = "-".join(
        filter(None, (target.zig, compiler.kind, sanitize.replace(",", "-"), "debug" if debug else ""))
    )
    work = _work_folder() / kind
    work.mkdir(parents=True, exist_ok=True)
    flags = compile_flags(compiler, target, sanitize, debug)
    flags += [f"-I{SOURCES / 'include'}", f"-I{SOURCES / 'src'}"]
    info = f"source={source_hash()} compiler={compiler.version} target={target.zig}"
    headers = _hash_files([*(SOURCES / "include").iterdir(), *(SOURCES / "src").glob("*.h"),
                           *(SOURCES / "tests").glob("*.h")])

    def compile_unit(unit: Unit) -> tuple[Path, str]:
        text = unit.source.read_bytes()
        command = [*compiler.command, *flags, *unit.flags]
        if b"GUAVA_BUILD_INFO" in text:
            command.append(f'-DGUAVA_BUILD_INFO="{info}"')
        key = hashlib.sha256(repr((compiler, command, headers, text)).encode()).hexdigest()
        target_file = work / f"{unit.name}.o"
        if _is_made(target_file, key):
            return target_file, key
        say(f"native: {unit.name}")
        part = target_file.with_suffix(f".{os.getpid()}.o")
        try:
            said = _run([*command, "-c", str(unit.source), "-o", str(part)])
        except BuildError as error:
            raise BuildError(f"{unit.source.name} does not compile:\n{error}") from error
        if said.strip():
            say(said.rstrip())
        _finish(part, target_file, key)
        return target_file, key

    wanted = units(compiler, target, unit_tests)
    if not wanted:
        raise BuildError(f"There are no sources in {SOURCES / 'src'}.")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_unit, wanted))

    name = target.library
    if unit_tests:
        name = "unit_tests.exe" if target.system == "windows" else "unit_tests"
        out = out or work
    elif out is None:
        out = PACKAGE if _is_host(target) else work
    out.mkdir(parents=True, exist_ok=True)
    script = _version_script(work)
    link = link_flags(compiler, target, sanitize, program=unit_tests, exports=script, debug=debug)
    key = hashlib.sha256(repr((compiler, link, script.read_text(), objects)).encode()).hexdigest()
    final, made = out / name, work / name
    if not _is_made(made, key):
        part = work / f"{os.getpid()}-{name}"
        said = _run([*compiler.command, *(str(path) for path, _ in objects), *link, "-o", str(part)])
        if said.strip():
            say(said.rstrip())
        _finish(part, made, key)
        for leftover in work.glob(f"{os.getpid()}-*"):  # import libraries and debug files of Windows linkers
            leftover.unlink()
    if final != made and not (final.is_file() and final.read_bytes() == made.read_bytes()):
        # Replaced, not overwritten: a running Python may have the old one mapped.
        part = final.with_name(f".{os.getpid()}-{final.name}")
        shutil.copy2(made, part)
        os.replace(part, final)
    say(f"native: {final}")
    return Built(final, work, target, compiler)


def _work_folder() -> Path:
    """Where objects are kept; beside the sources if one may write there."""
    try:
        WORK.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="guava-native-"))
    return WORK if os.access(WORK, os.W_OK) else Path(tempfile.mkdtemp(prefix="guava-native-"))


def _hash_files(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _is_made(path: Path, key: str) -> bool:
    mark = path.with_suffix(path.suffix + ".key")
    return path.is_file() and mark.is_file() and mark.read_text() == key


def _finish(part: Path, path: Path, key: str) -> None:
    mark = path.with_suffix(path.suffix + ".key")
    mark.unlink(missing_ok=True)
    os.replace(part, path)
    mark.write_text(key)


# ---- What the build hook asks ------------------------------------------------------------------------------


def requirements(target: Target | None = None) -> list[str]:
    """What pip must install to build here: ziglang, or nothing.

    Nothing if a compiler works, if $GUAVA_CXX names one that does not, or if there are no kernels for the
    machine.
    """
    if os.environ.get("GUAVA_CXX", "zig") != "zig":
        return []
    try:
        target = target or host_target()
    except BuildError:
        return []
    try:
        find_compiler(target)
    except BuildError:
        return [ZIGLANG]
    return []


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", help="e.g. aarch64-linux, x86_64-macos, x86_64-windows")
    parser.add_argument("--compiler", help="a command, or 'zig'")
    parser.add_argument("--out", type=Path, help="folder for the library or program")
    parser.add_argument("--sanitize", default="", help="address,undefined or thread (with --unit-tests)")
    parser.add_argument("--unit-tests", action="store_true", help="the program of native/tests, no library")
    parser.add_argument("--debug", action="store_true", help="keep symbols and line numbers")
    parser.add_argument("--requirements", action="store_true", help="print what pip must install, and stop")
    parser.add_argument("--ziglang", action="store_true", help="print which ziglang to install, and stop")
    arguments = parser.parse_args()
    if arguments.ziglang:
        print(ZIGLANG)
        return 0
    try:
        target = parse_target(arguments.target) if arguments.target else None
        if arguments.requirements:
            print(" ".join(requirements(target)))
            return 0
        build(
            target, arguments.compiler, arguments.out and arguments.out.resolve(),
            sanitize=arguments.sanitize, unit_tests=arguments.unit_tests, debug=arguments.debug, say=print,
        )
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
