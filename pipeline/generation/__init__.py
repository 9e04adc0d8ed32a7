"""New images from a tokenizer and a prior."""
