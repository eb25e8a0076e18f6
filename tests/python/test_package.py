"""The wheel: built, installed into an empty environment, and used there. And how the library is found."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import textwrap
import zipfile

import pytest
from conftest import ROOT, need_nixl

import kvferry

LIBRARY = pathlib.Path(os.environ["KVF_LIBRARY"]).resolve()
PACKAGE = ROOT / "bindings" / "python"


def clean_environment(**more: str) -> dict[str, str]:
    """Without what lets the tests find the package and the library of the checkout."""
    hidden = {"PYTHONPATH", "KVF_LIBRARY", "LD_LIBRARY_PATH"}
    return {k: v for k, v in os.environ.items() if k not in hidden} | more


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> pathlib.Path:
    # From a copy: setuptools writes beside the sources. The crate's version is two folders up.
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "bindings" / "python"
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    shutil.copy(ROOT / "Cargo.toml", folder)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps",
         "--no-build-isolation", "--wheel-dir", str(folder), str(source)],
        check=True, env=clean_environment(KVF_PREBUILT_LIBRARY=str(LIBRARY)),
    )
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> pathlib.Path:
    """The interpreter of an environment with nothing in it but the wheel."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index",
         "--disable-pip-version-check", str(wheel)],
        check=True, env=clean_environment(),
    )
    return python


def run(python: pathlib.Path, code: str, cwd: pathlib.Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(python), "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=60, cwd=cwd, env=clean_environment(**environment),
    )


def test_what_is_in_the_wheel(wheel):
    assert wheel.name.startswith(f"kvferry-{kvferry.__version__}-py3-none-linux_")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert archive.read("kvferry/libkvferry.so") == LIBRARY.read_bytes()
        record = next(n for n in names if n.endswith("/WHEEL"))
        assert "Root-Is-Purelib: false" in archive.read(record).decode()
    sources = {
        str(f.relative_to(PACKAGE)) for f in (PACKAGE / "kvferry").rglob("*")
        if f.suffix in (".py", ".typed") and "__pycache__" not in f.parts
    }
    assert sources | {"kvferry/libkvferry.so", "kvferry/kv_cache_server"} == {n for n in names if n.startswith("kvferry/")}


def test_a_block_moves_with_the_wheel_alone(installed, tmp_path):
    """No numpy, no NIXL, no checkout."""
    done = run(installed, """
        import kvferry, sys
        source, target = bytearray(b"kv" * 2048), bytearray(4096)
        with kvferry.Agent("p", "local") as p, kvferry.Agent("d", "local") as d:
            p.register([kvferry.range_of(source)])
            d.register([kvferry.range_of(target)])
            peer = d.add_remote(p.metadata())
            mine = d.prepare([kvferry.range_of(target)])
            theirs = d.prepare([kvferry.range_of(source)], peer)
            with d.make_transfer("READ", mine, [0], theirs, [0]) as read:
                read.post()
                read.wait(30)
        assert target == source
        assert "numpy" not in sys.modules
        print(kvferry._lib._name, kvferry.__version__)
    """, tmp_path)
    assert done.returncode == 0, done.stderr
    path, version = done.stdout.split()
    assert path.endswith("site-packages/kvferry/libkvferry.so") and version == kvferry.__version__


def test_the_server_of_the_wheel(installed, tmp_path):
    done = run(installed, """
        from kvferry.pool_client import executable, serve
        with serve(10) as server, server.client() as pool:
            print(executable(), len(pool.allocate(3)))
    """, tmp_path, PATH="")
    assert done.returncode == 0, done.stderr
    path, taken = done.stdout.split()
    assert path.endswith("site-packages/kvferry/kv_cache_server") and taken == "3"
    # And as a command of the environment.
    command = installed.with_name("kv_cache_server")
    shown = subprocess.run([command, "--version"], capture_output=True, text=True, env=clean_environment())
    assert shown.stdout == f"kv_cache_server {kvferry.__version__}\n", shown.stderr


