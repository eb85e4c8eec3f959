# Every target sets up what it needs: `make demo` on a fresh machine wants only Python >= 3.11, pip and make.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
NAME ?= bytelm
CHECKPOINT ?= checkpoints/$(NAME).safetensors
LISTEN ?= 127.0.0.1:50051
DEVICE ?= cpu
PROTO := protos/cellstream/v1/stream_inference.proto
# The execution provider: CUDA's where an NVIDIA driver answers, the CPU's elsewhere.
PROVIDER := $(if $(shell nvidia-smi -L 2>/dev/null),cuda,cpu)
REQUIREMENTS := requirements/serving.txt requirements/$(PROVIDER).txt requirements/export.txt requirements/dev.txt

.DEFAULT_GOAL := help
.PHONY: help setup train export parity serve stream demo test lint types imports protos verify wheel clean
.DELETE_ON_ERROR:

help: ## this page
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.done ## the virtual environment with everything in it

# torch first and alone: later packages then find it installed and ask for no other build of it.
$(VENV)/.done: $(REQUIREMENTS)
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Cellstream needs Python >= 3.11; set PYTHON=… (found %s)" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(PY) -m pip install --quiet --disable-pip-version-check $(addprefix -r ,$(REQUIREMENTS))
	@touch $@

checkpoints/bytelm.safetensors: | $(VENV)/.done
	$(PY) -m model.train --out $@

train: | $(VENV)/.done ## train the demo model (a byte-level language model) anew
	$(PY) -m model.train --out checkpoints/bytelm.safetensors

artifacts/bytelm/1/resident.onnx: | checkpoints/bytelm.safetensors
	$(PY) -m export checkpoints/bytelm.safetensors --name bytelm --version 1

export: | $(VENV)/.done ## CHECKPOINT=… NAME=…: checkpoint -> ONNX -> proof -> artifacts/NAME/VERSION
	@test "$(CHECKPOINT)" != checkpoints/bytelm.safetensors || $(MAKE) --no-print-directory checkpoints/bytelm.safetensors
	$(PY) -m export $(CHECKPOINT) --name $(NAME)

parity: artifacts/bytelm/1/resident.onnx | $(VENV)/.done ## NAME=…: prove the newest artifact of that name again
	$(PY) -m export prove artifacts/$(NAME)

serve: artifacts/bytelm/1/resident.onnx | $(VENV)/.done ## serve everything under artifacts/
	$(PY) -m serving --model-repository artifacts --listen $(LISTEN) --device $(DEVICE)

stream: | $(VENV)/.done ## talk to the served demo model (needs `make serve` in another terminal)
	$(PY) -m cellstream.examples.complete --address $(LISTEN)

demo: artifacts/bytelm/1/resident.onnx | $(VENV)/.done ## the whole product on real input, with a proof at the end
	$(PY) -m bench.demo

test: | $(VENV)/.done ## the test suite
	$(PY) -m pytest

lint: | $(VENV)/.done ## ruff, mypy, import-linter, buf
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy model export serving cellstream bench tests
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/buf lint protos
	@set -e; if git rev-parse -q --verify origin/main >/dev/null && git cat-file -e origin/main:$(PROTO) 2>/dev/null; then \
	  $(VENV)/bin/buf breaking protos --against '.git#ref=origin/main,subdir=protos'; fi

protos: | $(VENV)/.done ## generate cellstream/v1 anew from protos/
	$(PY) -m grpc_tools.protoc -I protos --python_out=. --pyi_out=. $(PROTO)

wheel: | $(VENV)/.done ## the client as a wheel in dist/
	$(PY) -m build --wheel --outdir dist .

verify: lint test ## what CI runs

clean: ## everything that can be made again, but for checkpoints and artifacts
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .hypothesis
