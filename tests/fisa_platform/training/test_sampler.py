"""The order of samples does not depend on how many workers share it."""

import itertools

import pytest

from fisa_platform.training.sampler import Sample, Sampler, nested_subset


def gathered(sampler: Sampler, world: int, accumulation: int, steps: range) -> list[set[Sample]]:
    """The samples of each step, over all ranks."""
    streams = [
        list(
            sampler.micro_batches(
                first_step=steps.start,
                last_step=steps.stop,
                rank=rank,
                world=world,
                accumulation=accumulation,
            )
        )
        for rank in range(world)
    ]
    return [
        {sample for stream in streams for part in stream[i : i + accumulation] for sample in part}
        for i in range(0, len(steps) * accumulation, accumulation)
    ]


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2)])
def test_a_step_has_the_same_samples_for_any_split(world: int, accumulation: int) -> None:
    sampler = Sampler(rows=10, batch_size=8, seed=3)
    assert gathered(sampler, world, accumulation, range(5)) == gathered(sampler, 1, 1, range(5))


def test_an_epoch_shows_every_row_once() -> None:
    sampler = Sampler(rows=12, batch_size=4, seed=0)
    rows = [sample.row for step in range(3) for sample in sampler.step(step)]
    assert sorted(rows) == list(range(12))


def test_resuming_goes_on_where_the_run_stopped() -> None:
    sampler = Sampler(rows=7, batch_size=4, seed=1)
    assert gathered(sampler, 2, 1, range(6))[4:] == gathered(sampler, 2, 1, range(4, 6))


def test_a_row_is_jittered_anew_in_every_epoch() -> None:
    sampler = Sampler(rows=2, batch_size=2, seed=0)
    assert {s.number for s in sampler.step(0)}.isdisjoint({s.number for s in sampler.step(1)})


def test_refuses_a_batch_that_does_not_divide() -> None:
    sampler = Sampler(rows=9, batch_size=16, seed=0)
    batches = sampler.micro_batches(first_step=0, last_step=1, rank=0, world=3, accumulation=1)
    with pytest.raises(ValueError, match=r"batch_size \(16\) must be a multiple of .* \(3 x 1\)"):
        list(batches)


def test_refuses_an_empty_table() -> None:
    with pytest.raises(ValueError, match="no rows"):
        Sampler(rows=0, batch_size=1, seed=0)


IDS = [f"{number:012d}" for number in range(1000)]


def test_smaller_parts_lie_within_larger_ones_and_do_not_depend_on_the_tables_order() -> None:
    parts = [nested_subset(IDS, fraction, 7) for fraction in (0.001, 0.01, 0.3, 1.0)]
    assert [len(part) for part in parts] == [1, 10, 300, 1000]
    assert all(set(small) < set(large) for small, large in itertools.pairwise(parts))
    assert all(part == sorted(part) for part in parts)
    turned = {IDS[::-1][position] for position in nested_subset(IDS[::-1], 0.3, 7)}
    assert turned == {IDS[position] for position in parts[2]}


def test_another_seed_takes_another_part_of_the_whole_table() -> None:
    seven, eight = (set(nested_subset(IDS, 0.3, seed)) for seed in (7, 8))
    assert 50 < len(seven & eight) < 130  # 90 of 300 by chance
    # Not the first ones: each tenth of the table has about a tenth of them.
    assert all(15 < len([p for p in seven if p // 100 == tenth]) < 45 for tenth in range(10))


def test_a_part_of_few_images_has_at_least_one() -> None:
    assert len(nested_subset(["a", "b"], 0.001, 1)) == 1
    assert nested_subset([], 0.5, 1) == []
