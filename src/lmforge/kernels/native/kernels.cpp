// What is called from Python, through C types alone: no header of any library is needed to build it.
#include <cstdlib>
#include "step.h"

// never taken down: its threads may still wait when the process ends
static Pool& pool = *new Pool;

// room for `bytes`, kept from call to call by each thread that calls
static char* workspace(size_t bytes) {
    static thread_local struct Room {
        char* at = nullptr;
        size_t size = 0;
        ~Room() { free(at); }
    } room;
    if (room.size < bytes) {
        free(room.at);
        room.at = (char*)malloc(bytes + 64), room.size = bytes;
    }
    return room.at + (64 - (uintptr_t)room.at % 64) % 64;
}

struct Carver {  // cuts a workspace into aligned pieces; with no workspace it counts
    char* at;
    size_t used = 0;
    template <class T> T* take(int64_t count) {
        T* result = (T*)(at + used);
        used += ((size_t)count * sizeof(T) + 63) / 64 * 64;
        return result;
    }
};

struct Sizes { int64_t columns, padded, groups, between, scores, threads; };

static void widen(const Matrix& m, Sizes& s) {
    if (m.kind == PAIR) {
        widen(*m.first, s), widen(*m.second, s);
        s.between = std::max(s.between, m.first->rows);
        return;
    }
    if (m.kind == CHOSEN) {
        widen(*m.first, s), widen(*m.second, s);
        s.columns = std::max(s.columns, m.group), s.scores = std::max(s.scores, m.group);
        return;
    }
    if (m.kind == SPARSE) return widen(*m.first, s);
    s.columns = std::max(s.columns, m.cols);
    s.padded = std::max(s.padded, m.kind == CODES ? m.padded : std::max(m.cols, m.group));
    s.groups = std::max(s.groups, std::max<int64_t>(1, m.groups));
}

static Scratch scratch_of(Carver& c, const Sizes& s, int64_t tokens) {
    Scratch r;
    r.rounded.codes = c.take<int8_t>(tokens * s.padded);
    r.rounded.scales = c.take<float>(tokens * s.groups);
    r.rounded.sums = c.take<int32_t>(tokens * s.groups);
    r.rounded.plain = c.take<float>(tokens * s.columns);
    r.rounded.active = c.take<int32_t>(s.threads * s.columns);
    r.rounded.count = 0;
    r.between = c.take<float>(tokens * s.between);
    r.scores = c.take<float>(tokens * s.scores);
    return r;
}

// the sum of `bytes`, in S long streams
template <int S> static int32_t read_streams(const uint8_t* data, int64_t bytes) {
    int64_t part = bytes / S / 128 * 128;
    I sums[2 * S];
    for (auto& each : sums) each = izero();
    for (int64_t at = 0; at < part; at += 128)
        for (int i = 0; i < S; i++) {
            const uint8_t* p = data + i * part + at;
            sums[2 * i] = iadd(sums[2 * i], iload((const int32_t*)p));
            sums[2 * i + 1] = iadd(sums[2 * i + 1], iload((const int32_t*)(p + 64)));
        }
    int32_t lane[16], all = 0;
    for (int i = 1; i < 2 * S; i++) sums[0] = iadd(sums[0], sums[i]);
    istore(lane, sums[0]);
    for (int i = 0; i < 16; i++) all += lane[i];
    return all;
}

