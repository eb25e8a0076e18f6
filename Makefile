# kvferry: one entry for every everyday task. The work is in scripts/; docs/development.md explains.

# A variable given to make (make install PREFIX=/opt/kvferry) reaches the scripts as environment.
PREFIX ?= /usr/local
DESTDIR ?=
LIBDIR ?= $(PREFIX)/lib
# More arguments for the program behind a target: make test-python ARGS='-k metadata'
ARGS ?=
export PREFIX DESTDIR LIBDIR

# Stages share the machine's cores and say how long they took: one at a time, also under make -j.
.NOTPARALLEL:
.PHONY: help tools venv venv-vllm build header header-check demo test test-rust test-c test-python \
	test-vllm bench fuzz lint install clean

help: ## this list
	@echo "kvferry: moves KV caches between inference engines. Targets:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: build venv ## move KV-cache blocks between ranks of equal and unequal TP, over NIXL and the built-in transport
	@scripts/demo.sh $(ARGS)

test: test-rust test-c test-python ## all tests: Rust, C and C++, Python
	@echo "==> all tests passed"

test-rust: build venv ## the crate's tests
	@scripts/test-rust.sh $(ARGS)

test-c: build venv ## the C and C++ tests
	@scripts/test-c.sh $(ARGS)

test-python: build venv ## the Python tests
	@scripts/test-python.sh $(ARGS)

test-vllm: build venv venv-vllm ## real vLLM engines, ours and stock (not part of make test: a large download; ARGS=--all for everything)
	@scripts/test-vllm.sh $(ARGS)

build: tools ## the release library, target/release/libkvferry.so
	@scripts/build.sh

bench: build venv ## the benchmarks of docs/benchmarks.md
	@scripts/bench.sh $(ARGS)

fuzz: tools ## every fuzz target for a bounded time, FUZZ_SECONDS each (default 30)
	@scripts/fuzz.sh $(ARGS)

header: tools ## write include/kvferry.h from the sources
	@scripts/header.sh

header-check: tools ## fail when include/kvferry.h is stale
	@scripts/header.sh --check

lint: tools ## formatting and lints, every warning an error
	@scripts/lint.sh

install: build ## install into $(DESTDIR)$(PREFIX)
	@scripts/install.sh

clean: ## remove what was built (the venv stays: .cache can be deleted at any time)
	@cargo clean --quiet
	@rm -rf build

# Compilers, cmake, Rust: installed when root, named when not.
tools:
	@scripts/ensure-tools.sh

# The private Python environment with NIXL's wheel.
venv: tools
	@scripts/venv.sh

# The environment with vLLM's CPU build.
venv-vllm: tools
	@scripts/venv-vllm.sh
