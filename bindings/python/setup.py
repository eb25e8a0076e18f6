"""Puts libkvferry.so and kv_cache_server, built by cargo, into the wheel; the rest is in pyproject.toml.

There is nothing to compile against Python: the package loads the library with ctypes. So the wheel
is for any Python 3 and for one platform (``py3-none-linux_x86_64``).

``KVF_PREBUILT_LIBRARY`` names a library to pack instead of building one; the program is then packed if
it lies beside it.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).resolve().parent
# The crate: two folders up in a checkout.
CRATE = HERE.parents[1]


def version() -> str:
    """The crate's: package and library are released together."""
    manifest = CRATE / "Cargo.toml"
    if not manifest.is_file():
        sys.exit(f"{manifest} is not there: build the package from a checkout of kvferry")
    return re.search(r'^version = "(.+)"', manifest.read_text(), re.MULTILINE)[1]


def library() -> pathlib.Path:
    """The library to pack; built now unless one is named."""
    prebuilt = os.environ.get("KVF_PREBUILT_LIBRARY")
    if prebuilt:
        if not os.path.isfile(prebuilt):
            sys.exit(f"KVF_PREBUILT_LIBRARY is {prebuilt}, which is not a file")
        return pathlib.Path(prebuilt)
    cargo = os.environ.get("CARGO", "cargo")
    if not shutil.which(cargo):
        sys.exit(f"{cargo} was not found: install Rust, or set KVF_PREBUILT_LIBRARY")
    build = [cargo, "build", "--release", "--lib", "--bins", "--locked"]
    subprocess.run(build, cwd=CRATE, check=True)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", "target"))
    return CRATE / target / "release" / "libkvferry.so"


class BuildWithLibrary(build_py):
    def run(self) -> None:
        super().run()
        # An editable install runs from the source tree, and finds the library by KVF_LIBRARY.
        if not self.editable_mode:
            package = pathlib.Path(self.build_lib, "kvferry")
            package.mkdir(parents=True, exist_ok=True)
            built = library()
            shutil.copy2(built, package / "libkvferry.so")
            program = built.with_name("kv_cache_server")
            if program.is_file():
                shutil.copy2(program, package / program.name)


class PlatformWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform


class WithLibrary(Distribution):
    def has_ext_modules(self) -> bool:
        return True  # it is for one platform


setup(
    version=version(),
    distclass=WithLibrary,
    cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": PlatformWheel},
)
