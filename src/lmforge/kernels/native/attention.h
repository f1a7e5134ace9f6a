// One query against the keys and values that a cache holds, in fp32 or in 8 bits with a scale for each of them.
#pragma once
#include "lanes.h"

struct Cache {  // of one layer
    const void* store;       // (2, rows, kv_heads, slots, E): keys, then values; fp32, or int8
    const float* scales;     // of int8: (2, rows, kv_heads, slots)
    int64_t rows, slots;     // slots with the last, which is never read
    int64_t window;          // slots that are read at most; position p stands in slot p mod window
    int64_t bytes;           // of a number: 4 or 1
};

static inline float dot_key(const float* q, const void* key, int64_t bytes_, int64_t e) {
    F acc = set(0);
    int64_t i = 0;
    if (bytes_ == 4) {
        const float* k = (const float*)key;
        for (; i + 16 <= e; i += 16) acc = fma(load(q + i), load(k + i), acc);
        float all = sum(acc);
        for (; i < e; i++) all = std::fma(q[i], k[i], all);
        return all;
    }
    const int8_t* k = (const int8_t*)key;
    for (; i + 16 <= e; i += 16) acc = fma(load(q + i), bytes(k + i), acc);
    float all = sum(acc);
    for (; i < e; i++) all = std::fma(q[i], (float)k[i], all);
    return all;
}

// out (e) = Σ weights[j] · values[j]
static inline void blend(const float* weights, const char* values, int64_t count, int64_t bytes_, int64_t e, float* out) {
    int64_t i = 0;
    for (; i + 64 <= e; i += 64) {
        F a = set(0), b = set(0), c = set(0), d = set(0);
        for (int64_t j = 0; j < count; j++) {
            F w = set(weights[j]);
            if (bytes_ == 4) {
                const float* v = (const float*)values + j * e + i;
                a = fma(w, load(v), a), b = fma(w, load(v + 16), b), c = fma(w, load(v + 32), c), d = fma(w, load(v + 48), d);
            } else {
                const int8_t* v = (const int8_t*)values + j * e + i;
                a = fma(w, bytes(v), a), b = fma(w, bytes(v + 16), b), c = fma(w, bytes(v + 32), c), d = fma(w, bytes(v + 48), d);
            }
        }
        store(out + i, a), store(out + i + 16, b), store(out + i + 32, c), store(out + i + 48, d);
    }
    for (; i + 16 <= e; i += 16) {
        F a = set(0);
        for (int64_t j = 0; j < count; j++)
            a = fma(set(weights[j]), bytes_ == 4 ? load((const float*)values + j * e + i) : bytes((const int8_t*)values + j * e + i), a);
        store(out + i, a);
    }
    for (; i < e; i++) {
        float a = 0;
        for (int64_t j = 0; j < count; j++)
            a = std::fma(weights[j], bytes_ == 4 ? ((const float*)values)[j * e + i] : (float)((const int8_t*)values)[j * e + i], a);
        out[i] = a;
    }
}

// x ← softmax(x)
static inline void softmax(float* x, int64_t n) {
    float most = x[0];
    for (int64_t i = 1; i < n; i++) most = x[i] > most ? x[i] : most;
    for (int64_t i = 0; i < n; i++) x[i] = exponential(x[i] - most);
    float lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lane[j] += x[i + j];
    for (int j = 0; i < n; i++, j++) lane[j] += x[i];
    float by = 1.0f / sum(load(lane));
    for (i = 0; i < n; i++) x[i] *= by;
}

// queries q (heads, E) that share the keys of one (row, kv head), already scaled → out (heads, E)
static void attend(const Cache& c, int64_t kv_heads, int64_t e, int64_t row, int64_t head, int64_t count,
                   const float* q, int64_t heads, float* out, float* scores) {
    int64_t place = (row * kv_heads + head) * c.slots, whole = c.rows * kv_heads * c.slots;
    const char* keys = (const char*)c.store + place * e * c.bytes;
    const char* values = (const char*)c.store + (whole + place) * e * c.bytes;
    const float* key_scales = c.scales ? c.scales + place : nullptr;
    const float* value_scales = c.scales ? c.scales + whole + place : nullptr;
    for (int64_t h = 0; h < heads; h++) {
        for (int64_t j = 0; j < count; j++) {
            float score = dot_key(q + h * e, keys + j * e * c.bytes, c.bytes, e);
            scores[j] = key_scales ? score * key_scales[j] : score;
        }
        softmax(scores, count);
        for (int64_t j = 0; value_scales && j < count; j++) scores[j] *= value_scales[j];
        blend(scores, values, count, c.bytes, e, out + h * e);
    }
}

// one key or value (E) into its slot
static inline void keep(const Cache& c, int64_t kv_heads, int64_t e, int64_t part, int64_t row, int64_t head, int64_t slot, const float* x) {
    int64_t at = ((part * c.rows + row) * kv_heads + head) * c.slots + slot;
    if (c.bytes == 4) {
        memcpy((float*)c.store + at * e, x, e * sizeof(float));
        return;
    }
    float most = 1e-30f;
    for (int64_t i = 0; i < e; i++) most = std::fabs(x[i]) > most ? std::fabs(x[i]) : most;
    float by = 127.0f / most;
    for (int64_t i = 0; i < e; i++) ((int8_t*)c.store)[at * e + i] = (int8_t)std::nearbyintf(x[i] * by);
    ((float*)c.scales)[at] = most / 127.0f;
}
