#!/usr/bin/env bash
# run.sh BUILT WORK: installs the libraries of the folder BUILT into a prefix under WORK, and builds
# and runs C and C++ programs against what is installed, with find_package and with pkg-config.
set -euo pipefail
built=$1 work=$2
tests=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cc=${CC:-cc} cxx=${CXX:-c++}

fail() {
    echo "$*" >&2
    exit 1
}
rm -rf "$work"
mkdir -p "$work"

install_to() { # PREFIX DESTDIR
    KVF_BUILT=$built PREFIX=$1 LIBDIR=$1/lib DESTDIR=$2 "$tests/../scripts/install.sh"
}

# --- What is installed

prefix=$work/prefix
install_to "$prefix" ""
lib=$prefix/lib
[ "$(readlink "$lib/libkvferry.so.0")" = "$(basename "$(readlink -f "$lib/libkvferry.so")")" ] ||
    fail "the SONAME link does not lead to the library"
cmp "$built/libkvferry.so" "$lib/libkvferry.so"
cmp "$built/libkvferry.a" "$lib/libkvferry.a"
diff -r "$tests/../bindings/cpp/include/kvferry" "$prefix/include/kvferry"
cmp "$tests/../include/kvferry.h" "$prefix/include/kvferry.h"
"$prefix/bin/kv_cache_server" --version | grep -q '^kv_cache_server [0-9]' || fail "kv_cache_server does not run"

# --- find_package, from a prefix that was moved after the installation

mv "$prefix" "$work/moved"
cmake -S "$tests/install" -B "$work/cmake" -G Ninja --log-level=WARNING -DTOURS="$tests" \
    -DCMAKE_PREFIX_PATH="$work/moved"
cmake --build "$work/cmake"
for program in c_kvferry c_static cpp_kvferry cpp_static; do
    "$work/cmake/$program" local
done
# A version that cannot serve is not taken.
sed 's/find_package(kvferry 0.1 /find_package(kvferry 9.0 /' "$tests/install/CMakeLists.txt" \
    >"$work/CMakeLists.txt"
if cmake -S "$work" -B "$work/newer" -G Ninja -DTOURS="$tests" \
    -DCMAKE_PREFIX_PATH="$work/moved" >"$work/newer.log" 2>&1; then
    fail "find_package(kvferry 9.0) takes this version"
fi
mv "$work/moved" "$prefix"

# --- pkg-config

export PKG_CONFIG_PATH=$lib/pkgconfig
read -ra flags < <(pkg-config --cflags --libs kvferry)
"$cc" "$tests/c/tour.c" -o "$work/c" "${flags[@]}"
"$cxx" -std=c++17 "$tests/cpp/tour.cpp" -o "$work/cpp" "${flags[@]}"
for program in c cpp; do
    LD_LIBRARY_PATH=$lib "$work/$program" local
done
# Statically: the private libraries are named, too.
read -ra flags < <(pkg-config --static --cflags --libs kvferry)
"$cc" "$tests/c/tour.c" -o "$work/c_static" "${flags[@]/-lkvferry/-l:libkvferry.a}"
"$work/c_static" local

# --- A package builder's staging folder: nothing outside it, and no trace of it inside

install_to /usr "$work/stage"
[ "$(PKG_CONFIG_PATH=$work/stage/usr/lib/pkgconfig pkg-config --variable=prefix kvferry)" = /usr ] ||
    fail "the prefix of kvferry.pc is not /usr"
if grep -rIl "$work" "$work/stage"; then fail "these files name the staging folder"; fi
