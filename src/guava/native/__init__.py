"""The native kernels: finding, checking and calling the library that native/ builds.

    library = native.library()                      # loaded and checked, or NativeUnavailable says why
    with native.context() as context:               # threads and working memory, lent for this block
        context.check(library.guava_splat_forward(context.handle, ...))

The library is plain C (native/include/guava_native.h), so one build serves every Python and every PyTorch.
Its calls release the interpreter's lock. Environment variables: ``GUAVA_NATIVE`` = "off" (do not use it) or
the path of another build of it; ``GUAVA_NATIVE_ISA`` = "baseline", "avx2" or "avx512": only these kernels.

docs/native.md says how it is built, shipped and debugged.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import ctypes
import importlib.util
import os
import sys
import threading
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from types import ModuleType

from guava.errors import GuavaError

ABI_VERSION = 2
"""GUAVA_ABI_VERSION of the header that this package's structs were written from."""

OK, CANCELLED, OUT_OF_MEMORY, INVALID_VALUE, INVALID_CALL = range(5)
"""enum guava_status."""

ISAS = {"best": -1, "baseline": 0, "avx2": 1, "avx512": 2}
"""enum guava_isa, by name."""

FOLDER = Path(__file__).parent
NOT_BUILT = "not_built.txt"
"""Beside this file: why an installation has no library, written by hatch_build.py."""

REINSTALL = (
    "Build it with: GUAVA_NATIVE_BUILD=require pip install --force-reinstall --no-deps -v "
    "--no-binary guava-avatar guava-avatar"
)
REBUILD = "Build it with: python native/build.py"

_MAX_IDLE = 4  # contexts kept for the next call; each holds sleeping threads and working memory


class NativeUnavailable(GuavaError):
    """The native library cannot be used here; the message says why, the hint what to do."""


def library_name() -> str:
    """The library's file name on this system."""
    if sys.platform == "win32":
        return "guava_native.dll"
    return "libguava_native.dylib" if sys.platform == "darwin" else "libguava_native.so"


# ---- Loading -----------------------------------------------------------------------------------------------

_lock = threading.Lock()
_loaded: dict[str, ctypes.CDLL | NativeUnavailable] = {}  # by GUAVA_NATIVE


def library() -> ctypes.CDLL:
    """The loaded library; argument types are set for the functions that this module uses.

    The answer, a refusal too, is remembered for as long as ``GUAVA_NATIVE`` stays what it is. May be called
    from any thread.

    Raises:
        NativeUnavailable: It is switched off, was not built, does not load or was built for another version.
    """
    setting = os.environ.get("GUAVA_NATIVE", "")
    found = _loaded.get(setting)
    if found is None:
        with _lock:
            found = _loaded.get(setting)
            if found is None:
                try:
                    found = _load(setting)
                except NativeUnavailable as reason:
                    found = reason
                _loaded[setting] = found
    if isinstance(found, NativeUnavailable):
        raise NativeUnavailable(found.message, found.hint)
    return found


def available() -> bool:
    """Whether :func:`library` would return."""
    try:
        library()
    except NativeUnavailable:
        return False
    return True


def build_info() -> dict[str, str]:
    """What the loaded library was built from and with: "source" (a hash), "compiler" and "target"."""
    return _parse_info(library().guava_build_info().decode())


def isa_name(isa: int = ISAS["best"]) -> str:
    """"sse2", "neon", "avx2" or "avx512"; of the best instruction set that this machine has by default."""
    lib = library()
    if isa == ISAS["best"]:
        isa = max(i for i in ISAS.values() if i >= 0 and lib.guava_isa_available(i))
    return lib.guava_isa_name(isa).decode()


def available_isas() -> list[str]:
    """The names in :data:`ISAS` that this library has kernels for and this machine can run; slowest first."""
    return [name for name, i in ISAS.items() if i >= 0 and library().guava_isa_available(i)]


def stale() -> str:
    """In a source checkout: a sentence if the library is of other sources than those there; else ""."""
    checkout = None if os.environ.get("GUAVA_NATIVE") else source_checkout()
    return _difference(library(), checkout) if checkout else ""


def _load(setting: str) -> ctypes.CDLL:
    if setting.lower() == "off":
        raise NativeUnavailable("The native library is switched off (GUAVA_NATIVE=off).")
    path = Path(setting) if setting else FOLDER / library_name()
    checkout = None if setting else source_checkout()
    remedy = REINSTALL if checkout is None else REBUILD
    if not path.is_file():
        raise NativeUnavailable(*_why_missing(path, setting, remedy))
    try:
        lib = ctypes.CDLL(str(path))
        version = lib.guava_abi_version()
        if version == ABI_VERSION:
            _declare(lib)
    except (OSError, AttributeError) as error:  # AttributeError: a function is missing
        raise NativeUnavailable(f"The native library does not load: {error}.", remedy) from error
    if version != ABI_VERSION:
        raise NativeUnavailable(
            f"The native library {path.name} has interface {version}, this Guava needs {ABI_VERSION}.", remedy
        )
    if checkout is not None and (difference := _difference(lib, checkout)):
        warnings.warn(f"{difference} {REBUILD}", RuntimeWarning, stacklevel=2)
    return lib


