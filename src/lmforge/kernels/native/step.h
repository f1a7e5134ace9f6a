// One step of decoding: a token of each row through the whole network, in one call.
//
//   tokens ─embed─▶ x ─[ norm, qkv, rope, attention over the cache, out; norm, up, activation, down ] × layers─▶ norm ─head─▶
//
// Every stage is shared out over the threads, with a barrier after it. No number of a row depends on the other rows,
// nor on the number of threads.
#pragma once
#include "attention.h"
#include "round.h"

enum Activation : int64_t { RELU = 0, RELU2 = 1, SWIGLU = 2, GEGLU = 3, GELU_TANH = 4, GELU = 5 };

struct Norm {
    const float *gain, *bias;  // gain null: no norm
    int64_t layernorm;
    float eps;
};

struct Layer {
    Norm attention_norm, attention_out_norm, ff_norm, ff_out_norm, q_norm, k_norm;
    Matrix qkv, out, up, down;
    const float* rotations;    // (positions, E/2) complex, or null
    int64_t heads, kv_heads;   // 0: no attention
    int64_t units;             // 0: no feed-forward
};

struct Network {
    int64_t layers, width, head_width, vocabulary, activation, parallel, whole_norm;
    float query_scale;
    Norm norm;
    Matrix head;
    const Layer* layer;
};

static void normalise(const Norm& n, const float* x, int64_t width, float* y) {
    float lane[LANES] = {0}, mean = 0;
    if (n.layernorm) {
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES)
            for (int j = 0; j < LANES; j++) lane[j] += x[i + j];
        for (int j = 0; i < width; i++, j++) lane[j] += x[i];
        mean = sum(load(lane)) / (float)width;
        memset(lane, 0, sizeof lane);
    }
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES)
        for (int j = 0; j < LANES; j++) lane[j] = std::fma(x[i + j] - mean, x[i + j] - mean, lane[j]);
    for (int j = 0; i < width; i++, j++) lane[j] = std::fma(x[i] - mean, x[i] - mean, lane[j]);
    float by = 1.0f / std::sqrt(sum(load(lane)) / (float)width + n.eps);
    for (i = 0; i < width; i++) y[i] = (x[i] - mean) * by * n.gain[i];
    if (n.bias)
        for (i = 0; i < width; i++) y[i] += n.bias[i];
}

static inline float gelu_tanh(float x) {
    float inner = 0.7978845608f * (x + 0.044715f * x * x * x);
    return x - x / (exponential(2.0f * inner) + 1.0f);  // x · (1 + tanh)/2
}

static void activate(int64_t kind, const float* x, int64_t units, float* y) {
    const float* in = x + units;  // where it is gated
    switch (kind) {
        case RELU: for (int64_t i = 0; i < units; i++) y[i] = x[i] > 0 ? x[i] : 0; break;
        case RELU2: for (int64_t i = 0; i < units; i++) y[i] = x[i] > 0 ? x[i] * x[i] : 0; break;
        case SWIGLU: for (int64_t i = 0; i < units; i++) y[i] = x[i] / (1.0f + exponential(-x[i])) * in[i]; break;
        case GEGLU: for (int64_t i = 0; i < units; i++) y[i] = gelu_tanh(x[i]) * in[i]; break;
        case GELU_TANH: for (int64_t i = 0; i < units; i++) y[i] = gelu_tanh(x[i]); break;
        default: for (int64_t i = 0; i < units; i++) y[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678f));
    }
}

struct Buffers {
    float *x, *normed, *wide, *mixed, *branch, *other, *scores;
    Scratch scratch;
    int64_t most_scores;  // of one thread
};

