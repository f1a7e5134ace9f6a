// Matrices (O,I) as they lie in memory, and their products with rows of activations.
//
//   FLOATS   row after row, as torch has them
//   CODES    panels of 16 rows; in a panel group after group of columns:
//            scales (16 × fp16 or fp32) │ zeros (16 × u8) or least values (16 × fp16) or nothing │ codes
//            codes of 16 columns: 4 × (16 rows × 4 columns) at BASE bits, then planes of one more bit each
//            w = scale · (code − zero), or scale · code + least
//   COLUMNS  column after column, rows padded to 64, 8 bits: columns where x is 0 are not touched
//   CHOSEN   of `first` (floats or codes) the rows of units that `second`, a thin pair, gives more than 0; others give 0.
//            In 8 bits they lie here a second time, row after row, padded to 64
//   SPARSE   of floats: row after row the numbers that are not 0 and a bit for each place, 64 in a word; `first` is the
//            whole matrix, for larger batches
#pragma once
#include "lanes.h"
#include "pool.h"

enum Kind : int64_t { NONE = 0, FLOATS = 1, CODES = 2, COLUMNS = 3, PAIR = 4, FLOAT_COLUMNS = 5, CHOSEN = 6, SPARSE = 7 };
enum Offsets : int64_t { CONSTANT = 0, ZEROS = 1, LEAST = 2 };

struct Matrix {
    int64_t kind, rows, cols;        // O, I
    int64_t group, groups;           // columns of a group (a multiple of 16), groups of a row
    int64_t base, planes;            // bits of a code: base + planes
    int64_t wide_scale, offsets, zero;
    // columns with their padding: group · groups; of COLUMNS: rows with theirs, and `group` is of columns; of CHOSEN
    // `group` is units, which have a row each, or two that lie so far apart
    int64_t padded;
    int64_t whole_row;               // activations have one scale a token; else one for each group
    int64_t top;                     // inputs: all but so many of the largest become 0 (0: by threshold)
    float clip, threshold;           // fixed range of activations (0: found); inputs up to it become 0 (below 0: none)
    const void* data;
    const float* scale;              // of COLUMNS: (O)
    const float* channel;            // inputs are divided by it (I), or null
    const float* bias;               // (O) or null
    const uint64_t* masks;           // of SPARSE: (O, words of 64 columns)
    const int64_t* starts;           // of SPARSE: (O), of rows in the data
    const Matrix *first, *second;    // of PAIR: thin matrices, one after the other; of COLUMNS: the same as CODES
};

struct Rounded {        // activations of some tokens
    int8_t* codes;      // (tokens, padded)
    float* scales;      // (tokens, groups)
    int32_t* sums;      // (tokens, groups), of codes
    float* plain;       // (tokens, I) where inputs were thinned out or divided and the matrix is of floats
    int32_t* active;    // (I) columns that are touched
    int64_t count;
};

template <int BASE> constexpr int unit_bytes(int planes) { return BASE * 32 + planes * 32; }

template <int BASE, int PLANES> static inline void unit(const uint8_t* p, U* q) {
    if constexpr (BASE == 8) {
        for (int i = 0; i < 4; i++) q[i] = uload(p + 64 * i);
    } else if constexpr (BASE == 4) {
        U low = uload(p), high = uload(p + 64);
        q[0] = field<0, 15>(low), q[1] = field<4, 15>(low), q[2] = field<0, 15>(high), q[3] = field<4, 15>(high);
    } else {
        U all = uload(p);
        q[0] = field<0, 3>(all), q[1] = field<2, 3>(all), q[2] = field<4, 3>(all), q[3] = field<6, 3>(all);
    }
    const uint8_t* bits = p + BASE * 32;
    if constexpr (PLANES >= 1)
        for (int i = 0; i < 4; i++) q[i] = plane<(1 << BASE)>(q[i], bits + 8 * i);
    if constexpr (PLANES >= 2)
        for (int i = 0; i < 4; i++) q[i] = plane<(2 << BASE)>(q[i], bits + 32 + 8 * i);
}

