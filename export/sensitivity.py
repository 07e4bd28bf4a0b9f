"""Which matrices cost most when they are rounded to few bits: they get more.

The cost of one matrix is the second-order estimate of the KL divergence that its rounding causes. With e the errors of
what it gives for one column, in both passes of guidance, and g the gradients of the log-probability of codes that the
model draws, it is half of the mean of (g . e)^2: the Fisher information is the Hessian of the KL divergence (Martens
2020, arXiv 1412.1193, section 5). That takes one forward and one backward pass for all matrices. The estimates rank
matrices as rounding them one by one does; their sum is brought to the divergence that is measured with all of them
rounded.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from clean_lm.models.lm import LM
from export.layerwise import MatrixCalls, Sequences, matrices_of

Rounded = Callable[[str], Tensor]  # the name of a matrix -> the matrix as it is read back [K, N]


def costs(sequences: Sequence[Sequences], rounded: Rounded) -> dict[str, float]:
    """KL divergence in nats, mean over codes, that the rounding of each matrix adds, by its name in the graph."""
    found: dict[str, float] = {}
    divergence = 0.0
    for s in sequences:
        inputs = layer_inputs(s)
        divergence += kl_divergence(s, inputs, rounded) / len(sequences)
        for name, cost in estimates(s, inputs, rounded):
            found[name] = found.get(name, 0) + cost
    scale = divergence / (sum(found.values()) or 1)
    return {name: cost * scale for name, cost in found.items()}


@torch.no_grad()
def layer_inputs(s: Sequences) -> list[Tensor]:
    """What each layer reads, and last what the heads read."""
    xs = [s.embed()]
    for i in range(len(s.lm.layers)):
        xs.append(s.layer(i, xs[-1]))
    return xs


def estimates(s: Sequences, inputs: Sequence[Tensor], rounded: Rounded) -> list[tuple[str, float]]:
    """The estimate for each matrix, from the last to the first: layers are computed once more, with gradients."""
    found, gradient, count = [], None, int(s.known.sum())
    layers = [None, *reversed(range(len(s.lm.layers)))]
    for i in tqdm(layers, "sensitivity of layers", disable=None):
        x = inputs[-1 if i is None else i].detach().requires_grad_()
        matrices = matrices_of(s.lm, i)
        with torch.enable_grad(), MatrixCalls(matrices) as calls:
            y = drawn(s, x) if i is None else s.layer(i, x)
        seen = [(name, *call) for name, of in calls.found.items() for call in of]
        gradient, *products = torch.autograd.grad(y, [x, *(y for _, _, y in seen)], gradient)
        for (name, read, _), g in zip(seen, products, strict=True):
            error = read.detach() @ (rounded(name) - matrices[name])
            moved = rearrange((g * error).sum(dim=-1), "(p b) s -> p b s", b=s.batch).sum(dim=0)  # of both passes
            found.append((name, float(moved.square().sum()) / 2 / count))
    return found


def drawn(s: Sequences, x: Tensor) -> Tensor:
    """The log-probability of codes that the model draws after each column of the sequences."""
    log = s.log_probabilities(x)
    codes = log.detach().exp().multinomial(1, generator=torch.Generator().manual_seed(0))
    return log.gather(-1, codes).sum()


@torch.no_grad()
def kl_divergence(s: Sequences, inputs: Sequence[Tensor], rounded: Rounded) -> float:
    """KL divergence in nats, mean over codes, with all matrices rounded."""
    x = inputs[0]
    for i in range(len(s.lm.layers)):
        x = with_rounded(s.lm, i, rounded, lambda x=x, i=i: s.layer(i, x))
    moved = with_rounded(s.lm, None, rounded, lambda: s.log_probabilities(x))
    exact = s.log_probabilities(inputs[-1])
    return float((exact.exp() * (exact - moved)).sum(dim=-1).mean())


def with_rounded(lm: LM, i: int | None, rounded: Rounded, compute: Callable[[], Tensor]) -> Tensor:
    """What something gives with the matrices of layer i rounded."""
    owner = lm if i is None else lm.layers[i]
    exact = matrices_of(lm, i)
    for name in exact:
        setattr(owner, name.rsplit(".")[-1], nn.Parameter(rounded(name), requires_grad=False))
    result = compute()
    for name, matrix in exact.items():
        setattr(owner, name.rsplit(".")[-1], matrix)
    return result


def most_sensitive(costs: Mapping[str, float], sizes: Mapping[str, int], bound: float) -> list[str]:
    """The fewest weights to keep so that the costs of all others add up to at most `bound`, or half of the whole cost
    if that is less. Those that cost most for their size go first; what then turns out not to be needed is left out.
    """
    left, chosen = sum(costs.values()), []
    bound = min(bound, left / 2)
    for name in sorted(costs, key=lambda name: costs[name] / sizes[name], reverse=True):
        if left <= bound:
            break
        chosen.append(name)
        left -= costs[name]
    for name in chosen[::-1]:
        if left + costs[name] <= bound:
            chosen.remove(name)
            left += costs[name]
    return chosen
