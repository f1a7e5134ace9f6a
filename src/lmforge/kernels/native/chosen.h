// Rows that are chosen for each token before they are multiplied: those of `m.first` whose units a thin pair gives more
// than 0. What a token gets does not depend on the others: rows that only these chose are 0 for it.
#pragma once
#include "matrix.h"

// Whether rows one by one are slower than the whole matrix, which is read in long streams and, in 8 bits, multiplied for
// sixteen rows and several tokens at once. Measured: floats gain below 0.4 of all units, 8 bits below 0.2 for a token
// and 0.08 for eight. Both give the same bits.
static inline bool dense_is_faster(const Matrix& m, int64_t count, int64_t tokens) {
    return m.first->kind == FLOATS ? 5 * count > 2 * m.group : count * (4 + tokens) > m.group;
}

// the rows of these units, in their order: a row of each, or of gated ones two
struct ChosenRows {
    const int32_t* units;
    int64_t count, step, each;  // of units; rows between the two of a unit; rows of a unit
    int64_t size() const { return count * each; }
    int64_t unit(int64_t i) const { return units[i / each]; }
    int64_t row(int64_t i) const { return unit(i) + i % each * step; }
};

// x (tokens, I), scores (tokens, units): R rows from the i-th on, T tokens from the t-th on
template <int R, int T>
static inline void chosen_floats(const Matrix& m, const ChosenRows& rows, int64_t i, const float* x, int64_t t,
                                 const float* scores, float* y, int64_t y_step) {
    float out[R][T];
    const float* w[R];
    for (int r = 0; r < R; r++) w[r] = (const float*)m.first->data + rows.row(i + r) * m.cols;
    rows_floats<R, T>(w, m.cols, x + t * m.cols, m.cols, out);
    for (int r = 0; r < R; r++)
        for (int n = 0; n < T; n++) {
            int64_t row = rows.row(i + r);
            if (!(scores[(t + n) * m.group + rows.unit(i + r)] > 0)) continue;
            y[(t + n) * y_step + row] = m.first->bias ? out[r][n] + m.first->bias[row] : out[r][n];
        }
}

template <int R>
static inline void chosen_floats_all(const Matrix& m, const ChosenRows& rows, int64_t i, const float* x, int64_t tokens,
                                     const float* scores, float* y, int64_t y_step) {
    int64_t t = 0;
    for (; t + 4 <= tokens; t += 4) chosen_floats<R, 4>(m, rows, i, x, t, scores, y, y_step);
    for (; t < tokens; t++) chosen_floats<R, 1>(m, rows, i, x, t, scores, y, y_step);
}

// as product_codes has it of 8 bits with one scale a row, number by number
static inline void chosen_codes(const Matrix& m, int64_t row, const Rounded& x, int64_t t, float* y, int64_t y_step) {
    const uint8_t* w = (const uint8_t*)m.data + row * m.padded;
    int64_t width = m.first->padded, k = 0;
    const int8_t* codes = x.codes + t * width;
    I a = izero(), b = izero();
    for (; k + 128 <= width; k += 128) a = dot_row(a, w + k, codes + k), b = dot_row(b, w + k + 64, codes + k + 64);
    for (; k < width; k += 64) {
        int8_t rest[64] = {0};
        memcpy(rest, codes + k, width - k < 64 ? width - k : 64);
        a = dot_row(a, w + k, rest);
    }
    int32_t lane[16], all = -((int32_t)m.first->zero - CENTRE) * x.sums[t];
    istore(lane, iadd(a, b));
    for (int i = 0; i < 16; i++) all += lane[i];
    float value = (m.scale[row] * x.scales[t]) * (float)all;
    y[t * y_step + row] = m.first->bias ? value + m.first->bias[row] : value;
}

// y (tokens, O) holds zeros where nothing is written
static void product_chosen(const Matrix& m, const ChosenRows& rows, const Rounded& r, const float* x, int64_t tokens,
                           const float* scores, float* y, int64_t y_step, const Team& team) {
    int64_t first, last;
    team.share(rows.size(), 4, &first, &last);
    if (m.first->kind == FLOATS) {
        int64_t i = first;
        for (; i + 4 <= last; i += 4) chosen_floats_all<4>(m, rows, i, x, tokens, scores, y, y_step);
        for (; i < last; i++) chosen_floats_all<1>(m, rows, i, x, tokens, scores, y, y_step);
        return;
    }
    for (int64_t i = first; i < last; i++)
        for (int64_t t = 0; t < tokens; t++)
            if (scores[t * m.group + rows.unit(i)] > 0) chosen_codes(m, rows.row(i), r, t, y, y_step);
}
