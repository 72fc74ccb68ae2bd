"""The GRUs of the MLP's scalars as machine code, forwards and backwards (formulas: `asmg.generator.gru`).

Each scalar has its own weights; the scalars are the lanes.
"""

import numpy as np

from asmg.kernels.common import ONE, ZERO, Floats, compiled, sigmoid, tanh

__all__ = ["gru_backward_dense", "gru_forward_dense"]


@compiled
def gru_forward_dense(
    w: Floats, x: Floats, h0: Floats, residual: bool, z: Floats, r: Floats, g: Floats, h: Floats, y: Floats
) -> None:
    """Run the GRUs of P scalars along a sequence, each with its own weights.

    Args:
        w: [C, P], see `gru_forward`.
        x, h0: inputs [T, P] and initial states [1, d, P].
        residual: whether the input is added to the output.
        z, r, g, h, y: get the gates and states [T, d, P] and the outputs [T, P].
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
    """Add the gradient of the weights to dw [C, P], given dy [T, P] and the results of `gru_forward_dense`."""
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
