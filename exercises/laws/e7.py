"""the null key (half a day, 17 points)"""

import math
from collections.abc import Callable
from types import SimpleNamespace

import torch
from kit import Answer, Draw, Wrong, close, false_slope, shown, worst
from torch import Tensor, nn

from model import NOTHING, Attended, Attention, Handed, Routing, ViTConfig, attend

RETURNS = {"read_with_null": lambda r, v, null: (v, v[..., 0])}
LAYER = {"NullAttention": lambda config: nn.Module}  # This is a class, and FORWARD is what its instances return.
FORWARD = {"forward": lambda x, rope, bias, handed: Attended}


def row(logits: list[float] | Tensor, heads: int, dtype: torch.dtype) -> tuple[Routing, Tensor]:
    """Returns a routing in which every query of every head has these N logits, and a v of ones. B = `heads`, d = 1."""
    logits = torch.as_tensor(logits, dtype=dtype)
    k = logits.view(1, 1, -1, 1).expand(heads, heads, -1, 1)
    return Routing(torch.ones_like(k), k), torch.ones_like(k)


def cube(draw: Draw, bias: bool = False) -> tuple[Routing, Tensor]:
    """Returns a routing and v with B = H = N: every way to broadcast null runs, but only one is right."""
    n = draw.H
    return draw.routing(n, n, n, bias=bias), draw.numbers(n, n, n, draw.d)


# ---- read_with_null --------------------------------------------------------------------------------------------------


def log_five(answer: Answer, draw: Draw) -> None:
    """read_with_null: a null of log 5 against five logits of 0 leaks half"""
    r, v = row([0.0] * 5, 5, draw.dtype)
    read, leak = answer.read_with_null(r, v, torch.full_like(v[0, :, 0, 0], math.log(5)))
    half = torch.full_like(leak, 0.5)
    found = f"Five tokens with logits of 0 and a v of 1 each, null = log 5: you read {shown(read[0, 0, 0, 0])} and leak"
    if close(leak, half) and close(read[..., 0], half):
        return
    if close(leak, half) and close(read[..., 0], 2 * half):
        raise Wrong(
            f"{found} 0.5; both should be 0.5. Half of the row went to the null key, but the tokens' shares were "
            "normalised to sum to 1 again: then nothing is missing from what is read, and the null key has no effect "
            "at all."
        )
    if close(read[..., 0], 2 * half):
        raise Wrong(
            f"{found} {shown(leak[0, 0, 0])}; both should be 0.5. You read the same as without a null key. Did you add "
            "null to all logits of a row? Softmax ignores that. It is one more logit in the row, beside those of the "
            "tokens."
        )
    raise Wrong(
        f"{found} {shown(leak[0, 0, 0])}; both should be 0.5. In the softmax each of the five tokens weighs exp(0) = "
        "1, and the null key exp(log 5) = 5, as much as all five."
    )


def shut(answer: Answer, draw: Draw) -> None:
    """read_with_null: with a null of -inf, attention is as before"""
    for bias in (False, True):
        r, v = cube(draw, bias)
        read, leak = answer.read_with_null(r, v, v.new_full((draw.H,), -math.inf))
        if not close(leak, torch.zeros_like(leak)) or not close(read, attend(r, v)):
            if bias and close(read, attend(r._replace(bias=None), v)):
                raise Wrong(
                    "null is -inf, and the routing has a bias: you read as if it had none (the first number is "
                    f"{shown(read[0, 0, 0, 0])}, and should be {shown(attend(r, v)[0, 0, 0, 0])}). The null key "
                    "competes with the logits q k^T / sqrt(d) + bias."
                )
            raise Wrong(
                "null is -inf: it weighs exp(-inf) = 0, so everything is as without it. Yours leaks up to "
                f"{shown(leak.max())} (should be 0), and the first number read is {shown(read[0, 0, 0, 0])} (attend "
                f"reads {shown(attend(r, v)[0, 0, 0, 0])})."
            )


def open_wide(answer: Answer, draw: Draw) -> None:
    """read_with_null: a null of 300 leaks everything"""
    r, v = cube(draw)
    read, leak = answer.read_with_null(r, v, v.new_full((draw.H,), 300.0))
    if not close(leak, torch.ones_like(leak)) or not close(read, torch.zeros_like(read)):
        raise Wrong(
            f"null is 300 and all logits are small. Yours leaves {shown((1 - leak).max())} of a row to the tokens and "
            f"reads up to {shown(read.abs().max())} (both should be 0). A head that looks nowhere reads nothing."
        )


