# What can be done here. Only Go is needed, unless a target says more.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# One setting for build, run and test shares one cache; with cgo Pebble would
# also pull in a C library, slower to build and not static. Only race needs cgo.
export CGO_ENABLED ?= 0

GO       ?= go
NEEDS_GO := $(shell awk '$$1 == "go" { print $$2 }' go.mod)
LINT     := $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
VULN     := $(GO) run golang.org/x/vuln/cmd/govulncheck@v1.1.4
KAFKA    := deploy/dev/kafka/kafka
CHAIN    := deploy/dev/chain/chain

# Fifty binaries of tests that no debugger will see: without what is for it, linking
# takes two thirds of the time.
NODEBUG := -ldflags=-w

FUZZTIME ?= 30s
BENCH    ?= .
COUNT    ?= 6
ROUNDS   ?= 1000
N        ?= 1000000
KILLS    ?= 20
LIFE     ?= 3m
RATE     ?= 1000
PKG      ?= ./...

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Go 1.21 and later fetch the toolchain that go.mod names by themselves, if they may.
.PHONY: go
go:
	@command -v $(GO) >/dev/null || { echo "Go $(NEEDS_GO) or later is needed: https://go.dev/dl" >&2; exit 1; }
	@have=$$($(GO) env GOVERSION 2>/dev/null || echo go0); \
	printf '%s\n' $(NEEDS_GO) "$${have#go}" | awk -F. -v have="$$have" ' \
	  NR == 1 { a = $$1; b = $$2 } \
	  NR == 2 && ($$1 < a || ($$1 == a && $$2 + 0 < b)) { \
	    printf "Go $(NEEDS_GO) or later is needed, this is %s: https://go.dev/dl\n", have == "go0" ? "older" : have; exit 1 }' >&2

.PHONY: run
run: build ## build, then the demo: a hospital, a Kafka, exports, a crash, a proof
	@exec bin/tidemark demo

.PHONY: build
build: go ## bin/tidemark, one static binary
	@[ -x bin/tidemark ] || echo "first build: about 2 minutes on 2 cores, then seconds ..."
	@$(GO) build -trimpath -o bin/tidemark ./cmd/tidemark

# Tests that say they are parallel wait for others: there may be more of them than processors.
.PHONY: test
test: go ## all tests that need nothing but Go
	$(GO) test -timeout 20m -parallel 4 $(NODEBUG) $(PKG)

# make lint vets what has these tags. Random tests go through a quarter of their
# histories here (store/storetest, Rounds). A program with the race detector sleeps for
# a second before it ends, if nobody says otherwise, and tests start hundreds.
.PHONY: race
race: go ## the same with race detector and self-checks (needs gcc or clang)
	@command -v $${CC:-cc} >/dev/null || { echo "the race detector needs a C compiler: apt-get install gcc" >&2; exit 1; }
	GORACE=atexit_sleep_ms=10 CGO_ENABLED=1 $(GO) test -race -timeout 30m -parallel 4 -tags invariants -vet=off $(NODEBUG) $(PKG)

.PHONY: crash
crash: go ## long random model and crash runs of the store (ROUNDS=1000 histories); a hundred kills right after a token
	$(GO) test -count=1 -tags invariants -timeout 60m -run 'Crash|Model|Metamorphic|Fault' ./store -model.runs=$(ROUNDS)
	$(GO) test -count=1 -run '^TestSecured$$' ./cmd/tidemark -secured.kills=100

.PHONY: fuzz
fuzz: go ## every fuzz target for FUZZTIME=30s
	@$(GO) list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' $(PKG) | while read -r pkg; do \
	  for target in $$($(GO) test -list '^Fuzz' "$$pkg" | grep '^Fuzz' || true); do \
	    echo "$$pkg $$target"; \
	    $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 2s "$$pkg"; \
	  done; \
	done

.PHONY: bench
bench: go ## benchmarks, in the form that benchstat reads (BENCH=. COUNT=6)
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -count $(COUNT) -timeout 60m $(PKG)

.PHONY: scale
scale: go ## let a store grow to N=1000000 resources, measured as it does: tables as in store/BENCHMARKS.md
	$(GO) test -count=1 -timeout 3h -run '^TestScale$$' -v ./cmd/tidemark -scale.resources=$(N)