def _why_missing(path: Path, setting: str, remedy: str) -> tuple[str, str]:
    if setting:
        return f"GUAVA_NATIVE names '{setting}', which is not a file.", "Correct or unset GUAVA_NATIVE."
    note = FOLDER / NOT_BUILT
    if note.is_file():
        return f"The native library was not built: {note.read_text(encoding='utf-8').strip()}", remedy
    return f"The native library ({path.name}) is not in this installation.", remedy


def _declare(lib: ctypes.CDLL) -> None:
    pointer, i32 = ctypes.c_void_p, ctypes.c_int32
    for name, result, arguments in (
        ("guava_abi_version", i32, []),
        ("guava_build_info", ctypes.c_char_p, []),
        ("guava_isa_available", i32, [i32]),
        ("guava_isa_name", ctypes.c_char_p, [i32]),
        ("guava_context_create", pointer, [i32]),
        ("guava_context_destroy", None, [pointer]),
        ("guava_context_set_isa", i32, [pointer, i32]),
        ("guava_context_get_isa", i32, [pointer]),
        ("guava_context_set_poll", None, [pointer, _POLL, pointer]),
        ("guava_context_bytes", ctypes.c_size_t, [pointer]),
        ("guava_context_trim", None, [pointer]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments


def _parse_info(text: str) -> dict[str, str]:
    """"source=1f compiler=g++ 12.2.0 target=x86_64-linux-gnu" by key; values may have spaces."""
    info: dict[str, str] = {}
    key = ""
    for word in text.split():
        if "=" in word:
            key, _, info[key] = word.partition("=")
        elif key:
            info[key] += " " + word
    return info


def source_checkout() -> Path | None:
    """The root of the source checkout that this package is imported from; None for an installed one."""
    root = FOLDER.parents[2]
    inside = root / "src" / "guava" / "native" == FOLDER
    return root if inside and (root / "native" / "build.py").is_file() else None


def _build_recipe(checkout: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("guava_native_build", checkout / "native" / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _difference(lib: ctypes.CDLL, checkout: Path) -> str:
    built_from = _parse_info(lib.guava_build_info().decode()).get("source", "")
    if built_from == _build_recipe(checkout).source_hash():
        return ""
    note = FOLDER / NOT_BUILT  # the library is of an earlier time, and building it again failed
    failed = f" ({note.read_text(encoding='utf-8').strip()})" if note.is_file() else ""
    return f"The native library was built from other sources than those in native/{failed}."


# ---- Contexts ----------------------------------------------------------------------------------------------

_POLL = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)
_NO_POLL = _POLL(0)
_forced_isa: contextvars.ContextVar[int | None] = contextvars.ContextVar("guava_native_isa", default=None)


class Context:
    """Threads and working memory for native calls, one at a time. Get one from :func:`context`.

    Attributes:
        threads: How many threads its calls use, the calling one included.
    """

    def __init__(self, lib: ctypes.CDLL, threads: int):
        """
        Raises:
            MemoryError: Memory or threads cannot be had.
        """
        self.threads = threads
        self._library = lib
        self._pid = os.getpid()
        self._interruption: BaseException | None = None
        self._poller = self._poll()
        next(self._poller)
        # A bound method of a generator, not a Python function, see _poll.
        self._callback = _POLL(self._poller.send)
        self._handle = lib.guava_context_create(threads)
        if not self._handle:
            raise MemoryError(f"The native library cannot have {threads} threads and their memory.")

    @property
    def handle(self) -> int:
        """The ``guava_context *`` to call functions with.

        Raises:
            RuntimeError: The process forked while the context was lent; its threads are the parent's.
        """
        if self._pid != os.getpid():
            raise RuntimeError("A native context was carried over a fork; enter native.context() after it.")
        return self._handle

    @property
    def isa(self) -> str:
        """The kernels that are used: "sse2", "neon", "avx2" or "avx512"."""
        return isa_name(self._library.guava_context_get_isa(self.handle))

    def set_isa(self, name: str) -> None:
        """Choose kernels, for as long as the context is lent (see :data:`ISAS`).

        Raises:
            ValueError: There is no such instruction set, or not here.
        """
        if name not in ISAS or self._library.guava_context_set_isa(self.handle, ISAS[name]) != OK:
            usable = ", ".join(available_isas())
            raise ValueError(f"There are no native kernels '{name}' on this machine (there are: {usable}).")

    @property
    def bytes(self) -> int:
        """Working memory that is held, bytes."""
        return self._library.guava_context_bytes(self.handle)

    def trim(self) -> None:
        """Give working memory back."""
        self._library.guava_context_trim(self.handle)

    def check(self, code: int) -> None:
        """Turn what a native function returned into an exception.

        After ``INVALID_VALUE`` callers that can say what is wrong should do so before they call this.

        Raises:
            KeyboardInterrupt: (or whatever a signal handler raised) The call was cancelled by it.
            MemoryError: There was not enough; the context stays usable.
            ValueError: A value that the function cannot work with.
            RuntimeError: The call was wrong: an error in Guava.
        """
        interruption, self._interruption = self._interruption, None
        if interruption is not None:
            raise interruption
        if code == OK:
            return
        if code == OUT_OF_MEMORY:
            raise MemoryError("Not enough memory for a native call.")
        if code == INVALID_VALUE:
            raise ValueError("A native call got values that it cannot work with.")
        if code == CANCELLED:
            raise RuntimeError("A native call was cancelled without a reason; please report this.")
        raise RuntimeError(f"A native call was refused (status {code}); please report this.")

    def _poll(self) -> Generator[int, int | None, None]:
        """What the library calls every 50 ms, on the main thread only: runs Python's signal handlers.

        An exception that leaves a ctypes callback is lost. CPython runs pending handlers when a function is
        entered, before its ``try``; so a function could not catch theirs. A generator that waits *inside* its
        ``try`` is resumed there, and can.
        """
        while True:
            try:
                while True:
                    yield 0
                    ctypes.pythonapi.PyErr_CheckSignals()  # raises what a handler raised
            except GeneratorExit:
                return
            except BaseException as error:  # kept, and raised by check()
                self._interruption = error
            yield 1

    def _lend(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        self._library.guava_context_set_poll(self._handle, self._callback if main else _NO_POLL, None)
        isa = _forced_isa.get()
        if isa is None:
            isa = _isa_of_environment()
        if self._library.guava_context_set_isa(self._handle, isa) != OK:
            name = next(name for name, value in ISAS.items() if value == isa)
            raise ValueError(f"There are no native kernels '{name}' on this machine.")

    def _destroy(self) -> None:
        handle, self._handle = self._handle, None
        # A child's copy has no threads; the library must not wait for them.
        if handle and self._pid == os.getpid():
            self._library.guava_context_destroy(handle)

    def __del__(self):
        if getattr(self, "_handle", None):  # Ctrl-C came between taking it and giving it back
            self._destroy()


def _isa_of_environment() -> int:
    name = os.environ.get("GUAVA_NATIVE_ISA", "best")
    if name not in ISAS:
        raise ValueError(f"GUAVA_NATIVE_ISA is '{name}'; choose one of: {', '.join(ISAS)}.")
    return ISAS[name]


_idle: list[Context] = []  # guarded by _lock


@contextlib.contextmanager
def context() -> Iterator[Context]:
    """Lend a context with as many threads as torch has (``torch.get_num_threads()``, which stays what it is).

    Any thread may enter this, several at once and one inside another: each gets a context of its own. On the
    main thread Ctrl-C cancels a running call: :meth:`Context.check` then raises the KeyboardInterrupt.

    Raises:
        NativeUnavailable: There is no library.
        MemoryError: Memory or threads cannot be had.
        ValueError: GUAVA_NATIVE_ISA names kernels that are not to be had here.
    """
    import torch

    lib = library()
    lent = _take(lib, torch.get_num_threads())
    try:
        lent._lend()
        yield lent
    finally:
        interruption, lent._interruption = lent._interruption, None
        _give_back(lent)
        if interruption is not None:  # nobody asked check(), or another error came first
            raise interruption


@contextlib.contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """Within the block, and on this thread, contexts use these kernels (see :data:`ISAS`); for tests."""
    token = _forced_isa.set(ISAS[name])
    try:
        yield
    finally:
        _forced_isa.reset(token)


def trim() -> None:
    """Give back the threads and the working memory of the contexts that nobody uses at the moment."""
    with _lock:
        idle, _idle[:] = _idle[:], []
    for one in idle:
        one._destroy()


def _take(lib: ctypes.CDLL, threads: int) -> Context:
    with _lock:
        for i in reversed(range(len(_idle))):  # the latest: its memory is warm
            if _idle[i].threads == threads and _idle[i]._library is lib:
                return _idle.pop(i)
    return Context(lib, threads)


def _give_back(lent: Context) -> None:
    if lent._pid != os.getpid():
        return
    with _lock:
        _idle.append(lent)
        surplus = _idle.pop(0) if len(_idle) > _MAX_IDLE else None
    if surplus is not None:
        surplus._destroy()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have held it
    _idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(trim)
