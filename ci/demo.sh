#!/bin/sh
# Sets xpnn up in .venv and trains a classifier on 1797 real handwritten digits. Needs Python 3.11 or later, nothing else.
set -eu
cd "$(dirname "$0")/.."
. ci/environment.sh

make_environment .venv
echo "installing xpnn (about a minute the first time)"
install .venv -e ".[data,plot]"
.venv/bin/xpnn train digits --save digits.safetensors --plot digits.png "$@"
echo
echo "Look at digits.png. To predict with the model, here for its own data: .venv/bin/xpnn predict digits.safetensors digits"
echo "More: .venv/bin/xpnn --help, and README.md"
