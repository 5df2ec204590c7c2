#!/bin/sh
# Builds sdist and wheel (the wheel from the sdist), installs the wheel in a clean environment, and uses it there.
#
#   sh ci/package.sh [PYTHON WITH build]
set -eu
cd "$(dirname "$0")/.."
. ci/environment.sh

builder=${1:-python3}
rm -rf build/package
mkdir -p build/package
"$builder" -m build --outdir build/package . >build/package/build.log 2>&1 || { cat build/package/build.log >&2; exit 1; }
ls build/package/*.whl build/package/*.tar.gz

clean=$PWD/build/package/venv
PYTHON=$builder make_environment "$clean"
wheel=$(ls "$PWD"/build/package/*.whl)
install "$clean" "$wheel[data,plot]"

# From an empty folder, so that nothing of the checkout can be imported.
mkdir build/package/empty
cd build/package/empty
"$clean/bin/python" - <<'PYTHON'
import pathlib
import xpnn, xpnn.data, xpnn_backends

for module in (xpnn, xpnn_backends):
    where = pathlib.Path(module.__file__)
    assert "site-packages" in where.parts, f"{module.__name__} came from {where}"
assert (pathlib.Path(xpnn.__file__).parent / "py.typed").exists(), "the wheel has no py.typed"
assert len(xpnn.data.load_text("opticks")) > 100_000, "the wheel has not its text"
PYTHON
"$clean/bin/xpnn" --version
"$clean/bin/xpnn" backends
"$clean/bin/xpnn" train iris --epochs 20 --save iris.safetensors --plot iris.png --quiet
test -s iris.safetensors
test -s iris.png
"$clean/bin/xpnn" check --backends numpy --require numpy >check.txt || { cat check.txt >&2; exit 1; }
if "$clean/bin/xpnn" train missing.csv --target y 2>error.txt; then
    echo "a missing file was accepted" >&2
    exit 1
fi
test "$(wc -l <error.txt)" -eq 1
echo "the installed wheel works"
