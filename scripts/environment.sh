# Sourced by scripts/demo and scripts/test: makes the locked environment in .venv and sets what every run needs.
#
# Three promises: a second run costs well under a second; an interrupted run is repaired by the next; nothing is installed
# whose hash is not in requirements.lock or requirements-uv.lock.
# shellcheck shell=bash

ROOT="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)"
VENV="$(readlink -m "${MOE_ROBOT_VENV:-$ROOT/.venv}")"
STAMP="$VENV/.moe-robot"        # "unfinished" while .venv is being made, afterwards the key of what it was made from
BOOTSTRAP="$ROOT/.venv-bootstrap" # holds only uv, where the machine has none
UV_OLDEST="0.8"                 # the first uv that we know to read this lock
GL_PACKAGES="libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0"

say() { printf 'moe_robot: %s\n' "$*" >&2; }
stop() { say "$*"; exit 1; }

set_run_variables() {
  export MUJOCO_GL="${MUJOCO_GL:-egl}"               # everything here is drawn off screen; works with and without a display
  export LP_NUM_THREADS="${LP_NUM_THREADS:-0}"       # Mesa's software renderer: its threads cost more than they bring
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc)}"   # cores that this process may use, not all of the machine's
  export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
}

# Python 3.11, 3.12 or 3.13 on this machine, the default python3 first; nothing if there is none.
find_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11; do
    if "$name" -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      "$name" -c 'import os, sys; print(os.path.realpath(sys.executable))'
      return
    fi
  done
}

gl_is_there() {
  python3 - <<'PYTHON' 2>/dev/null
import ctypes, glob
for name in ("libEGL.so.1", "libOpenGL.so.0"):
    ctypes.CDLL(name)
# a driver that libEGL can call: Mesa's or the graphics card's own
raise SystemExit(not (glob.glob("/usr/share/glvnd/egl_vendor.d/*.json") + glob.glob("/etc/glvnd/egl_vendor.d/*.json")))
PYTHON
}

uv_is_recent() {
  local version
  version="$("$1" --version 2>/dev/null)" || return 1
  version="${version#uv }"
  [ "$(printf '%s\n%s\n' "$UV_OLDEST" "${version%% *}" | sort -V | head -n 1)" = "$UV_OLDEST" ]
}

# Sets UV to a usable uv, or leaves it empty.
find_uv() {
  UV=""
  local candidate
  for candidate in "$(command -v uv || true)" "$BOOTSTRAP/bin/uv"; do
    if [ -n "$candidate" ] && uv_is_recent "$candidate"; then UV="$candidate"; return; fi
  done
}

install_system_packages() {
  local packages="$*"
  if ! command -v apt-get >/dev/null; then
    stop "this system lacks what Debian and Ubuntu call $packages: install them with your package manager, then run again"
  fi
  if [ "$(id -u)" != 0 ]; then
    stop "this system lacks $packages: run 'sudo apt-get install -y $packages', then run again"
  fi
  say "installing system packages: $packages"
  local log
  log="$(mktemp)"
  # shellcheck disable=SC2086 # the names are meant to be split
  if ! { DEBIAN_FRONTEND=noninteractive apt-get update -q &&
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $packages; } >"$log" 2>&1 </dev/null; then
    tail -n 5 "$log" >&2
    stop "apt-get could not install $packages (its last lines are above): install them yourself, then run again"
  fi
  rm -f "$log"
}

check_system() {
  command -v python3 >/dev/null || stop "python3 is missing: install Python 3.11, 3.12 or 3.13, then run again"
  local missing=""
  find_uv
  if [ -z "$UV" ] && ! python3 -c 'import ensurepip, venv' 2>/dev/null; then missing="python3-venv"; fi
  if [ "${MUJOCO_GL:-egl}" = egl ] && ! gl_is_there; then missing="$missing $GL_PACKAGES"; fi
  # shellcheck disable=SC2086
  if [ -n "$missing" ]; then install_system_packages $missing; fi
}

get_uv() {
  find_uv
  if [ -n "$UV" ]; then return; fi
  say "getting uv, the package installer, into .venv-bootstrap"
  rm -rf "$BOOTSTRAP"
  python3 -m venv "$BOOTSTRAP" || stop "python3 -m venv failed: mend this system's python3-venv, then run again"
  "$BOOTSTRAP/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --require-hashes -r "$ROOT/requirements-uv.lock" ||
    stop "pip could not install uv: check the connection to the package index, then run again"
  UV="$BOOTSTRAP/bin/uv"
}

enough_disk() {
  local free_mib
  free_mib="$(df -Pm "$VENV" | awk 'NR == 2 { print $4 }')"
  if [ "$free_mib" -lt 8000 ]; then
    stop "only $free_mib MiB are free on the disk of $VENV, the packages need about 8000: free some, or set MOE_ROBOT_VENV to a folder on another disk"
  fi
}

environment_key() {
  { printf '%s\n%s\n' "$ROOT" "$VENV"; cat "$ROOT/requirements.lock" "$ROOT/pyproject.toml" "$ROOT/scripts/environment.sh"; } |
    sha256sum | cut -d ' ' -f 1
}

environment_is_ready() {
  [ "$(cat "$STAMP" 2>/dev/null)" = "$(environment_key)" ] && [ -x "$VENV/bin/python" ]
}

fill_environment() {
  if ! { mkdir -p "$VENV" && exec 9>"$VENV/.moe-robot.lock"; } 2>/dev/null; then
    stop "$VENV cannot be written: make it writable, or set MOE_ROBOT_VENV to a folder that is"
  fi
  if ! flock -n 9; then say "another run is making $VENV: waiting for it"; flock 9; fi
  if environment_is_ready; then return; fi
  if [ ! -e "$STAMP" ] && [ "$(ls -A "$VENV")" != .moe-robot.lock ]; then
    rm -f "$VENV/.moe-robot.lock"
    stop "$VENV holds something that these scripts did not make: move it away, or set MOE_ROBOT_VENV to another folder"
  fi
  check_system
  get_uv
  echo unfinished >"$STAMP"
  export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}"   # torch is one file of 700 MB
  if ! "$VENV/bin/python" -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
    enough_disk
    local python
    python="$(find_python)"
    if [ -z "$python" ]; then
      say "$(python3 --version) is here, Python 3.11, 3.12 or 3.13 is needed: asking uv to fetch 3.13"
      python=3.13
    fi
    rm -rf "${VENV:?}"/{bin,lib,lib64,share,pyvenv.cfg}   # what is left of a Python that is gone
    "$UV" venv --quiet --allow-existing --python "$python" "$VENV" ||
      stop "no environment could be made with Python $python: install python3.11, python3.12 or python3.13 with its venv module, then run again"
  fi
  say "installing the locked packages into $VENV (from an empty cache: 3 GB to download, some minutes)"
  "$UV" pip sync --python "$VENV/bin/python" --require-hashes "$ROOT/requirements.lock" ||
    stop "the locked packages could not be installed: the reason is above; run again to go on where this stopped"
  # hatchling comes from the lock, so that building our own package downloads nothing unlocked
  "$UV" pip install --quiet --python "$VENV/bin/python" --no-deps --no-build-isolation --editable "$ROOT" ||
    stop "moe_robot itself could not be installed into $VENV: the reason is above"
  environment_key >"$STAMP"
}

make_environment() {
  trap 'say "interrupted; run again to go on"; exit 130' INT
  trap 'say "stopped; run again to go on"; exit 143' TERM
  if ! environment_is_ready; then
    fill_environment
    exec 9>&-   # gives the lock back, also for the programs that we start
  fi
  trap - INT TERM
  set_run_variables
}
