// Products of matrices of which most numbers are 0: what is left is spread out over its places in registers, sixteen
// columns at a time, so that the zeros are neither stored nor read. Sums have the order of the whole matrix's.
#pragma once
#include "matrix.h"

constexpr int64_t SPARSE_TOKENS = 4;  // at most; beyond, spreading costs more than it saves in reading

// R rows, `apart` from each other
template <int R, int T>
static inline void sparse_floats(const Matrix& m, int64_t row, int64_t apart, const float* x, float* y, int64_t y_step) {
    int64_t words = (m.cols + 63) / 64;
    const float* p[R];
    const uint16_t* bits[R];
    F acc[R][T];
    for (int r = 0; r < R; r++) {
        p[r] = (const float*)m.data + m.starts[row + r * apart];
        bits[r] = (const uint16_t*)(m.masks + (row + r * apart) * words);
        for (int t = 0; t < T; t++) acc[r][t] = set(0);
    }
    int64_t k = 0;
    for (; k + 16 <= m.cols; k += 16) {
        F in[T];
        for (int t = 0; t < T; t++) in[t] = load(x + t * m.cols + k);
        for (int r = 0; r < R; r++) {
            uint16_t here = bits[r][k / 16];
            F w = expand(p[r], here);
            p[r] += count_bits(here);
            for (int t = 0; t < T; t++) acc[r][t] = fma(w, in[t], acc[r][t]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) {
            float rest = sum(acc[r][t]);
            const float* at = p[r];
            for (int64_t j = k; j < m.cols; j++)
                if (bits[r][j / 16] >> j % 16 & 1) rest = std::fma(*at++, x[t * m.cols + j], rest);
            int64_t to = row + r * apart;
            y[t * y_step + to] = m.first->bias ? rest + m.first->bias[to] : rest;
        }
}

template <int T>
static void product_sparse(const Matrix& m, const float* x, float* y, int64_t y_step, const Team& team) {
    int64_t first, last;
    team.share(m.rows, 16, &first, &last);
    int64_t quarter = (last - first) / 4;
    for (int64_t row = first; row < first + quarter; row++) sparse_floats<4, T>(m, row, quarter, x, y, y_step);
    for (int64_t row = first + 4 * quarter; row < last; row++) sparse_floats<1, T>(m, row, 1, x, y, y_step);
}
