"""Operations on trees of tensors: plain, nested and named tuples."""

from typing import NamedTuple

import pytest
import torch

from nmt.tree import join_slots, leaves, map_tree, mix_slots, split_slots, take_rows, take_slots, where_rows


class Named(NamedTuple):
    first: torch.Tensor
    second: tuple


def make_tree(rows=3, slots=4, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        return torch.randn(rows, slots, *shape, generator=generator, dtype=torch.float64)

    return Named(leaf(5), ((leaf(2, 3),), leaf()))


def assert_same(first, second):
    assert type(first) is type(second)
    for a, b in zip(leaves(first), leaves(second), strict=True):
        torch.testing.assert_close(a, b)


def test_map_keeps_the_shape_of_the_tree():
    tree = make_tree()
    doubled = map_tree(lambda leaf: 2 * leaf, tree)
    assert isinstance(doubled, Named) and isinstance(doubled.second, tuple) and isinstance(doubled.second[0], tuple)
    assert_same(doubled, map_tree(lambda a, b: a + b, tree, tree))


def test_trees_of_different_shape_are_not_mapped():
    with pytest.raises(ValueError, match="zip"):
        map_tree(torch.add, (torch.ones(1), torch.ones(1)), (torch.ones(1),))


@pytest.mark.parametrize("new_slots", [1, 2, 4, 7])
def test_mixing_by_one_hot_weights_is_taking(new_slots):
    tree = make_tree()
    parents = torch.randint(4, (3, new_slots), generator=torch.Generator().manual_seed(1))
    weights = torch.nn.functional.one_hot(parents, 4).double()
    taken = take_slots(tree, parents)
    assert_same(taken, mix_slots(tree, weights))
    for row in range(3):
        for slot, parent in enumerate(parents[row].tolist()):
            assert torch.equal(taken.second[0][0][row, slot], tree.second[0][0][row, parent])


def test_mixing_is_linear_in_the_weights():
    tree = make_tree()
    weights = torch.rand(3, 2, 4, dtype=torch.float64)
    expected = torch.einsum("bml,bl...->bm...", weights, tree.second[0][0])
    torch.testing.assert_close(mix_slots(tree, weights).second[0][0], expected)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_split_is_the_inverse_of_join(at):
    first, second = make_tree(slots=at), make_tree(slots=4 - at, seed=1)
    joined = join_slots(first, second)
    assert joined.first.shape == (3, 4, 5)
    for part, again in zip((first, second), split_slots(joined, at), strict=True):
        assert_same(part, again)


def test_rows_are_taken_and_chosen():
    one, two = make_tree(), make_tree(seed=1)
    rows = torch.tensor([True, False, True])
    chosen = where_rows(rows, one, two)
    assert_same(take_rows(chosen, torch.tensor([0, 2])), take_rows(one, torch.tensor([0, 2])))
    assert_same(take_rows(chosen, torch.tensor([1])), take_rows(two, torch.tensor([1])))
    # Values are chosen, not multiplied: what is not chosen may be infinite.
    broken = map_tree(lambda leaf: torch.full_like(leaf, torch.inf), two)
    assert torch.isfinite(where_rows(torch.ones(3, dtype=torch.bool), one, broken).first).all()
