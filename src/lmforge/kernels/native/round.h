// Activations → what a matrix multiplies: thinned out, divided by channel factors, rounded to 8 bits.
#pragma once
#include <algorithm>
#include "chosen.h"
#include "sparse.h"

static inline float largest(const float* x, int64_t n) {
    int32_t most = 0;  // sizes of floats have the order of their bits, and whole numbers are compared sixteen at a time
    for (int64_t i = 0; i < n; i++) {
        int32_t size;
        memcpy(&size, x + i, 4);
        size &= 0x7FFFFFFF;
        most = size > most ? size : most;
    }
    float result;
    memcpy(&result, &most, 4);
    return result;
}

// one group: codes, their scale and their sum; round half to even, as torch.round
static inline void round_group(const float* x, int64_t n, int64_t padded, float clip, int8_t* codes, float* scale, int32_t* total) {
    float most = clip > 0 ? clip : std::max(largest(x, n), 1e-30f), by = 127.0f / most;
    int32_t all = 0;
    for (int64_t i = 0; i < n; i++) {
        float value = x[i] * by;
        value = value > 127.0f ? 127.0f : value < -127.0f ? -127.0f : value;
        int32_t code = (int32_t)std::nearbyintf(value);
        codes[i] = (int8_t)code;
        all += code;
    }
    for (int64_t i = n; i < padded; i++) codes[i] = 0;
    *scale = most / 127.0f;
    *total = all;
}

static inline float kth_largest(const float* x, int64_t n, int64_t k, float* scratch) {
    for (int64_t i = 0; i < n; i++) scratch[i] = std::fabs(x[i]);
    std::nth_element(scratch, scratch + (k - 1), scratch + n, [](float a, float b) { return a > b; });
    return scratch[k - 1];
}

static inline bool changes_inputs(const Matrix& m) { return m.channel || m.threshold >= 0 || m.top > 0; }

// tokens [first, last) of x (tokens, I), by one thread; where inputs are changed, `plain` gets them first
static void prepare(const Matrix& m, const float* x, int64_t first, int64_t last, Rounded& r) {
    for (int64_t t = first; t < last; t++) {
        const float* in = x + t * m.cols;
        if (changes_inputs(m)) {
            float* to = r.plain + t * m.cols;
            if (m.top > 0 && m.top < m.cols) {
                float least = kth_largest(in, m.cols, m.top, to);
                int64_t above = 0;  // ties at the least: the first ones are kept
                for (int64_t i = 0; i < m.cols; i++) above += std::fabs(in[i]) > least;
                for (int64_t i = 0, left = m.top - above; i < m.cols; i++) {
                    float size = std::fabs(in[i]);
                    bool keep = size > least || (size == least && left-- > 0);
                    to[i] = keep ? in[i] : 0.0f;
                }
            } else if (m.threshold >= 0) {
                for (int64_t i = 0; i < m.cols; i++) to[i] = std::fabs(in[i]) <= m.threshold ? 0.0f : in[i];
            } else memcpy(to, in, m.cols * sizeof(float));
            if (m.channel)
                for (int64_t i = 0; i < m.cols; i++) to[i] /= m.channel[i];
            in = to;
        }
        if (m.kind == COLUMNS) {
            round_group(in, m.cols, m.group, m.clip, r.codes + t * m.group, r.scales + t, r.sums + t);
        } else if (m.kind == CODES) {
            float clip = m.clip;
            if (m.whole_row && clip <= 0) clip = std::max(largest(in, m.cols), 1e-30f);
            for (int64_t g = 0; g < m.groups; g++) {
                int64_t n = std::min(m.group, m.cols - g * m.group);
                round_group(in + g * m.group, n, m.group, clip, r.codes + t * m.padded + g * m.group,
                            r.scales + t * m.groups + g, r.sums + t * m.groups + g);
            }
        }
    }
}

// which columns any of the tokens needs
static void find_active(const Matrix& m, int64_t tokens, Rounded& r) {
    r.count = 0;
    for (int64_t i = 0; i < m.cols; i++) {
        bool any = false;
        for (int64_t t = 0; t < tokens && !any; t++)
            any = m.kind == COLUMNS ? r.codes[t * m.group + i] != 0 : r.plain[t * m.cols + i] != 0;
        if (any) r.active[r.count++] = (int32_t)i;
    }
}

