# Baton's one set of commands. `make` alone lists them.
#
# Everything is installed into .venv, in the versions of constraints.txt; the
# stamps in .venv say what is done, so that a second run costs seconds.

PYTHON ?= python3.11
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
BUF_VERSION := 1.75.0
BUF := $(VENV)/node/node_modules/.bin/buf

# Commands run from the root, and the root must not be importable: `kernels`
# and `proto` are names of other people's packages.
export PYTHONSAFEPATH := 1
export PATH := $(BIN):$(PATH)

CPP_SOURCES := $(shell find scheduler_cpp -name '*.cpp' -o -name '*.h' -o -name 'CMakeLists.txt' 2>/dev/null)
PROTO_SOURCES := $(wildcard proto/baton/v1/*.proto)
SHELL_SCRIPTS := .ci/run $(shell find . -name '*.sh' -not -path './.venv/*' -not -path './build/*' 2>/dev/null)
TRAINED := examples/demo_model/model
RANDOM_MODEL := build/checkpoints/demo
PYTEST_FLAGS ?=
DEMO_FLAGS ?=

.DELETE_ON_ERROR:
# No target of a plain name is a file.
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*/\1/p' $(firstword $(MAKEFILE_LIST)))

help: ## list these commands
	@printf 'Baton: make TARGET\n\n'
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nStart with `make demo`.\n'

# ---- installation

venv: $(BIN)/python ## create .venv

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; install Python 3.11 or say PYTHON=..."; exit 1; }
	@echo "== creating .venv ($$($(PYTHON) --version))"
	@$(PYTHON) -m venv $(VENV)

$(STAMPS)/tools: constraints.txt | $(BIN)/python
	@mkdir -p $(STAMPS)
	@echo "== installing build tools"
	@$(PIP) -q scikit-build-core nanobind cmake ninja
	@touch $@

$(STAMPS)/worker: pyproject.toml $(STAMPS)/tools
	@echo "== installing pinned dependencies, building the scheduler (the first time takes minutes: torch)"
	@$(PIP) --no-build-isolation -e '.[worker]'
	@touch $@ $(STAMPS)/build

$(STAMPS)/build: $(CPP_SOURCES) | $(STAMPS)/worker
	@echo "== building the scheduler"
	@$(PIP) -q --no-deps --no-build-isolation -e .
	@touch $@

# smg-grpc-proto asks for a newer grpcio than the one that is tested here, for its
# service stubs. Baton reads its messages only (services/router/baton_router/gateway).
$(STAMPS)/dev: pyproject.toml constraints.txt $(STAMPS)/tools | $(STAMPS)/worker
	@echo "== installing test and lint tools"
	@$(PIP) -q --no-build-isolation -e '.[worker,dev]' smg
	@$(PIP) -q --no-deps smg-grpc-proto
	@touch $@ $(STAMPS)/build

build: $(STAMPS)/worker $(STAMPS)/build ## install pinned dependencies, build the C++ extension

dev: build $(STAMPS)/dev ## also install what tests and lint need

# ---- the demonstration

# The trained model ships with the repository; without it a random one shows
# the same machinery (and speaks gibberish).
ifneq ($(wildcard $(TRAINED)/config.json),)
DEMO_MODEL := $(TRAINED)
else
DEMO_MODEL := $(RANDOM_MODEL)
endif

$(RANDOM_MODEL)/config.json: tests/checkpoints/make_checkpoint.py | $(STAMPS)/dev
	@echo "== building a random checkpoint"
	@rm -rf $(RANDOM_MODEL)
	@$(BIN)/python tests/checkpoints/make_checkpoint.py --out $(RANDOM_MODEL) --size demo

demo: build $(DEMO_MODEL)/config.json ## a cluster of four processes answers a three-turn agent
	@$(BIN)/baton demo --model $(DEMO_MODEL) $(DEMO_FLAGS)

demo-model: dev ## train the demo model (half an hour on two cores)
	@$(MAKE) --no-print-directory -C examples/demo_model train PYTHON=$(BIN)/python

demo-model-eval: dev ## run the demo model's held-out tasks (TARGET=host:port; without: transformers)
	@$(MAKE) --no-print-directory -C examples/demo_model eval PYTHON=$(BIN)/python

# ---- tests

test: test-cpp test-python ## all tests but the slow ones

test-cpp: dev
	@echo "== C++ tests"
	@scheduler_cpp/run_tests.sh

# The newest clang there is: only clang brings libFuzzer.
FUZZ_CXX ?= $(shell for c in clang++ clang++-19 clang++-18 clang++-17 clang++-16 clang++-15 clang++-14; do \
	command -v $$c && break; done)
FUZZ_SECONDS ?= 120

fuzz-scheduler: ## libFuzzer on the scheduler's events, under ASan and UBSan (FUZZ_SECONDS=120)
	@if [ -z "$(FUZZ_CXX)" ]; then \
		echo "make: fuzz-scheduler needs clang with its runtime (Debian: clang libclang-rt-dev); none found, or say FUZZ_CXX=..."; \
		exit 1; fi
	@mkdir -p build/fuzz/corpus
	@echo "== building the fuzzer with $(FUZZ_CXX)"
	@$(FUZZ_CXX) -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
		-Ischeduler_cpp/include scheduler_cpp/src/*.cpp scheduler_cpp/tests/world*.cpp \
		scheduler_cpp/tests/fuzz.cpp -o build/fuzz/fuzz_scheduler
	@build/fuzz/fuzz_scheduler -max_total_time=$(FUZZ_SECONDS) -max_len=256 -len_control=0 -artifact_prefix=build/fuzz/ \
		-print_final_stats=1 build/fuzz/corpus

test-python: dev
	@echo "== Python tests"
	@$(BIN)/python -m pytest -m "not slow" $(PYTEST_FLAGS)

test-slow: dev ## the slow tests
	@$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

test-chaos: dev ## kill, stop, cut and corrupt the processes of a cluster
	@$(BIN)/python -m pytest -m chaos $(PYTEST_FLAGS)

test-gateway: dev ## all tests of the gateway: the real SMG over clusters, both SDKs
	@$(BIN)/python -m pytest tests/integration/test_gateway.py tests/integration/test_gateway_routing.py \
		tests/integration/test_gateway_direct.py \
		tests/unit/router/test_kv_events.py tests/unit/engine/test_grammar.py $(PYTEST_FLAGS)

bench: bench-scheduler bench-router bench-modeling bench-speculative bench-handover bench-gateway bench-idle ## benchmarks of the parts

bench-scheduler: dev ## what a scheduling step costs, in C++ and seen from Python
	@cmake -S scheduler_cpp -B build/bench -DBATON_BUILD_BENCH=ON >/dev/null && cmake --build build/bench >/dev/null
	@echo "== scheduler, C++" && build/bench/bench_scheduler
	@echo "== scheduler, from Python" && $(BIN)/python bench/scheduler/round_trip.py

bench-router: dev ## what the router costs a token and a stream
	@echo "== router" && $(BIN)/python bench/router/stream_cost.py

bench-modeling: dev ## a step of the model, eager beside compiled
	@echo "== modeling" && $(BIN)/python bench/modeling/step_time.py $(TRAINED) --compiled 16

bench-speculative: dev ## tokens a second with guesses beside without, at the model's depth and a large one's
	@echo "== speculation" && $(BIN)/python bench/engine/speculation.py $(TRAINED)
	@echo "== speculation, 24 layers" && $(BIN)/python bench/engine/speculation.py $(TRAINED) --layers 24

bench-handover: dev ## pulled pages beside raw NIXL and of other layouts, what hides behind prefill, a session's pages
	@echo "== pulled pages beside raw NIXL" && $(BIN)/python bench/handover/throughput.py
	@echo "== pages of ranks of another number" && $(BIN)/python bench/handover/layouts.py
	@echo "== transfer behind prefill" && $(BIN)/python bench/handover/overlap.py
	@echo "== a session of forty turns" && $(BIN)/python -m pytest -q -s -m slow tests/integration/test_session_replay.py

bench-gateway: dev ## what the router adds under SMG, beside a bare canned worker
	@echo "== gateway" && $(BIN)/python bench/gateway/overhead.py
	@echo "== a client leaves" && $(BIN)/python -m pytest -q -s tests/integration/test_gateway.py -k client_that_leaves

bench-idle: dev ## what an idle cluster costs: less than 5 % of one core
	@echo "== idle cluster" && $(BIN)/python bench/cluster/idle_cpu.py --model $(TRAINED)

# ---- static checks

lint: lint-python lint-types lint-imports lint-cpp lint-proto lint-shell ## all static checks

lint-python: dev
	@echo "== ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

lint-types: dev
	@echo "== mypy --strict"
	@$(BIN)/mypy
	@MYPYPATH=examples $(BIN)/mypy -p demo_model

lint-imports: dev
	@echo "== import-linter"
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

lint-cpp: dev
	@echo "== clang-format"
	@find scheduler_cpp -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format --dry-run -Werror

lint-proto: dev
	@echo "== proto: generated code is up to date"
	@rm -rf build/proto && mkdir -p build/proto
	@$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=build/proto --pyi_out=build/proto \
		--grpc_python_out=build/proto $(PROTO_SOURCES)
	@for file in build/proto/baton/v1/*; do \
		cmp -s $$file proto/gen/baton/v1/$$(basename $$file) || \
			{ echo "proto/gen/baton/v1/$$(basename $$file) is out of date: run make proto"; exit 1; }; \
	done
	@if command -v npm >/dev/null; then \
		echo "== buf lint"; \
		[ "$$($(BUF) --version 2>/dev/null)" = $(BUF_VERSION) ] || \
			npm install --silent --no-audit --no-fund --prefix $(VENV)/node @bufbuild/buf@$(BUF_VERSION); \
		$(BUF) lint proto; \
	else echo "== buf lint LEFT OUT: npm is not installed"; fi

lint-shell:
	@echo "== bash -n"
	@for script in $(SHELL_SCRIPTS); do bash -n $$script || exit 1; done

format: dev ## format Python and C++
	@$(BIN)/ruff check --fix-only -q .
	@$(BIN)/ruff format .
	@find scheduler_cpp -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format -i

proto: dev ## generate proto/gen from proto/baton/v1
	@$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=proto/gen --pyi_out=proto/gen \
		--grpc_python_out=proto/gen $(PROTO_SOURCES)

# ---- leftovers

clean: ## remove what was built, keep .venv
	rm -rf build dist .baton .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -f $(STAMPS)/build
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

clean-venv: clean ## remove .venv as well
	rm -rf $(VENV)