.PHONY: soak
soak: go ## an hour of changes, clients and kills (KILLS=20 LIFE=3m RATE=1000; 4 KB of memory a record), counted: nothing missed, nothing twice
	$(GO) test -count=1 -timeout 24h -run '^TestProcessKills$$' -v ./cmd/tidemark -process.kills=$(KILLS) -process.life=$(LIFE) -process.rate=$(RATE)

.PHONY: golden
golden: go ## rewrite golden files; then read the difference
	@grep -rlE 'cockroachdb/datadriven|Bool\("rewrite"' --include='*_test.go' . | xargs -n1 dirname | sort -u | \
	  xargs -I{} $(GO) test {} -count=1 -args -rewrite
	@git status --short -- '*testdata*' deploy

.PHONY: fmt
fmt: go ## format
	$(LINT) fmt

.PHONY: fix
fix: go ## let go fix modernise the code
	$(GO) fix $(PKG)

.PHONY: lint
lint: go ## format and linters, as CI sees them (its first run builds the linter: 90 s)
	$(LINT) fmt --diff
	$(LINT) run

.PHONY: vuln
vuln: go ## known vulnerabilities (asks a public database)
	@said=$$($(VULN) $(PKG) 2>&1) && status=0 || status=$$?; \
	printf '%s\n' "$$said"; \
	case "$$status $$said" in \
	  0*) ;; \
	  *"vuln.go.dev"*) echo "not judged: the database at https://vuln.go.dev cannot be reached from here" >&2; exit 2 ;; \
	  *) exit $$status ;; \
	esac

.PHONY: licences
licences: go ## whether all that is linked in may be shipped (deploy/LICENCES.md)
	$(GO) test -count=1 -run '^(TestLicences|TestClassify)$$' ./cmd/tidemark

.PHONY: integration
integration: go ## against a real Apache Kafka (needs java and mvn)
	@for tool in java mvn; do command -v $$tool >/dev/null || { \
	  echo "skipped: $$tool not found, apt-get install default-jre-headless maven"; exit 0; }; done; \
	started=; $(KAFKA) status >/dev/null || { $(KAFKA) up; started=1; }; \
	trap '[ -z "$$started" ] || $(KAFKA) down' EXIT; \
	KAFKA_BROKERS=127.0.0.1:$${KAFKA_PORT:-19092} $(GO) test -count=1 -p 1 -tags integration -run '^TestIntegration' -timeout 10m \
	  $$(grep -rl '^//go:build integration' --include='*_test.go' . | xargs -n1 dirname | sort -u)

.PHONY: chain
chain: go ## from tables through Debezium and Kafka to exports, compared by SQL (needs java, mvn and PostgreSQL)
	@lack=$$($(CHAIN) missing); [ -z "$$lack" ] || { echo "skipped: not found: $$lack (apt-get install $$lack)"; exit 0; }; \
	trap '$(CHAIN) wipe >/dev/null' EXIT; $(CHAIN) wipe >/dev/null; $(CHAIN) up; \
	KAFKA_BROKERS=127.0.0.1:$${CHAIN_KAFKA_PORT:-19192} $(GO) test $(NODEBUG) -count=1 -tags chain -run '^Test(Versions)?Chain$$' -timeout 10m ./cmd/tidemark

.PHONY: conformance
conformance: go ## clients that others wrote, and HL7's rules for all that we send (needs python3, javac and mvn)
	$(GO) test -count=1 -p 1 -tags conformance -run '^TestConformance' -timeout 15m ./cmd/tidemark

.PHONY: mutate
mutate: go ## break the code on purpose, line by line: some test must notice each (testdata/mutations.txt)
	$(GO) run ./cmd/mutate testdata/mutations.txt

# Compiling for these three is four minutes of two cores, for others' machine code.
.PHONY: cross
cross: go ## whether the code is right for the other systems: types, not machine code
	@$(GO) run ./cmd/typecheck darwin/arm64 windows/amd64 linux/arm64

.PHONY: check
check: lint test race ## what must be green before each commit
