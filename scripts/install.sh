#!/usr/bin/env bash
# Installs the release library for C and C++ programs: the shared library with its SONAME link, the
# static one, the headers, the package files for pkg-config and CMake, and the program kv_cache_server.
# PREFIX (/usr/local), LIBDIR ($PREFIX/lib) and DESTDIR (empty) come from the environment, and
# KVF_BUILT, the folder of the built libraries, where it is not cargo's of the release profile.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

prefix=${PREFIX:-/usr/local}
libdir=${LIBDIR:-$prefix/lib}
includedir=$prefix/include
destdir=${DESTDIR:-}
for dir in "$prefix" "$libdir" ${destdir:+"$destdir"}; do
    case $dir in /*) ;; *) die "PREFIX, LIBDIR and DESTDIR must be absolute, not $dir" ;; esac
done

stage install "into $destdir$prefix"
version=$(kvf_version)
built=${KVF_BUILT:-$KVF_TARGET/release}
for file in "$built/libkvferry.so" "$built/libkvferry.a" "$built/kv_cache_server" include/kvferry.h bindings/cpp/include/kvferry.hpp; do
    [ -f "$file" ] || die "$file is not there"
done
soname=$(readelf -d "$built/libkvferry.so" | sed -n 's/.*(SONAME).*\[\(.*\)\].*/\1/p')
[ -n "$soname" ] || die "$built/libkvferry.so has no SONAME"
shared=libkvferry.so.$version

install -d "$destdir$libdir/pkgconfig" "$destdir$libdir/cmake/kvferry" "$destdir$includedir"
install -d "$destdir$prefix/bin"
install -m 755 "$built/kv_cache_server" "$destdir$prefix/bin/"
install -m 755 "$built/libkvferry.so" "$destdir$libdir/$shared"
ln -sf "$shared" "$destdir$libdir/$soname"
ln -sf "$soname" "$destdir$libdir/libkvferry.so"
install -m 644 "$built/libkvferry.a" "$destdir$libdir/"
install -m 644 include/kvferry.h bindings/cpp/include/kvferry.hpp "$destdir$includedir/"
install -d "$destdir$includedir/kvferry"
install -m 644 bindings/cpp/include/kvferry/*.hpp "$destdir$includedir/kvferry/"

# fill TEMPLATE FILE: the @NAME@s in a file of packaging/. "|" separates, since values are paths.
fill() {
    # ${prefix} stays a variable of pkg-config's, so that --define-prefix can move the tree.
    # shellcheck disable=SC2016
    sed -e "s|@PREFIX@|$prefix|" -e "s|@LIBDIR@|${libdir/#"$prefix/"/'${prefix}/'}|" \
        -e "s|@VERSION@|$version|" -e "s|@SONAME@|$soname|" -e "s|@SHARED_FILE@|$shared|" \
        -e "s|@INCLUDE_FROM_LIB@|$(realpath -m --relative-to="$libdir" "$includedir")|" \
        "packaging/$1" >"$2"
    chmod 644 "$2"
}
fill kvferry.pc.in "$destdir$libdir/pkgconfig/kvferry.pc"
fill kvferryConfig.cmake.in "$destdir$libdir/cmake/kvferry/kvferryConfig.cmake"
fill kvferryConfigVersion.cmake.in "$destdir$libdir/cmake/kvferry/kvferryConfigVersion.cmake"
stage_summary="kvferry $version, $soname"
