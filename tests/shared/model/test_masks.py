import torch

from shared.model.masks import both_ways, causal, sliding


def test_no_window_mask_where_it_makes_no_difference():
    mask = causal(5)
    assert sliding(mask, torch.arange(5), torch.arange(5), 6) is None
    assert sliding(mask, torch.arange(5), torch.arange(5), None) is None


def test_a_bidirectional_block_sees_itself_within_the_window():
    mask, window = both_ways(4, 2)
    assert mask.all()
    assert window.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
    assert both_ways(4)[1] is None
    assert both_ways(4, 4)[1] is None
