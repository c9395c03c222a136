# Each of these works alone, from a bare clone:
#
#   make demo    an avatar of NASA's astronaut: files, videos and a contact sheet in ./demo
#   make test    the test suite
#   make lint    ruff
#   make clean   remove .venv and what the demo wrote
#
# Python 3.10, 3.11 or 3.12 is needed (MediaPipe, the default detector, has no wheels for later ones).
#   PYTHON=/path/to/python3.12       choose the interpreter
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu     choose PyTorch's build (here: small, CPU only)

VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CANDIDATES := python3 python3.12 python3.11 python3.10

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/guava demo -o demo

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check src tests benchmarks scripts

$(READY): pyproject.toml requirements.lock Makefile
	@set -e; \
	python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
	  for candidate in $(CANDIDATES); do \
	    if $$candidate -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; \
	    then python=$$candidate; break; fi; \
	  done; \
	fi; \
	if [ -z "$$python" ]; then \
	  echo "error: Python 3.10, 3.11 or 3.12 is needed and none was found (tried: $(CANDIDATES))." >&2; \
	  echo "Install one (Debian 12: apt install python3 python3-venv; elsewhere: uv python install 3.12)," >&2; \
	  echo "or name it: make PYTHON=/path/to/python3.12 ..." >&2; \
	  exit 2; \
	fi; \
	echo "Setting up $(VENV) with $$($$python --version) (once; about 1 GB)"; \
	rm -rf $(VENV); \
	$$python -m venv $(VENV) || { \
	  rm -rf $(VENV); \
	  echo "error: $$python cannot make virtual environments. On Debian: apt install python3-venv" >&2; \
	  exit 2; }
	grep -v '^torch==' requirements.lock > $(VENV)/first.txt
	grep '^torch==' requirements.lock > $(VENV)/torch.txt
	$(PIP) install --quiet --no-deps -r $(VENV)/first.txt
	$(PIP) install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -r $(VENV)/torch.txt
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf $(VENV) demo