extern "C" {

const char* lmforge_path() { return PATH; }

// bytes of the structs, so that the caller can see that its own are the same
int64_t lmforge_layout(int64_t which) {
    const int64_t sizes[] = {sizeof(Matrix), sizeof(Norm), sizeof(Layer), sizeof(Network), sizeof(Cache)};
    return sizes[which];
}

// reads `bytes` and nothing else, in 1, 4 or 8 streams a thread: what memory can deliver
int32_t lmforge_read(const uint8_t* data, int64_t bytes, int64_t threads, int64_t streams) {
    std::atomic<int32_t> all{0};
    pool.run((int)threads, [&](const Team& team) {
        int64_t first, last;
        team.share(bytes, 4096, &first, &last);
        auto f = streams == 8 ? read_streams<8> : streams == 4 ? read_streams<4> : read_streams<1>;
        all += f(data + first, last - first);
    });
    return all;
}

// y (tokens, O) = x (tokens, I) times m
void lmforge_linear(const Matrix* m, const float* x, int64_t tokens, float* y, int64_t threads) {
    Sizes s{1, 1, 1, 1, 1, threads};
    widen(*m, s);
    Carver count{nullptr};
    scratch_of(count, s, tokens);
    Carver c{workspace(count.used)};
    Scratch scratch = scratch_of(c, s, tokens);
    pool.run((int)threads, [&](const Team& team) {
        Scratch own = scratch;
        apply(*m, x, tokens, y, m->rows, own, team);
    });
}

// rows `index` (count) of a matrix of codes, as floats (count, I)
void lmforge_rows(const Matrix* m, const int64_t* index, int64_t count, float* y) {
    for (int64_t n = 0; n < count; n++) decode_row(*m, index[n], y + n * m->cols);
}

// one query of each row over its cache: q (rows, heads, E) as it is scaled and rotated, positions (rows) → out
void lmforge_attend(const Cache* cache, const float* q, const int64_t* positions, int64_t rows, int64_t heads,
                    int64_t kv_heads, int64_t e, float* out, int64_t threads) {
    int64_t group = heads / kv_heads, most = cache->window;
    float* scores = (float*)workspace(threads * most * sizeof(float));
    pool.run((int)threads, [&](const Team& team) {
        int64_t first, last;
        team.share(rows * kv_heads, 1, &first, &last);
        for (int64_t i = first; i < last; i++) {
            int64_t count = std::min(positions[i / kv_heads] + 1, cache->window), at = i * group * e;
            attend(*cache, kv_heads, e, i / kv_heads, i % kv_heads, count, q + at, group, out + at, scores + team.id * most);
        }
    });
}

// a token of each row: x (rows, D) its embedding → logits (rows, V); positions (rows); caches by layer
void lmforge_step(const Network* net, const Cache* caches, float* x, const int64_t* positions, int64_t rows,
                  float* logits, int64_t threads) {
    Sizes s{net->width, net->width, 1, 1, 1, threads};
    int64_t wide = 1, mixed = 1, scores = 1;
    for (int64_t n = 0; n < net->layers; n++) {
        const Layer& l = net->layer[n];
        if (l.heads) {
            widen(l.qkv, s), widen(l.out, s);
            wide = std::max(wide, l.qkv.rows), mixed = std::max(mixed, l.heads * net->head_width);
            int64_t own = (l.heads / l.kv_heads + 1) * net->head_width;
            scores = std::max(scores, own + std::max(caches[n].window, l.heads * net->head_width) + 16);
        }
        if (l.units) widen(l.up, s), widen(l.down, s), wide = std::max(wide, l.up.rows), mixed = std::max(mixed, l.units);
    }
    widen(net->head, s);
    Carver c{nullptr};
    Buffers b;
    for (int pass = 0; pass < 2; pass++) {  // first to count, then to cut
        if (pass) c = Carver{workspace(c.used)};
        int64_t d = net->width;
        b.normed = c.take<float>(rows * d), b.branch = c.take<float>(rows * d), b.other = c.take<float>(rows * d);
        b.wide = c.take<float>(rows * wide), b.mixed = c.take<float>(rows * mixed);
        b.scores = c.take<float>(threads * scores), b.most_scores = scores;
        b.scratch = scratch_of(c, s, rows);
    }
    b.x = x;
    pool.run((int)threads, [&](const Team& team) {
        Buffers own = b;
        for (int64_t n = 0; n < net->layers; n++) run_layer(*net, net->layer[n], caches[n], positions, rows, own, team);
        int64_t first, last, d = net->width;
        team.share(rows, 1, &first, &last);
        for (int64_t t = first; t < last; t++) normalise(net->norm, own.x + t * d, d, own.normed + t * d);
        team.barrier();
        apply(net->head, own.normed, rows, logits, net->vocabulary, own.scratch, team);
    });
}
}
