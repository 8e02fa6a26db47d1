# What there is to do here. `make demo` and `make test` need nothing but Go and,
# for the real servers and clients, apt or the packages scripts/setup.sh names.

LINT = go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
FUZZTIME ?= 10s
BASE ?= HEAD
ROUNDS ?= 6
HOT ?= Streams/1000$$|Live$$|Packets|Send

.PHONY: all build setup demo test e2e race lint cross fuzz bench benchstat compat clean

all: build

build: build/shim

build/shim: FORCE
	go build -o $@ ./cmd/shim

setup:
	@scripts/setup.sh

demo: setup build
	build/shim demo

test: setup
	go test ./...

# The long ones: real clients play real servers through the shim, and live viewers
# come and go for 40 s, or as long as SHIM_CHURN says.
e2e: setup
	go test -tags e2e -count=1 -timeout 12m -parallel 4 -skip TestCompat ./e2e/...
	go test -tags e2e -count=1 -timeout 12m -run TestLiveChurn ./intercept

# Every upstream at hand, compared with itself and with the shim in front of it:
# minutes each, on a quiet machine. SHIM_TEST_DSS and SHIM_TEST_MEDIAMTX add theirs.
compat: setup
	go test -tags e2e -count=1 -timeout 60m -v -run TestCompat ./e2e/...

# e2e runs gortsplib's server in the same process, which has races of its own.
race: setup
	go test -race $$(go list ./... | grep -v /e2e)

lint:
	$(LINT) run ./...

# What is built for Linux alone must not break the rest.
cross:
	GOOS=darwin GOARCH=arm64 go build ./...
	GOOS=darwin GOARCH=arm64 go vet ./...
	GOOS=linux GOARCH=arm64 go build ./...

# The servers against themselves behind the shim, and docs/performance.md; as root
# also over a network of two namespaces.
# SHIM_TEST_DSS and SHIM_TEST_MEDIAMTX name binaries of Darwin and MediaMTX.
bench: setup
	go test -tags bench -run 'TestSuite|TestThousand' -count=1 -timeout 45m -v ./bench

# What the tree, against the commit BASE, does to the hot functions: for its message.
# ROUNDS of some two minutes.
benchstat:
	@scripts/benchstat.sh $(BASE) $(ROUNDS) '$(HOT)'

# Each fuzz target for FUZZTIME, or that many inputs: 60000x.
fuzz:
	@scripts/fuzz.sh $(FUZZTIME)

clean:
	rm -rf build

FORCE:
