"""The kept tokens of rows of several lengths, against loops."""

import torch

from vidsieve.engines.hf.sequence import SequenceSelection


def test_rows_are_right_aligned_and_composed() -> None:
    generator = torch.Generator().manual_seed(0)
    stays = torch.rand(5, 23, generator=generator) < torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])[:, None]
    kept = SequenceSelection.of(stays.long() - 1, stays.sum(1).tolist())
    valid = kept.valid.bool()
    stay = valid & (torch.rand(5, 23, generator=generator) < 0.6)
    later = SequenceSelection.of(stay.long() - 1, stay.sum(1).tolist())
    both = kept.then(later)
    for row in range(5):
        columns = stays[row].nonzero().flatten()
        assert torch.equal(kept.index[row][valid[row]], columns)
        assert valid[row].tolist() == [place >= 23 - len(columns) for place in range(23)]
        assert torch.equal(kept.places(row, columns), torch.arange(23 - len(columns), 23))
        left = both.index[row][both.valid[row].bool()]
        assert torch.equal(left, kept.index[row][later.index[row][later.valid[row].bool()]])
        assert torch.equal(both.places(row, left), later.valid[row].nonzero().flatten())
