"""What is inside a built library, read from its bytes: no nm, otool or dumpbin is needed, whatever it is for.

    python native/binaries.py LIBRARY [--target aarch64-linux]

checks that a library exports what native/include/guava_native.h declares and nothing else, needs only
libraries that every such system has, and promises no more than its wheel's tag says. Formats: ELF (System V
ABI), Mach-O (Apple's mach-o/loader.h and nlist.h), PE (Microsoft's specification); 64 bits, little endian.
"""

from __future__ import annotations

import argparse
import re
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path

HEADER = Path(__file__).resolve().parent / "include" / "guava_native.h"


@dataclass
class Binary:
    """A shared library or an object file.

    Attributes:
        system: "linux", "macos" or "windows".
        arch: "x86_64" or "aarch64".
        exports: Names that others can link to (for ELF objects: defined and not local), C spelling.
        weak: Those of an ELF file's that the linker may take from any other file instead.
        needs: Libraries that are loaded with it.
        glibc: Versions of glibc that its symbols ask for, e.g. (2, 17).
        oldest_macos: The oldest version that it loads on; None elsewhere.
    """

    system: str
    arch: str
    exports: set[str] = field(default_factory=set)
    weak: set[str] = field(default_factory=set)
    needs: set[str] = field(default_factory=set)
    glibc: set[tuple[int, ...]] = field(default_factory=set)
    oldest_macos: tuple[int, int] | None = None


def read(path: Path) -> Binary:
    """Raises ValueError for a file of another kind."""
    data = path.read_bytes()
    if data[:6] == b"\x7fELF\x02\x01":
        return _elf(data)
    if data[:4] == b"\xcf\xfa\xed\xfe":
        return _macho(data)
    if data[:2] == b"MZ":
        return _pe(data)
    raise ValueError(f"{path.name} is no 64-bit ELF, Mach-O or PE file.")


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def _elf(data: bytes) -> Binary:
    machine = struct.unpack_from("<H", data, 18)[0]
    binary = Binary("linux", {62: "x86_64", 183: "aarch64"}.get(machine, str(machine)))
    table, = struct.unpack_from("<Q", data, 40)
    entry_size, count = struct.unpack_from("<HH", data, 58)
    # name, type, flags, address, offset, size, link, info, alignment, entry size
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * entry_size) for i in range(count)]
    symbols = {2, 11} & {s[1] for s in sections}  # SHT_SYMTAB, SHT_DYNSYM
    for section in sections:
        _, kind, _, _, offset, size, link, info, _, _ = section
        strings = sections[link][4] if link < count else 0
        if symbols and kind == max(symbols):  # what the loader sees; all of an object file's
            for at in range(offset, offset + size, 24):
                name, bind, _, index = struct.unpack_from("<IBBH", data, at)
                if bind >> 4 and index:  # not local, defined
                    binary.exports.add(_text(data, strings + name))
                    if bind >> 4 != 1:  # STB_WEAK, STB_GNU_UNIQUE
                        binary.weak.add(_text(data, strings + name))
        elif kind == 6:  # SHT_DYNAMIC
            for at in range(offset, offset + size, 16):
                tag, value = struct.unpack_from("<qQ", data, at)
                if tag == 1:  # DT_NEEDED
                    binary.needs.add(_text(data, strings + value))
        elif kind == 0x6FFFFFFE:  # SHT_GNU_verneed
            at = offset
            for _ in range(info):
                _, versions, _, first, following = struct.unpack_from("<HHIII", data, at)
                entry = at + first
                for _ in range(versions):
                    _, _, _, name, further = struct.unpack_from("<IHHII", data, entry)
                    match = re.fullmatch(r"GLIBC_([\d.]+)", _text(data, strings + name))
                    if match:
                        binary.glibc.add(tuple(int(n) for n in match[1].split(".")))
                    entry += further
                at += following
    return binary


def _macho(data: bytes) -> Binary:
    cpu, _, _, commands = struct.unpack_from("<iiII", data, 4)
    binary = Binary("macos", {0x01000007: "x86_64", 0x0100000C: "aarch64"}.get(cpu, str(cpu)))
    at = 32
    for _ in range(commands):
        command, size = struct.unpack_from("<II", data, at)
        if command & 0x7FFFFFFF in (0xC, 0x18, 0x1F):  # LC_LOAD_DYLIB, weak, re-exported
            binary.needs.add(_text(data, at + struct.unpack_from("<I", data, at + 8)[0]))
        elif command in (0x24, 0x32):  # LC_VERSION_MIN_MACOSX, LC_BUILD_VERSION
            version, = struct.unpack_from("<I", data, at + (8 if command == 0x24 else 12))
            binary.oldest_macos = (version >> 16, version >> 8 & 0xFF)
        elif command == 2:  # LC_SYMTAB
            offset, count, strings, _ = struct.unpack_from("<IIII", data, at + 8)
            for symbol in range(offset, offset + 16 * count, 16):
                name, kind = struct.unpack_from("<IB", data, symbol)
                external, private, defined = kind & 1, kind & 0x10, kind & 0xE == 0xE
                if external and not private and defined and not kind & 0xE0:
                    binary.exports.add(_text(data, strings + name).removeprefix("_"))
        at += size
    binary.exports -= {"__dso_handle", "_mh_dylib_header"}  # the linker's own, in every library
    return binary