// memory for activations of one matrix at a time, and for what is between the two of a pair
struct Scratch {
    Rounded rounded;
    float* between;
    float* scores;  // of the units that are chosen from
};

static void apply(const Matrix& m, const float* x, int64_t tokens, float* y, int64_t y_step, Scratch& s, const Team& team);

static void apply_chosen(const Matrix& m, const float* x, int64_t tokens, float* y, int64_t y_step, Scratch& s, const Team& team) {
    apply(*m.second, x, tokens, s.scores, m.group, s, team);
    int32_t* units = s.rounded.active + team.id * m.group;
    int64_t count = 0, first, last;
    for (int64_t u = 0; u < m.group; u++) {
        bool any = false;
        for (int64_t t = 0; t < tokens && !any; t++) any = s.scores[t * m.group + u] > 0;
        if (any) units[count++] = (int32_t)u;
    }
    team.share(tokens, 1, &first, &last);
    if (dense_is_faster(m, count, tokens) || (m.first->kind != FLOATS && !m.data)) {
        apply(*m.first, x, tokens, y, y_step, s, team);
        for (int64_t t = first; t < last; t++)
            for (int64_t r = 0; r < m.rows; r++)
                if (!(s.scores[t * m.group + r % m.group] > 0)) y[t * y_step + r] = 0;
    } else {
        if (m.first->kind == CODES) prepare(*m.first, x, first, last, s.rounded);
        for (int64_t t = first; t < last; t++) memset(y + t * y_step, 0, m.rows * sizeof(float));
        team.barrier();
        ChosenRows rows{units, count, m.group, m.rows / m.group};
        product_chosen(m, rows, s.rounded, x, tokens, s.scores, y, y_step, team);
    }
    team.barrier();
}

static void apply_sparse(const Matrix& m, const float* x, int64_t tokens, float* y, int64_t y_step, Scratch& s, const Team& team) {
    if (tokens > SPARSE_TOKENS) return apply(*m.first, x, tokens, y, y_step, s, team);
    auto f = tokens == 1 ? product_sparse<1> : tokens == 2 ? product_sparse<2> : tokens == 3 ? product_sparse<3> : product_sparse<4>;
    f(m, x, y, y_step, team);
    team.barrier();
}

// y (tokens, O; rows `y_step` apart) = x (tokens, I) times m; all threads of the team together. y is whole afterwards.
static void apply(const Matrix& m, const float* x, int64_t tokens, float* y, int64_t y_step, Scratch& s, const Team& team) {
    if (m.kind == PAIR) {
        apply(*m.first, x, tokens, s.between, m.first->rows, s, team);
        apply(*m.second, s.between, tokens, y, y_step, s, team);
        return;
    }
    if (tokens == 0) return;
    if (m.kind == SPARSE) return apply_sparse(m, x, tokens, y, y_step, s, team);
    if (m.kind == CHOSEN) return apply_chosen(m, x, tokens, y, y_step, s, team);
    Rounded r = s.rounded;
    if (m.kind != FLOATS || changes_inputs(m)) {
        int64_t first, last;
        team.share(tokens, 1, &first, &last);
        prepare(m, x, first, last, r);
        if (m.kind == FLOAT_COLUMNS && !changes_inputs(m)) {
            memcpy(r.plain + first * m.cols, x + first * m.cols, (last - first) * m.cols * sizeof(float));
        }
        team.barrier();
    }
    if (m.kind == COLUMNS || m.kind == FLOAT_COLUMNS) {
        r.active += team.id * m.cols;
        find_active(m, tokens, r);
        // column by column is for few tokens and few columns; n tokens share the work of a whole product better
        if (m.kind == COLUMNS && r.count * (1 + tokens) > m.cols)
            product_codes<8, 0>(*m.first, r, tokens, y, y_step, team);
        else if (m.kind == COLUMNS) product_columns(m, r, tokens, y, y_step, team);
        else product_float_columns(m, r, tokens, y, y_step, team);
    } else if (m.kind == FLOATS) {
        product_floats(m, changes_inputs(m) ? r.plain : x, tokens, y, y_step, team);
    } else {
        auto f = m.base == 8   ? product_codes<8, 0>
                 : m.base == 2 ? product_codes<2, 1>
                 : m.planes == 0 ? product_codes<4, 0>
                 : m.planes == 1 ? product_codes<4, 1>
                                 : product_codes<4, 2>;
        f(m, r, tokens, y, y_step, team);
    }
    team.barrier();
}
