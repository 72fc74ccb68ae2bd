"""The GRU of a table as machine code, forwards and backwards (formulas: `asmg.generator.gru`).

Each position (column) has its own weights; the rows are the lanes.
"""

import numpy as np

from asmg.kernels.common import ONE, ZERO, Floats, Indices, compiled, dot, inlined, sigmoid, tanh

__all__ = ["gru_backward", "gru_forward"]

LANES = 256
"""Rows per loop: their values in all gates stay in the first-level cache."""


@compiled
def gru_forward(
    w: Floats,
    x: Floats,
    h0: Floats,
    counts: Indices,
    residual: bool,
    z: Floats,
    r: Floats,
    g: Floats,
    h: Floats,
    y: Floats,
) -> None:
    """Run the GRU of a table along a sequence.

    Args:
        w: [C, P], for each position u_z | u_r | u_g (d each), W_z | W_r | W_g (d × d each, row-major), w_y (d), b.
        x, h0: inputs [T, P, R] and initial states [1, P, d, R].
        counts: [T], never increasing; step t runs only the first counts[t] rows.
        residual: whether the input is added to the output.
        z, r, g, h, y: get the gates and states [T, P, d, R] and the outputs [T, P, R].
    """
    steps, positions, _ = x.shape
    d = h0.shape[2]
    uz, ur, ug, wz, wr, wg = 0, d, 2 * d, 3 * d, 3 * d + d * d, 3 * d + 2 * d * d
    wy = 3 * d + 3 * d * d
    hr = np.empty((1, 1, d, LANES), np.float32)
    for p in range(positions):
        for lo in range(0, counts[0], LANES):
            for t in range(steps):
                hi = min(lo + LANES, counts[t])
                if hi <= lo:
                    break
                n = hi - lo
                xs = x[t, p, lo:hi]
                hp, tp = (h0, 0) if t == 0 else (h, t - 1)
                for c in range(d):
                    zc, rc, hc, hrc = z[t, p, c, lo:hi], r[t, p, c, lo:hi], hp[tp, p, c, lo:hi], hr[0, 0, c, :n]
                    _affine(zc, xs, hp, tp, p, lo, w, uz + c, wz + c, p)
                    _affine(rc, xs, hp, tp, p, lo, w, ur + c, wr + c, p)
                    for lane in range(n):
                        zc[lane] = sigmoid(zc[lane])
                    for lane in range(n):
                        rc[lane] = sigmoid(rc[lane])
                    for lane in range(n):
                        hrc[lane] = hc[lane] * rc[lane]
                ys = y[t, p, lo:hi]
                b = w[wy + d, p]
                for lane in range(n):
                    ys[lane] = b
                if residual:
                    for lane in range(n):
                        ys[lane] += xs[lane]
                for c in range(d):
                    gc = g[t, p, c, lo:hi]
                    _affine(gc, xs, hr, 0, 0, 0, w, ug + c, wg + c, p)
                    zc, hc, hn, v = z[t, p, c, lo:hi], hp[tp, p, c, lo:hi], h[t, p, c, lo:hi], w[wy + c, p]
                    for lane in range(n):
                        gc[lane] = tanh(gc[lane])
                    for lane in range(n):
                        hn[lane] = hc[lane] + zc[lane] * (gc[lane] - hc[lane])
                    for lane in range(n):
                        ys[lane] += v * hn[lane]


@inlined
def _affine(out: Floats, x: Floats, h: Floats, t: int, q: int, lo: int, w: Floats, u: int, first: int, p: int) -> None:
    """Out = x·w[u, p] + Σ_i h[t, q, i]·w[first + i·d, p] over the lanes from `lo` on."""
    n, d = len(out), h.shape[2]
    v = w[u, p]
    for lane in range(n):
        out[lane] = x[lane] * v
    i = 0
    while i + 4 <= d:
        a0, h0 = w[first + i * d, p], h[t, q, i, lo : lo + n]
        a1, h1 = w[first + (i + 1) * d, p], h[t, q, i + 1, lo : lo + n]
        a2, h2 = w[first + (i + 2) * d, p], h[t, q, i + 2, lo : lo + n]
        a3, h3 = w[first + (i + 3) * d, p], h[t, q, i + 3, lo : lo + n]
        for lane in range(n):
            out[lane] += h0[lane] * a0 + h1[lane] * a1 + h2[lane] * a2 + h3[lane] * a3
        i += 4
    while i < d:
        a, hi = w[first + i * d, p], h[t, q, i, lo : lo + n]
        for lane in range(n):
            out[lane] += a * hi[lane]
        i += 1


