r"""What adversarial games lower: relativistic pairing and two gradient penalties.

With real items x, generated ones y = G(z), paired one to one, and f(u) = softplus(-u) = -log sigmoid(u),

    L_D = E f(D(x) - D(y)) + gamma/2 (R_1 + R_2),        L_G = E f(D(y) - D(x)),                              (1)
    R_1 = E |grad_x D(x)|^2,                             R_2 = E |grad_y D(y)|^2,                             (2)

the discriminator says how much more real one item is than the other, so that it cannot be content with all generated items on
one side of a threshold: every mode of the data has to be covered. Both penalties together make the equilibrium locally
convergent.

Constants move from one value to another over the first ``n`` updates along half a cosine,

    c(k) = c_1 + (c_0 - c_1) (1 + cos(pi min(1, k/n))) / 2.                                                   (3)

Sources: Huang et al. 2024, arXiv 2501.05441, equations 2 and 5, section 3 and appendix; Jolicoeur-Martineau 2018,
arXiv 1807.00734 (the pairing); Mescheder et al. 2018, arXiv 1801.04406 (the penalties).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["annealed", "gradient_penalty", "relativistic"]


def relativistic(winner: Tensor, loser: Tensor) -> Tensor:
    """The pairing loss f(winner - loser) of (1), item by item.

    Args:
        winner: what the discriminator says, ``(B,)``, of the items that the player wants to look more real.
        loser: of the others, paired with them.

    Returns:
        ``(B,)``, log 2 where both look alike.

    >>> relativistic(torch.tensor([0.0, 50.0]), torch.tensor([0.0, 50.0]))
    tensor([0.6931, 0.6931])
    """
    return softplus(loser - winner)


def gradient_penalty(score: Tensor, x: Tensor) -> Tensor:
    """The squared gradient |grad_x D(x)|^2 of (2), item by item, itself differentiable.

    Args:
        score: D(x), ``(B,)``; item i may depend on item i of ``x`` alone.
        x: where it was taken, ``(B, ...)``, requiring gradients.

    Returns:
        ``(B,)``.

    Cost: a backward pass whose graph is kept; its own backward pass costs about two more.

    >>> x = torch.ones(2, 3, requires_grad=True)
    >>> gradient_penalty((2 * x).sum(1), x).tolist()
    [12.0, 12.0]
    """
    (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
    return gradient.square().reshape(len(x), -1).sum(1)


def annealed(ends: Sequence[float], step: int, over: int) -> float:
    """The constant (3) after ``step`` updates.

    Args:
        ends: first and last value.
        step: updates finished.
        over: updates until the last value is reached; 0 for the last value at once.

    >>> [annealed((1.0, 0.1), step, 10) for step in (0, 5, 10, 11)]
    [1.0, 0.55, 0.1, 0.1]
    """
    first, last = ends
    done = min(1.0, step / over) if over else 1.0
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2
