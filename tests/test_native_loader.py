"""guava.native: why a library is refused, and that contexts survive threads, forks and Ctrl-C."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch

from guava import native
from guava.commands import doctor

ROOT = Path(__file__).parents[1]


def _problem() -> str:
    try:
        native.library()
    except native.NativeUnavailable as error:
        return error.message
    return ""


PROBLEM = _problem()
needs_library = pytest.mark.skipif(bool(PROBLEM), reason=f"no native library: {PROBLEM}")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")


@pytest.fixture
def fresh(monkeypatch):
    """Nothing is remembered, before and after."""
    monkeypatch.setattr(native, "_loaded", {})
    monkeypatch.delenv("GUAVA_NATIVE", raising=False)
    monkeypatch.delenv("GUAVA_NATIVE_ISA", raising=False)
    return monkeypatch


def refusal() -> native.NativeUnavailable:
    with pytest.raises(native.NativeUnavailable) as caught:
        native.library()
    assert not native.available()
    return caught.value


def test_the_interface_has_the_headers_number():
    header = ROOT / "native" / "include" / "guava_native.h"
    if not header.is_file():
        pytest.skip("not a source checkout")
    number = re.search(r"#define GUAVA_ABI_VERSION (\d+)", header.read_text())[1]
    assert native.ABI_VERSION == int(number)
    statuses = re.search(r"enum guava_status \{(.*?)\};", header.read_text(), re.DOTALL)[1]
    for name, value in re.findall(r"GUAVA_(\w+) = (\d)", statuses):
        assert getattr(native, name) == int(value)


# ---- Refusals ---------------------------------------------------------------------------------------------


def test_switched_off(fresh):
    fresh.setenv("GUAVA_NATIVE", "off")
    assert "GUAVA_NATIVE=off" in refusal().message


def test_switching_off_and_on_again(fresh):
    before = _problem()
    fresh.setenv("GUAVA_NATIVE", "off")
    assert _problem() != ""
    fresh.delenv("GUAVA_NATIVE")
    assert _problem() == before


def test_a_named_library_that_is_not_there(fresh, tmp_path):
    fresh.setenv("GUAVA_NATIVE", str(tmp_path / "gone.so"))
    assert "gone.so" in refusal().message


def test_an_installation_without_the_library(fresh, tmp_path):
    fresh.setattr(native, "FOLDER", tmp_path)
    error = refusal()
    assert "not in this installation" in error.message
    assert "GUAVA_NATIVE_BUILD=require" in error.hint


def test_an_installation_that_could_not_build_says_why(fresh, tmp_path):
    fresh.setattr(native, "FOLDER", tmp_path)
    (tmp_path / native.NOT_BUILT).write_text("no C++ compiler works\n")
    assert refusal().message == "The native library was not built: no C++ compiler works"


def test_a_file_that_is_no_library(fresh, tmp_path):
    path = tmp_path / "broken.so"
    path.write_text("not a library")
    fresh.setenv("GUAVA_NATIVE", str(path))
    assert "does not load" in refusal().message


def compile_library(path: Path, source: str) -> None:
    compiler = shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler to make a strange library with")
    path.with_suffix(".cpp").write_text(source)
    subprocess.run([compiler, "-shared", "-fPIC", path.with_suffix(".cpp"), "-o", path], check=True)


def test_a_library_with_another_interface(fresh, tmp_path):
    path = tmp_path / "future.so"
    compile_library(path, 'extern "C" int guava_abi_version() { return 99; }')
    fresh.setenv("GUAVA_NATIVE", str(path))
    assert f"interface 99, this Guava needs {native.ABI_VERSION}" in refusal().message


def test_a_library_that_lacks_functions(fresh, tmp_path):
    path = tmp_path / "poor.so"
    compile_library(path, f'extern "C" int guava_abi_version() {{ return {native.ABI_VERSION}; }}')
    fresh.setenv("GUAVA_NATIVE", str(path))
    assert re.search(r"does not load: .*guava_build_info", refusal().message)


class _OtherSources:
    @staticmethod
    def source_hash() -> str:
        return "0123456789abcdef"


@needs_library
@pytest.mark.skipif(native.source_checkout() is None, reason="not a source checkout")
def test_a_library_of_other_sources_is_used_with_a_warning(fresh):
    fresh.setattr(native, "_build_recipe", lambda checkout: _OtherSources)
    with pytest.warns(RuntimeWarning, match=r"other sources.*python native/build\.py"):
        native.library()
    assert "other sources" in native.stale()


@needs_library
def test_the_library_says_what_it_was_built_from():
    info = native.build_info()
    assert re.fullmatch(r"[0-9a-f]{16}", info["source"])
    assert info["compiler"] and re.match(r"(x86_64|aarch64)-(linux|macos|windows)", info["target"])


def test_build_information_with_spaces():
    text = "source=12 compiler=c++ (Debian 12) 12.2.0 target=x86_64-linux-gnu"
    expected = {"source": "12", "compiler": "c++ (Debian 12) 12.2.0", "target": "x86_64-linux-gnu"}
    assert native._parse_info(text) == expected


# ---- Contexts ---------------------------------------------------------------------------------------------


@needs_library
def test_contexts_have_torchs_number_of_threads():
    before = torch.get_num_threads()
    try:
        for threads in (1, 3, 2):
            torch.set_num_threads(threads)
            with native.context() as context:
                assert context.threads == threads
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@needs_library
def test_contexts_are_used_again_but_never_by_two():
    native.trim()
    with native.context() as outer:
        with native.context() as inner:
            assert inner.handle != outer.handle
    with native.context() as again:
        assert again is outer


@needs_library
def test_no_more_contexts_are_kept_than_a_few():
    native.trim()
    with native.context(), native.context(), native.context(), native.context(), native.context():
        with native.context():
            pass
    assert len(native._idle) == native._MAX_IDLE
    native.trim()
    assert not native._idle


@needs_library
def test_instruction_sets_can_be_chosen(fresh):
    names = {}
    for isa in native.available_isas():
        with native.forced_isa(isa), native.context() as context:
            names[isa] = context.isa
        fresh.setenv("GUAVA_NATIVE_ISA", isa)
        with native.context() as context:
            assert context.isa == names[isa]
        fresh.delenv("GUAVA_NATIVE_ISA")
    assert names["baseline"] in ("sse2", "neon")
    with native.context() as context:
        assert context.isa == native.isa_name() == names[native.available_isas()[-1]]
        with pytest.raises(ValueError, match="no native kernels 'avx1024'"):
            context.set_isa("avx1024")


@needs_library
def test_a_wrong_instruction_set_in_the_environment(fresh):
    fresh.setenv("GUAVA_NATIVE_ISA", "mmx")
    with pytest.raises(ValueError, match="'mmx'"), native.context():
        pass


@needs_library
@pytest.mark.parametrize(
    ("code", "error"),
    [
        (native.OUT_OF_MEMORY, MemoryError),
        (native.INVALID_VALUE, ValueError),
        (native.INVALID_CALL, RuntimeError),
        (native.CANCELLED, RuntimeError),
    ],
)
def test_statuses_become_exceptions(code, error):
    with native.context() as context:
        context.check(native.OK)
        with pytest.raises(error):
            context.check(code)


@needs_library
def test_what_a_signal_handler_raised_is_never_lost():
    """Neither if the call was finished all the same, nor if another error comes first."""
    with pytest.raises(KeyboardInterrupt), native.context() as context:
        context._interruption = KeyboardInterrupt()
        context.check(native.OK)
    with pytest.raises(KeyboardInterrupt), native.context() as context:
        context._interruption = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt), native.context() as context:
        context._interruption = KeyboardInterrupt()
        raise ValueError("another error")
    with native.context() as context:
        context.check(native.OK)


# ---- Threads, forks, signals: in programs of their own ----------------------------------------------------

PICTURE = """
import torch
from guava import native
from guava.camera import Camera
from guava.rendering.splatting import splat

