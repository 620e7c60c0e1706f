#!/usr/bin/env bash
# Builds one stack into a virtual environment: setup_env.sh {openmmlab|onedl} VENV
# mmcv has no wheel on PyPI, so it is compiled once and its wheel kept in a cache of our own:
# pip's cache does not know torch, and an mmcv built against another torch fails at run time.
set -euo pipefail
stack=$1 venv=$2
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")/.." && pwd)
cd "$here"

fail() { echo "setup: $*" >&2; exit 1; }
pinned() { sed -n "s/^$1==\([^; ]*\).*/\1/p" constraints.txt | head -n 1; }

case $stack in
  openmmlab) mmcv=mmcv ;;
  onedl) mmcv=onedl-mmcv ;;
  *) fail "STACK=$stack is unknown; use STACK=openmmlab or STACK=onedl." ;;
esac
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
  || fail "$("$python" --version) is not supported; name a Python 3.10 to 3.12, e.g. make env PYTHON=python3.11."
"$python" -c 'import ensurepip, os, sysconfig
assert os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))' 2>/dev/null \
  || fail "this Python lacks venv or its C headers; run: sudo apt-get install python3-venv python3-dev"
command -v g++ >/dev/null || fail "no C++ compiler; run: sudo apt-get install g++"

echo "setup: $stack into $venv (torch and its CUDA libraries take about 5 GB)"
"$python" -m venv "$venv"
pip() { "$here/$venv/bin/python" -m pip --disable-pip-version-check "$@" -c constraints.txt; }
pip install -q "pip==$(pinned pip)"
pip install -q setuptools wheel ninja
pip install -q torch torchvision numpy

py=$("$venv/bin/python" -c 'import platform; print(platform.python_version())')
key="py$py-torch$(pinned torch)-$mmcv$(pinned "$mmcv")"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/ravlt/$key"
if ! ls "$cache"/*.whl >/dev/null 2>&1; then
  echo "setup: compiling $mmcv with its ops, about 5 min on 2 cores (kept in $cache)"
  fresh=$(mktemp -d)
  trap 'rm -rf "$fresh"' EXIT
  log=$fresh/build.log
  # -g0: debug information doubles the build time.
  MMCV_WITH_OPS=1 MAX_JOBS=$(nproc) CFLAGS=-g0 pip wheel -q --no-deps --no-cache-dir --no-build-isolation \
    --no-binary "$mmcv" --wheel-dir "$fresh" "$mmcv==$(pinned "$mmcv")" >"$log" 2>&1 \
    || { tail -n 40 "$log" >&2; fail "$mmcv did not compile; the compiler's words are above."; }
  mkdir -p "$cache"
  mv "$fresh"/*.whl "$cache"/
fi
pip install -q --no-index --no-deps "$cache"/*.whl
# Building in this environment, not an isolated one, keeps to the pinned setuptools.
pip install -q --no-build-isolation -e ".[$stack,test,dev]"

# opencv-python needs libGL, which servers often lack; the headless twin does not.
if ! "$venv/bin/python" -c 'import cv2' 2>/dev/null; then
  "$venv/bin/python" -m pip uninstall -q -y opencv-python
  pip install -q --force-reinstall --no-deps opencv-python-headless
fi
"$venv/bin/python" -m ravlt.env