def test_without_nixl_the_error_says_what_to_install(installed, tmp_path):
    done = run(installed, """
        import kvferry
        from kvferry.nixl import nixl_agent
        for make in (lambda: kvferry.Agent("a", "nixl"), lambda: nixl_agent("a")):
            try:
                make()
            except kvferry.Error as e:
                assert e.status == kvferry.errors.NoBackendError.status, e
                assert "pip install --no-deps nixl-cu12" in str(e), e
                print("told")
    """, tmp_path, KVF_NIXL_LIBRARY="")
    assert done.stdout.split() == ["told", "told"], done.stderr


def test_nixl_by_its_path(installed, tmp_path):
    need_nixl()
    done = run(installed, """
        import kvferry, os
        path = os.environ["KVF_TEST_NIXL"]
        with kvferry.Agent("a", "nixl", nixl_library=path) as agent:
            print(agent.backends())
        try:
            kvferry.Agent("b", "nixl", nixl_library="/no/such/libnixl_capi.so")
        except kvferry.Error as e:
            print("/no/such" in str(e))
    """, tmp_path, KVF_NIXL_LIBRARY="")
    assert done.stdout.splitlines()[0] == "['UCX']", done.stderr
    assert done.stdout.splitlines()[1] == "True"


def test_library_that_was_named(installed, tmp_path):
    """KVF_LIBRARY comes before the one in the package, and is not passed over when it is wrong."""
    code = "import kvferry; print(kvferry._lib._name)"
    done = run(installed, code, tmp_path, KVF_LIBRARY=str(LIBRARY))
    assert done.stdout.strip() == str(LIBRARY), done.stderr
    (tmp_path / "broken.so").write_bytes(b"not a library")
    for name in ("broken.so", "absent.so"):
        done = run(installed, code, tmp_path, KVF_LIBRARY=str(tmp_path / name))
        assert done.returncode != 0 and "LibraryError" in done.stderr and name in done.stderr


def test_no_library_at_all(installed, tmp_path):
    packed = pathlib.Path(
        run(installed, "import kvferry; print(kvferry.__file__)", tmp_path).stdout.strip()
    ).with_name("libkvferry.so")
    hidden = packed.with_suffix(".hidden")
    packed.rename(hidden)
    try:
        done = run(installed, "import kvferry", tmp_path)
        assert "LibraryError" in done.stderr and str(packed) in done.stderr and "KVF_LIBRARY" in done.stderr
        # The system's loader path is the last resort.
        (tmp_path / "libkvferry.so.0").symlink_to(LIBRARY)
        done = run(installed, "import kvferry; print('found')", tmp_path, LD_LIBRARY_PATH=str(tmp_path))
        assert done.stdout.strip() == "found", done.stderr
    finally:
        hidden.rename(packed)


@pytest.mark.parametrize(("source", "text"), [
    ("unsigned kvf_abi_version(void) { return 77; }", "77"),
    ("int something_else(void) { return 0; }", "not libkvferry"),
    ("unsigned kvf_abi_version(void) { return 0; }", "lacks kvf_version"),
])
def test_library_of_another_kind(tmp_path, source, text):
    (tmp_path / "lib.c").write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(tmp_path / "lib.so"), str(tmp_path / "lib.c")], check=True)
    done = subprocess.run(
        [sys.executable, "-c", "import kvferry"], capture_output=True, text=True,
        env={**os.environ, "KVF_LIBRARY": str(tmp_path / "lib.so")},
    )
    assert done.returncode != 0 and "LibraryError" in done.stderr and text in done.stderr


def test_everything_public_is_documented():
    """Docstrings for every public name, and annotations for every public function."""
    import inspect

    from kvferry.nixl import _api, _bindings

    missing = []
    for module in (kvferry, _api, _bindings):
        names = getattr(module, "__all__", None) or [n for n in dir(module) if n.startswith("nixl_")]
        for name in names:
            value = getattr(module, name)
            if inspect.isclass(value):
                members = [(f"{name}.{m}", v) for m, v in vars(value).items() if not m.startswith("_")]
                missing += [n for n, v in members if isinstance(v, property) and not v.__doc__]
                functions = [(n, v) for n, v in members if inspect.isfunction(v)]
            elif inspect.isfunction(value):
                functions = [(name, value)]
            else:
                continue
            missing += [] if value.__doc__ else [name]
            for label, function in functions:
                if not function.__doc__ or "return" not in function.__annotations__:
                    missing.append(label)
    assert not missing
