"""The command line. `main` knows the commands, `run` and `demo` are two of them."""