def head_by_head(answer: Answer, draw: Draw) -> None:
    """read_with_null: each head has its own null, also if there are as many queries or images as heads"""
    n = draw.H
    r, v = cube(draw)
    null = v.new_full((n,), -math.inf)
    null[0] = 300  # Only head 0 leaks.
    read, leak = answer.read_with_null(r, v, null)
    expected = torch.zeros_like(leak)
    expected[:, 0] = 1
    left = torch.cat((torch.zeros_like(v[:, :1]), attend(r, v)[:, 1:]), 1)
    if close(leak, expected) and close(read, left):
        return
    for word, turned in (("query", expected.transpose(1, 2)), ("image", expected.transpose(0, 1))):
        if close(leak, turned):
            raise Wrong(
                f"{n} heads, {n} queries, {n} images; null is 300 in head 0 and -inf in all others. What leaks is not "
                f"head 0 but {word} 0 of every head. Broadcasting aligns null (H,) with (B, H, N) from the right."
            )
    raise Wrong(
        "null is 300 in head 0 and -inf in all others: head 0 should leak 1 and the others 0. The heads of image 0 "
        f"leak {shown(leak[0, :, 0])}. Does each head have its own null?"
    )


def alone(answer: Answer, draw: Draw) -> None:
    """read_with_null: what a query reads and leaks depends on that query alone"""
    r, v, null = draw.routing(), draw.numbers(draw.B, draw.H, draw.N, draw.d), draw.numbers(draw.H)
    q = r.q.clone()
    q[:, :, 0] *= 3  # Query 0 is larger.
    before, after = answer.read_with_null(r, v, null), answer.read_with_null(r._replace(q=q), v, null)
    if not close(before[1][:, :, 1:], after[1][:, :, 1:]) or not close(before[0][:, :, 1:], after[0][:, :, 1:]):
        b, h, i = worst(before[1][:, :, 1:], after[1][:, :, 1:])
        raise Wrong(
            f"Only query 0 was changed, but the leak of query {i + 1} went from {shown(before[1][b, h, i + 1])} to "
            f"{shown(after[1][b, h, i + 1])}. Each row of logits has its own softmax, null key included: over which "
            "dimension did you sum?"
        )


def thousands(answer: Answer, draw: Draw) -> None:
    """read_with_null: with logits of 1,000 and -1,000, results are finite and right"""
    for logits, null, expected in (([1000.0, 0, 0, 0], 0, 0.0), ([-1000.0] * 4, 0, 1.0), ([-1000.0] * 4, -1000, 0.2)):
        r, v = row(logits, 4, draw.dtype)
        read, leak = answer.read_with_null(r, v, torch.full_like(v[0, :, 0, 0], null), allow_infinite=True)
        case = f"Logits {shown(torch.tensor(logits))}, null {null}: you leak {shown(leak[0, 0, 0])}"
        if not (leak.isfinite().all() and read.isfinite().all()):
            raise Wrong(
                f"{case} and read {shown(read[0, 0, 0, 0])}. exp(1000) is infinite, and inf / inf is nan. Only "
                "differences of logits count: subtract the largest, of tokens and null key, before exp; or leave exp "
                "to torch's functions, which do this."
            )
        if not close(leak, torch.full_like(leak, expected)):
            raise Wrong(
                f"{case}, which should be {expected:g}. If you subtracted the largest logit before exp, then subtract "
                "it from the null's, too: it is part of the row."
            )


def shifted(answer: Answer, draw: Draw) -> None:
    """read_with_null: only the difference between null and logits counts"""
    r, v, null = draw.routing(bias=True), draw.numbers(draw.B, draw.H, draw.N, draw.d), draw.numbers(draw.H)
    higher = r._replace(bias=r.bias + 2)  # All logits rise by 2.
    leak = answer.read_with_null(r, v, null)[1]
    both, logits_alone = answer.read_with_null(higher, v, null + 2)[1], answer.read_with_null(higher, v, null)[1]
    if not close(both, leak) or not (logits_alone < leak).all():
        i = worst(both, leak)
        raise Wrong(
            f"A query leaks {shown(leak[i])}. If all logits and null rise by 2, it leaks {shown(both[i])}, which "
            f"should be the same as before. If only the logits rise by 2, it leaks {shown(logits_alone[i])}, which "
            "should be less. null is already a logit, and is compared with the others as it is, without another 1 / "
            "sqrt(d)."
        )


