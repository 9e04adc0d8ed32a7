"""Commands of the command line: one function each, its signature and docstring its help."""
