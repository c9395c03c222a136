"""The ``guava`` command.

Exit status: 0 done; 1 an unexpected error (a bug), or ``guava doctor`` found something essential missing;
2 bad input or usage, told in one line; 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Sequence

from guava import __version__
from guava.errors import GuavaError

VERBS = ("demo", "track", "reconstruct", "bake", "animate", "render", "doctor", "assets", "weights", "data")

# Else the threads of torch's OpenMP spin for some 10 ms after every operation, on cores that the native
# kernels, the encoder or other programs need; where those are busy, that doubles the time of a frame. It is
# read once, when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_ABOUT = """One photo of a person in; an animatable avatar of 3D Gaussians out.

  guava demo                                        see it work, on a photo that comes along
  guava reconstruct PHOTO -o A.guava                an avatar from a photo
  guava bake A.guava -o B.guava                     a network's avatar as plain Gaussians, without it
  guava animate A.guava --motion talk -o OUT.mp4    make it move (talk, idle, wave, or M.motion)
  guava track VIDEO -o M.motion                     take someone's motion, to drive an avatar with
  guava render A.guava -o OUT.png                   one picture, from any side
  guava doctor                                      what works here, and how to get the rest
  guava assets list                                 body templates; add your own SMPL-X and FLAME
  guava weights list                                learned weights; take over the GUAVA authors' checkpoint
  guava data info FOLDER                            look at, and convert, what the authors' tracker wrote

Every verb explains itself: guava VERB --help. Add --debug for a traceback in case of an error."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = bool(os.environ.get("GUAVA_DEBUG"))
    if "--debug" in arguments:
        arguments.remove("--debug")
        debug = True
    if arguments and arguments[0] in ("--version", "-V"):
        print(f"guava-avatar {__version__}")
        return 0
    if not arguments or arguments[0] in ("--help", "-h"):
        print(_ABOUT)
        return 0 if arguments else 2
    verb = arguments[0]
    if verb not in VERBS:
        return _fail(f"There is no command '{verb}'. Commands: {', '.join(VERBS)}.")
    try:
        return _run(verb, arguments[1:])
    except GuavaError as error:
        if debug:
            raise
        return _fail(str(error))
    except KeyboardInterrupt:
        if debug:
            raise
        print(f"\ninterrupted: 'guava {verb}' left no half-written file; run it again.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) went away; Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        if debug:
            raise
        return _fail("Not enough memory. Close other programs, or use a smaller picture or --size.")
    except OSError as error:
        if debug or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            return _unexpected(error, debug)
        return _fail(f"{error.strerror}: '{error.filename}'. Check the folder and the free space.")
    except Exception as error:  # noqa: BLE001 - the last line of defence: a clear message and status 1
        return _unexpected(error, debug)


def _run(verb: str, arguments: list[str]) -> int:
    if verb == "doctor" and importlib.util.find_spec("tyro") is None:
        doctor = importlib.import_module("guava.commands.doctor")
        return doctor.run(doctor.Config(verbose="--verbose" in arguments))
    import tyro

    module = importlib.import_module(f"guava.commands.{verb}")
    try:
        about = inspect.cleandoc(module.Config.__doc__)
        config = tyro.cli(
            module.Config, prog=f"guava {verb}", args=arguments, description=about,
            config=(tyro.conf.FlagCreatePairsOff,),  # --profile, without a --no-profile beside it
        )  # fmt: skip
    except SystemExit as stop:  # --help (0) or a usage error, already printed (2)
        return int(stop.code or 0)
    return int(module.run(config) or 0)


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _unexpected(error: BaseException, debug: bool) -> int:
    if debug:
        raise error
    print(
        f"error: unexpected {type(error).__name__}: {error}. This is a bug in Guava; please report it, with "
        "what '--debug' prints.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
