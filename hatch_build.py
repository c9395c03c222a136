"""Hatchling's build hook: puts the native library (native/build.py) into wheels and editable installs.

Environment variables:

    GUAVA_NATIVE_BUILD   "require": no library, no wheel; "off": a pure wheel without it; else it is tried,
                         and if it fails, a pure wheel is made that says why (`guava doctor` repeats it)
    GUAVA_TARGET         build for another machine, e.g. aarch64-linux (implies "require")
    GUAVA_CXX            the C++ compiler; "zig" for PyPI's ziglang
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NOT_BUILT = "not_built.txt"  # read by guava.native


def load_recipe(root: Path) -> ModuleType:
    """native/build.py as a module."""
    spec = importlib.util.spec_from_file_location("guava_native_build", root / "native" / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class NativeBuildHook(BuildHookInterface):
    """Builds the library, names the wheel's platform, and says what it needs for that."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """ziglang, where no compiler works."""
        mode, target = _wishes()
        if mode == "off":
            return []
        recipe = load_recipe(Path(self.root))
        return recipe.requirements(recipe.parse_target(target) if target else None)

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """``version``: "standard" (a wheel) or "editable"."""
        mode, target_name = _wishes()
        recipe = load_recipe(Path(self.root))
        if version == "editable" and target_name:
            raise recipe.BuildError("An editable install is for this machine: unset GUAVA_TARGET.")
        in_place = recipe.PACKAGE / NOT_BUILT
        if version == "editable":
            in_place.unlink(missing_ok=True)
        reason = "GUAVA_NATIVE_BUILD=off when it was installed."
        if mode != "off":
            try:
                target = recipe.parse_target(target_name) if target_name else recipe.host_target()
                out = recipe.PACKAGE if version == "editable" else recipe.WORK / "wheel" / target.zig
                built = recipe.build(target, out=out, say=self.app.display_info)
            except recipe.BuildError as error:
                if mode == "require":
                    raise
                reason = str(error)
                self.app.display_warning(f"The native library is left out, rendering will be slow: {reason}")
            else:
                build_data["pure_python"] = False
                build_data["tag"] = f"py3-none-{recipe.wheel_platform(built.target, built.compiler.kind)}"
                if version != "editable":
                    build_data["force_include"][str(built.path)] = f"guava/native/{built.path.name}"
                return
        if version == "editable":
            in_place.write_text(reason + "\n", encoding="utf-8")
            return
        note = recipe.WORK / "wheel" / NOT_BUILT
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(reason + "\n", encoding="utf-8")
        build_data["force_include"][str(note)] = f"guava/native/{NOT_BUILT}"


def _wishes() -> tuple[str, str]:
    """("require", "off" or "auto"; the target's name or "")."""
    mode = os.environ.get("GUAVA_NATIVE_BUILD", "") or "auto"
    if mode not in ("require", "off", "auto"):
        raise ValueError(f"GUAVA_NATIVE_BUILD is '{mode}'; choose require, off or auto.")
    target = os.environ.get("GUAVA_TARGET", "")
    return ("require" if target and mode == "auto" else mode), target
