# LineraDB. `make help` lists the targets.
CARGO ?= cargo
export CARGO_TERM_COLOR ?= auto

.PHONY: help build run test lint bench cluster clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

build: ## build every binary, optimised
	$(CARGO) build --release --bins

run: ## start a three-node cluster in one process with sample data and a SQL shell
	$(CARGO) run --release --bin lineradb -- demo

test: ## run every test (needs nothing but Rust)
	$(CARGO) test --workspace

lint: ## formatting and clippy, warnings as errors
	$(CARGO) fmt --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

bench: build ## quick benchmarks, as a table
	$(CARGO) run --release --bin lineradb-bench -- storage --quick

cluster: build ## 1 metaservice, 3 kvnodes and 2 gateways as separate processes; Ctrl-C stops them
	$(CARGO) run --release --bin lineradb-chaos -- cluster

clean: ## remove build products and the data of `lineradb dev`
	$(CARGO) clean
	rm -rf lineradb-data
