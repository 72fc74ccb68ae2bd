"""Dense layers as machine code, for `BLOCK` candidates at a time: activations are [inputs, BLOCK], one lane each."""

from asmg.kernels.common import ZERO, Floats, Indices, compiled

__all__ = ["add_candidates_own", "further_layers", "layer"]


@compiled
def layer(weights: Floats, bias: Floats, x: Floats, out: Floats, m: int, relu: bool) -> None:
    """Out [O, m] = weights [O, I] · x [I, m] + bias [O], with negative numbers set to 0 where `relu` is true.

    Two outputs and four inputs are taken at a time, so that fewer numbers are loaded and stored than multiplied.
    """
    inputs, outputs = len(x), len(out)
    for o in range(outputs):
        y = out[o, :m]
        for lane in range(m):
            y[lane] = bias[o]
    for o in range(0, outputs - 1, 2):
        y, z, at, to = out[o, :m], out[o + 1, :m], o * inputs, (o + 1) * inputs
        for i in range(0, inputs - 3, 4):
            a, b, c, d = weights[at + i], weights[at + i + 1], weights[at + i + 2], weights[at + i + 3]
            e, f, g, h = weights[to + i], weights[to + i + 1], weights[to + i + 2], weights[to + i + 3]
            p, q, r, s = x[i, :m], x[i + 1, :m], x[i + 2, :m], x[i + 3, :m]
            for lane in range(m):
                y[lane] += a * p[lane] + b * q[lane] + c * r[lane] + d * s[lane]
                z[lane] += e * p[lane] + f * q[lane] + g * r[lane] + h * s[lane]
        for i in range(inputs - inputs % 4, inputs):
            a, e, p = weights[at + i], weights[to + i], x[i, :m]
            for lane in range(m):
                y[lane] += a * p[lane]
                z[lane] += e * p[lane]
    for o in range(outputs - outputs % 2, outputs):
        y = out[o, :m]
        for i in range(inputs):
            a, p = weights[o * inputs + i], x[i, :m]
            for lane in range(m):
                y[lane] += a * p[lane]
    if relu:
        for o in range(outputs):
            y = out[o, :m]
            for lane in range(m):
                y[lane] = max(y[lane], ZERO)


@compiled
def further_layers(widths: Indices, dense: Floats, act: Floats, m: int) -> int:
    """Compute all layers behind the first; returns the row of `act` that holds the logits.

    Args:
        widths: of all layers.
        dense: weights and biases of the layers behind the first, one after the other.
        act: begins with the activations of the first layer; receives those of the others.
        m: candidates, at most `BLOCK`.
    """
    at, top = 0, 0
    for n in range(len(widths) - 1):
        fan_in, fan_out = widths[n], widths[n + 1]
        bias, end = at + fan_in * fan_out, top + fan_in
        layer(dense[at:], dense[bias:], act[top:end], act[end : end + fan_out], m, n < len(widths) - 2)
        at, top = bias + fan_out, end
    return top


@compiled
def add_candidates_own(weights: Floats, contexts: Floats, out: Floats) -> None:
    """Add the share of the candidates' own contexts to the first layer, then apply its ReLU.

    Args:
        weights: of a context, [D, O] one after the other.
        contexts: sums of the candidates' own field values, [m, D].
        out: outputs of the first layer so far, [O, ≥ m].
    """
    m, dim = contexts.shape
    for o in range(len(out)):
        y = out[o, :m]
        for k in range(dim):
            w = weights[k * len(out) + o]
            for lane in range(m):
                y[lane] += w * contexts[lane, k]
        for lane in range(m):
            y[lane] = max(y[lane], ZERO)