@compiled
def gru_backward(
    w: Floats,
    x: Floats,
    h0: Floats,
    counts: Indices,
    z: Floats,
    r: Floats,
    g: Floats,
    h: Floats,
    dy: Floats,
    dw: Floats,
) -> None:
    """Add the gradient of the weights to dw [C, P], given dy [T, P, R] and the results of `gru_forward`."""
    steps, positions, _ = x.shape
    d = h0.shape[2]
    uz, ur, ug, wz, wr, wg = 0, d, 2 * d, 3 * d, 3 * d + d * d, 3 * d + 2 * d * d
    wy = 3 * d + 3 * d * d
    dh, nh = np.empty((d, LANES), np.float32), np.empty((d, LANES), np.float32)
    az, ar, ag = np.empty((d, LANES), np.float32), np.empty((d, LANES), np.float32), np.empty((d, LANES), np.float32)
    hr, dhr = np.empty((d, LANES), np.float32), np.empty(LANES, np.float32)
    for p in range(positions):
        for lo in range(0, counts[0], LANES):
            dh[:] = ZERO
            for t in range(steps - 1, -1, -1):
                hi = min(lo + LANES, counts[t])
                if hi <= lo:
                    continue
                n = hi - lo
                xs, dys = x[t, p, lo:hi], dy[t, p, lo:hi]
                hp, tp = (h0, 0) if t == 0 else (h, t - 1)
                total = np.float32(ZERO)
                for lane in range(n):
                    total += dys[lane]
                dw[wy + d, p] += total
                for c in range(d):
                    v = w[wy + c, p]
                    dw[wy + c, p] += dot(h[t, p, c, lo:hi], dys)
                    zc, rc, gc, hc = z[t, p, c, lo:hi], r[t, p, c, lo:hi], g[t, p, c, lo:hi], hp[tp, p, c, lo:hi]
                    dhc, nhc, azc, agc, hrc = dh[c, :n], nh[c, :n], az[c, :n], ag[c, :n], hr[c, :n]
                    for lane in range(n):
                        dhc[lane] += v * dys[lane]
                    for lane in range(n):
                        azc[lane] = dhc[lane] * (gc[lane] - hc[lane]) * zc[lane] * (ONE - zc[lane])
                    for lane in range(n):
                        agc[lane] = dhc[lane] * zc[lane] * (ONE - gc[lane] * gc[lane])
                    for lane in range(n):
                        nhc[lane] = dhc[lane] * (ONE - zc[lane])
                    for lane in range(n):
                        hrc[lane] = hc[lane] * rc[lane]
                for i in range(d):
                    ds = dhr[:n]
                    ds[:] = ZERO
                    for c in range(d):
                        a, agc = w[wg + i * d + c, p], ag[c, :n]
                        for lane in range(n):
                            ds[lane] += a * agc[lane]
                    ri, hpi, nhi, ari = r[t, p, i, lo:hi], hp[tp, p, i, lo:hi], nh[i, :n], ar[i, :n]
                    for lane in range(n):
                        ari[lane] = ds[lane] * hpi[lane] * ri[lane] * (ONE - ri[lane])
                    for lane in range(n):
                        nhi[lane] += ds[lane] * ri[lane]
                for c in range(d):
                    azc, arc, agc = az[c, :n], ar[c, :n], ag[c, :n]
                    dw[uz + c, p] += dot(azc, xs)
                    dw[ur + c, p] += dot(arc, xs)
                    dw[ug + c, p] += dot(agc, xs)
                    for i in range(d):
                        hpi = hp[tp, p, i, lo:hi]
                        dw[wz + i * d + c, p] += dot(hpi, azc)
                        dw[wr + i * d + c, p] += dot(hpi, arc)
                        dw[wg + i * d + c, p] += dot(hr[i, :n], agc)
                if t > 0:
                    for i in range(d):
                        nhi, dhi = nh[i, :n], dh[i, :n]
                        for c in range(d):
                            a, b, azc, arc = w[wz + i * d + c, p], w[wr + i * d + c, p], az[c, :n], ar[c, :n]
                            for lane in range(n):
                                nhi[lane] += a * azc[lane] + b * arc[lane]
                        for lane in range(n):
                            dhi[lane] = nhi[lane]
