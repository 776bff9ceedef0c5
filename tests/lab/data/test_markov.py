"""The chain's values and occupancy against long walks through it, and its transitions."""

import math

import pytest
import torch

from gqc_lab.data.markov import MarkovChain, draw_transitions, make_chain
from gqc_lab.loop.placement import make_generator


def test_values_of_a_chain_of_two_by_hand():
    transitions = torch.tensor([[0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.0], dtype=torch.float64)
    chain = MarkovChain(transitions, rewards, 0.0, 0.5, torch.zeros(2, 1))
    # v0 = 1 + v1 / 2, v1 = v0 / 4 + v1 / 4: v1 = v0 / 3, v0 = 6 / 5.  Occupancy: p0 = p1 / 2.
    assert chain.values.tolist() == pytest.approx([6 / 5, 2 / 5])
    assert chain.occupancy.tolist() == pytest.approx([1 / 3, 2 / 3])


def test_values_are_discounted_sums_of_rewards():
    chain = make_chain(num_states=12, seed=2)
    total, reach = torch.zeros(12, dtype=torch.float64), torch.eye(12, dtype=torch.float64)
    for t in range(400):  # 0.9^400 = 5e-19
        total += chain.discount**t * reach @ chain.rewards
        reach = reach @ chain.transitions
    torch.testing.assert_close(chain.values, total)
    torch.testing.assert_close(reach, chain.occupancy.expand(12, 12))  # of a walk of any start


@pytest.mark.parametrize("branching", [1, 3, 8])
def test_a_chain_has_the_stated_branching_and_reaches_all(branching):
    chain = make_chain(num_states=8, branching=branching)
    assert ((chain.transitions > 0).sum(1) == branching).all()
    torch.testing.assert_close(chain.transitions.sum(1), torch.ones(8, dtype=torch.float64))
    assert (chain.occupancy > 0).all()
    torch.testing.assert_close(chain.occupancy @ chain.transitions, chain.occupancy)


def test_transitions_follow_the_chain():
    chain = make_chain(num_states=4, branching=2, reward_noise=0.5)
    number = 40_000
    states, rewards, following = draw_transitions(chain, number, make_generator(0, "test"))
    counts = torch.zeros(4, 4, dtype=torch.float64)
    counts.index_put_((states, following), torch.ones(number, dtype=torch.float64), accumulate=True)
    expected = chain.occupancy[:, None] * chain.transitions
    # Four standard deviations of a binomial count.
    assert ((counts / number - expected).abs() <= 4 * (expected / number).sqrt()).all()
    assert ((counts > 0) == (chain.transitions > 0)).all()
    noise = rewards - chain.rewards[states].float()
    assert noise.std().item() == pytest.approx(0.5, rel=4 / math.sqrt(2 * number))
    assert abs(noise.mean().item()) < 4 * 0.5 / math.sqrt(number)


def test_hash_and_seeds():
    assert make_chain().hash == make_chain().hash
    others = [{"seed": 1}, {"discount": 0.8}, {"reward_noise": 0.0}, {"num_features": 4}]
    assert len({make_chain(**o).hash for o in [{}, *others]}) == 5


def test_a_chain_that_is_built_twice_is_the_same_to_the_bit():
    chains = [make_chain() for _ in range(5)]
    for chain in chains:
        assert torch.equal(chain.occupancy, chains[0].occupancy)
        assert torch.equal(chain.values, chains[0].values)
