# Sourced by the scripts beside it: finds a Python and makes virtual environments, leaving the machine as it was.

# python_for_xpnn: prints $PYTHON, or without it the first Python of version 3.11 or later; says so if there is none.
python_for_xpnn() {
    if [ -n "${PYTHON:-}" ]; then
        if "$PYTHON" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$PYTHON"
            return 0
        fi
        echo "PYTHON=$PYTHON is no Python of version 3.11 or later" >&2
        return 1
    fi
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    echo "xpnn needs Python 3.11 or later; none was found. Install one, or name it: PYTHON=/path/to/python3 sh $0" >&2
    return 1
}

# make_environment DIRECTORY: a virtual environment there, unless it exists; one that was cut short is completed.
make_environment() {
    if ! "$1/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(python_for_xpnn) || exit 1
        echo "making a virtual environment in $1 ($("$python" --version))"
        if [ -e "$1" ]; then existed=yes; else existed=no; fi
        if ! "$python" -m venv "$1"; then
            if [ "$existed" = no ]; then rm -rf "$1"; fi
            echo "Python's venv module is not complete here; on Debian and Ubuntu: apt-get install python3-venv" >&2
            exit 1
        fi
    fi
}

# install DIRECTORY ARGUMENT...: pip install into the environment, with pip's output shown only if it fails.
install() {
    directory=$1
    shift
    log="$directory/pip.log"
    if ! "$directory/bin/python" -m pip install --disable-pip-version-check "$@" >"$log" 2>&1; then
        cat "$log" >&2
        echo "pip could not install: $* (what it said is above, and in $log)" >&2
        exit 1
    fi
}

# step TITLE COMMAND...: runs a command under a heading; ends the script if it fails.
step() {
    echo
    echo "== $1"
    shift
    "$@" || { echo "failed: $*" >&2; exit 1; }
}

# need_compiler: sees to it that there is a g++; installs it where that is allowed.
need_compiler() {
    if ! command -v g++ >/dev/null 2>&1; then
        echo "g++ is needed to compile CUDA sources for the processor"
        if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
            apt-get update -qq && apt-get install -y -qq g++ >/dev/null
        else
            echo "install it first; on Debian and Ubuntu: apt-get install g++" >&2
            exit 1
        fi
    fi
}
