"""A training step: what it leaves out changes no gradient."""

import pytest
import torch
from torch import Tensor

from fisa_model.criterion import Criterion
from fisa_model.fisa import FISA, class_logits
from fisa_model.matcher import HungarianMatcher, Match, Target
from fisa_model.objective import FISAObjective, TrainingBatch, draw_vocabulary, keep_matched
from fisa_model.simo import trainable_parameters
from fisa_model.text_encoder import ClassTokens


class FixedPoints(HungarianMatcher):
    """Matches the same whatever was drawn before."""

    def compare_masks(self, *arguments):  # type: ignore[no-untyped-def]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return super().compare_masks(*arguments)


def batch_of(images: Tensor, proposals: Tensor, counts: tuple[int, int] = (2, 3)) -> TrainingBatch:
    """Segments that are the first proposals of each image, in other classes."""
    targets = [
        Target(torch.arange(n) % 4, masks[:n] + 0.3 >= 0) for n, masks in zip(counts, proposals, strict=True)
    ]
    return TrainingBatch(images, proposals, torch.ones(2, proposals.shape[1], dtype=torch.bool), targets)


def objective_of(model: FISA, class_tokens: ClassTokens) -> FISAObjective:
    criterion = Criterion(num_points=64, mask_losses=True)
    return FISAObjective(model, FixedPoints(num_points=64), criterion, class_tokens)


@pytest.mark.parametrize("bias", ["hard", "soft"])
def test_gradients_are_those_of_all_proposals(
    trained: FISA, images: Tensor, proposals: Tensor, class_tokens: ClassTokens, bias: str
) -> None:
    trained.bias = bias  # type: ignore[assignment]
    objective = objective_of(trained, class_tokens)
    batch = batch_of(images, proposals)
    torch.manual_seed(7)
    objective(batch)["loss"].backward()
    found = {name: p.grad for name, p in trained.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.any() for gradient in found.values())

    trained.zero_grad()
    output = trained(images, proposals, class_tokens)
    matches = objective.matcher(output, batch.targets, batch.valid)
    torch.manual_seed(7)
    objective.criterion(output, batch.targets, matches, batch.valid, num_classes=4)["loss"].backward()
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_a_batch_without_segments_reaches_every_trained_tensor(
    trained: FISA, images: Tensor, proposals: Tensor, class_tokens: ClassTokens
) -> None:
    """DistributedDataParallel waits for the gradient of each of them."""
    loss = objective_of(trained, class_tokens)(batch_of(images, proposals, (0, 0)))["loss"]
    loss.backward()
    assert loss.item() == 0.0
    for parameter in trainable_parameters(trained):
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_a_batch_without_proposals_reaches_every_trained_tensor(
    trained: FISA, images: Tensor, proposals: Tensor, class_tokens: ClassTokens
) -> None:
    empty = TrainingBatch(
        images,
        proposals[:, :0],
        torch.ones(2, 0, dtype=torch.bool),
        batch_of(images, proposals).targets,
    )
    objective_of(trained, class_tokens)(empty)["loss"].backward()
    assert all(parameter.grad is not None for parameter in trainable_parameters(trained))


def test_matched_proposals_move_to_the_front() -> None:
    proposals = torch.arange(8.0).view(2, 4, 1, 1)
    matches = [
        Match(torch.tensor([3, 1]), torch.tensor([0, 1])),
        Match(torch.tensor([2]), torch.tensor([0])),
    ]
    kept, valid, renumbered = keep_matched(proposals, matches)
    assert kept[0].flatten().tolist() == [3.0, 1.0]
    assert kept[1, 0].item() == 6.0
    assert valid.tolist() == [[True, True], [True, False]]
    assert [match.proposals.tolist() for match in renumbered] == [[0, 1], [0]]


@pytest.mark.parametrize("chosen", [[0, 2], [3, 0], [2]])
@pytest.mark.parametrize("void", [True, False])
def test_a_part_of_a_vocabulary_scores_as_in_the_whole(
    class_tokens: ClassTokens, chosen: list[int], *, void: bool
) -> None:
    if not void:
        rows = slice(0, 5)
        class_tokens = ClassTokens(
            class_tokens.classifier[rows], class_tokens.class_index[rows], class_tokens.targets
        )
    embeddings = torch.randn(2, 5, 24)
    part = class_tokens.select(torch.tensor(chosen))
    whole = class_logits(embeddings, class_tokens, 100.0)
    columns = [*chosen, 4] if void else chosen
    torch.testing.assert_close(
        class_logits(embeddings, part, 100.0), whole[..., columns], rtol=1e-5, atol=1e-4
    )
    assert torch.equal(part.targets, class_tokens.targets[chosen])
    assert part.void is void


def test_a_drawn_vocabulary_has_the_classes_of_the_batch_and_others(class_tokens: ClassTokens) -> None:
    targets = [
        Target(torch.tensor([3, 1]), torch.ones(2, 4, 4) > 0),
        Target(torch.tensor([3]), torch.ones(1, 4, 4) > 0),
    ]
    drawn = set()
    for _ in range(30):
        tokens, renamed = draw_vocabulary(class_tokens, targets, 3)
        for target, new in zip(targets, renamed, strict=True):
            assert torch.equal(tokens.targets[new.labels], class_tokens.targets[target.labels])
            assert torch.equal(new.masks, target.masks)
        other = {i for i in (0, 2) if (tokens.targets == class_tokens.targets[i]).all(1).any()}
        assert tokens.num_classes == 3
        drawn |= other
    assert drawn == {0, 2}
    fewest, _ = draw_vocabulary(class_tokens, targets, 1)
    assert torch.equal(fewest.targets, class_tokens.targets[[1, 3]])
    everything, same = draw_vocabulary(class_tokens, targets, 9)
    assert torch.equal(everything.class_index, class_tokens.class_index)
    assert [target.labels.tolist() for target in same] == [[3, 1], [3]]


def test_a_batch_has_at_least_one_class(trained: FISA, class_tokens: ClassTokens) -> None:
    with pytest.raises(ValueError, match="classes_per_batch must be at least 1 or None, got 0"):
        FISAObjective(trained, HungarianMatcher(), Criterion(), class_tokens, classes_per_batch=0)


def test_a_step_learns_among_the_drawn_classes(
    trained: FISA, images: Tensor, proposals: Tensor, class_tokens: ClassTokens
) -> None:
    batch = batch_of(images, proposals, (1, 2))
    objective = objective_of(trained, class_tokens)
    objective.classes_per_batch = 2
    found = objective(batch)["loss_class"]
    expected = objective_of(trained, class_tokens.select(torch.tensor([0, 1])))(batch)["loss_class"]
    torch.testing.assert_close(found, expected)
    assert not torch.isclose(found, objective_of(trained, class_tokens)(batch)["loss_class"])