def weighed(answer: Answer, draw: Draw) -> None:
    """read_with_null: tokens and null key share a row in proportion to exp(logit)"""
    weights = 1 + (9 * draw.uniform(draw.N)).floor()  # 1 to 9
    level = draw.integer(1, 10)
    r, _ = row(weights.log(), draw.H, draw.dtype)
    v = draw.numbers(draw.H, draw.H, draw.N, 1)
    read, leak = answer.read_with_null(r, v, v.new_full((draw.H,), math.log(level)))
    total = weights.sum() + level
    if not close(leak, torch.full_like(leak, level / total)):
        raise Wrong(
            f"Logits log {shown(weights)}, null log {level}: of a total weight of {shown(total)} the null key has "
            f"{level}, a share of {shown(level / total)}; you leak {shown(leak[0, 0, 0])}. What do you compare the "
            "null key with: the sum of all tokens, or their largest, or their mean?"
        )
    expected = (weights * v[0, 0, :, 0]).sum() / total
    if not close(read[0, 0, 0], expected[None]):
        raise Wrong(
            f"Logits log {shown(weights)}, null log {level}, v of {shown(v[0, 0, :, 0])}: the leak is right, but you "
            f"should read {shown(expected)}; you read {shown(read[0, 0, 0, 0])}. The null key takes from every token "
            "in proportion, and gives nothing."
        )


def slopes(answer: Answer, draw: Draw) -> None:
    """read_with_null: q, k, bias, v and null get gradients from what is read and from what leaks"""
    r, v, null = draw.routing(bias=True), draw.numbers(draw.B, draw.H, draw.N, draw.d), draw.numbers(draw.H)
    target = draw.numbers(draw.B, draw.H, draw.N, draw.d + 1)

    def total(at: dict[str, Tensor]) -> Tensor:
        read, leak = answer.read_with_null(Routing(at["q"], at["k"], at["bias"]), at["v"], at["null"])
        return (torch.cat((read, leak[..., None]), -1) * target).sum()

    learnt = {"q": r.q, "k": r.k, "bias": r.bias, "v": v, "null": null}
    if wrong := false_slope(total, learnt, draw):
        name, slope, expected = wrong
        raise Wrong(
            "If what is read and leaked is multiplied by random numbers and summed, the sum has a slope of "
            f"{shown(expected)} in a random direction of {name}, but the gradient of {name} gives {shown(slope)}. What "
            "is read and what leaks depend on every logit of the row and on null: which of them is detached?"
        )


shut.needs = open_wide.needs = [log_five]
head_by_head.needs = alone.needs = [shut, open_wide]
thousands.needs = [head_by_head, alone]
shifted.needs = weighed.needs = [thousands]
slopes.needs = [shifted, weighed]


# ---- NullAttention ---------------------------------------------------------------------------------------------------


def small(draw: Draw) -> ViTConfig:
    """Returns the config of a layer of H heads. At every second size it has a norm before the last matrix."""
    return ViTConfig(dim=draw.H * draw.d, heads=draw.H, sub_ln="both" if draw.level % 2 else None)


def made(answer: Answer, draw: Draw) -> nn.Module:
    """Builds the learner's layer."""
    return Answer(answer.module, LAYER, answer.seconds).NullAttention(small(draw))


def layers(answer: Answer, draw: Draw, null: float) -> tuple[Attention, nn.Module]:
    """Returns an Attention with random weights, and the learner's with the same weights and this null."""
    usual, theirs = Attention(small(draw)).to(draw.dtype), made(answer, draw).to(draw.dtype)
    for parameter in usual.parameters():
        parameter.data = draw.numbers(*parameter.shape) / math.sqrt(parameter.shape[-1])
    theirs.load_state_dict(usual.state_dict() | {"null": torch.full((draw.H,), null)}, strict=False)
    return usual, theirs


def forward(
    answer: Answer,
    layer: nn.Module,
    x: Tensor,
    bias: Tensor | None,
    handed: Handed = NOTHING,
    rope: Callable | None = None,
) -> Attended:
    """Calls the learner's layer on x, with the manners of a function."""
    module = SimpleNamespace(forward=layer, __file__=answer.module.__file__)
    return Answer(module, FORWARD, answer.seconds).forward(x, rope, bias, handed)


def turned(x: Tensor) -> Tensor:
    """Stands for RoPE: it changes q and k."""
    return x.roll(1, -1) * torch.linspace(0.5, 2, x.shape[-1]).to(x)


