"""What other segments have, on CUDA: products of matrices and their maxima, which torch makes as well."""

from vidsieve.ops.elsewhere.eager import alike_elsewhere as alike_elsewhere
