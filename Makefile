# Keyledger. "make" alone lists what there is.

GO        ?= go
SHELL     := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Tools are built from their sources, at these versions, into bin/ (a minute, once).
GOLANGCI_LINT_VERSION := v2.15.0
GOFUMPT_VERSION       := v0.12.0
GOVULNCHECK_VERSION   := v1.9.0

LINT  := bin/golangci-lint-$(GOLANGCI_LINT_VERSION)
FUMPT := bin/gofumpt-$(GOFUMPT_VERSION)
VULN  := bin/govulncheck-$(GOVULNCHECK_VERSION)

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
PKG      ?= ./...
# The proof of revocation has the machine for itself: leases that lapse because it is busy prove nothing.
ALONE    := /internal/prove$$
FUZZTIME ?= 20s
ROUNDS   ?= 100
FOR      ?= 10m
VULNDB   ?= https://vuln.go.dev

.PHONY: help
help: ## List the targets
	@awk -F ":.*## " '/^##@/ {print "\n" substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Use

.PHONY: build
build: ## Build bin/keyledger, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/keyledger ./cmd/keyledger

.PHONY: run
run: build ## Start Keyledger with nothing to configure, and show lines to paste
	@deploy/run.sh bin/keyledger

.PHONY: up
up: .env ## Start Postgres, NATS and Keyledger in containers
	VERSION=$(VERSION) docker compose up --build --wait

.PHONY: down
down: ## Stop the containers; their volumes stay
	docker compose down

# Never made anew: another master key could not read what the first one sealed.
.env:
	@umask 077; while IFS= read -r line; do \
		if [[ "$$line" =~ ^[A-Z_]+=$$ ]]; then line+=$$(od -An -v -tx1 -N32 /dev/urandom | tr -d " \n"); fi; \
		printf "%s\n" "$$line"; \
	done <.env.example >.env.new; mv -n .env.new .env

.PHONY: clean
clean: ## Remove what was built; the ledger in .keyledger stays
	rm -rf bin

##@ Check

.PHONY: test
test: ## Run all tests, with the race detector, on real Postgres and NATS
	@packages=$$($(GO) list $(PKG)); \
	beside=$$(grep -Ev '$(ALONE)' <<<"$$packages" || true); alone=$$(grep -E '$(ALONE)' <<<"$$packages" || true); \
	if [[ -n "$$beside" ]]; then $(GO) test -race -shuffle=on -timeout 10m $$beside; fi; \
	if [[ -n "$$alone" ]]; then $(GO) test -race -shuffle=on -timeout 10m -p 1 $$alone; fi

.PHONY: soak
soak: ## Run the tests that repeat faults ROUNDS times (100) instead of a few
	KEYLEDGER_SOAK=$(ROUNDS) $(GO) test -race -count=1 -timeout 4h $(PKG)

.PHONY: prove-revocation
prove-revocation: ## Break servers, verifiers and networks for FOR (10m), and look for a revoked key that is accepted
	KEYLEDGER_PROVE=$(FOR) KEYLEDGER_PROVE_REPORT=$(CURDIR)/docs/plots $(GO) test -count=1 -timeout 24h -v -run '^TestARevocationHoldsEverywhere$$' ./internal/prove

.PHONY: fuzz
fuzz: ## Fuzz every fuzz target for FUZZTIME (20s)
	@$(GO) list $(PKG) | while read -r package; do \
		for target in $$($(GO) test -list '^Fuzz' "$$package" | grep '^Fuzz' || true); do \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$package"; \
		done; \
	done

.PHONY: bench
bench: ## Measure this machine: ratios from one run, side by side
	$(GO) run ./bench

.PHONY: verify
verify: fmt-check vet lint test vuln tidy-check ## Everything that a change must pass

.PHONY: fmt
fmt: $(FUMPT) ## Format the code
	git ls-files -z --cached --others --exclude-standard '*.go' | xargs -0 $(FUMPT) -w

.PHONY: fmt-check
fmt-check: $(FUMPT)
	@unformatted=$$(git ls-files -z --cached --others --exclude-standard '*.go' | xargs -0 $(FUMPT) -l); \
	if [[ -n "$$unformatted" ]]; then echo "not formatted, run make fmt:"; echo "$$unformatted"; exit 1; fi

.PHONY: vet
vet:
	$(GO) vet $(PKG)

.PHONY: lint
lint: $(LINT) ## Run the linters, the dependency arrows among them
	$(LINT) run $(PKG)

.PHONY: vuln
vuln: $(VULN) ## Look for known vulnerabilities that the code can reach
	$(VULN) -db $(VULNDB) $(PKG)

.PHONY: tidy-check
tidy-check:
	$(GO) mod tidy -diff

# $(call install,package@version,binary): go install names the binary itself.
define install
	@mkdir -p bin/.install
	GOBIN=$(CURDIR)/bin/.install $(GO) install $(1)
	@mv bin/.install/$(2) $@
	@rmdir bin/.install
endef

$(LINT):
	$(call install,github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION),golangci-lint)

$(FUMPT):
	$(call install,mvdan.cc/gofumpt@$(GOFUMPT_VERSION),gofumpt)

$(VULN):
	$(call install,golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION),govulncheck)