static inline int64_t panel_bytes(const Matrix& m) {
    int64_t offsets = m.offsets == ZEROS ? 16 : m.offsets == LEAST ? 32 : 0;
    return m.groups * ((m.wide_scale ? 64 : 32) + offsets + m.group / 16 * (m.base * 32 + m.planes * 32));
}

// one row of codes → its weights (I)
static void decode_row(const Matrix& m, int64_t row, float* y) {
    const uint8_t* p = (const uint8_t*)m.data + row / 16 * panel_bytes(m);
    int64_t lane = row % 16, unit = m.base * 32 + m.planes * 32;
    for (int64_t g = 0; g < m.groups; g++) {
        float scales[16], least[16] = {0};
        store(scales, m.wide_scale ? load((const float*)p) : half((const uint16_t*)p));
        p += m.wide_scale ? 64 : 32;
        int32_t zero = (int32_t)m.zero;
        if (m.offsets == ZEROS) zero = p[lane], p += 16;
        if (m.offsets == LEAST) store(least, half((const uint16_t*)p)), p += 32;
        for (int64_t k = 0; k < m.group && g * m.group + k < m.cols; k++) {
            const uint8_t* at = p + k / 16 * unit;
            int64_t quad = k % 16 / 4, byte = 4 * lane + k % 4, per = 8 / m.base;
            int32_t code = at[quad / per * 64 + byte] >> (quad % per * m.base) & ((1 << m.base) - 1);
            for (int64_t n = 0; n < m.planes; n++)
                code |= (at[m.base * 32 + 32 * n + 8 * quad + byte / 8] >> byte % 8 & 1) << (m.base + n);
            float value = (float)(code - zero) * scales[lane] + least[lane];
            y[g * m.group + k] = m.channel ? value / m.channel[g * m.group + k] : value;
        }
        p += m.group / 16 * unit;
    }
}

// one panel times T tokens → out (T,16); sums of integers are exact, so that only the order of groups matters
template <int BASE, int PLANES, int T>
static inline void panel(const Matrix& m, const uint8_t* p, const Rounded& x, int64_t token, F* out) {
    constexpr int BITS = BASE + PLANES;
    constexpr int CHAINS = T == 1 ? 4 : T == 2 ? 2 : 1;  // independent sums, so that one need not wait for the last
    constexpr int centre = BITS == 8 ? CENTRE : 0;
    const int8_t* codes = x.codes + token * m.padded;
    for (int t = 0; t < T; t++) out[t] = set(0);
    for (int64_t g = 0; g < m.groups; g++) {
        F scale = m.wide_scale ? load((const float*)p) : half((const uint16_t*)p);
        p += m.wide_scale ? 64 : 32;
        I zero = iset((int32_t)m.zero - centre);
        F least = set(0);
        if (m.offsets == ZEROS) zero = isub(iwiden(p), iset(centre)), p += 16;
        if (m.offsets == LEAST) least = half((const uint16_t*)p), p += 32;
        I acc[T][CHAINS];
        for (int t = 0; t < T; t++)
            for (int c = 0; c < CHAINS; c++) acc[t][c] = izero();
        const int8_t* at = codes + g * m.group;
        for (int64_t k = 0; k < m.group; k += 16, p += unit_bytes<BASE>(PLANES)) {
            U q[4];
            unit<BASE, PLANES>(p, q);
            for (int j = 0; j < 4; j++)
                for (int t = 0; t < T; t++)
                    acc[t][j % CHAINS] = dot<BITS>(acc[t][j % CHAINS], q[j], at + t * m.padded + k + 4 * j);
        }
        for (int t = 0; t < T; t++) {
            I all = acc[t][0];
            for (int c = 1; c < CHAINS; c++) all = iadd(all, acc[t][c]);
            int64_t place = (token + t) * m.groups + g;
            float sx = x.scales[place];
            all = isub(all, imul(zero, iset(x.sums[place])));
            out[t] = fma(mul(scale, set(sx)), floats(all), out[t]);
            if (m.offsets == LEAST) out[t] = fma(least, set(sx * (float)x.sums[place]), out[t]);
        }
    }
}

