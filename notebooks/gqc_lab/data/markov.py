r"""A small Markov chain with rewards and known values: value regression with TD targets.

The chain is a *Garnet*: from each state, ``branching`` random successors with random probabilities.
Its values solve :math:`v = r + \gamma P v`, so the error of a learned value function is exact,
while a learner sees single transitions and the noisy targets
:math:`r_t + \gamma \hat v(s_{t+1})` of temporal-difference learning.

Sources: Archibald et al. 1995 (Garnet); Sutton 1988 (TD).
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gqc_lab.loop.placement import make_generator

SQUARINGS = 24  # 2^24 steps: a cycle of S states takes about S^2 to forget where it began


@dataclass(frozen=True)
class MarkovChain:
    r"""A chain of S states, on the CPU.

    Args:
        transitions: :math:`P` [S, S], float64, rows sum to 1.
        rewards: mean reward on leaving a state [S], float64.
        reward_noise: standard deviation of a reward, >= 0.
        discount: :math:`\gamma` in [0, 1).
        features: observed by a learner in each state [S, features], float32.
    """

    transitions: Tensor
    rewards: Tensor
    reward_noise: float
    discount: float
    features: Tensor

    @cached_property
    def values(self) -> Tensor:
        r""":math:`(I - \gamma P)^{-1} r` [S], float64."""
        identity = torch.eye(len(self.rewards), dtype=torch.float64)
        return torch.linalg.solve(identity - self.discount * self.transitions, self.rewards)

    @cached_property
    def occupancy(self) -> Tensor:
        """Stationary distribution [S], float64: how often a long walk is in each state.

        Computed by squaring the chain that stays put half of the time, in plain sums: the last bits
        of a LAPACK solution vary from call to call, and a resumed run has to see the same chain.
        """
        lazy = (torch.eye(len(self.rewards), dtype=torch.float64) + self.transitions) / 2
        for _ in range(SQUARINGS):
            lazy = (lazy.unsqueeze(2) * lazy.unsqueeze(0)).sum(1)
            lazy = lazy / lazy.sum(1, keepdim=True)
        return lazy[0]

    @property
    def hash(self) -> str:
        """The sha256 of the chain."""
        digest = hashlib.sha256(f"{self.reward_noise!r} {self.discount!r}\0".encode())
        for tensor in (self.transitions, self.rewards, self.features):
            digest.update(f"{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


def make_chain(
    num_states: int = 32,
    branching: int = 3,
    num_features: int = 16,
    discount: float = 0.9,
    reward_noise: float = 1.0,
    seed: int = 0,
) -> MarkovChain:
    """Make a random chain with standard normal rewards and features, uniform successors and odds.

    State i + 1 is always among the successors of state i, so that every state is reached.
    """
    generator = make_generator(seed, "markov chain")
    transitions = torch.zeros(num_states, num_states, dtype=torch.float64)
    for state in range(num_states):
        others = torch.randperm(num_states, generator=generator)
        following_state = (state + 1) % num_states
        successors = [following_state, *others[others != following_state].tolist()][:branching]
        odds = torch.rand(branching, generator=generator, dtype=torch.float64) + 1e-3
        transitions[state, successors] = odds / odds.sum()
    rewards = torch.randn(num_states, generator=generator, dtype=torch.float64)
    features = torch.randn(num_states, num_features, generator=generator)
    return MarkovChain(transitions, rewards, float(reward_noise), float(discount), features)


def draw_transitions(
    chain: MarkovChain, number: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw independent transitions from the stationary distribution.

    Returns: states, rewards (float32), next states, each [number].
    """
    states = torch.multinomial(chain.occupancy, number, replacement=True, generator=generator)
    following = torch.multinomial(chain.transitions[states], 1, generator=generator).squeeze(1)
    noise = chain.reward_noise * torch.randn(number, generator=generator)
    return states, chain.rewards[states].float() + noise, following
