# Strata. "make help" tells what there is.

GO        ?= go
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS    = -s -w -X main.version=$(VERSION)
PKGS      ?= ./...
# One package at a time: the tests of some start VMs, which fill two cores by themselves.
TESTFLAGS ?= -p 1 -timeout 40m
PLATFORMS  = linux/amd64 linux/arm64 windows/amd64 windows/arm64

.DEFAULT_GOAL := help

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

need-go:
	@out=$$($(GO) list -m 2>&1) || { echo "Go $$(awk '$$1 == "go" {print $$2}' go.mod) or later is needed, see https://go.dev/dl/ ($$out)" >&2; exit 1; }

build: need-go ## bin/strata and bin/strata-init (what guests boot) for this machine, and bin/strata.exe for Windows
	CGO_ENABLED=0 GOOS=linux $(GO) build -trimpath -ldflags '-s -w' -o bin/strata-init ./cmd/strata-init
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/strata ./cmd/strata
	CGO_ENABLED=0 GOOS=windows GOARCH=amd64 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/strata.exe ./cmd/strata

check: need-go lint ## the fast loop: lint and the tests that need no VM, no Wine and no root; about two minutes
	$(GO) test -short $(PKGS)
	$(GO) test -C shim -short ./internal/...

stress: need-go ## repeat the tests of PKGS=./package under load until one fails, COUNT=20 times; RUN=pattern picks some
	scripts/stress '$(PKGS)' '$(or $(COUNT),20)' '$(or $(RUN),.)'

SOAK ?= 10m

soak: need-go install-deps ## parallel commands, random kills and a hostile guest, each for as long as SOAK=10m says
	STRATA_SOAK=$(SOAK) $(GO) test -count=1 -v -timeout 0 ./test/soak

test: need-go install-deps lint test-go test-vsock test-containerd ## everything that is checked: lint, unit tests, real VMs, Wine

test-go: need-go ## the tests alone, with the race detector
	$(GO) test -race -vet=off $(TESTFLAGS) $(PKGS) # lint vets
	CGO_ENABLED=0 $(GO) test -run 'TestVM$$' ./vmm/qemu # memory, which the race detector hides; built as lint has
	CGO_ENABLED=0 $(GO) test -run 'TestMillionEntries$$' ./internal/format/layertree # and what is too large for it

test-vsock: need-go ## VMs over vsock: on a host without it in a VM inside a VM, which takes about three minutes
	CGO_ENABLED=0 STRATA_TEST_NESTED=1 $(GO) test -v $(TESTFLAGS) -run 'TestVSock$$' ./vmm/qemu

test-containerd: need-go install-deps ## the shim: its own tests, and containers by a containerd that is built for it
	$(GO) test -C shim -race ./internal/...
	CGO_ENABLED=0 $(GO) test -C shim -v -timeout 40m ./test

CRITEST ?= .
HANDLER ?= strata

critest: need-go install-deps ## the tests of CRI's own project, with runc and the shim: an hour; CRITEST=pattern picks cases
	CGO_ENABLED=0 STRATA_CRITEST='$(CRITEST)' STRATA_CRITEST_HANDLER='$(HANDLER)' $(GO) test -C shim -count=1 -v -timeout 3h -run 'TestCritest$$' ./test

lint: need-go fmt-check vet vet-shim staticcheck ## formatting, build and vet for all platforms, staticcheck

fmt-check:
	@out=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); test -z "$$out" || { echo "gofmt -w these files:"; echo "$$out"; exit 1; }

vet:
	@for p in $(PLATFORMS); do echo "build and vet $$p"; export GOOS=$${p%/*} GOARCH=$${p#*/} CGO_ENABLED=0; $(GO) build $(PKGS) && $(GO) vet $(PKGS) || exit 1; done

vet-shim: # a module of its own, for Linux hosts
	@for a in amd64 arm64; do echo "build and vet shim linux/$$a"; export GOOS=linux GOARCH=$$a CGO_ENABLED=0; $(GO) build -C shim -o /dev/null ./... && $(GO) vet -C shim ./... || exit 1; done

staticcheck: # the tool is built for this machine and told which system to look at
	@tool=$$($(GO) tool -n staticcheck) || exit 1; for os in linux windows; do echo "staticcheck $$os"; GOOS=$$os CGO_ENABLED=0 $$tool $(PKGS) || exit 1; done; echo "staticcheck shim"; cd shim && CGO_ENABLED=0 $$tool ./...

build-shim: need-go ## bin/containerd-shim-strata-v1, by which containerd runs containers in VMs, and bin/strata-init
	CGO_ENABLED=0 GOOS=linux $(GO) build -trimpath -ldflags '-s -w' -o bin/strata-init ./cmd/strata-init
	CGO_ENABLED=0 GOOS=linux $(GO) build -C shim -trimpath -ldflags '$(LDFLAGS)' -o ../bin/ ./cmd/containerd-shim-strata-v1

PREFIX ?= /usr/local

install-shim: build-shim ## bin/ of PREFIX=/usr/local: the shim and strata-init, for containerd; needs no other setting
	install -d $(DESTDIR)$(PREFIX)/bin
	install bin/containerd-shim-strata-v1 bin/strata-init $(DESTDIR)$(PREFIX)/bin/

demo: need-go install-deps build ## boot a VM, mount three layers with a Debian base, run a program, take all away
	scripts/demo bin/strata

k8s-demo: need-go install-deps ## as root: a Deployment of two replicas, a Service, ... in VMs; builds Kubernetes once, in 20 minutes
	scripts/k8s-demo

bench: need-go install-deps build ## what is fast and what it costs, next to other programs: a table of ratios, docs/benchmarks.md, plots
	GO='$(GO)' scripts/bench

bench-compare: need-go ## benchmarks of BENCH=./package (RUN=pattern) in COUNT=10 rounds against those of the commit BASE
	GO='$(GO)' scripts/bench-compare '$(BASE)' '$(or $(BENCH),./uvm)' '$(or $(RUN),.)' '$(or $(COUNT),10)'

fuzz: need-go ## ten seconds for each fuzz target
	scripts/fuzz 10s

install-deps: ## the Debian packages that tests and demo need (asks sudo unless root)
	@scripts/install-deps

clean: ## remove what make build made
	rm -rf bin

.PHONY: help need-go build build-shim install-shim check stress soak test test-go test-vsock test-containerd critest k8s-demo lint fmt-check vet vet-shim staticcheck demo bench bench-compare fuzz install-deps clean
