"""Tables of images: files, rows, and the cells that hold them."""