// queries, keys and values of one (token, kv head): norms, rotation, the key and value into the cache, attention
static void mix(const Network& net, const Layer& l, const Cache& c, const float* qkv, int64_t row, int64_t head,
                int64_t position, float* out, float* room) {
    int64_t e = net.head_width, group = l.heads / l.kv_heads;
    float *q = room, *k = room + group * e, *scores = k + e;
    const float *queries = qkv + head * group * e, *key = qkv + (l.heads + head) * e;
    const float* value = qkv + (l.heads + l.kv_heads + head) * e;
    if (l.q_norm.gain && net.whole_norm) {
        float* all = scores;
        normalise(l.q_norm, qkv, l.heads * e, all);
        memcpy(q, all + head * group * e, group * e * sizeof(float));
        normalise(l.k_norm, qkv + l.heads * e, l.kv_heads * e, all);
        memcpy(k, all + head * e, e * sizeof(float));
    } else if (l.q_norm.gain) {
        for (int64_t h = 0; h < group; h++) normalise(l.q_norm, queries + h * e, e, q + h * e);
        normalise(l.k_norm, key, e, k);
    } else {
        memcpy(q, queries, group * e * sizeof(float));
        memcpy(k, key, e * sizeof(float));
    }
    if (l.rotations) {
        const float* turn = l.rotations + position * e;
        for (int64_t h = 0; h <= group; h++)  // the key stands after the queries
            for (int64_t i = 0; i < e; i += 2) {
                float a = q[h * e + i], b = q[h * e + i + 1];
                q[h * e + i] = a * turn[i] - b * turn[i + 1];
                q[h * e + i + 1] = a * turn[i + 1] + b * turn[i];
            }
    }
    for (int64_t i = 0; i < group * e; i++) q[i] *= net.query_scale;
    int64_t slot = position % c.window, count = position + 1 < c.window ? position + 1 : c.window;
    keep(c, l.kv_heads, e, 0, row, head, slot, k);
    keep(c, l.kv_heads, e, 1, row, head, slot, value);
    attend(c, l.kv_heads, e, row, head, count, q, group, out + head * group * e, scores);
}

// x ← x + branch (through its own norm), and then what the next matrix takes
static void add_branch(const Norm& out_norm, const float* branch, int64_t width, float* room, float* x) {
    if (out_norm.gain) normalise(out_norm, branch, width, room), branch = room;
    for (int64_t i = 0; i < width; i++) x[i] += branch[i];
}

static void feed_forward(const Network& net, const Layer& l, int64_t rows, Buffers& b, const float* from, float* to, const Team& team) {
    int64_t d = net.width, first, last;
    team.share(rows, 1, &first, &last);
    for (int64_t t = first; t < last; t++)
        if (l.ff_norm.gain) normalise(l.ff_norm, from + t * d, d, b.normed + t * d);
        else memcpy(b.normed + t * d, from + t * d, d * sizeof(float));
    team.barrier();
    apply(l.up, b.normed, rows, b.wide, l.up.rows, b.scratch, team);
    for (int64_t t = first; t < last; t++) activate(net.activation, b.wide + t * l.up.rows, l.units, b.mixed + t * l.units);
    team.barrier();
    apply(l.down, b.mixed, rows, to, d, b.scratch, team);
}

static void run_layer(const Network& net, const Layer& l, const Cache& c, const int64_t* positions, int64_t rows, Buffers& b, const Team& team) {
    int64_t d = net.width, first, last;
    team.share(rows, 1, &first, &last);
    bool both = net.parallel && l.heads && l.units;
    if (l.heads) {
        for (int64_t t = first; t < last; t++)
            if (l.attention_norm.gain) normalise(l.attention_norm, b.x + t * d, d, b.normed + t * d);
            else memcpy(b.normed + t * d, b.x + t * d, d * sizeof(float));
        team.barrier();
        apply(l.qkv, b.normed, rows, b.wide, l.qkv.rows, b.scratch, team);
        int64_t begin, end, width = l.heads * net.head_width;
        team.share(rows * l.kv_heads, 1, &begin, &end);
        for (int64_t i = begin; i < end; i++) {
            int64_t row = i / l.kv_heads;
            mix(net, l, c, b.wide + row * l.qkv.rows, row, i % l.kv_heads, positions[row], b.mixed + row * width,
                b.scores + team.id * b.most_scores);
        }
        team.barrier();
        apply(l.out, b.mixed, rows, b.branch, d, b.scratch, team);
        if (!both)
            for (int64_t t = first; t < last; t++) add_branch(l.attention_out_norm, b.branch + t * d, d, b.normed + t * d, b.x + t * d);
    }
    if (!l.units) return;  // the next stage begins with the same rows of each thread
    float* to = both ? b.other : b.branch;
    feed_forward(net, l, rows, b, b.x, to, team);
    for (int64_t t = first; t < last; t++) {
        if (both) add_branch(l.attention_out_norm, b.branch + t * d, d, b.normed + t * d, b.x + t * d);
        add_branch(l.ff_out_norm, to + t * d, d, b.normed + t * d, b.x + t * d);
    }
}