def scene(seed, count=300, channels=5):
    random = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, 3, generator=random) * 0.2 - torch.tensor([0.0, 0.0, 1.0]),
        torch.randn(count, 4, generator=random),
        torch.rand(count, 3, generator=random) * 0.05 + 0.01,
        torch.rand(count, generator=random),
        torch.rand(count, channels, generator=random),
    )

def picture(seed):
    return splat(*scene(seed), Camera.frontal(64), backend="native").features
"""


def run(program: str) -> str:
    """Runs a program that prints "done" at its end and nothing on stderr."""
    source = PICTURE + textwrap.dedent(program) + '\nprint("done")\n'
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", source], capture_output=True, text=True, timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("done\n")
    return done.stdout


@needs_library
def test_threads_draw_at_once():
    names = {}
    exec(PICTURE, names)
    picture = names["picture"]
    alone = [picture(seed) for seed in range(4)]
    together = threading.Barrier(4)
    same = [0] * 4

    def draw(seed: int) -> None:
        together.wait()
        for _ in range(20):
            same[seed] += torch.equal(picture(seed), alone[seed])

    workers = [threading.Thread(target=draw, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert same == [20] * 4


@needs_library
@needs_fork
def test_a_forked_child_draws():
    run(
        """
        import os
        torch.set_num_threads(2)
        before = picture(0)
        for child in range(3):
            pid = os.fork()
            if pid == 0:
                same = torch.equal(picture(0), before) and torch.equal(picture(1), picture(1))
                os._exit(0 if same else 1)
            _, status = os.waitpid(pid, 0)
            assert status == 0, status
            assert torch.equal(picture(0), before)
        """
    )


@needs_library
@needs_fork
def test_a_context_is_not_carried_into_a_child():
    run(
        """
        import os
        with native.context() as context:
            pid = os.fork()
            if pid == 0:
                try:
                    context.handle
                except RuntimeError as error:
                    os._exit(0 if "fork" in str(error) else 2)
                os._exit(1)
            _, status = os.waitpid(pid, 0)
            assert status == 0, status
            context.handle
        """
    )


# So long that it is still running when the signal comes, but with little memory: faint Gaussians over the
# whole picture, many channels, and conventions that neither skip the faint nor stop.
LONG_CALL = """
    import os, signal, threading, time
    from guava.rendering.splatting import SplatConventions

    # Background jobs of a shell inherit that Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    count, channels = 8000, 1024
    means, quaternions, scales, opacities, features = scene(0, count, channels)
    arguments = (means * 0.1 - torch.tensor([0.0, 0.0, 0.9]), quaternions, scales + 10, opacities * 0 + 1e-5,
                 features, Camera.frontal(256))
    conventions = SplatConventions(alpha_min=1e-7)
    codes = []
    check = native.Context.check
    native.Context.check = lambda self, code: (codes.append(code), check(self, code))

    def send(number):
        def later():
            time.sleep(1.5)
            os.kill(os.getpid(), number)
        threading.Thread(target=later).start()
