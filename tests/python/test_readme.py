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


# What the snippets take for granted: a prefill engine's block at `source`, and its metadata.

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
static unsigned char block[4096], target[4096];
static kvf_agent prefill;
static kvf_buffer metadata;
static int start_prefill(void) {
  kvf_agent_options options = kvf_agent_options_default();
  options.name = "prefill";
  options.transport = "local";
  memset(block, 0xa5, sizeof block);
  CHECK(kvf_agent_create(&options, &prefill));
  kvf_reg_desc range = {(uintptr_t)block, 4096, 0, NULL, 0};
  CHECK(kvf_agent_register(prefill, KVF_MEM_DRAM, &range, 1, NULL, 0));
  CHECK(kvf_agent_metadata(prefill, &metadata));
  return 0;
}
int main(void) {
  if (start_prefill() != 0) return 1;
  uint64_t source = (uintptr_t)block;
  kvf_agent agent;
  kvf_transfer read;
  int32_t state;
@SNIPPET@
  kvf_buffer_free(&metadata);
  CHECK(kvf_agent_destroy(agent));
  CHECK(kvf_agent_destroy(prefill));
  return memcmp(block, target, 4096) == 0 ? 0 : 2;
}
"""

CPP_PROGRAM = r"""
#include <cstring>
#include "kvferry.hpp"
static unsigned char block[4096], target[4096];
int main() {
  std::memset(block, 0xa5, sizeof block);
  kvferry::agent_options theirs;
  theirs.name = "prefill";
  theirs.transport = "local";
  kvferry::agent prefill(theirs);
  prefill.register_memory(kvferry::mem::dram, kvferry::range(block, 4096));
  const auto metadata = prefill.metadata();
  const std::uint64_t source = kvferry::range(block, 4096).addr;
@SNIPPET@
  return std::memcmp(block, target, 4096) == 0 ? 0 : 2;
}
"""

PYTHON_PROGRAM = """
import kvferry
block = bytearray(b"kv" * 2048)
prefill = kvferry.Agent("prefill", "local")
prefill.register([kvferry.range_of(block)])
metadata, source = prefill.metadata(), kvferry.range_of(block)[0]
@SNIPPET@
assert "target" not in globals() or target == block
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
    program = PYTHON_PROGRAM.replace("@SNIPPET@", code)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
