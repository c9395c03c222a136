# Each of these works alone, from a bare clone:
#
#   make demo    an avatar of NASA's astronaut: files, videos and a contact sheet in ./demo
#   make test    the test suite
#   make lint    ruff
#   make native  compile the native library again where its sources changed ("make test" does that too)
#   make native-check    the native code's own tests, under sanitizers and emulators too
#   make wheels  the release's files for every platform, in ./dist
#   make clean   remove .venv, build and what the demo wrote
#
# Python 3.10, 3.11 or 3.12 is needed (MediaPipe, the default detector, has no wheels for later ones).
#   PYTHON=/path/to/python3.12       choose the interpreter
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu     choose PyTorch's build (here: small, CPU only)
#   GUAVA_CXX=clang++        choose the C++ compiler; where none works, ziglang is installed from PyPI

VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CANDIDATES := python3 python3.12 python3.11 python3.10

.PHONY: demo test lint native native-check wheels clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/guava demo -o demo

# Without the library the tests still run (on the slow path; those of the library are skipped and say so).
test: $(READY)
	-$(BIN)/python native/build.py
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check src tests benchmarks scripts native hatch_build.py

native: $(READY)
	$(BIN)/python native/build.py

native-check: $(READY)
	$(BIN)/python native/check.py

wheels: $(READY)
	$(PIP) install --quiet --no-deps $$($(BIN)/python native/build.py --ziglang)
	$(BIN)/python native/wheels.py --out dist

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
	@set -e; wanted=$$($(BIN)/python native/build.py --requirements); \
	if [ -n "$$wanted" ]; then \
	  echo "No C++ compiler works here; installing $$wanted (once; about 100 MB)"; \
	  $(PIP) install --quiet --no-deps $$wanted || \
	    echo "warning: it cannot be installed; the native library will be missing and rendering slow" >&2; \
	fi
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf $(VENV) build demo
