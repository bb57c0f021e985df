# make help shows what there is. Everything but build, lint and clean takes root.

# Go of our own installation goes before an older one of the distribution's; an older one fetches what go.mod asks for.
export PATH := /usr/local/go/bin:$(PATH)
export CGO_ENABLED := 0
export GOTOOLCHAIN ?= auto
export GOFLAGS ?= -buildvcs=false

VERSION ?= $(shell git -c safe.directory='*' describe --tags --always --dirty 2>/dev/null || echo unknown)
PREFIX ?= /usr/local
DESTDIR ?=
TOOL := go tool -modfile=tools/go.mod

.PHONY: help build deps demo test bench lint format install uninstall clean

help:
	@sed -n 's/^## //p' Makefile

## build      bin/polder
build: deps
	go build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/polder ./cmd/polder

## deps       install what this machine lacks, Go too (Debian 12 and 13)
deps:
	@scripts/deps.sh

## demo       three hosts; a web service in a container and one in a virtual machine, moved under load
demo: build
	@scripts/demo.sh

## test       every test; ends in one line: N passed, N failed
test: build
	@scripts/test.sh

## bench      measurements against peers
bench: build
	@scripts/bench.sh

## lint       golangci-lint, gofumpt, shellcheck
lint: deps
	$(TOOL) golangci-lint run ./...
	$(TOOL) golangci-lint run --build-tags integration,scenario ./...
	@test -z "$$($(TOOL) gofumpt -l api client cmd internal test bench)" || { echo 'run: make format' >&2; exit 1; }
	shellcheck scripts/*.sh .ci/run

## format     gofumpt on all of it
format: deps
	$(TOOL) gofumpt -w api client cmd internal test bench

## install    program, completion, manual pages and systemd unit, below $(DESTDIR)$(PREFIX)
install: build
	install -D -m 755 bin/polder $(DESTDIR)$(PREFIX)/bin/polder
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/bash-completion/completions \
		$(DESTDIR)$(PREFIX)/share/zsh/site-functions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	bin/polder man $(DESTDIR)$(PREFIX)/share/man/man1
	bin/polder completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/polder
	bin/polder completion zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_polder
	bin/polder completion fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/polder.fish
	install -d $(DESTDIR)/etc/systemd/system
	sed 's,@PREFIX@,$(PREFIX),' dist/polder.service > $(DESTDIR)/etc/systemd/system/polder.service

## uninstall  what install made
uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/polder $(DESTDIR)$(PREFIX)/share/man/man1/polder.1 $(DESTDIR)$(PREFIX)/share/man/man1/polder-*.1 \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/polder $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_polder \
		$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/polder.fish $(DESTDIR)/etc/systemd/system/polder.service

## clean      what build and test made here
clean:
	rm -rf bin
