# Every target may be repeated; nothing that a target starts is left running, but for cluster-up.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := target/venv/bin
IMAGE ?= tenancy-fixer:$(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
SCRIPTS := create-cert.sh .ci/run tests/setup tests/run tests/demo/run tests/cluster/up tests/cluster/down tests/cluster/build.sh tests/image/build tests/image/stand-in \
	tests/katib/build tests/katib/pod tests/katib/pilot-agent tests/katib/train

.PHONY: help
help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## See a real API server create a tenant's objects, each changed by our webhooks
	tests/demo/run

.PHONY: test
test: ## Run every test; TEST_CLUSTER=current runs those of a cluster against the kubeconfig's own
	tests/run

.PHONY: lint
lint: ## Check formatting, clippy, scripts, manifests, Dockerfile
	tests/setup
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --document-private-items --quiet
	$(VENV)/shellcheck -x $(SCRIPTS)
	$(VENV)/yamllint --strict k8s-resources webhooks tests/cluster/crds
	$(VENV)/hadolint Dockerfile
	for module in tests/cluster tests/katib; do (cd $$module && test -z "$$(gofmt -l .)" && go vet ./...); done

.PHONY: bench
bench: ## Measure what one review and what a thousand tenants cost; about five minutes
	cargo bench --locked --bench review
	cargo bench --locked --bench tenancy

.PHONY: cluster-up
cluster-up: ## Start the test control plane and print its kubeconfig's path
	tests/cluster/up

.PHONY: cluster-down
cluster-down: ## End the test control plane
	tests/cluster/down

.PHONY: image
image: ## Build the image IMAGE (tenancy-fixer:VERSION)
	IMAGE=$(IMAGE) tests/image/build

.PHONY: manifests
manifests: ## Render webhooks/*.yaml from the table of endpoints
	for which in mutating validating; do \
		cargo run --locked --quiet -- manifests $$which > target/$$which.yaml && mv target/$$which.yaml webhooks/$$which.yaml; \
	done

.PHONY: deploy
deploy: ## Install IMAGE into the kubeconfig's cluster, with a certificate of its own
	kubectl kustomize k8s-resources/base | sed -E 's|(image:) tenancy-fixer:.*|\1 $(IMAGE)|' | kubectl apply --server-side -f -
	./create-cert.sh
	kubectl rollout status deployment/tenancy-fixer -n kubeflow-extension --timeout 120s

.PHONY: undeploy
undeploy: ## Remove everything of it again, the webhooks first
	kubectl delete mutatingwebhookconfiguration,validatingwebhookconfiguration tenancy-fixer --ignore-not-found
	kubectl delete -k k8s-resources/base --ignore-not-found
