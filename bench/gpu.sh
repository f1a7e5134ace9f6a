#!/bin/bash
# Everything that a GPU is asked for, in one command and under nine minutes: bench/gpu.sh [--smoke] [--peer NANOGPT] [--minutes 8.5]
#
# Utilisation at 124 and 350 M parameters and 1,024 and 30,000 tokens of context; mixed precision against fp32; nanoGPT's step beside ours;
# then a 124 M network trained for the minutes that are left, with its bits per byte and its checkpoint's scores. JSON goes to $OUT, or to
# bench/results. --smoke runs all of it in small sizes on any machine (no figure of it means anything).
#
# Python: $PYTHON, or .venv/bin/python, or python3 with a torch that sees the GPU. What is missing beside torch is installed from wheels in
# .wheels/ (made with network by: bench/gpu.sh --wheels [PYTHON_VERSION, 3.12]) or by pip.
set -euo pipefail
cd "$(dirname "$0")/.."
NEEDED="pydantic pydantic-core annotated-types typing-inspection typing-extensions orjson zstandard ftfy wcwidth datatrove dill multiprocess loguru
humanize sacrebleu portalocker tabulate colorama lxml psutil rich markdown-it-py mdurl pygments typer click shellingham tokenizers safetensors numba
llvmlite fsspec regex py3langid rensa resiliparse scikit-learn scipy joblib threadpoolctl huggingface-hub filelock pyyaml tqdm pyarrow"

if [ "${1:-}" = "--wheels" ]; then
    version=${2:-3.12}
    names=""
    for name in $NEEDED; do
        pin=$(grep -i "^$name==" constraints.txt || true)
        names="$names ${pin:-$name}"
    done
    exec .venv/bin/python -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        --platform manylinux1_x86_64 --platform any -d .wheels $names
fi

PYTHON=${PYTHON:-}
if [ -z "$PYTHON" ]; then
    PYTHON=python3
    if [ -x .venv/bin/python ] && .venv/bin/python -c 'import torch' 2>/dev/null; then PYTHON=.venv/bin/python; fi
fi
"$PYTHON" -c 'import torch' 2>/dev/null || { echo "gpu.sh: $PYTHON has no torch; name a Python that has: PYTHON=… bench/gpu.sh" >&2; exit 3; }
case " $* " in
    *" --smoke "*) ;;
    *) "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
        { echo "gpu.sh: torch of $PYTHON sees no GPU here; bench/gpu.sh --smoke tries the command without one" >&2; exit 3; } ;;
esac
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
if ! "$PYTHON" -c 'import lmforge.pipeline' 2>/dev/null; then
    site=$(mktemp -d)
    if ls .wheels/*.whl >/dev/null 2>&1; then
        "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" .wheels/*.whl
    else
        "$PYTHON" -m pip install --quiet --no-deps --no-compile --target "$site" $NEEDED ||
            { echo "gpu.sh: packages are missing and neither network nor .wheels/ is there; make it with network: bench/gpu.sh --wheels" >&2; exit 3; }
    fi
    export PYTHONPATH=$PYTHONPATH:$site
    "$PYTHON" -c 'import lmforge.pipeline' || { echo "gpu.sh: lmforge cannot be imported even with the packages (above: which is missing)" >&2; exit 3; }
fi
exec "$PYTHON" -m bench.speed.gpu "$@"
