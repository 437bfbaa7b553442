# Targets for people and for CI. `make test` is all a fresh Debian machine with
# Go needs: it installs the servers and clients that the tests talk to. What
# explores at random or measures is run by hand: docs/ARCHITECTURE.md, "Checks".

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  := -s -w -X main.version=$(VERSION)
FUZZTIME ?= 10s
SEEDS    ?= 1000
PROBES   ?= 2000
# For each package; the whole takes minutes, and a busy machine many.
TIMEOUT  ?= 40m

.PHONY: build deps test check race bench cover docs docker scratch-test clean \
	mutants fuzz model literals tattoo soak cuts enumeration overload memory compare compat

# Scripts and storms made up at random: each run from another seed, which it logs.
model literals tattoo soak: export IMAPGATE_SEED ?= random

build: ## one static binary, dist/imapgate
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o dist/imapgate ./cmd/imapgate

deps: ## install what the tests need
	.ci/deps

test: deps ## every test, with the race detector; then the ten slowest
	TIMEOUT=$(TIMEOUT) .ci/test

check: ## formatting, vet, staticcheck, imports, sizes, what tests may not do, modules
	.ci/check

mutants: ## the tests must notice when a safety check is left out (.ci/mutants)
	go run ./.ci/mutants

fuzz: ## each fuzz target for FUZZTIME, beyond its corpus
	FUZZTIME=$(FUZZTIME) .ci/fuzz

race: ## the concurrent packages over and over, on fewer and more threads than cores
	go test -race -timeout $(TIMEOUT) -cpu 1,2,8 -count 3 ./proxy/... ./routing ./auth ./tlsconf ./internal/audit ./internal/admin

bench: ## Go benchmarks
	go test -run '^$$' -bench . -benchmem ./...

cover: deps ## what the tests reach, by all packages together
	mkdir -p dist
	go test -timeout $(TIMEOUT) -coverpkg=./... -coverprofile=dist/cover.out ./...
	go tool cover -func=dist/cover.out | tail -n 1

docs: ## docs/CONFIG.md and docs/AUDIT.md from the code
	go generate ./internal/config ./internal/audit

docker: ## the image
	docker build --build-arg VERSION=$(VERSION) -t imapgate:$(VERSION) .

soak: cuts ## the long runs of the tests: 9,000 idle sessions, 300 logins a second, 100,000 connections, a storm
	IMAPGATE_SOAK=1 go test -timeout 60m -run 'Leaves|IdleSessions|LoginsAt|InAStorm|ReusedConnections|AScriptEnds|ReturningUsers|ARestartLoses|AnOutageEnds|DuringRedisFaults|IsOnRecord|SentNoLiteral|SixSessions' -v ./tests

cuts: ## 20,000 exchanges of all mechanisms that are cut off anywhere: nothing is left behind
	IMAPGATE_SOAK=1 go test -race -count=1 -timeout $(TIMEOUT) -run 'TestAborted.*Exchanges' -v ./proxy

overload: ## for a minute three times the logins that can be done; as root, because the gateway is given a part of a core
	IMAPGATE_SOAK=1 go test -count=1 -timeout $(TIMEOUT) -run ThreeTimesTheLogins -v ./tests

tattoo: ## 100,000 sessions of 200 users, aborted anywhere, on connections that are used again: no foreign byte
	IMAPGATE_SOAK=1 go test -count=1 -timeout $(TIMEOUT) -run ReusedConnections ./tests

model: ## SEEDS random scripts against a model of IMAP, with losses, and a tenth of clients that act at once: nothing may err
	MODEL_MODE=resume MODEL_DETACH=1 MODEL_FAULTS=all MODEL_SEEDS=$(SEEDS) go test -count=1 -timeout 120m -run TestModelFromEnvironment -v ./tests/model
	MODEL_SEEDS=$$((($(SEEDS) + 9) / 10)) go test -count=1 -timeout 120m -run TestModelWithConcurrentClients -v ./tests/model

literals: ## PROBES lines made up at random, each with a literal: a real Dovecot executes what is on record and nothing else
	LITERAL_PROBES=$(PROBES) go test -count=1 -timeout 60m -run ARandomLineIsOnRecord -v ./tests

enumeration: ## the time of a denial must not tell whether the user exists: 2,000 pairs for each mechanism
	IMAPGATE_ENUMERATION=2000 go test -count=1 -timeout 60m -run DenialTimeDoesNotReveal -v ./proxy

memory: ## what a million failed logins leave in memory
	IMAPGATE_SOAK=1 go test -count=1 -timeout $(TIMEOUT) -run '^TestAMillionStrangersFit$$' -v ./internal/limit

compare: ## beside HAProxy, nginx and Dovecot, in one run; needs root for their packages. PEERS=DIR: those of Debian 13
	internal/peerbench/compare.sh

compat: deps ## the tests that start servers against Dovecot 2.4, Redis 8, Cyrus 3.10 and 3.6, and Courier; needs root
	.ci/compat

scratch-test: build ## the binary as the image runs it: an empty root, uid 65532
	.ci/scratch dist/imapgate

clean:
	rm -rf dist