template <int BASE, int PLANES>
static void product_codes(const Matrix& m, const Rounded& x, int64_t tokens, float* y, int64_t y_step, const Team& team) {
    int64_t first, last;
    team.share((m.rows + 15) / 16, 1, &first, &last);
    int64_t bytes = panel_bytes(m);
    for (int64_t r = first; r < last; r++) {
        const uint8_t* p = (const uint8_t*)m.data + r * bytes;
        int64_t here = m.rows - 16 * r < 16 ? m.rows - 16 * r : 16;
        for (int64_t t = 0; t < tokens;) {
            F out[8];
            int n;
            if (tokens - t >= 8) panel<BASE, PLANES, 8>(m, p, x, t, out), n = 8;
            else if (tokens - t >= 4) panel<BASE, PLANES, 4>(m, p, x, t, out), n = 4;
            else if (tokens - t >= 2) panel<BASE, PLANES, 2>(m, p, x, t, out), n = 2;
            else panel<BASE, PLANES, 1>(m, p, x, t, out), n = 1;
            for (int i = 0; i < n; i++) {
                float lane[16];
                store(lane, out[i]);
                float* to = y + (t + i) * y_step + 16 * r;
                for (int64_t j = 0; j < here; j++) to[j] = m.bias ? lane[j] + m.bias[16 * r + j] : lane[j];
            }
            t += n;
        }
    }
}

