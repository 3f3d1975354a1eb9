# make test is all that a change must pass; .ci/run is what CI does.
GO ?= go
FUZZTIME ?= 30s
TESTFLAGS ?=
BENCHFLAGS ?=
FAULTS ?= 500
SEED ?=
ROUNDS ?= 30

# Packages with goroutines or memory that they share; the rest is pure.
RACE = ./capture/... ./sink/... ./internal/bridge/... ./internal/state/... ./internal/web/... ./internal/cache/... \
	./internal/child/... ./internal/pgserver/... ./internal/testenv/... ./cmd/...

.DEFAULT_GOAL := help
.PHONY: help build test race fuzz chaos failover mutants lint format spec spec-smoke bench bench-peers clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

build: ## bin/backstory, static
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/backstory ./cmd/backstory

test: ## all tests; without Postgres or Java 17 those that need them are skipped, and it says so
	@$(GO) run ./internal/testenv/report -timeout 15m $(TESTFLAGS) ./...

race: ## tests of the concurrent packages under the race detector (needs a C compiler)
	@CGO_ENABLED=1 $(GO) run ./internal/testenv/report -race -timeout 15m $(TESTFLAGS) $(RACE)

fuzz: ## every fuzz target for FUZZTIME
	@./.ci/fuzz $(FUZZTIME)

chaos: ## FAULTS faults of all kinds while writers write, then a comparison (SEED to repeat one)
	@$(GO) run ./internal/e2e/chaos -faults $(FAULTS) $(if $(SEED),-seed $(SEED))

failover: ## ROUNDS promotions under writers, synchronous and not, on Postgres 17 and 18, then a comparison
	BACKSTORY_TEST_FAILOVERS=$(ROUNDS) $(GO) test ./internal/e2e -run '^TestFailover' -v -count=1 -timeout 90m $(TESTFLAGS)

mutants: ## mistakes planted in the bridge, each of which a test must find, minutes
	$(GO) test ./internal/e2e/mutants -mutants -count=1 -timeout 30m $(TESTFLAGS)

lint: ## gofmt, go vet, golangci-lint
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$unformatted" ]; then \
		echo "not formatted (make format):"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	@command -v golangci-lint >/dev/null || { \
		echo "golangci-lint 2 is missing: https://golangci-lint.run/docs/welcome/install"; exit 1; }
	golangci-lint run ./...

format: ## gofmt on all files
	gofmt -w $$(git ls-files '*.go')

spec: ## every run of the TLA+ model, half an hour (needs Java and Python 3)
	jar=$$($(GO) run ./internal/testenv/fetch tlc) && cd internal/bridge/spec && TLC=$$jar python3 run.py

spec-smoke: ## small runs of the TLA+ model, seconds (needs Java)
	@./.ci/spec-smoke

# Small, to see that all of it works; internal/bench/README.md has the sizes of the
# figures. BENCHFLAGS="--runs 5 --json" goes to every one of them.
bench: ## all benchmarks, with small sizes: twenty minutes
	@$(GO) build -o bin/bench ./internal/bench
	@for b in catchup latency backfill state outage giant startup growth profile slots standby; do \
		bin/bench $$b $(BENCHFLAGS) || exit 1; echo; done

bench-peers: ## catch-up of Debezium under the same load (needs Java 17 and Maven)
	@$(GO) run ./internal/bench peers $(BENCHFLAGS)

clean: ## what was built here
	rm -rf bin
