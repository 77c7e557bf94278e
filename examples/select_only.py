"""Select tokens without a model: features in, indices out.

    python examples/select_only.py

For a serving engine, a feature cache or a paper: everything below the model works on plain tensors.
"""

import torch

import vidsieve

FRAMES, ROWS, COLUMNS, FEATURES = 16, 14, 14, 256


def still_then_busy() -> torch.Tensor:
    """Features (N, D) of eight frames that hardly change, a cut, and eight frames that change all over."""
    noise = torch.Generator().manual_seed(0)
    patches = ROWS * COLUMNS
    still = torch.randn(1, patches, FEATURES, generator=noise).repeat(FRAMES // 2, 1, 1)
    still += 0.05 * torch.randn(still.shape, generator=noise)
    drift = 0.6 * torch.randn(FRAMES // 2, patches, FEATURES, generator=noise)
    busy = torch.randn(1, patches, FEATURES, generator=noise) + drift.cumsum(0)
    return torch.cat([still, busy]).flatten(0, 1)


def main() -> None:
    tokens = vidsieve.VideoTokens.from_grid(still_then_busy(), FRAMES, ROWS, COLUMNS)
    reduction = vidsieve.presets.vidsieve(keep=0.1).reduce(tokens)
    print(tokens)
    print(reduction)

    kept = reduction.kept  # (K,) sorted indices; the same rows of any tensor that runs along the tokens
    print("kept per frame:  ", torch.bincount(tokens.frame[kept], minlength=FRAMES).tolist())
    print("kept per segment:", [k for k in reduction.budget.tolist() if k])
    print("kept features:   ", tuple(reduction.apply(tokens.features).shape))


if __name__ == "__main__":
    main()
