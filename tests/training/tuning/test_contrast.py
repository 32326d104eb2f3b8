import numpy as np
import pytest
import torch

from training.tuning.contrast import contrastive_loss


def test_the_contrastive_loss_agrees_with_the_paper():
    torch.manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(6, 4), dim=-1)
    types = torch.tensor([0, 0, 0, 1, 1, 0])
    right = torch.tensor([True, True, False, True, False, True])
    losses = []
    for i in (0, 1, 5):  # the only mention of type 1 has none to come near to
        seen = [j for j in range(6) if j != i and (types[j] == types[i] or right[j])]
        near = [j for j in seen if right[j] and types[j] == types[i]]
        similarity = {j: float(embeddings[i] @ embeddings[j]) / 0.2 for j in seen}
        whole = np.log(sum(np.exp(s) for s in similarity.values()))
        losses.append(np.mean([whole - similarity[j] for j in near]))
    assert contrastive_loss(embeddings, types, right, 0.2).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_without_pairs_the_contrastive_loss_is_zero():
    embeddings = torch.ones(2, 3, requires_grad=True)
    loss = contrastive_loss(embeddings, torch.tensor([0, 1]), torch.tensor([True, True]), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert (embeddings.grad == 0).all()