def has_null(answer: Answer, draw: Draw) -> None:
    """NullAttention: it has the parameters of Attention, and null (H,), which starts at 0"""
    layer, usual = made(answer, draw), Attention(small(draw))
    theirs, ours = dict(layer.named_parameters()), dict(usual.named_parameters())
    if theirs.keys() != ours.keys() | {"null"}:
        missing, added = (
            sorted((ours.keys() | {"null"}) - theirs.keys()),
            sorted(theirs.keys() - ours.keys() - {"null"}),
        )
        raise Wrong(
            f"The layer's missing parameters: {', '.join(missing) or 'none'}; additional ones: "
            f"{', '.join(added) or 'none'}. The optimiser and files of weights find the nn.Parameters of the layer "
            "itself, by name: those of Attention, which super().__init__(config) makes, and null."
        )
    if theirs["null"].shape != (draw.H,) or theirs["null"].count_nonzero():
        raise Wrong(
            f"null starts as {shown(theirs['null'].detach())}; {draw.H} heads should have {draw.H} zeros. At 0 the "
            "null key begins as one more token among those that are looked at equally. Far below 0 the head never "
            "finds it, far above 0 it reads nothing, and in both cases there is no gradient."
        )


def reads_as_before(answer: Answer, draw: Draw) -> None:
    """NullAttention: with null at -inf it equals Attention, whatever it is handed"""
    usual, theirs = layers(answer, draw, -math.inf)
    x, bias = draw.numbers(draw.B, draw.N, draw.H * draw.d), draw.numbers(draw.H, draw.N, draw.N)
    other = draw.routing()
    cases = {
        "nothing": NOTHING,
        "a routing": Handed(routing=other),
        "q alone": Handed(q=other.q),
        "k alone": Handed(k=other.k),
        "v alone": Handed(v=other.q),
        "q and k": Handed(q=other.q, k=other.k),
        "a RoPE and nothing": NOTHING,
    }
    for given, handed in cases.items():
        rope = turned if "RoPE" in given else None
        expected, found = usual(x, rope, bias, handed), forward(answer, theirs, x, bias, handed, rope)
        pairs = {"output": (found.output, expected.output), "v": (found.v, expected.v)}
        pairs |= {f"routing.{part}": (getattr(found.routing, part), getattr(expected.routing, part)) for part in "qk"}
        for name, (one, two) in pairs.items():
            one, two = one.detach(), two.detach()
            if one.shape != two.shape or not close(one, two):
                raise Wrong(
                    f"With the weights of an Attention, null at -inf, and {given} handed over, {name} differs (its "
                    f"first number is {shown(one.flatten()[0])}, and should be {shown(two.flatten()[0])}). Change only "
                    "one line of Attention.forward, the one that reads; compare the others."
                )


def reads_nothing(answer: Answer, draw: Draw) -> None:
    """NullAttention: with null at 300 it reads nothing, whatever it is handed"""
    usual, theirs = layers(answer, draw, 300)
    x = draw.numbers(draw.B, draw.N, draw.H * draw.d)
    expected = usual.proj(usual.norm(torch.zeros_like(x))).detach()
    for given, handed in (("nothing", NOTHING), ("a routing", Handed(routing=draw.routing()))):
        output = forward(answer, theirs, x, None, handed).output.detach()
        if not close(output, expected):
            i = worst(output, expected)
            raise Wrong(
                f"null is 300, and the layer is handed {given}: all heads should read 0, so only biases are left in "
                f"the output, {shown(expected[i])}; yours has {shown(output[i])}. The null key belongs to the layer, "
                "which reads with it whatever it is handed."
            )


def learns(answer: Answer, draw: Draw) -> None:
    """NullAttention: null and all weights get gradients"""
    x = draw.numbers(draw.B, draw.N, draw.H * draw.d)
    for given, handed in (("nothing", NOTHING), ("a routing", Handed(routing=draw.routing()))):
        layer = layers(answer, draw, 0)[1]
        output = forward(answer, layer, x, None, handed).output
        (output * draw.numbers(*output.shape)).sum().backward()
        still = [name for name, p in layer.named_parameters() if p.grad is None or not p.grad.count_nonzero()]
        if still:
            raise Wrong(
                f"The layer was handed {given}, and after a backward pass {', '.join(still)} had no gradient, so "
                "training would not change it. Was it detached, read as .data, or copied into a new tensor?"
            )


reads_as_before.needs = [has_null, shut, open_wide]
reads_nothing.needs = learns.needs = [reads_as_before]

LAWS = [
    log_five,
    shut,
    open_wide,
    head_by_head,
    alone,
    thousands,
    shifted,
    weighed,
    slopes,
    has_null,
    reads_as_before,
    reads_nothing,
    learns,
]
HINTS = [
    "A null key is one more column of logits, whose v is 0. How much of a row is then left for the tokens, and how is "
    "it divided among them?",
    "Either put null as a column beside attention_logits(r), take the softmax, and read with all columns except this "
    "one; or compare null with the logsumexp of the row. NullAttention: copy Attention.forward and change the line "
    "that reads.",
    "leak = sigmoid(null - logsumexp(logits)), with null as (H, 1); the rest of the row is divided as before, so you "
    "read what attend reads, times 1 - leak.",
]
