# PATH is also the name of what the shell finds commands by. On the command line of
# make module it is the module's path, and every command that make starts would get
# it. So the recipes get back what make was started with: $(shell) sees that up to
# make 4.3; from 4.4 on it too is given the module's path, and /proc, where there is
# one, still has what make began with.
ifneq ($(filter module,$(MAKECMDGOALS)),)
ifneq ($(origin PATH),command line)
$(error make module needs a path; want make module PATH=github.com/you/holdfast)
endif
MODULE := $(PATH)
START := $(shell echo "$$PATH")
ifeq ($(START),$(MODULE))
START := $(shell command -p sed -zn 's/^PATH=//p' /proc/$$PPID/environ)
endif
override PATH := $(START)
endif

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
MODULES := $(patsubst %/go.mod,%,$(shell git ls-files '*/go.mod'))
FUZZTIME := 20s
STATICCHECK := go run honnef.co/go/tools/cmd/staticcheck@v0.8.2

# The bytes of a release depend on its source, its version and Go's version alone. Go would
# add what git says of the folder, which a copy of the source does not know.
RELEASE := go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$(VERSION)"
PLATFORMS := linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64
DIST := dist

.PHONY: help run build release test check vet module bench load drawings screenshots proxies fuzz soak
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

run: ## run the demo server on :8099
	go run main.go

build: ## build bin/holdfast with its version
	go build -trimpath -ldflags "-X main.version=$(VERSION)" -o bin/holdfast ./cmd/holdfast

# Each binary is built again from a copy of the source elsewhere, with a cache of its own.
release: ## build dist/: a binary for each of PLATFORMS, what is in it, and SHA256SUMS; builds all twice and compares
	@mkdir -p "$(DIST)" && rm -f "$(DIST)"/holdfast-* "$(DIST)/SHA256SUMS" && cp LICENSE "$(DIST)"
	@set -e; dist=$$(cd "$(DIST)" && pwd); again=$$(mktemp -d); trap 'rm -rf "$$again"' EXIT; mkdir "$$again/src"; \
	git ls-files -z | tar -c --null -T - | tar -x -C "$$again/src"; \
	for p in $(PLATFORMS); do \
		export CGO_ENABLED=0 GOOS=$${p%/*} GOARCH=$${p#*/}; \
		name=holdfast-$(VERSION)-$$GOOS-$$GOARCH; [ $$GOOS != windows ] || name=$$name.exe; echo "== $$name"; \
		$(RELEASE) -o "$$dist/$$name" ./cmd/holdfast; \
		(cd "$$again/src" && GOCACHE="$$again/cache" $(RELEASE) -o "$$again/$$name" ./cmd/holdfast); \
		cmp "$$dist/$$name" "$$again/$$name"; \
		(cd "$$dist" && go version -m "$$name" >"$$name.sbom.txt"); \
	done; \
	cd "$$dist" && sha256sum LICENSE holdfast-* >SHA256SUMS

test: ## run the tests of the root module
	go test ./...

check: ## everything that must hold before a commit lands, but for fuzzing
	go test -race -shuffle=on ./...
	go vet ./... && go vet -tags soak ./internal/server && go vet main.go
	test -z "$$(gofmt -l $$(git ls-files '*.go'))"
	$(STATICCHECK) ./... && $(STATICCHECK) -tags soak ./internal/server && $(STATICCHECK) main.go
	go mod tidy -diff
	test "$$(go list -m all)" = "$$(go list -m)" # the root has no dependency
	@set -e; for m in $(MODULES); do echo "== $$m"; (cd $$m && \
		go mod tidy -diff && go vet ./... && $(STATICCHECK) ./... && go test -race -shuffle=on ./...); done

vet: ## compile the tests for the other platforms
	@set -e; for p in windows/amd64 darwin/arm64 linux/386 linux/arm linux/arm64; do echo "== $$p"; \
		GOOS=$${p%/*} GOARCH=$${p#*/} go vet ./... && GOOS=$${p%/*} GOARCH=$${p#*/} go vet main.go; done
	@echo "== js/wasm"; GOOS=js GOARCH=wasm go vet . ./plan

module: ## PATH=github.com/you/holdfast: write that module path into every file
	@go run ./internal/modpath '$(MODULE)'

bench: ## measure beside the peers; writes the tables and bench/ratios.svg
	cd bench && go run .

load: build ## ab on /aaa and /bbb, with and without keep-alive (needs curl, and ab from apache2-utils)
	@bin/holdfast -addr 127.0.0.1:8099 & pid=$$!; trap "kill $$pid" EXIT; sleep 1; set -e; \
	for n in 200 2000; do for path in aaa bbb; do for k in "" -k; do \
		echo "== ab -n $$n -c 100 $$k /$$path"; \
		while curl -s http://127.0.0.1:8100/stats | grep -qE '"(queued|running)":[1-9]'; do sleep 1; done; \
		ab -q -n $$n -c 100 $$k -p testdata/sleep.json -T application/json http://127.0.0.1:8099/$$path | \
			grep -E 'Time taken|Complete|Failed|Non-2xx|Requests per|  50%|  99%|100%'; \
	done; done; done

drawings: ## draw the drawings of docs anew, from their texts
	go run ./internal/drawing docs/drawings/*.txt

screenshots: ## write the pictures of the dashboard anew, into e2e/screenshots (needs Chromium)
	cd e2e && go test -count=1 -run 'Dashboard|JobsPage' -timeout 30m . -screenshots "$$PWD/screenshots"

proxies: ## the tests behind nginx, HAProxy and Caddy, with the longest of long polls
	cd e2e && go test -count=1 -run Proxies -v . -held

# Now and then go test reports the end of -fuzztime as a failure, when a worker is in
# the middle of an input. What a target has found comes with its failing input.
fuzz: ## run each fuzz target for FUZZTIME
	@set -e; for p in $$(go list ./...); do for f in $$(go test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
		echo "== $$p $$f"; \
		if ! out=$$(go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$p 2>&1); then \
			if echo "$$out" | grep -q 'Failing input' || ! echo "$$out" | grep -q '^    context deadline exceeded$$'; then echo "$$out"; exit 1; fi; \
			out=$$(echo "$$out" | grep '^fuzz: elapsed'); \
		fi; echo "$$out" | tail -n 1; done; done

soak: ## a million schedules, a thousand stops and kills, five million jobs kept or forgotten, ten minutes among bad clients, fuzzing
	go test -run TestSimulation -timeout 2h . -schedules 1000000
	go test -run TestStopUnderLoad -timeout 1h ./internal/server -stops 1000
	go test -run TestStopWithBadLog -timeout 1h ./internal/server -log-stops 50
	go test -run TestProcessKeepsWithinBounds -v -timeout 1h ./internal/server -kept-jobs 5000000 -kept 10000
	go test -tags soak -run 'TestMemory|TestSoak' -v -timeout 1h ./internal/server -soak 10m
	cd durable && go test -run TestKill -v -timeout 2h . -kills 1000
	cd durable && go test -run 'TestStart$$' -v -timeout 1h . -start-kept 1000000 -start-queued 100000
	$(MAKE) fuzz FUZZTIME=5m
