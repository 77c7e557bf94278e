"""Evidence: benchmarks of operations, the synthetic needle suite, the statistics of both, peers' harnesses."""
