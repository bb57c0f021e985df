#!/usr/bin/env bash
# Measurements against peers; see bench/.
set -euo pipefail
cd "$(dirname "$0")/.."
exec go run ./bench "$@"
