# Every target works on a fresh Debian machine with Go; `deps` installs what is missing.
SHELL := /bin/bash
GO    ?= go

.PHONY: all build test lint unit race e2e soak bench demo deps fuzz man clean

all: build

build: ## bin/marsd and bin/marsadm
	$(GO) build -trimpath -o bin/ ./cmd/marsd ./cmd/marsadm

test: deps lint unit e2e ## everything that must be green: linters, unit and simulation tests with -race, real binaries with real clients

# What the end-to-end tests drive: clients that this project did not write.
DEBS := qemu-utils libnbd-bin python3-libnbd nbdkit nbdfuse fuse3 fio e2fsprogs python3 util-linux iproute2

deps:
	@missing=; for p in $(DEBS); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'install ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "installing:$$missing"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi

lint:
	@test -z "$$(gofmt -s -l . | tee /dev/stderr)"
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) mod tidy -diff

unit:
	$(GO) test -race -timeout 20m $$($(GO) list ./... | grep -v '/e2e$$')
	$(GO) test -timeout 20m -run TestSweep ./device/sweep # 20,000 crash points; with -race, above, a sample
	$(GO) test -timeout 20m ./cmd/internal/sim # 2,000 seeds; with -race, above, a sample
	$(GO) test -timeout 20m -tags mutant_oldwins -run TestTagged ./cmd/internal/sim # mistakes in the merge of trees must be noticed
	$(GO) test -timeout 20m -tags mutant_tombstone -run TestTagged ./cmd/internal/sim

e2e: ## short forms of the scenarios in docs/OPERATIONS.md with real processes
	@skips=$$(mktemp); MARS_SKIPS=$$skips $(GO) test -race -timeout 30m -count=1 ./e2e; code=$$?; \
	if [ -s $$skips ]; then echo "e2e: $$(wc -l < $$skips) tests were skipped:"; cat $$skips; fi; rm -f $$skips; exit $$code

soak: deps ## long forms: MARS_SOAK is the time per scenario
	MARS_SOAK=$${MARS_SOAK:-10m} $(GO) test -race -timeout 24h -count=1 -v ./e2e
	MARS_SOAK=$${MARS_SOAK:-10m} $(GO) test -timeout 24h -count=1 -v -run '^TestMemoryBound$$' ./device
	MARS_SOAK=$${MARS_SOAK:-10m} $(GO) test -timeout 24h -count=1 -v -run '^TestOverload$$' ./internal/spindle
	MARS_SWEEP=$${MARS_SWEEP:-$${MARS_SOAK:-10m}} $(GO) test -timeout 24h -count=1 -v -run TestSweep ./device/sweep
	MARS_SIM=$${MARS_SIM:-$${MARS_SOAK:-10m}} $(GO) test -timeout 24h -count=1 -v -run 'TestSim$$' ./cmd/internal/sim

BENCHFLAGS ?= -json bench.json
bench: deps ## the tables of docs/BENCHMARKS.md, side by side with the peers, in about 25 minutes; BENCHFLAGS='-rows fua -rounds 2' for a part
	$(GO) run ./bench $(BENCHFLAGS)

demo:
	$(GO) run ./cmd/marsd demo

man: ## docs/man, packaging/completion and the generated part of docs/decisions.md
	$(GO) run ./cmd/internal/manpages

FUZZTIME ?= 30s
fuzz: ## each fuzz target for FUZZTIME
	@set -e; for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg 2>/dev/null | grep ^Fuzz || true); do \
	    echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$pkg; done; done

clean:
	rm -rf bin
