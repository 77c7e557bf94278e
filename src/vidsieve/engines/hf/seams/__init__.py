"""One file for each place in a model where its calls are changed."""
