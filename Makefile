# Warren's two commands are `make test` and `make demo`; `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
CARGO ?= cargo
# The programs that make up Warren, as against the tests' own.
PROGRAMS := -p warren-tunnel -p warren-agent -p warren-cni -p warren-cli -p warren-kubectl
# Tests with a target of their own: what they need takes long to make.
ELSEWHERE := tests/interop tests/hostile tests/cni tests/apiserver tests/cluster tests/image tests/deploy tests/selftest tests/vm
# What the benchmark of the tunnel is built of.
BENCH := $(PROGRAMS) -p warren-lab -p warren-hostile -p warren-bench
# Release builds are linked statically, to run on any distribution and in an image that holds nothing else,
# and name no directory of the machine that built them. Linking needs a named target: procedural macros are
# shared libraries of the host.
HOST := $(shell rustc -vV | sed -n 's/^host: //p')
RELEASE := target/$(HOST)/release
RELEASE_FLAGS := -C target-feature=+crt-static --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo --remap-path-prefix=$(CURDIR)=/warren
# A subcommand of cargo, for a release; its arguments follow.
release = RUSTFLAGS="$(RELEASE_FLAGS)" $(CARGO) $(1) --release --target $(HOST)

.PHONY: help deps build-deps build image image-twice test-image test demo bench bench-plots bench-micro bench-cni bench-cold-start bench-reconcile bench-scale test-cni test-apiserver test-cluster test-interop test-kernel test-selftest test-vm test-hostile sim fuzz soak lint lint-deploy lint-vm doc layers deny ci ci-steps clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## install the Debian packages that building and testing need, if any is missing
	@tests/install-deps

build-deps:
	@tests/install-deps build

build: build-deps ## build the programs, for use anywhere (target/HOST/release/warren*)
	$(call release,build) $(PROGRAMS)

image: build ## make the images of the DaemonSets, as OCI layouts in target/images
	deploy/image/build $(RELEASE) target/images

image-twice: image ## build the committed tree once more in another directory: the images must be the same
	deploy/image/twice

test-image: deps image ## what is in the images, and the daemons in containers with no more rights than they need
	tests/run tests/image

test: deps ## run all tests that this machine allows, naming each skip
	tests/run --except $(ELSEWHERE)
	$(CARGO) test --workspace --doc

demo: build-deps ## show the whole mesh on this machine; KEEP=1 leaves it up
	$(call release,build) $(PROGRAMS) -p warren-lab -p warren-demo
	$(RELEASE)/warren-demo $(if $(KEEP),--keep)

bench: deps ## pod to pod beside wireguard-go, boringtun-cli and a plain veth; ROUNDS=5, SECONDS=3 a figure, JSON=file, SPIN=1 for a tunnel that polls too, MEMORY=1 for the memory of wireguard-go too
	tests/interop/prepare
	$(call release,build) $(BENCH)
	$(RELEASE)/warren-bench --rounds $(or $(ROUNDS),5) --seconds $(or $(SECONDS),3) $(if $(SPIN),--spin) $(if $(MEMORY),--compare-memory) $(if $(JSON),--json $(JSON))

bench-plots: build-deps ## draw what `make bench JSON=file` wrote, the same JSON=file, into docs/benchmarks
	$(call release,build) $(BENCH)
	$(RELEASE)/warren-bench plot $(or $(JSON),docs/benchmarks/tunnel.json) docs/benchmarks

bench-micro: build-deps ## look-up, cutting, putting together, sealing and opening alone; ONLY= takes a part of their names
	$(call release,build) -p warren-micro
	$(RELEASE)/warren-micro --bench $(ONLY)

bench-cni: deps ## ADD and DEL of warren-cni beside ptp + host-local, alone and 32 at once
	$(call release,build) -p warren-cni -p warren-storm
	$(RELEASE)/warren-bench-cni $(RELEASE)/warren-cni $(or $(CNI_PLUGINS),/usr/lib/cni)

bench-cold-start: deps ## how soon a thousand peers are up after a start
	$(call release,build) -p warren-tunnel -p warren-hostile
	$(call release,test) -p warren-hostile --test cold_start -- --ignored --nocapture

bench-reconcile: deps ## what a reconcile costs among WARREN_PEERS=1000 peers, at rest, and what a join does
	$(call release,build) $(PROGRAMS) -p warren-lab
	$(call release,test) -p warren-e2e --test scale -- --ignored --nocapture

test-cni: deps ## the plugin by the CNI specification, in chains, by cnitool, under containerd
	tests/cni/prepare
	tests/run tests/cni

bench-scale: deps ## the daemons of one node beside an API server with NODES=1000 Nodes
	tests/kubernetes/prepare
	$(call release,build) -p warren-tunnel -p warren-agent -p warren-lab -p warren-apiserver
	$(RELEASE)/warren-bench-scale $(or $(NODES),1000)

test-interop: deps ## warren-tunnel with other WireGuards, the kernel's in a virtual machine among them
	tests/interop/prepare
	tests/run tests/interop

