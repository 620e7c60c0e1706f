"""The samples of RoIs of very different shapes."""

import pytest
import torch
from ravlt_mmops.sampling import count_samples, iterate_samples, split_rois

# 2 x 2 samples a bin, 1 x 40, 30 x 1, none.
ROIS = torch.tensor(
    [[0, 0, 0, 14, 14], [1, 0, 0, 280, 7], [0, 0, 0, 7, 210], [1, 5, 5, 5, 5]]
).double()


@pytest.mark.parametrize("ratio", [0, 3])
def test_every_roi_has_its_own_samples_once(ours, ratio):
    bins = split_rois(ROIS, 7, 7, 1.0, aligned=True)
    rows, columns = (v.flatten() for v in count_samples(bins, ratio))
    assert (rows * columns).tolist() == ([4, 40, 30, 0] if ratio == 0 else [9] * 4)
    found = [[] for _ in ROIS]
    steps = 0
    for rois, y, x in iterate_samples(bins, ratio):
        steps += 1
        numbers = torch.arange(len(ROIS))[rois].tolist()
        for number, *place in zip(numbers, y[:, 1, 2], x[:, 1, 2], strict=True):
            found[number].append([v.item() for v in place])
    assert steps == (rows * columns).max()
    for number, places in enumerate(found):
        top, left = bins.top[number, 1, 2].item(), bins.left[number, 1, 2].item()
        high, wide = (v[number].item() for v in (rows, columns))
        step_y, step_x = (s[number].item() for s in (bins.height, bins.width))
        expected = [
            [top + (i + 0.5) * step_y / high, left + (j + 0.5) * step_x / wide]
            for i in range(int(high))
            for j in range(int(wide))
        ]
        assert len(places) == len(expected)
        torch.testing.assert_close(torch.tensor(places), torch.tensor(expected))


def test_no_rois(ours):
    bins = split_rois(ROIS[:0], 7, 7, 1.0, aligned=True)
    assert not list(iterate_samples(bins, 0))


def test_a_box_that_is_no_number_costs_the_others_nothing(ours):
    rois = torch.cat((ROIS, torch.full((1, 5), torch.nan), torch.full((1, 5), 9.0)))
    rois[4, 0], rois[5, 4] = 0, torch.inf
    bins = split_rois(rois.double(), 7, 7, 1.0, aligned=True)
    turns = [some for some, _, _ in iterate_samples(bins, 0)]
    assert len(turns) == 40 and sorted(turns[0].tolist()) == [0, 1, 2]
