# Two commands do everything on a fresh machine with Python 3.11+: `make demo` and `make test`.
unexport PYTHONDONTWRITEBYTECODE
PY    ?= python3
VENV  ?= .venv
PINS  ?= constraints.txt
BIN   := $(VENV)/bin
OUT   ?= runs/demo
export HF_HUB_OFFLINE ?= 1
PINARG = $(if $(strip $(PINS)),-c $(PINS))

.PHONY: demo report test fast lint types format clean help
help:           ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

# A stamp per extra: the second call of any target starts at once.
$(VENV)/.ok-%: pyproject.toml $(PINS)
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3,11) and "Python 3.11 or newer is needed; try: make PY=python3.12 $@")'
	@test -x $(BIN)/python || $(PY) -m venv $(VENV)
	@echo "installing trilemma[$*] into $(VENV) (one or two minutes the first time)"
	@$(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check $(PINARG) -e '.[$*]'
	@touch $@

demo: $(VENV)/.ok-train  ## train on handwritten digits and write a report to look at (under 6 minutes on 2 cores)
	$(BIN)/trilemma demo --out $(OUT)

report: $(VENV)/.ok-train  ## five families on digits, each by its preset, compared on one page (up to half an hour)
	for preset in digits vae-digits vq-digits gan-digits ddgan-digits; do \
	  $(BIN)/trilemma train --config $$preset --out runs/report/$$preset --resume || exit $$?; done
	$(BIN)/trilemma report $(foreach preset,digits vae-digits vq-digits gan-digits ddgan-digits,runs/report/$(preset)) \
	  --out runs/report

test: $(VENV)/.ok-test   ## every test
	$(BIN)/python -m pytest

fast: $(VENV)/.ok-test   ## the tests without the slow ones
	$(BIN)/python -m pytest -m "not slow"

lint: $(VENV)/.ok-lint   ## ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.ok-dev   ## mypy
	$(BIN)/mypy

format: $(VENV)/.ok-lint
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