test-vm: deps ## machines with kernels of their own: reboots, power cuts, an earlier version; ACCEL=kvm or tcg, ONLY= a part of tests' names
	tests/vm/prepare
	tests/vm/earlier $(ONLY)
	tests/run tests/vm -- $(ONLY)

test-apiserver: deps ## a bare Kubernetes control plane, its programs built from their modules
	tests/helm/prepare
	tests/kubernetes/prepare
	tests/run tests/apiserver

test-cluster: deps image ## a real Kubernetes of three nodes with Warren installed by Helm; KEEP=1 leaves it up, ONLY= takes a part of scenarios' names
	tests/cluster/prepare
	tests/helm/prepare
	KEEP=$(KEEP) tests/run tests/cluster -- --nocapture $(ONLY)

test-kernel: deps ## end-to-end tests with the kernel's WireGuard, alone and mixed with warren-tunnel, in a virtual machine; ONLY="kernel connectivity": that of the list (tests/kernel/run)
	tests/kernel/prepare
	$(CARGO) build --workspace --all-targets
	tests/kernel/run $(ONLY)

test-selftest: deps ## the scenarios of the kernel's own WireGuard selftest, with warren-tunnel at one end, in a virtual machine; ONLY= takes a part of their names
	tests/kernel/prepare
	$(CARGO) build --workspace --all-targets
	tests/kernel/run kernel selftest $(ONLY)

test-hostile: deps ## bad traffic against the real tunnel; LONG=1: ten million datagrams, ten minutes of silence
	$(if $(LONG),$(call release,build) -p warren-tunnel -p warren-hostile)
	WARREN_LONG=$(LONG) $(if $(LONG),$(call release,test) --no-fail-fast -p warren-hostile,tests/run tests/hostile) -- --nocapture --test-threads=1

sim: ## random scenarios of a simulated cluster: 10,000, or SECONDS=60 of them, new ones or from the seed FIRST=1 on, or one SEED= again
	$(call release,build) -p warren-sim
	$(RELEASE)/warren-sim $(if $(SEED),--seed $(SEED)) $(if $(FIRST),--first $(FIRST)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(NODES),--nodes $(NODES)) $(if $(STORY),--story)

fuzz: ## run each fuzz target for SECONDS=30, from the committed corpus
	tests/fuzz/run $(or $(SECONDS),30)

soak: deps ## all long forms: agents stopped for a minute, 20 rounds of the storm on warren-cni, a minute of 200 registry changes a second, 10 minutes without the API server, 5 minutes of a blocked port, 15 minutes over rekeys with loss, the images built twice, then LONG=1 of test-hostile and the fuzz targets
	$(CARGO) build --workspace --bins
	WARREN_STOP_SECONDS=60 $(CARGO) test -p warren-e2e --test lifecycle does_not_notice -- --nocapture
	WARREN_CHURN_SECONDS=60 $(CARGO) test -p warren-e2e --test registry two_hundred -- --nocapture
	$(CARGO) test -p warren-e2e --test underlay_loss -- --nocapture --ignored
	WARREN_STORM_ROUNDS=20 $(CARGO) test -p warren-storm -- --nocapture
	$(call release,build) -p warren-tunnel -p warren-hostile
	$(call release,test) -p warren-hostile --test soak -- --nocapture --ignored
	WARREN_OUTAGE_SECONDS=600 $(MAKE) test-cluster ONLY=api_server_is_away
	tests/interop/prepare
	tests/run tests/interop -- --ignored
	$(MAKE) image-twice
	$(MAKE) test-hostile LONG=1
	$(MAKE) fuzz SECONDS=$(or $(SECONDS),600)

lint: ## formatting, clippy with warnings refused, and the fuzz targets' own Cargo.lock
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) metadata --locked --manifest-path tests/fuzz/Cargo.toml --format-version 1 >/dev/null

lint-deploy: deps ## chart, manifests, alerts, dashboard and documented metrics, with the real helm, kubectl and promtool
	tests/helm/prepare
	tests/kubernetes/prepare
	tests/run tests/deploy

lint-vm: deps ## Vagrant's own check of tests/vm/Vagrantfile for both providers, and shellcheck of the machines' scripts
	tests/vm/validate

doc: ## build the crates' documentation, warnings refused
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items

layers: ## check that the pure core stays pure and dependencies run one way
	@tests/check-layers

deny: ## check licences, bans and sources of all dependencies, offline
	@tests/check-deny

ci: deps ## everything that must hold before a change lands; what it leaves behind is a failure
	tests/leftovers $(MAKE) ci-steps

# One after another: several of them need both cores. Tests that mostly wait come early, so that what later
# steps need is made beside them.
ci-steps:
	tests/ci lint layers test doc deny test-cni demo test-image lint-deploy lint-vm test-apiserver test-cluster test-interop test-hostile "test-vm ONLY=pods_of_three" "test-kernel ONLY='kernel connectivity'" "test-selftest ONLY='keys roaming routing'" "sim SECONDS=60 FIRST=1" "fuzz SECONDS=30"

clean: ## remove what was built
	$(CARGO) clean
