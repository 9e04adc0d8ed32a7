"""Further terms of a tokenizer's loss, a list in the recipe. One file each (``base.py``), settings in ``config.py``."""
