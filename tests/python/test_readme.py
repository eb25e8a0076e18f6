"""The snippets of the README do what they say: each is built or run as it stands there."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
LIBRARY = pathlib.Path(os.environ["KVF_LIBRARY"])


def snippets(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert found, f"the README has no {language} snippet"
    return found


C_PROGRAM = r"""
#include <stdio.h>
#include <string.h>
#include "kvferry.h"
#define CHECK(call) \
  do { \
    if ((call) != KVF_OK) { \
      fprintf(stderr, "%s\n", kvf_last_error_message()); \
      return 1; \
    } \
  } while (0)
static unsigned char source[4096], target[4096];
int main(void) {
  memset(source, 0xa5, sizeof source);
@SNIPPET@
  kvf_buffer_free(&metadata);
  CHECK(kvf_agent_destroy(decode));
  CHECK(kvf_agent_destroy(prefill));
  return memcmp(source, target, 4096) == 0 ? 0 : 2;
}
"""

CPP_PROGRAM = r"""
#include <cstring>
#include "kvferry.hpp"
static unsigned char source[4096], target[4096];
int main() {
  std::memset(source, 0xa5, sizeof source);
@SNIPPET@
  return std::memcmp(source, target, 4096) == 0 ? 0 : 2;
}
"""


@pytest.mark.parametrize(
    ("language", "program", "compiler"),
    [("c", C_PROGRAM, ["cc", "-std=c99"]), ("cpp", CPP_PROGRAM, ["c++", "-std=c++17"])],
)
def test_compiled_snippet(language, program, compiler, tmp_path):
    source = tmp_path / f"readme.{language}"
    source.write_text(program.replace("@SNIPPET@", snippets(language)[0]))
    binary = tmp_path / "readme"
    includes = [f"-I{ROOT / 'include'}", f"-I{ROOT / 'bindings/cpp/include'}"]
    flags = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    # The SONAME differs from the file's name, so a link beside the program stands in for an install.
    (tmp_path / "libkvferry.so.0").symlink_to(LIBRARY.resolve())
    link = [str(LIBRARY), f"-Wl,-rpath,{tmp_path}"]
    subprocess.run([*compiler, *flags, *includes, str(source), "-o", str(binary), *link], check=True)
    subprocess.run([str(binary)], check=True, timeout=60)


@pytest.mark.parametrize("code", snippets("python"))
def test_python_snippet(code):
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
