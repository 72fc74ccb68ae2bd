"""The GRU of the generator, forwards and backwards (formulas: `asmg.generator`)."""

import numpy as np

from asmg.kernels.common import ONE, ZERO, Floats, Indices, compiled, dot, inlined, sigmoid, tanh

__all__ = ["gru_backward", "gru_backward_dense", "gru_forward", "gru_forward_dense"]

LANES = 256
"""Rows that a loop works on at a time: their values in all gates stay in the first-level cache."""
# --- the GRU of a table: one set of weights for each position (column), the rows are the lanes


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

    w [C, P]: for each position u_z | u_r | u_g (d each), W_z | W_r | W_g (d × d each, row-major), w_y (d), b.
    x [T, P, R], h0 [1, P, d, R]; only the first counts[t] rows are run in step t (counts never grow).
    Out: z, r, g, h [T, P, d, R] and y [T, P, R].
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
    """Add to dw [C, P] the gradient of the weights, given dy [T, P, R] and what `gru_forward` left."""
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


# --- the GRUs of the MLP: a set of weights for each scalar, the scalars are the lanes


@compiled
def gru_forward_dense(
    w: Floats, x: Floats, h0: Floats, residual: bool, z: Floats, r: Floats, g: Floats, h: Floats, y: Floats
) -> None:
    """As `gru_forward` for P scalars with weights of their own.

    w [C, P], x [T, P], h0 [1, d, P]. Out: z, r, g, h [T, d, P] and y [T, P].
    """
    steps, lanes = x.shape
    d = h0.shape[1]
    uz, ur, ug, wz, wr, wg = 0, d, 2 * d, 3 * d, 3 * d + d * d, 3 * d + 2 * d * d
    wy = 3 * d + 3 * d * d
    for t in range(steps):
        hp, tp = (h0, 0) if t == 0 else (h, t - 1)
        for c in range(d):
            zc, rc = z[t, c], r[t, c]
            for lane in range(lanes):
                zc[lane] = x[t, lane] * w[uz + c, lane]
            for lane in range(lanes):
                rc[lane] = x[t, lane] * w[ur + c, lane]
            for i in range(d):
                hpi, wzi, wri = hp[tp, i], w[wz + i * d + c], w[wr + i * d + c]
                for lane in range(lanes):
                    zc[lane] += hpi[lane] * wzi[lane]
                for lane in range(lanes):
                    rc[lane] += hpi[lane] * wri[lane]
            for lane in range(lanes):
                zc[lane] = sigmoid(zc[lane])
            for lane in range(lanes):
                rc[lane] = sigmoid(rc[lane])
        ys, xs, b = y[t], x[t], w[wy + d]
        for lane in range(lanes):
            ys[lane] = b[lane] + (xs[lane] if residual else ZERO)
        for c in range(d):
            gc, hc, hn, zc, u, v = g[t, c], hp[tp, c], h[t, c], z[t, c], w[ug + c], w[wy + c]
            for lane in range(lanes):
                gc[lane] = xs[lane] * u[lane]
            for i in range(d):
                hpi, ri, wgi = hp[tp, i], r[t, i], w[wg + i * d + c]
                for lane in range(lanes):
                    gc[lane] += hpi[lane] * ri[lane] * wgi[lane]
            for lane in range(lanes):
                gc[lane] = tanh(gc[lane])
            for lane in range(lanes):
                hn[lane] = hc[lane] + zc[lane] * (gc[lane] - hc[lane])
            for lane in range(lanes):
                ys[lane] += v[lane] * hn[lane]


@compiled
def gru_backward_dense(
    w: Floats, x: Floats, h0: Floats, z: Floats, r: Floats, g: Floats, h: Floats, dy: Floats, dw: Floats
) -> None:
    """Add to dw [C, P] the gradient of the weights, given dy [T, P] and what `gru_forward_dense` left."""
    steps, lanes = x.shape
    d = h0.shape[1]
    uz, ur, ug, wz, wr, wg = 0, d, 2 * d, 3 * d, 3 * d + d * d, 3 * d + 2 * d * d
    wy = 3 * d + 3 * d * d
    dh, nh = np.zeros((d, lanes), np.float32), np.empty((d, lanes), np.float32)
    az, ar, ag = (np.empty((d, lanes), np.float32), np.empty((d, lanes), np.float32), np.empty((d, lanes), np.float32))
    ds = np.empty(lanes, np.float32)
    for t in range(steps - 1, -1, -1):
        hp, tp = (h0, 0) if t == 0 else (h, t - 1)
        xs, dys, db = x[t], dy[t], dw[wy + d]
        for lane in range(lanes):
            db[lane] += dys[lane]
        for c in range(d):
            v, dv, hn = w[wy + c], dw[wy + c], h[t, c]
            zc, gc, hc, dhc, nhc, azc, agc = z[t, c], g[t, c], hp[tp, c], dh[c], nh[c], az[c], ag[c]
            for lane in range(lanes):
                dv[lane] += hn[lane] * dys[lane]
            for lane in range(lanes):
                dhc[lane] += v[lane] * dys[lane]
            for lane in range(lanes):
                azc[lane] = dhc[lane] * (gc[lane] - hc[lane]) * zc[lane] * (ONE - zc[lane])
            for lane in range(lanes):
                agc[lane] = dhc[lane] * zc[lane] * (ONE - gc[lane] * gc[lane])
            for lane in range(lanes):
                nhc[lane] = dhc[lane] * (ONE - zc[lane])
        for i in range(d):
            ri, hpi, nhi, ari = r[t, i], hp[tp, i], nh[i], ar[i]
            ds[:] = ZERO
            for c in range(d):
                agc, wgi, dwgi = ag[c], w[wg + i * d + c], dw[wg + i * d + c]
                for lane in range(lanes):
                    ds[lane] += wgi[lane] * agc[lane]
                for lane in range(lanes):
                    dwgi[lane] += hpi[lane] * ri[lane] * agc[lane]
            for lane in range(lanes):
                ari[lane] = ds[lane] * hpi[lane] * ri[lane] * (ONE - ri[lane])
            for lane in range(lanes):
                nhi[lane] += ds[lane] * ri[lane]
        for c in range(d):
            azc, arc, agc = az[c], ar[c], ag[c]
            duz, dur, dug = dw[uz + c], dw[ur + c], dw[ug + c]
            for lane in range(lanes):
                duz[lane] += azc[lane] * xs[lane]
            for lane in range(lanes):
                dur[lane] += arc[lane] * xs[lane]
            for lane in range(lanes):
                dug[lane] += agc[lane] * xs[lane]
            for i in range(d):
                hpi, nhi = hp[tp, i], nh[i]
                wzi, wri, dwzi, dwri = w[wz + i * d + c], w[wr + i * d + c], dw[wz + i * d + c], dw[wr + i * d + c]
                for lane in range(lanes):
                    dwzi[lane] += hpi[lane] * azc[lane]
                for lane in range(lanes):
                    dwri[lane] += hpi[lane] * arc[lane]
                for lane in range(lanes):
                    nhi[lane] += wzi[lane] * azc[lane] + wri[lane] * arc[lane]
        dh[:] = nh
