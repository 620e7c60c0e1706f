# One image for CPUs and GPUs: torch's wheels bring the CUDA libraries.
#   docker build -t ravlt .
#   docker run --rm --gpus all -v $PWD:/workspace ravlt python -m ravlt.env
# Without CUDA, about 5 GB smaller:
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu -t ravlt:cpu .
FROM debian:trixie-slim

# gcc and python3-dev: on a GPU, Triton compiles its access to the driver.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates git make python3 python3-venv \
        gcc libc6-dev python3-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/ravlt
COPY . .
ARG TORCH_INDEX=""
RUN PIP_NO_CACHE_DIR=1 PIP_EXTRA_INDEX_URL="$TORCH_INDEX" make env

ENV PATH=/opt/ravlt/.venv/bin:$PATH
WORKDIR /workspace
CMD ["python", "-m", "ravlt.env"]
