# LineraDB. `make help` lists the targets.
CARGO ?= cargo
# `cargo run` would resolve the features of one package alone, and build most of the
# workspace a second time for them: so build with --workspace, and run the binary.
BIN := $(or $(CARGO_TARGET_DIR),target)/release
export CARGO_TERM_COLOR ?= auto
WORKLOADS := bank append register rw-register set long-fork sequential causal-reverse write-skew counter queue timestamps

.PHONY: help build run test lint bench cluster chaos clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

build: ## build every binary, optimised
	$(CARGO) build --release --workspace --bins

run: ## start a three-node cluster in one process with sample data and a SQL shell
	$(CARGO) build --release --workspace --bin lineradb
	$(BIN)/lineradb demo

test: ## run every test (needs nothing but Rust)
	$(CARGO) test --workspace

lint: ## formatting and clippy, warnings as errors
	$(CARGO) fmt --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

bench: build ## quick benchmarks, as a table
	$(BIN)/lineradb-bench storage --quick

cluster: build ## 1 metaservice, 3 kvnodes and 2 gateways as separate processes; Ctrl-C stops them
	$(BIN)/lineradb-chaos cluster

chaos: build ## an hour: five minutes of each workload on a cluster that is killed, paused and cut apart
	for workload in $(WORKLOADS); do $(BIN)/lineradb-chaos run --seconds 300 --workload $$workload || exit 1; done

clean: ## remove build products and the data of `lineradb dev`
	$(CARGO) clean
	rm -rf lineradb-data