// R rows of floats times T tokens, sixteen columns at a time; each sum has one order, whatever R and T are
template <int R, int T>
static inline void rows_floats(const float* const* w, int64_t cols, const float* x, int64_t x_step, float out[R][T]) {
    F acc[R][T];
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) acc[r][t] = set(0);
    int64_t k = 0;
    for (; k + 16 <= cols; k += 16) {
        F in[T];
        for (int t = 0; t < T; t++) in[t] = load(x + t * x_step + k);
        for (int r = 0; r < R; r++) {
            F row = load(w[r] + k);
            for (int t = 0; t < T; t++) acc[r][t] = fma(row, in[t], acc[r][t]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) {
            float rest = sum(acc[r][t]);
            for (int64_t j = k; j < cols; j++) rest = std::fma(w[r][j], x[t * x_step + j], rest);
            out[r][t] = rest;
        }
}

// rows r, r + apart, …
template <int R, int T>
static inline void block_floats(const Matrix& m, int64_t r, int64_t apart, const float* x, float* y, int64_t y_step) {
    float out[R][T];
    const float* w[R];
    for (int i = 0; i < R; i++) w[i] = (const float*)m.data + (r + i * apart) * m.cols;
    rows_floats<R, T>(w, m.cols, x, m.cols, out);
    for (int i = 0; i < R; i++)
        for (int t = 0; t < T; t++) {
            int64_t row = r + i * apart;
            y[t * y_step + row] = m.bias ? out[i][t] + m.bias[row] : out[i][t];
        }
}

template <int R>
static inline void blocks_floats(const Matrix& m, int64_t r, int64_t apart, const float* x, int64_t tokens, float* y, int64_t y_step) {
    int64_t t = 0;
    for (; t + 4 <= tokens; t += 4) block_floats<R, 4>(m, r, apart, x + t * m.cols, y + t * y_step, y_step);
    if (t + 2 <= tokens) block_floats<R, 2>(m, r, apart, x + t * m.cols, y + t * y_step, y_step), t += 2;
    if (t < tokens) block_floats<R, 1>(m, r, apart, x + t * m.cols, y + t * y_step, y_step);
}

// Four rows at a time, one of each quarter: memory is read in four long streams, which the processor's own prefetching
// follows; of four neighbouring rows each stream would end after a row.
static void product_floats(const Matrix& m, const float* x, int64_t tokens, float* y, int64_t y_step, const Team& team) {
    int64_t first, last;
    team.share(m.rows, 16, &first, &last);
    int64_t quarter = (last - first) / 4;
    for (int64_t r = first; r < first + quarter; r++) blocks_floats<4>(m, r, quarter, x, tokens, y, y_step);
    for (int64_t r = first + 4 * quarter; r < last; r++) blocks_floats<1>(m, r, 1, x, tokens, y, y_step);
}

// columns that some token has a code for; four at a time, the last filled up with a column times 0
template <int T>
static void touched(const Matrix& m, const Rounded& x, int64_t token, int64_t first, int64_t last, float* y, int64_t y_step) {
    constexpr int64_t SPAN = 1024;
    for (int64_t begin = first; begin < last; begin += SPAN) {
        int64_t width = last - begin < SPAN ? last - begin : SPAN, chunks = (width + 63) / 64;
        alignas(64) int32_t acc[T][SPAN];
        memset(acc, 0, sizeof acc);
        for (int64_t a = 0; a < x.count; a += 4) {
            const uint8_t* row[4];
            int8_t four[T][4];
            for (int j = 0; j < 4; j++) {
                int64_t column = x.active[a + j < x.count ? a + j : a];
                row[j] = (const uint8_t*)m.data + column * m.padded + begin;
                for (int t = 0; t < T; t++)
                    four[t][j] = a + j < x.count ? x.codes[(token + t) * m.group + column] : 0;
            }
            for (int64_t c = 0; c < chunks; c++) {
                U q[4];
                weave(row[0] + 64 * c, row[1] + 64 * c, row[2] + 64 * c, row[3] + 64 * c, q);
                for (int n = 0; n < 4; n++)
                    for (int t = 0; t < T; t++) {
                        int32_t* to = acc[t] + 64 * c + 16 * n;
                        istore(to, dot<8>(iload(to), q[n], four[t]));
                    }
            }
        }
        for (int t = 0; t < T; t++) {
            float sx = x.scales[token + t];
            int32_t zero = ((int32_t)m.zero - CENTRE) * x.sums[token + t];
            for (int64_t c = 0; c < chunks; c++)
                for (int n = 0; n < 4; n++)
                    for (int lane = 0; lane < 16; lane++) {
                        int64_t r = begin + 64 * c + spread(n, lane);
                        if (r >= m.rows) continue;
                        float value = (m.scale[r] * sx) * (float)(acc[t][64 * c + 16 * n + lane] - zero);
                        y[(token + t) * y_step + r] = m.bias ? value + m.bias[r] : value;
                    }
        }
    }
}

static void product_columns(const Matrix& m, const Rounded& x, int64_t tokens, float* y, int64_t y_step, const Team& team) {
    int64_t first, last;
    team.share(m.padded, 64, &first, &last);
    for (int64_t t = 0; t < tokens;)
        if (tokens - t >= 4) touched<4>(m, x, t, first, last, y, y_step), t += 4;
        else touched<1>(m, x, t, first, last, y, y_step), t += 1;
}

static void product_float_columns(const Matrix& m, const Rounded& x, int64_t tokens, float* y, int64_t y_step, const Team& team) {
    int64_t first, last;
    team.share(m.rows, 64, &first, &last);
    for (int64_t t = 0; t < tokens; t++) {
        float* out = y + t * y_step;
        for (int64_t r = first; r < last; r++) out[r] = 0;
        for (int64_t a = 0; a < x.count; a++) {
            const float* column = (const float*)m.data + (int64_t)x.active[a] * m.rows;
            float value = x.plain[t * m.cols + x.active[a]];
            if (value == 0) continue;
            int64_t r = first;
            for (; r + 16 <= last; r += 16) store(out + r, fma(set(value), load(column + r), load(out + r)));
            for (; r < last; r++) out[r] = std::fma(value, column[r], out[r]);
        }
        for (int64_t r = first; m.bias && r < last; r++) out[r] += m.bias[r];
    }
}
