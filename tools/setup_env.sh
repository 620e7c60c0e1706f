#!/usr/bin/env bash
# Build a virtual environment: setup_env.sh {openmmlab|onedl} {torchvision|compiled} VENV
set -euo pipefail
stack=$1 ops=$2 venv=$3
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."

fail() { echo "setup: $*" >&2; exit 1; }

case $stack:$ops in
  openmmlab:torchvision) mmcv=mmcv-lite ;;
  openmmlab:compiled) mmcv=mmcv ;;
  onedl:compiled) mmcv=onedl-mmcv ;;
  onedl:*) fail "STACK=onedl has compiled operators only; add OPS=compiled or leave OPS out." ;;
  openmmlab:*) fail "OPS=$ops is unknown; use OPS=torchvision or OPS=compiled." ;;
  *) fail "STACK=$stack is unknown; use STACK=openmmlab or STACK=onedl." ;;
esac
constraints=$PWD/constraints/$ops.txt
pinned() { sed -n "s/^$1==\([^; ]*\).*/\1/p" "$constraints" constraints/common.txt | head -n 1; }

command -v "$python" >/dev/null || fail "$python is not found; name a Python 3.10 to 3.13, e.g. make env PYTHON=python3.12."
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
  || fail "$("$python" --version) is not supported; name a Python 3.10 to 3.13, e.g. make env PYTHON=python3.12."
"$python" -c 'import ensurepip' 2>/dev/null \
  || fail "this Python lacks venv; run: sudo apt-get install python3-venv"
if [ "$ops" = compiled ]; then
  "$python" -c 'import os, sysconfig
assert os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))' 2>/dev/null \
    || fail "this Python lacks its C headers; run: sudo apt-get install python3-dev"
  command -v g++ >/dev/null || fail "no C++ compiler; run: sudo apt-get install g++, or leave out OPS=compiled."
fi

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
venv_python=$PWD/$venv/bin/python
if [ -e "$venv" ] && [ "$("$venv_python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" != "$version" ]; then
  fail "$venv holds another Python than $version; run rm -rf $venv, then this again."
fi

echo "setup: $stack with operators by $ops into $venv (a download of 3 GB, 6 GB on the disk)"
"$python" -m venv "$venv"
# WHEELHOUSE is a folder of wheels that takes the place of the network.
links=()
[ -z "${WHEELHOUSE:-}" ] || links=(--no-index --find-links "$WHEELHOUSE")
pip() {
  "$venv_python" -m pip --disable-pip-version-check "$@" ${links[@]+"${links[@]}"} -c "$constraints" \
    || fail "pip failed, see above; without a network: docs/install.md (a wheelhouse serves one Python; this is $version)."
}
# mmcv and mmcv-lite own the same files, so an environment built with the other one starts anew.
for other in mmcv mmcv-lite; do
  if [ "$other" != "$mmcv" ] && "$venv_python" -m pip -q show "$other" >/dev/null 2>&1; then
    "$venv_python" -m pip uninstall -q -y "$other" "$mmcv" ravlt-mmops
  fi
done
pip install -q "pip==$(pinned pip)"
pip install -q setuptools wheel
pip install -q torch torchvision numpy

# Install a compiled mmcv; compile it if the cache has none.
install_compiled_mmcv() {
  pip install -q ninja
  local accelerator=cpu key cache new
  # A wheel has CUDA operators for the GPUs that are visible, and none where no GPU is: the key says which.
  if "$venv_python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || [ "${FORCE_CUDA:-0}" = 1 ]; then
    command -v nvcc >/dev/null || [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ] \
      || fail "CUDA operators need nvcc; install the CUDA toolkit, or leave out OPS=compiled."
    export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$("$venv_python" -c '
import torch
gpus = range(torch.cuda.device_count())
print(";".join(sorted({"%d.%d" % torch.cuda.get_device_capability(i) for i in gpus})))')}
    [ -n "$TORCH_CUDA_ARCH_LIST" ] \
      || fail "no GPU is visible; name the compute capability of yours, e.g. TORCH_CUDA_ARCH_LIST='8.0;9.0'."
    accelerator=cuda$("$venv_python" -c 'import torch; print(torch.version.cuda)')-${TORCH_CUDA_ARCH_LIST//[; ]/_}
  fi
  key=$("$venv_python" -c 'import platform, torch
print(f"py{platform.python_version()}-{platform.machine()}-torch{torch.__version__}")')-$accelerator-$mmcv$(pinned "$mmcv")
  cache="${XDG_CACHE_HOME:-$HOME/.cache}/ravlt/$key"
  if ! ls "$cache"/*.whl >/dev/null 2>&1; then
    echo "setup: compiling $mmcv with its operators, 5 to 20 min on 2 cores (kept in $cache)"
    new=$cache.$$
    mkdir -p "$new"
    # CFLAGS replaces Python's own flags. -g0: debug information doubles the build time.
    MMCV_WITH_OPS=1 MAX_JOBS=$(nproc) CFLAGS="-O2 -g0" "$venv_python" -m pip wheel -q --no-deps --no-cache-dir \
      --no-build-isolation --no-binary "$mmcv" --wheel-dir "$new" "$mmcv==$(pinned "$mmcv")" >"$new/build.log" 2>&1 \
      || { tail -n 40 "$new/build.log" >&2; fail "$mmcv did not compile; the compiler's output is above."; }
    rm -rf "$cache"
    mv "$new" "$cache"
  fi
  pip install -q --no-deps "$cache"/*.whl
  if [ "$accelerator" != cpu ]; then
    "$venv_python" -c 'import sys
from mmcv.ops import get_compiling_cuda_version
sys.exit(get_compiling_cuda_version() == "not available")' \
      || fail "the compiled $mmcv has no CUDA operators; see $cache/build.log."
  fi
}

# Building in this environment, not an isolated one, keeps to the pinned setuptools.
if [ "$ops" = compiled ]; then
  install_compiled_mmcv
else
  rm -rf packages/mmops/build  # setuptools would add files that are gone from the sources
  pip install -q --no-build-isolation --force-reinstall --no-deps ./packages/mmops
  pip install -q mmcv-lite
fi
pip install -q --no-build-isolation -e ".[$stack,test,dev]"

# opencv-python needs libGL, which servers often lack; the headless build does not.
if ! "$venv_python" -c 'import cv2' 2>/dev/null; then
  "$venv_python" -m pip uninstall -q -y opencv-python
  pip install -q --force-reinstall --no-deps opencv-python-headless
fi
"$venv_python" -m ravlt.env || fail "installed, but the problems above remain."
echo "setup: done; enter the environment with: source $venv/bin/activate"
