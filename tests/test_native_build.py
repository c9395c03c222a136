"""The recipe of the native library (native/build.py), its build hook and the checks of what comes out."""

import importlib.util
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
if not (ROOT / "native" / "build.py").is_file():
    pytest.skip("not a source checkout", allow_module_level=True)


def load(path: str):
    spec = importlib.util.spec_from_file_location("tested_" + Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


build = load("native/build.py")
binaries = load("native/binaries.py")


@pytest.fixture
def clean(monkeypatch):
    for name in ("GUAVA_CXX", "GUAVA_TARGET", "GUAVA_NATIVE_BUILD"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


# ---- Targets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "zig", "library", "tag"),
    [
        ("x86_64-linux", "x86_64-linux-gnu.2.17", "libguava_native.so", "manylinux2014_x86_64"),
        ("arm64-linux", "aarch64-linux-gnu.2.17", "libguava_native.so", "manylinux2014_aarch64"),
        ("x86_64-linux-gnu.2.34", "x86_64-linux-gnu.2.34", "libguava_native.so", "linux_x86_64"),
        ("aarch64-linux-musl", "aarch64-linux-musl", "libguava_native.so", "linux_aarch64"),
        ("aarch64-macos", "aarch64-macos.11.0", "libguava_native.dylib", "macosx_11_0_arm64"),
        ("x86_64-macos", "x86_64-macos.10.13", "libguava_native.dylib", "macosx_10_13_x86_64"),
        ("x86_64-macos.12", "x86_64-macos.12", "libguava_native.dylib", "macosx_12_0_x86_64"),
        ("amd64-windows", "x86_64-windows-gnu", "guava_native.dll", "win_amd64"),
        ("aarch64-windows", "aarch64-windows-gnu", "guava_native.dll", "win_arm64"),
    ],
)
def test_targets_and_the_tags_of_their_wheels(text, zig, library, tag):
    target = build.parse_target(text)
    assert target.zig == zig
    assert target.library == library
    assert build.wheel_platform(target, "zig") == tag
    assert build.parse_target(target.zig) == target


def test_the_systems_compiler_promises_no_old_glibc():
    target = build.parse_target("x86_64-linux")
    assert build.wheel_platform(target, "gcc") == build.wheel_platform(target, "clang") == "linux_x86_64"


@pytest.mark.parametrize("text", ["x86_64-freebsd", "riscv64-linux", "linux", "armv7-linux-gnueabihf", ""])
def test_targets_without_kernels(text):
    with pytest.raises(build.BuildError, match="There is no target"):
        build.parse_target(text)


@pytest.mark.parametrize(
    ("system", "machine", "expected"),
    [
        ("linux", "x86_64", ("x86_64", "linux")),
        ("linux", "aarch64", ("aarch64", "linux")),
        ("darwin", "arm64", ("aarch64", "macos")),
        ("win32", "AMD64", ("x86_64", "windows")),
    ],
)
def test_machines(system, machine, expected):
    target = build.host_target(system, machine)
    assert (target.arch, target.system) == expected


@pytest.mark.parametrize(
    ("system", "machine"), [("linux", "ppc64le"), ("freebsd14", "amd64"), ("linux", "i686")]
)
def test_machines_without_kernels(system, machine):
    with pytest.raises(build.BuildError, match=f"no native kernels for {system} on {machine}"):
        build.host_target(system, machine)


# ---- Choosing a compiler ----------------------------------------------------------------------------------


def test_a_compiler_that_is_not_there_is_named(clean):
    clean.setenv("GUAVA_CXX", "c++-of-another-world --flag")
    with pytest.raises(build.BuildError, match="c\\+\\+-of-another-world: not found.*Install one"):
        build.find_compiler(build.host_target())


def test_a_compiler_that_does_not_work_is_passed_over(clean, tmp_path):
    if sys.platform == "win32":
        pytest.skip("the system's compiler is not asked on Windows")
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'no such header' >&2\nexit 1\n")
    broken.chmod(0o755)
    clean.setenv("PATH", str(tmp_path))
    clean.setattr(build, "zig_command", lambda: None)
    with pytest.raises(build.BuildError, match=r"c\+\+: no such header; .*ziglang: not installed"):
        build.find_compiler(build.host_target())
    assert build.requirements() == [build.ZIGLANG]


def test_nothing_is_required_where_a_compiler_works(clean):
    clean.setattr(build, "find_compiler", lambda *_, **__: None)
    assert build.requirements() == []


def test_ziglang_does_not_replace_a_compiler_that_was_named(clean):
    clean.setenv("GUAVA_CXX", "c++-of-another-world")
    assert build.requirements() == []


def test_ziglang_does_not_help_machines_without_kernels(clean):
    def none():
        raise build.BuildError("no native kernels")

    clean.setattr(build, "host_target", none)
    assert build.requirements() == []


def test_zig_never_compiles_for_the_very_processor_that_it_runs_on():
    zig = build.Compiler(("zig", "c++"), "zig", "zig")
    for name in build.WHEEL_TARGETS:
        flags = build.compile_flags(zig, build.parse_target(name))
        assert flags[flags.index("-target") + 1] == build.parse_target(name).zig


# ---- Building ---------------------------------------------------------------------------------------------

HEADER = """
#pragma once
#if defined(_WIN32)
#define SHOWN __declspec(dllexport)
#else
#define SHOWN __attribute__((visibility("default")))
#endif
extern "C" SHOWN int guava_answer();
extern "C" SHOWN const char *guava_info();
"""
ANSWER = """
#include "small.h"
int guava_answer() { return 42; }
const char *guava_info() { return GUAVA_BUILD_INFO; }
"""
PLAIN = "namespace guava { int plain() { return 0; } }\n"
KERNEL = "namespace guava { namespace GUAVA_ISA { int kernel() { return 1; } } }\n"
SOURCES = {
    "include/small.h": HEADER,
    "src/answer.cpp": ANSWER,
    "src/plain.cpp": PLAIN,
    "src/kernel_isa.cpp": KERNEL,
}


@pytest.fixture
def small(clean, tmp_path):
    """A library of three files, in a folder of its own; skips where there is no compiler."""
    for name, text in SOURCES.items():
        path = tmp_path / "native" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    clean.setattr(build, "SOURCES", tmp_path / "native")
    clean.setattr(build, "WORK", tmp_path / "work")
    clean.setattr(build, "PACKAGE", tmp_path / "package")
    try:
        compiler = build.find_compiler(build.host_target())
    except build.BuildError as error:
        pytest.skip(str(error))

    def make(**options):
        said = []
        built = build.build(compiler=compiler, say=said.append, **options)
        compiled = [line.removeprefix("native: ") for line in said if line.startswith("native: ")][1:-1]
        return built, compiled

    return SimpleNamespace(make=make, folder=tmp_path / "native", compiler=compiler)


def test_only_what_changed_is_compiled(small):
    built, compiled = small.make()
    isas = [f"kernel_isa.{isa}" for isa in build.ISAS[built.target.arch]]
    assert sorted(compiled) == sorted(["answer", "plain", *isas])
    assert small.make()[1] == []
    (small.folder / "src" / "kernel_isa.cpp").write_text(KERNEL + "// more\n")
    # "answer" too: it holds the hash of all sources.
    assert sorted(small.make()[1]) == sorted(["answer", *isas])
    (small.folder / "include" / "small.h").write_text(HEADER + "// more\n")
    assert sorted(small.make()[1]) == sorted(["answer", "plain", *isas])


def test_a_library_says_what_it_was_built_from(small):
    import ctypes

    built, _ = small.make()
    library = ctypes.CDLL(str(built.path))
    library.guava_info.restype = ctypes.c_char_p
    info = library.guava_info().decode()
    assert info == f"source={build.source_hash()} compiler={small.compiler.version} target={built.target.zig}"
    assert library.guava_answer() == 42


def test_a_library_in_use_is_replaced_not_overwritten(small):
    built, _ = small.make()
    with open(built.path, "rb") as in_use:
        before = in_use.read()
        (small.folder / "src" / "answer.cpp").write_text(ANSWER.replace("42", "43"))
        small.make()
        in_use.seek(0)
        assert in_use.read() == before
    assert built.path.read_bytes() != before
    assert [path.name for path in built.path.parent.iterdir()] == [built.path.name]


def test_an_error_in_a_source_is_shown(small):
    (small.folder / "src" / "answer.cpp").write_text("int broken( { }\n")
    with pytest.raises(build.BuildError, match="answer.cpp does not compile:\n.*answer.cpp:1"):
        small.make()


def test_only_our_functions_are_exported(small):
    text = """
#include <string>
#include <vector>
__attribute__((visibility("default"))) std::vector<std::string> leak(int n) {
    return std::vector<std::string>(n, "x");
}
"""
    (small.folder / "src" / "answer.cpp").write_text(ANSWER + text)
    built, _ = small.make()
    if built.target.system == "macos" and small.compiler.kind == "zig":
        pytest.skip("zig's linker for macOS cannot hide symbols")
    assert binaries.read(built.path).exports == {"guava_answer", "guava_info"}


def test_the_cxx_library_is_inside(small):
    text = '#include <stdexcept>\nvoid f(int n) { if (n) throw std::runtime_error("x"); }\n'
    (small.folder / "src" / "answer.cpp").write_text(ANSWER + text)
    built, _ = small.make()
    found = binaries.problems(built.path, built.target.system, built.target.arch, built.target.abi)
    # The small library is another than the header's; what is needed is what this is about.
    assert not [problem for problem in found if problem.startswith("it needs")]


def test_shared_code_in_a_kernel_is_found(small):
    kernel = small.folder / "src" / "kernel_isa.cpp"
    kernel.write_text(
        "#include <vector>\nnamespace guava { namespace GUAVA_ISA {\n"
        "float kernel(int n) { std::vector<float> v(n); v.push_back(1); return v[0]; } } }\n"
    )
    built, _ = small.make()
    if not built.target.elf:
        pytest.skip("read from ELF object files only")
    shared = binaries.shared_isa_symbols(built.objects / "kernel_isa.baseline.o", "baseline")
    assert any("vector" in symbol for symbol in shared)


def test_sanitizers_are_for_programs(clean):
    with pytest.raises(build.BuildError, match="unit-tests"):
        build.build(sanitize="address")


def test_files_of_other_kinds_are_no_libraries(tmp_path):
    (tmp_path / "a.so").write_bytes(b"!<arch>\n" + bytes(100))
    with pytest.raises(ValueError, match="no 64-bit ELF, Mach-O or PE"):
        binaries.read(tmp_path / "a.so")


def test_the_headers_functions_are_found():
    assert {"guava_abi_version", "guava_context_create", "guava_splat_forward"} <= binaries.declared()


# ---- The build hook ---------------------------------------------------------------------------------------


@pytest.fixture
def hook(clean, tmp_path):
    """initialize(version) with a recipe that only says what it was asked; (build data, what was shown)."""
    pytest.importorskip("hatchling")
    module = load("hatch_build.py")
    (tmp_path / "package").mkdir()
    recipe = SimpleNamespace(
        PACKAGE=tmp_path / "package", WORK=tmp_path / "work", BuildError=build.BuildError,
        parse_target=build.parse_target, host_target=lambda: build.parse_target("x86_64-linux"),
        wheel_platform=build.wheel_platform, requirements=lambda target: ["ziglang"], asked=[], failure="",
        kind="gcc",
    )

    def fake(target, out, say):
        recipe.asked.append(target.zig)
        if recipe.failure:
            raise build.BuildError(recipe.failure)
        compiler = build.Compiler((), recipe.kind, "")
        return build.Built(out / target.library, out, target, compiler)

    recipe.build = fake
    clean.setattr(module, "load_recipe", lambda root: recipe)
    shown = []
    app = SimpleNamespace(display_info=shown.append, display_warning=shown.append)
    instance = module.NativeBuildHook(str(ROOT), {}, None, None, str(tmp_path), "wheel", app)

    def initialize(version="standard"):
        data = {"pure_python": True, "force_include": {}}
        instance.initialize(version, data)
        return data

    return SimpleNamespace(
        initialize=initialize, recipe=recipe, shown=shown, instance=instance, set=clean.setenv
    )


def test_a_wheel_gets_the_library_and_the_platforms_name(hook):
    data = hook.initialize()
    assert data["tag"] == "py3-none-linux_x86_64" and data["pure_python"] is False
    assert list(data["force_include"].values()) == ["guava/native/libguava_native.so"]


def test_a_wheel_for_another_machine(hook):
    hook.recipe.kind = "zig"
    hook.set("GUAVA_TARGET", "aarch64-macos")
    data = hook.initialize()
    assert data["tag"] == "py3-none-macosx_11_0_arm64"
    assert list(data["force_include"].values()) == ["guava/native/libguava_native.dylib"]
    assert hook.recipe.asked == ["aarch64-macos.11.0"]


def test_where_it_cannot_be_built_the_wheel_is_pure_and_says_why(hook):
    hook.recipe.failure = "no C++ compiler works"
    data = hook.initialize()
    assert "tag" not in data and data["pure_python"] is True
    (note, place), = data["force_include"].items()
    assert place == "guava/native/not_built.txt"
    assert Path(note).read_text() == "no C++ compiler works\n"
    assert any("no C++ compiler works" in line for line in hook.shown)


@pytest.mark.parametrize("variable", [("GUAVA_NATIVE_BUILD", "require"), ("GUAVA_TARGET", "aarch64-linux")])
def test_where_it_is_required_the_installation_fails(hook, variable):
    hook.set(*variable)
    hook.recipe.failure = "no C++ compiler works"
    with pytest.raises(build.BuildError, match="no C\\+\\+ compiler works"):
        hook.initialize()


def test_it_can_be_left_out(hook):
    hook.set("GUAVA_NATIVE_BUILD", "off")
    data = hook.initialize()
    assert hook.recipe.asked == [] and data["pure_python"] is True
    assert list(data["force_include"].values()) == ["guava/native/not_built.txt"]
    assert hook.instance.dependencies() == []


def test_an_editable_installation_is_built_in_place(hook):
    note = hook.recipe.PACKAGE / "not_built.txt"
    hook.recipe.failure = "no C++ compiler works"
    assert hook.initialize("editable")["force_include"] == {}
    assert note.read_text() == "no C++ compiler works\n"
    hook.recipe.failure = ""
    assert hook.initialize("editable")["force_include"] == {}
    assert not note.exists()
    hook.set("GUAVA_TARGET", "aarch64-linux")
    with pytest.raises(build.BuildError, match="unset GUAVA_TARGET"):
        hook.initialize("editable")


def test_the_hook_asks_for_what_the_recipe_needs(hook):
    assert hook.instance.dependencies() == ["ziglang"]


def test_a_wish_that_does_not_exist(hook):
    hook.set("GUAVA_NATIVE_BUILD", "maybe")
    with pytest.raises(ValueError, match="require, off or auto"):
        hook.initialize()


def test_the_loader_and_the_recipe_use_the_same_names():
    from guava import native

    assert native.library_name() == build.host_target().library
    assert native.NOT_BUILT == "not_built.txt"
    assert build.PACKAGE == ROOT / "src" / "guava" / "native"


def test_zig_is_found_where_it_is_installed():
    if importlib.util.find_spec("ziglang") is None and shutil.which("zig") is None:
        pytest.skip("ziglang is not installed")
    assert build.zig_command()[-1] == "c++"
