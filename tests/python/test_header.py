"""The declarations in kvferry/_ffi.py are those of kvferry.h.

The header is read by a small parser of its own below, which fails on what it does not understand.
Sizes and offsets come from a C program, so that a compiler and not this file decides them.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from ctypes import POINTER, c_char, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p

import pytest
from conftest import ROOT

from kvferry import _ffi

HEADER = ROOT / "include" / "kvferry.h"


def stripped() -> str:
    text = re.sub(r"/\*.*?\*/", " ", HEADER.read_text(), flags=re.DOTALL)
    text = re.sub(r"//[^\n]*", " ", text)
    # Inline helpers are C, and have no symbol.
    return re.sub(r"static inline [^{]*\{.*?\n\}", " ", text, flags=re.DOTALL)


TEXT = stripped()


def parsed_constants() -> dict[str, int]:
    found = re.findall(r"^#define (KVF_\w+) (\(?-?\w+\)?)$", TEXT, re.MULTILINE)
    return {name: int(value.strip("()")) for name, value in found}


def parsed_structs() -> dict[str, list[tuple[str, str]]]:
    """Struct → fields as (type, name); arrays keep their brackets in the type."""
    structs = {}
    for body, name in re.findall(r"typedef struct \w+ \{(.*?)\} (\w+);", TEXT, re.DOTALL):
        fields = []
        for field in filter(None, (f.strip() for f in body.split(";"))):
            kind, stars, label, array = re.fullmatch(
                r"((?:const |struct )*\w+)\s*((?:\*\s*(?:const )?)*)(\w+)(\[\w+\])?", " ".join(field.split())
            ).groups()
            fields.append((normal(kind + stars) + (array or ""), label))
        structs[name] = fields
    return structs


def parsed_functions() -> dict[str, tuple[str, list[str]]]:
    """Function → result type and argument types."""
    functions = {}
    for result, name, arguments in re.findall(
        r"^((?:const )?\w+ \*?)(kvf_\w+)\(([^()]*)\);", TEXT, re.MULTILINE
    ):
        types = []
        for argument in arguments.split(","):
            argument = " ".join(argument.split())
            if argument == "void":
                continue
            kind, _label = re.fullmatch(r"(.*?[\s*])(\w+)", argument).groups()
            types.append(normal(kind))
        functions[name] = (normal(result), types)
    return functions


def normal(kind: str) -> str:
    """One spelling of a type: no const, no struct keyword, no blanks around stars."""
    kind = re.sub(r"\b(const|struct)\b", " ", kind)
    return re.sub(r"\s+", " ", kind).replace(" *", "*").replace("* ", "*").strip()


SCALARS = {
    "kvf_status": c_int32, "int32_t": c_int32, "int64_t": c_int64, "uint8_t": c_uint8,
    "uint16_t": c_uint16, "uint32_t": c_uint32, "uint64_t": c_uint64, "size_t": c_size_t, "void": None,
    "int": c_int, "double": c_double, "char": c_char, "void*": c_void_p, "char*": c_char_p, "char**": POINTER(c_char_p),
    "kvf_log_fn": _ffi.kvf_log_fn, "kvf_free_fn": _ffi.kvf_free_fn,
}


def acceptable(c_type: str) -> list[object]:
    """What a type of the header may be declared as."""
    if c_type in SCALARS:
        return [SCALARS[c_type]]
    if c_type in _ffi.HANDLES:
        return [c_uint64]
    if c_type.endswith("*"):
        target = c_type[:-1]
        # Arrays and bytes are declared as addresses.
        pointers = [c_void_p]
        if target == "uint8_t":
            pointers.append(c_char_p)
        if target in _ffi.HANDLES:
            pointers.append(POINTER(c_uint64))
        elif SCALARS.get(target):
            pointers.append(POINTER(SCALARS[target]))
        elif hasattr(_ffi, target):
            pointers.append(POINTER(getattr(_ffi, target)))
        elif hasattr(_ffi, target.removesuffix("*")):
            pointers.append(POINTER(POINTER(getattr(_ffi, target.removesuffix("*")))))
        else:
            raise AssertionError(f"the test does not know the type {c_type}")
        return pointers
    return [getattr(_ffi, c_type)]


def test_the_parser_sees_everything():
    """Counted in another way, so that a declaration the parser overlooks is noticed."""
    assert len(parsed_functions()) == len(set(re.findall(r"\b(kvf_\w+)\(", TEXT))) > 50
    assert len(parsed_structs()) == TEXT.count("typedef struct ") > 15
    assert len(parsed_constants()) == len(re.findall(r"#define KVF_\w+ [(\d-]", TEXT)) > 40


def test_constants():
    assert _ffi.CONSTANTS == parsed_constants()


def test_functions_are_the_same_ones():
    assert sorted(_ffi.FUNCTIONS) == sorted(parsed_functions())


@pytest.mark.parametrize("name", sorted(parsed_functions()))
def test_function(name):
    result, arguments = parsed_functions()[name]
    declared_result, declared = _ffi.FUNCTIONS[name]
    assert declared_result in acceptable(result), f"result is {result}"
    assert len(declared) == len(arguments), arguments
    for position, (c_type, mine) in enumerate(zip(arguments, declared)):
        assert mine in acceptable(c_type), f"argument {position} is {c_type}"
    function = getattr(_ffi.lib, name)
    assert function.restype is declared_result
    assert tuple(function.argtypes) == declared


def struct_class(name: str) -> type[ctypes.Structure]:
    return getattr(_ffi, name)


def test_structs_are_the_same_ones():
    declared = {
        name for name, value in vars(_ffi).items()
        if isinstance(value, type) and issubclass(value, ctypes.Structure) and value is not ctypes.Structure
    }
    assert declared | set(_ffi.HANDLES) == set(parsed_structs())
    for handle in _ffi.HANDLES:
        assert parsed_structs()[handle] == [("uint64_t", "id")], handle


@pytest.mark.parametrize("name", sorted(set(parsed_structs()) - set(_ffi.HANDLES)))
def test_struct_fields(name):
    fields = parsed_structs()[name]
    declared = struct_class(name)._fields_
    assert [label for _, label in fields] == [label for label, _ in declared]
    for (c_type, label), (_, mine) in zip(fields, declared):
        if array := re.fullmatch(r"(\w+)\[(\w+)\]", c_type):
            length = parsed_constants().get(array[2]) or int(array[2])
            assert mine in [item * length for item in acceptable(array[1])], label
        else:
            assert mine in acceptable(c_type), f"{label} is {c_type}"


def test_layout_is_the_compilers(tmp_path):
    """Size of every struct, and offset and size of every field."""
    structs = parsed_structs()
    lines = []
    for name, fields in structs.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        for _, label in fields:
            where = f"offsetof({name}, {label}), sizeof((({name} *)0)->{label})"
            lines.append(f'printf("{name}.{label} %zu %zu\\n", {where});')
    source = tmp_path / "layout.c"
    source.write_text(
        '#include <stdio.h>\n#include "kvferry.h"\nint main(void) {\n' + "\n".join(lines) + "\nreturn 0;\n}\n"
    )
    program = tmp_path / "layout"
    subprocess.run(["cc", "-std=c11", f"-I{HEADER.parent}", str(source), "-o", str(program)], check=True)
    printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    seen = 0
    for line in printed.splitlines():
        place, *numbers = line.split()
        name, _, label = place.partition(".")
        cls = c_uint64 if name in _ffi.HANDLES else struct_class(name)
        if not label:
            assert ctypes.sizeof(cls) == int(numbers[0]), name
        elif name not in _ffi.HANDLES:
            field = getattr(cls, label)
            assert (field.offset, field.size) == tuple(map(int, numbers)), place
        seen += 1
    assert seen == len(structs) + sum(map(len, structs.values()))
