# Warren's two commands are `make test` and `make demo`; `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
CARGO ?= cargo
# The programs that make up Warren, as against the tests' own.
PROGRAMS := -p warren-tunnel -p warren-agent -p warren-cni -p warren-cli

.PHONY: help deps build-deps build test demo bench bench-cni bench-cold-start bench-reconcile bench-scale test-cni test-apiserver test-interop test-hostile sim fuzz soak lint doc layers deny ci ci-steps clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## install the Debian packages that building and testing need, if any is missing
	@tests/install-deps

build-deps:
	@tests/install-deps build

build: build-deps ## build the programs (target/release/warren*)
	$(CARGO) build --release $(PROGRAMS)

test: deps ## run all tests that this machine allows, naming each skip
	$(CARGO) build --workspace --bins
	$(CARGO) test --no-fail-fast --workspace --exclude warren-interop --exclude warren-hostile --exclude warren-cni-suite --exclude warren-apiserver

demo: build-deps ## show the whole mesh on this machine; KEEP=1 leaves it up
	$(CARGO) build --release $(PROGRAMS) -p warren-lab -p warren-demo
	target/release/warren-demo $(if $(KEEP),--keep)

bench: deps ## pod to pod beside wireguard-go, boringtun-cli and a plain veth; ROUNDS=5, SECONDS=3 a figure, JSON=file
	tests/interop/prepare
	$(CARGO) build --release $(PROGRAMS) -p warren-lab -p warren-bench
	target/release/warren-bench --rounds $(or $(ROUNDS),5) --seconds $(or $(SECONDS),3) $(if $(JSON),--json $(JSON))

bench-cni: deps ## ADD and DEL of warren-cni beside ptp + host-local, alone and 32 at once
	$(CARGO) build --release -p warren-cni -p warren-storm
	target/release/warren-bench-cni target/release/warren-cni $(or $(CNI_PLUGINS),/usr/lib/cni)

bench-cold-start: deps ## how soon a thousand peers are up after a start
	$(CARGO) build --release -p warren-tunnel -p warren-hostile
	$(CARGO) test --release -p warren-hostile --test cold_start -- --ignored --nocapture

bench-reconcile: deps ## what a reconcile costs among a thousand peers, at rest and after a join
	$(CARGO) build --release $(PROGRAMS) -p warren-lab
	$(CARGO) test --release -p warren-e2e --test scale -- --ignored --nocapture

test-cni: deps ## the plugin by the CNI specification, in chains, by cnitool, under containerd
	tests/cni/prepare
	$(CARGO) build --workspace --bins
	$(CARGO) test --no-fail-fast -p warren-cni-suite

bench-scale: deps ## the daemons of one node beside an API server with NODES=1000 Nodes
	tests/kubernetes/prepare
	$(CARGO) build --release -p warren-tunnel -p warren-agent -p warren-lab -p warren-apiserver
	target/release/warren-bench-scale $(or $(NODES),1000)

test-interop: deps ## warren-tunnel with other WireGuards, the kernel's in a virtual machine among them
	tests/interop/prepare
	$(CARGO) build -p warren-tunnel -p warren-lab -p warren-interop
	$(CARGO) test --no-fail-fast -p warren-interop

test-apiserver: deps ## a bare Kubernetes control plane, its programs built from their modules
	tests/kubernetes/prepare
	$(CARGO) build -p warren-tunnel -p warren-agent -p warren-cli -p warren-lab
	$(CARGO) test --no-fail-fast -p warren-apiserver

test-hostile: deps ## bad traffic against the real tunnel; LONG=1: ten million datagrams, ten minutes of silence
	$(CARGO) build $(if $(LONG),--release) -p warren-tunnel -p warren-hostile
	WARREN_LONG=$(LONG) $(CARGO) test --no-fail-fast $(if $(LONG),--release) -p warren-hostile -- --nocapture --test-threads=1

sim: ## random scenarios of a simulated cluster: 10,000, or SECONDS=60 of them, new ones or from the seed FIRST=1 on, or one SEED= again
	$(CARGO) build --release -p warren-sim
	target/release/warren-sim $(if $(SEED),--seed $(SEED)) $(if $(FIRST),--first $(FIRST)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(NODES),--nodes $(NODES)) $(if $(STORY),--story)

fuzz: ## run each fuzz target for SECONDS=30, from the committed corpus
	tests/fuzz/run $(or $(SECONDS),30)

soak: deps ## all long forms: agents stopped for a minute, 20 rounds of the storm on warren-cni, a minute of 200 registry changes a second, 5 minutes of a blocked port, 15 minutes over rekeys with loss, then LONG=1 of test-hostile and the fuzz targets
	$(CARGO) build --workspace --bins
	WARREN_STOP_SECONDS=60 $(CARGO) test -p warren-e2e --test lifecycle does_not_notice -- --nocapture
	WARREN_CHURN_SECONDS=60 $(CARGO) test -p warren-e2e --test registry two_hundred -- --nocapture
	$(CARGO) test -p warren-e2e --test underlay_loss -- --nocapture --ignored
	WARREN_STORM_ROUNDS=20 $(CARGO) test -p warren-storm -- --nocapture
	$(CARGO) build --release -p warren-tunnel -p warren-hostile
	$(CARGO) test --release -p warren-hostile --test soak -- --nocapture --ignored
	tests/interop/prepare
	$(CARGO) build -p warren-tunnel -p warren-lab -p warren-interop
	$(CARGO) test -p warren-interop -- --ignored
	$(MAKE) test-hostile LONG=1
	$(MAKE) fuzz SECONDS=$(or $(SECONDS),600)

lint: ## formatting, clippy with warnings refused, and the fuzz targets' own Cargo.lock
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) metadata --locked --manifest-path tests/fuzz/Cargo.toml --format-version 1 >/dev/null

doc: ## build the crates' documentation, warnings refused
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items

layers: ## check that the pure core stays pure and dependencies run one way
	@tests/check-layers

deny: ## check licences, bans and sources of all dependencies, offline
	@tests/check-deny

ci: deps ## everything that must hold before a change lands; what it leaves behind is a failure
	tests/leftovers $(MAKE) ci-steps

# One after another: several of them need both cores.
ci-steps:
	for step in lint layers deny doc test test-cni demo test-apiserver test-interop test-hostile; do $(MAKE) $$step || exit; done
	$(MAKE) sim SECONDS=60 FIRST=1
	$(MAKE) fuzz SECONDS=30

clean: ## remove what was built
	$(CARGO) clean
