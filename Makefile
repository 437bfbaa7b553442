# Targets for people and for CI. `make test` works on a fresh Debian machine with Go: as
# root it installs the servers and clients that the tests use. Random exploration and
# measurements run by hand: docs/development.md, "Checks".

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  := -s -w -X main.version=$(VERSION)
FUZZTIME ?= 10s
SEEDS    ?= 1000
PROBES   ?= 2000
# For each package. All packages together take minutes, and many on a busy machine.
TIMEOUT  ?= 40m

.PHONY: build deps test check race bench cover docs docker scratch-test clean \
	mutants fuzz model literals tattoo soak cuts enumeration overload memory compare compat

# Random scripts and loads: each run uses and logs another seed.
model literals tattoo soak: export IMAPGATE_SEED ?= random

build: ## build one static binary, dist/imapgate
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o dist/imapgate ./cmd/imapgate

deps: ## install the servers and clients that the tests need
	.ci/deps

test: deps ## run all tests with the race detector, and list the ten slowest
	TIMEOUT=$(TIMEOUT) .ci/test

check: ## check formatting, vet, staticcheck, imports, sizes, deterministic tests and modules
	.ci/check

mutants: ## remove each safety check (.ci/mutants), and require the tests to fail
	go run ./.ci/mutants

fuzz: ## run each fuzz target for FUZZTIME, beyond its corpus
	FUZZTIME=$(FUZZTIME) .ci/fuzz

race: ## repeat the tests of concurrent packages with fewer and more threads than cores
	go test -race -timeout $(TIMEOUT) -cpu 1,2,8 -count 3 ./proxy/... ./routing ./auth ./tlsconf ./internal/audit ./internal/admin

bench: ## run the Go benchmarks
	go test -run '^$$' -bench . -benchmem ./...

cover: deps ## measure the test coverage of all packages together
	mkdir -p dist
	go test -timeout $(TIMEOUT) -coverpkg=./... -coverprofile=dist/cover.out ./...
	go tool cover -func=dist/cover.out | tail -n 1

docs: ## generate docs/CONFIG.md and docs/AUDIT.md
	go generate ./internal/config ./internal/audit

docker: ## build the image
	docker build --build-arg VERSION=$(VERSION) -t imapgate:$(VERSION) .

soak: cuts ## run the long tests: 9,000 idle sessions, 300 logins a second, 100,000 connections, random load
	IMAPGATE_SOAK=1 go test -timeout 60m -run 'Leaves|IdleSessions|LoginsAt|InAStorm|ReusedConnections|AScriptEnds|ReturningUsers|ARestartLoses|AnOutageEnds|DuringRedisFaults|IsOnRecord|SentNoLiteral|SixSessions' -v ./tests

cuts: ## abort 20,000 exchanges of all mechanisms at random points, and check for leaks
	IMAPGATE_SOAK=1 go test -race -count=1 -timeout $(TIMEOUT) -run 'TestAborted.*Exchanges' -v ./proxy

overload: ## send three times the possible logins for a minute; needs root, to give the gateway a part of a core
	IMAPGATE_SOAK=1 go test -count=1 -timeout $(TIMEOUT) -run ThreeTimesTheLogins -v ./tests

tattoo: ## run 100,000 sessions of 200 users on reused connections, aborted at random points, and check for foreign bytes
	IMAPGATE_SOAK=1 go test -count=1 -timeout $(TIMEOUT) -run ReusedConnections ./tests

model: ## compare SEEDS random scripts with a model of IMAP, with losses, and a tenth as many with concurrent clients
	MODEL_MODE=resume MODEL_DETACH=1 MODEL_FAULTS=all MODEL_SEEDS=$(SEEDS) go test -count=1 -timeout 120m -run TestModelFromEnvironment -v ./tests/model
	MODEL_SEEDS=$$((($(SEEDS) + 9) / 10)) go test -count=1 -timeout 120m -run TestModelWithConcurrentClients -v ./tests/model

literals: ## send PROBES random lines with literals, and check that Dovecot executes only recorded commands
	LITERAL_PROBES=$(PROBES) go test -count=1 -timeout 60m -run ARandomLineIsOnRecord -v ./tests

enumeration: ## compare 2,000 pairs of denials for each mechanism: their time must not reveal whether the user exists
	IMAPGATE_ENUMERATION=2000 go test -count=1 -timeout 60m -run DenialTimeDoesNotReveal -v ./proxy

memory: ## measure the memory that a million failed logins leave
	IMAPGATE_SOAK=1 go test -count=1 -timeout $(TIMEOUT) -run '^TestMemoryOfAMillionFailuresIsBounded$$' -v ./internal/limit

compare: ## compare with HAProxy, nginx and Dovecot in one run; needs root for their packages; PEERS=DIR uses those of Debian 13
	internal/peerbench/compare.sh

compat: deps ## run the tests with Dovecot 2.4, Redis 8, Cyrus 3.10 and 3.6, and Courier; needs root
	.ci/compat

scratch-test: build ## run the binary as the image does: in an empty root, as uid 65532
	.ci/scratch dist/imapgate

clean:
	rm -rf dist
