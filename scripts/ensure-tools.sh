#!/usr/bin/env bash
# Makes sure that the compilers, cmake, Python and Rust that a build needs are there. As root it
# installs what is missing with apt-get; as anybody else it prints the line to run, and fails.
# Costs a few tens of milliseconds when nothing is missing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# The oldest Rust that builds the crate stands in Cargo.toml and nowhere else.
rust_needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

version_at_least() { # HAVE WANTED, as 1.95.0 and 1.85
    [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

# bindgen, in the build of nixl-sys, opens libclang.so and needs clang's own headers beside it.
has_libclang() {
    local pattern
    if [ -n "${LIBCLANG_PATH:-}" ]; then return 0; fi
    for pattern in '/usr/lib/llvm-*/lib/libclang.so*' '/usr/lib/llvm-*/lib/libclang-[0-9]*.so*' \
        '/usr/lib/*-linux-gnu/libclang-[0-9]*.so*' '/usr/lib*/libclang.so*' \
        '/usr/local/lib*/libclang.so*'; do
        if compgen -G "$pattern" >/dev/null; then return 0; fi
    done
    return 1
}

has_python() { [ -e "$KVF_CACHE/venv.stamp" ] || find_python >/dev/null; }

# Prints the Debian packages that are missing, one a line.
missing_packages() {
    local pair
    # The tools by command, since they may well come from elsewhere than Debian's packages.
    for pair in gcc:gcc g++:g++ clang:clang cmake:cmake ninja:ninja-build pkg-config:pkg-config; do
        command -v "${pair%%:*}" >/dev/null 2>&1 || printf '%s\n' "${pair#*:}"
    done
    # Debian's clang brings its libclang.
    if command -v clang >/dev/null 2>&1 && ! has_libclang; then printf 'libclang-dev\n'; fi
    if ! has_python; then printf '%s\n' python3 python3-venv; fi
    # cargo verifies the registry's certificate with the system's.
    if [ ! -e /etc/ssl/certs/ca-certificates.crt ] && [ ! -d /etc/pki ] && [ -z "${SSL_CERT_FILE:-}" ]; then
        printf 'ca-certificates\n'
    fi
}

# What `cargo --version` calls itself; empty when there is none.
cargo_version() { { cargo --version 2>/dev/null || true; } | sed -n 's/^cargo \([0-9.]*\).*/\1/p'; }

apt() { DEBIAN_FRONTEND=noninteractive apt-get -q "$@" </dev/null; }

# The newest version of a package that apt would install; empty when it knows none.
apt_candidate() { { apt-cache policy "$1" 2>/dev/null || true; } | sed -n 's/^ *Candidate: \([0-9.]*\).*/\1/p'; }

# Installs with the package lists that are there, and fetches new ones only if that fails.
# --no-remove: a tool that would push another package out is the person's choice, not ours.
apt_install() {
    say "installing with apt-get: $*"
    if ! apt install -y --no-install-recommends --no-remove "$@" >"$log" 2>&1; then
        apt update >>"$log" 2>&1 || { tail -n 20 "$log" >&2; die "apt-get update failed"; }
        apt install -y --no-install-recommends --no-remove "$@" >>"$log" 2>&1 ||
            { tail -n 20 "$log" >&2; die "apt-get install $* failed"; }
    fi
}

# Debian's packages of a new enough Rust: "cargo", or on releases that keep a newer one for building
# browsers, "cargo-web". Prints nothing when neither is new enough.
rust_packages() {
    local suffix candidate
    for suffix in '' -web; do
        candidate=$(apt_candidate "cargo$suffix")
        if [ -n "$candidate" ] && version_at_least "$candidate" "$rust_needed"; then
            printf '%s\n' "cargo$suffix" "rustc$suffix"
            return
        fi
    done
}

how_to_get_rust="install Rust $rust_needed or newer with rustup, the Rust project's installer \
(or, on Debian 12, with: apt-get install cargo-web rustc-web)"

is_root() { [ "$(id -u)" -eq 0 ]; }
has_apt() { command -v apt-get >/dev/null 2>&1; }

mapfile -t packages < <(missing_packages)
rust=$(cargo_version)

if [ ${#packages[@]} -eq 0 ] && [ -n "$rust" ] && version_at_least "$rust" "$rust_needed"; then
    exit 0
fi

if ! has_apt || ! is_root; then
    # One line that installs everything, where apt's lists are there to say that it would.
    rust_note=
    if [ -z "$rust" ]; then
        mapfile -t from_apt < <(rust_packages)
        packages+=("${from_apt[@]}")
        if [ ${#from_apt[@]} -gt 0 ]; then
            rust_note="Leave out ${from_apt[*]} if you would rather have Rust from rustup."
        else
            rust_note="There is no cargo: $how_to_get_rust."
        fi
    elif ! version_at_least "$rust" "$rust_needed"; then
        rust_note="The cargo found, $(command -v cargo), is $rust: $how_to_get_rust."
    fi
    {
        say "kvferry needs tools that are not installed."
        if [ ${#packages[@]} -gt 0 ]; then
            if has_apt; then
                say "Run this once, then run make again:"
                say ""
                say "    sudo apt-get update && sudo apt-get install -y ${packages[*]}"
                say ""
            else
                say "Install what your system calls these Debian packages: ${packages[*]}"
            fi
        fi
        if [ -n "$rust_note" ]; then say "$rust_note"; fi
    } >&2
    exit 1
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT

if [ ${#packages[@]} -gt 0 ]; then apt_install "${packages[@]}"; fi

if [ -z "$rust" ]; then
    mapfile -t packages < <(rust_packages)
    if [ ${#packages[@]} -eq 0 ]; then
        # The package lists may be empty or old.
        apt update >"$log" 2>&1 || true
        mapfile -t packages < <(rust_packages)
    fi
    [ ${#packages[@]} -gt 0 ] || die "there is no cargo, and apt has none that is new enough: $how_to_get_rust"
    apt_install "${packages[@]}"
elif ! version_at_least "$rust" "$rust_needed"; then
    die "the cargo found, $(command -v cargo), is $rust: $how_to_get_rust"
fi

# Installing can succeed and still leave something out (a package under another name, a shim that
# hides the new tool): better said here than by a compiler.
mapfile -t packages < <(missing_packages)
[ ${#packages[@]} -eq 0 ] || die "still missing after installing: ${packages[*]}"
rust=$(cargo_version)
[ -n "$rust" ] || die "cargo was installed, but does not run"