"""


@needs_library
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals between processes")
def test_ctrl_c_ends_a_long_call_and_the_process_stays_usable():
    run(
        LONG_CALL
        + """
    before = picture(0)
    del codes[:]
    send(signal.SIGINT)
    try:
        splat(*arguments, backend="native", conventions=conventions)
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("Ctrl-C was lost")
    # Not merely noticed when the call was over.
    assert codes == [native.CANCELLED], codes
    assert torch.equal(picture(0), before)
        """
    )


@needs_library
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals between processes")
def test_other_handlers_run_during_a_call_and_their_exceptions_arrive():
    run(
        LONG_CALL
        + """
    heard = []
    class Stop(Exception):
        pass
    def first(number, frame):
        heard.append(number)
        signal.signal(signal.SIGUSR1, second)
        send(signal.SIGUSR1)
    def second(number, frame):
        raise Stop
    signal.signal(signal.SIGUSR1, first)
    send(signal.SIGUSR1)
    try:
        splat(*arguments, backend="native", conventions=conventions)
    except Stop:
        pass
    else:
        raise AssertionError("the exception was lost")
    assert heard == [signal.SIGUSR1] and codes == [native.CANCELLED], (heard, codes)
        """
    )


# ---- The doctor -------------------------------------------------------------------------------------------


def findings(check) -> list[doctor.Finding]:
    return list(check())


@needs_library
def test_the_doctor_names_the_kernels(fresh):
    fresh.setattr(native, "stale", lambda: "")
    finding, = findings(doctor._native)
    assert finding.mark == doctor.OK
    assert native.isa_name() in finding.text and native.build_info()["compiler"] in finding.text


def test_the_doctor_says_why_there_is_none(fresh):
    fresh.setenv("GUAVA_NATIVE", "off")
    finding, = findings(doctor._native)
    assert (finding.mark, finding.name) == (doctor.ABSENT, "native")
    assert "GUAVA_NATIVE=off" in finding.text and "slow" in finding.text


def test_the_doctor_survives_a_library_that_kills(fresh, tmp_path):
    path = tmp_path / "deadly.so"
    abort = "#include <cstdlib>\nextern \"C\" int guava_abi_version() { std::abort(); }"
    compile_library(path, abort)
    fresh.setenv("GUAVA_NATIVE", str(path))
    finding, = findings(doctor._native)
    assert finding.mark == doctor.BROKEN and "dies" in finding.text
