"""Two classifiers put together, against the formula and its limits."""

import pytest
import torch
from torch import Tensor

from fisa_model.config import EnsembleConfig
from fisa_model.ensemble import ensemble


def probabilities(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def test_is_the_geometric_mean_over_its_sum() -> None:
    trained, frozen = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.1, 0.1, 0.8]])
    seen = (True, False, False)
    products = torch.tensor(
        [[0.5**0.6 * 0.1**0.4, 0.3**0.2 * 0.1**0.8, 0.2**0.2 * 0.8**0.8]], dtype=torch.float64
    )
    expected = (products / products.sum()).float()
    torch.testing.assert_close(ensemble(trained, frozen, seen, EnsembleConfig()), expected)


def test_a_share_of_zero_is_fisa_and_of_one_is_clip() -> None:
    trained, frozen = probabilities(0, 2, 7, 4), probabilities(1, 2, 7, 4)
    seen = (True, True, False, False)
    alone = ensemble(trained, frozen, seen, EnsembleConfig(seen_weight=0, unseen_weight=0))
    torch.testing.assert_close(alone, trained)
    alone = ensemble(trained, frozen, seen, EnsembleConfig(seen_weight=1, unseen_weight=1))
    torch.testing.assert_close(alone, frozen)


def test_seen_classes_listen_to_fisa_and_others_to_clip() -> None:
    trained, frozen = torch.tensor([0.9, 0.1]), torch.tensor([0.1, 0.9])
    config = EnsembleConfig()
    assert ensemble(trained, frozen, (True, True), config).argmax() == 0
    assert ensemble(trained, frozen, (False, False), config).argmax() == 1


def test_probabilities_of_zero_give_no_nan() -> None:
    result = ensemble(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), (True, True), EnsembleConfig())
    assert result.isfinite().all()
    torch.testing.assert_close(result.sum(), torch.tensor(1.0))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"K = 3 classes, got \[2, 4\] of FISA and \[2, 4\]"):
        ensemble(torch.rand(2, 4), torch.rand(2, 4), (True, False, True), EnsembleConfig())
    with pytest.raises(ValueError, match=r"unseen_weight must be from 0 .* to 1 .*, got 1\.5"):
        EnsembleConfig(unseen_weight=1.5)