def _pe(data: bytes) -> Binary:
    header, = struct.unpack_from("<I", data, 0x3C)
    machine, sections, _, _, _, optional = struct.unpack_from("<HHIIIH", data, header + 4)
    binary = Binary("windows", {0x8664: "x86_64", 0xAA64: "aarch64"}.get(machine, str(machine)))
    start = header + 24
    export_table, _, import_table, _ = struct.unpack_from("<IIII", data, start + 112)
    # virtual size, virtual address, size in the file, place in the file
    places = [struct.unpack_from("<IIII", data, start + optional + 40 * i + 8) for i in range(sections)]

    def offset(address: int) -> int:
        for size, virtual, raw, place in places:
            if virtual <= address < virtual + max(size, raw):
                return address - virtual + place
        raise ValueError(f"The PE file has nothing at {address:#x}.")

    if export_table:
        count, = struct.unpack_from("<I", data, offset(export_table) + 24)
        names, = struct.unpack_from("<I", data, offset(export_table) + 32)
        for i in range(count):
            name, = struct.unpack_from("<I", data, offset(names) + 4 * i)
            binary.exports.add(_text(data, offset(name)))
    if import_table:
        at = offset(import_table)
        while True:
            name, = struct.unpack_from("<I", data, at + 12)
            if not name:
                break
            binary.needs.add(_text(data, offset(name)))
            at += 20
    return binary


# What every system of the kind has. Linux: the part of manylinux2014's list that a C library consists of.
SYSTEM_LIBRARIES = {
    "linux": r"(lib(c|m|pthread|dl|rt)\.so\.\d|ld-linux-(x86-64\.so\.2|aarch64\.so\.1))",
    "macos": r"/usr/lib/(libSystem\.B|libc\+\+\.1)\.dylib",
    "windows": r"(KERNEL32|ntdll|msvcrt|ucrtbase|api-ms-win-crt-[a-z0-9-]+)\.dll",
}


def declared() -> set[str]:
    """The functions of the header."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    return set(re.findall(r"^GUAVA_API[^;(]*?\b(guava_\w+)\(", text, flags=re.MULTILINE))


def problems(path: Path, system: str, arch: str, abi: str = "") -> list[str]:
    """What is wrong with a library for a target (names as in native/build.py); empty if nothing is."""
    binary = read(path)
    found = []
    if (binary.system, binary.arch) != (system, arch):
        found.append(f"it is for {binary.arch}-{binary.system}, not {arch}-{system}")
    if missing := declared() - binary.exports:
        found.append(f"it does not export {', '.join(sorted(missing))}")
    foreign = binary.exports - declared()
    if system == "macos":
        # zig's linker cannot hide the static libc++'s operator new and delete. They are weak and made of
        # malloc and free like the system's, so whichever copy the loader picks for the process does.
        foreign = {name for name in foreign if not re.match(r"_Z(nw|na|dl|da)", name)}
    if foreign:
        found.append(f"it exports {', '.join(sorted(foreign))}")
    for name in sorted(binary.needs):
        if not re.fullmatch(SYSTEM_LIBRARIES[system], name, flags=re.IGNORECASE):
            found.append(f"it needs {name}")
    if abi.startswith("gnu."):
        promised = tuple(int(n) for n in abi.split(".")[1:])
        if newer := [v for v in binary.glibc if v > promised]:
            found.append(f"it needs glibc {'.'.join(map(str, max(newer)))}")
    if system == "macos" and binary.oldest_macos != tuple(int(n) for n in abi.split(".")[:2]):
        found.append(f"it loads from macOS {binary.oldest_macos} on, not {abi}")
    return found


def shared_isa_symbols(path: Path, isa: str) -> list[str]:
    """Symbols of an instruction set's ELF object file that do not belong to it alone.

    The linker keeps one copy of every inline function and template, any file's; were it this file's, a
    machine without the instruction set would meet its instructions in code that all share.
    """
    binary = read(path)
    own = re.compile(rf"_ZN[KV]*5guava{len(isa)}{isa}|_ZZ?N[KV]*5guava{len(isa)}{isa}|guava_{isa}_")
    # The compiler's marks for static data and exceptions hold no instructions.
    harmless = re.compile(r"DW\.ref\.__gxx_personality_v0")
    return sorted(s for s in binary.exports if not own.match(s) and not harmless.match(s))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("library", type=Path)
    parser.add_argument("--target", help="what it must be for; by default what it is for")
    arguments = parser.parse_args()
    binary = read(arguments.library)
    system, arch, abi = binary.system, binary.arch, ""
    if arguments.target:
        import build

        target = build.parse_target(arguments.target)
        system, arch, abi = target.system, target.arch, target.abi
    elif binary.oldest_macos:
        abi = ".".join(map(str, binary.oldest_macos))
    print(f"{arguments.library.name}: {binary.arch}-{binary.system}, {len(binary.exports)} functions")
    print(f"  needs {', '.join(sorted(binary.needs)) or 'nothing'}")
    if binary.glibc:
        print(f"  needs glibc {'.'.join(map(str, max(binary.glibc)))}")
    if binary.oldest_macos:
        print(f"  loads from macOS {abi} on")
    found = problems(arguments.library, system, arch, abi)
    for problem in found:
        print(f"  WRONG: {problem}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
