#!/usr/bin/env bash
# Create a virtual environment for a Makefile target: usage setup_env.sh VENV REQUIREMENTS...
# A stamp, written last and holding the hash of the requirement files, distinguishes a finished environment from a
# partial one; a second call with the same files returns at once.
set -euo pipefail
venv=${1:?usage: setup_env.sh VENV REQUIREMENTS...}
shift
python=${PYTHON:-python3}
stamp=$venv/.complete
wanted=$(cat "$@" setup.py "$0" | sha256sum | cut -d' ' -f1)
[ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && exit 0

fail() {
  echo "set-up failed: $1" >&2
  echo "$venv is incomplete and will not be used; run the same command again once that is fixed." >&2
  exit 1
}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
  fail "\"$python\" is not a Python >= 3.10; name one with PYTHON=/path/to/python3"
# An environment whose stamp is missing was interrupted: start anew. One with an old stamp is brought up to date.
if [ -f "$stamp" ]; then rm "$stamp"; else
  "$python" -m venv --clear "$venv" || fail "\"$python -m venv\" does not work (Debian, Ubuntu: apt install python3-venv)"
fi

files=()
for file in "$@"; do files+=(-r "$file"); done
echo "Installing $* into $venv: about 5 GB with PyTorch, some minutes, once."
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
pip install --progress-bar off -q "${files[@]}" ||
  fail 'pip could not install the packages, its message is above (no network? a proxy? a full disk?)'

# mmcv asks for opencv-python, whose cv2 wants libGL.so.1 of a desktop; the headless build has the same cv2.
opencv=$(pip list --format=freeze | sed -n 's/^opencv-python==//p')
if [ -n "$opencv" ]; then
  pip uninstall -q -y opencv-python opencv-python-headless
  pip install -q --no-deps "opencv-python-headless==$opencv" || fail 'pip could not install opencv-python-headless'
fi
pip install -q --no-deps --no-build-isolation -e . || fail 'pip could not install qbheat_mm itself'
"$venv/bin/python" -c 'import qbheat_mm, mmdet.models' || fail 'the installed packages do not work together'
echo "$wanted" >"$stamp"
