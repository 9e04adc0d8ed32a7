# make demo: set up, train both stages on handwritten digits, show where the report is.
# make demo-color: the same on 800 icons in colour, within fifteen minutes; its picture is runs/icons/front.png.
# make test: set up, lint, type-check, run the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo demo-color test check clean

demo: $(STAMP)
	$(BIN)/tessera run digits
	$(BIN)/python scripts/judge_digits.py runs/digits

demo-color: $(STAMP)
	$(BIN)/python scripts/icons.py icons
	$(BIN)/tessera run folder -o runs/icons --data.source.path icons --budget 15m
	$(BIN)/python scripts/front_picture.py runs/icons -o runs/icons/front.png

test: check
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $${TEST_PROCESSES:-2} --dist loadfile -m "not slow and not gpu"

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[demo,dev,eval,onnx,diffusers,finetune,features,track,ray,s3,app]"
	touch $@

clean:
	rm -rf $(VENV) runs dist build .pytest_cache .mypy_cache .ruff_cache
