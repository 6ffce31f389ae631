#!/usr/bin/env bash
# offline_gpu_report.sh WHEELS OUT [gpu_report.py's options]: the GPU report on a machine without network.
#
# The machine has a GPU and a python3 with torch, torchvision, opencv-headless, scipy, matplotlib, pandas, rich, tqdm and
# pytest with xdist; WHEELS holds wheels of what it lacks: the OpenMMLab packages in the versions of
# requirements/onedl.txt, pydantic with pydantic-core, annotated-types and typing-inspection, faster-coco-eval,
# pycocotools, addict, einops, imaug, importlib-metadata, mat4py, model-index, ordered-set, platformdirs, setuptools,
# shapely, termcolor, terminaltables, yapf. They are installed into a temporary folder. OUT receives four files:
# check_env.txt, report.md, README.md with the tables, and parts.tar.gz with the JSON files and logs of all parts. The
# parts themselves stay in work_dirs/gpu_report: another call measures what is missing there (`tar xzf
# OUT/parts.tar.gz -C work_dirs` brings them to another machine).
set -euo pipefail
wheels=$(realpath "${1:?usage: offline_gpu_report.sh WHEELS OUT [options of gpu_report.py]}")
mkdir -p "${2:?usage: offline_gpu_report.sh WHEELS OUT [options of gpu_report.py]}"
out=$(realpath "$2")
cd "$(dirname "$0")/../.."
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$wheels"/*.whl
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python3 tools/misc/check_env.py | tee "$out/check_env.txt" || true
status=0
parts=work_dirs/gpu_report
python3 tools/benchmarks/gpu_report.py --out "$parts" "${@:3}" | tee "$out/report.md" || status=$?
cp tools/benchmarks/README.md "$out/README.md"
tar czf "$out/parts.tar.gz" --exclude=study -C work_dirs gpu_report  # without the study's checkpoints
exit "$status"
