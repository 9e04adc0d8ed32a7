"""The ground floor both stages stand on: the code contract, token datasets, training, images."""
