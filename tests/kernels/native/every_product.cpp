// Every kind of product on numbers drawn by a fixed rule; prints the path taken and a hash of the bits of all results.
// Built for different processors it has to print the same hash.
#include <cstdio>
#include <vector>
#include "kernels.cpp"

static uint64_t state = 1;
static uint32_t draw() { return (uint32_t)((state = state * 6364136223846793005ull + 1442695040888963407ull) >> 33); }
static float number() { return (float)((int32_t)(draw() % 2001) - 1000) / 257.0f; }
static std::vector<float> numbers(int64_t n) {
    std::vector<float> all(n);
    for (auto& x : all) x = number();
    return all;
}
static uint64_t hash = 1469598103934665603ull;
static void take(const std::vector<float>& y) {
    for (float value : y) {
        uint32_t bits;
        memcpy(&bits, &value, 4);
        hash = (hash ^ bits) * 1099511628211ull;
    }
}
static void run(const Matrix& m) {
    for (int64_t tokens : {1, 2, 3, 5, 9}) {
        auto x = numbers(tokens * m.cols);
        std::vector<float> y(tokens * m.rows);
        lmforge_linear(&m, x.data(), tokens, y.data(), 1);
        take(y);
    }
}

int main() {
    const int64_t rows = 37, cols = 150;
    auto bias = numbers(rows);
    struct { int64_t base, planes, group, wide, offsets; } kinds[] = {
        {8, 0, 160, 1, CONSTANT}, {8, 0, 32, 0, LEAST}, {4, 0, 32, 0, ZEROS}, {4, 0, 16, 0, LEAST},
        {4, 1, 32, 0, CONSTANT}, {4, 2, 64, 0, ZEROS}, {2, 1, 32, 0, ZEROS}};
    Matrix whole{};
    std::vector<uint8_t> kept, bytes;
    for (auto& k : kinds) {
        Matrix m{};
        m.kind = CODES, m.rows = rows, m.cols = cols, m.group = k.group, m.groups = (cols + k.group - 1) / k.group;
        m.base = k.base, m.planes = k.planes, m.wide_scale = k.wide, m.offsets = k.offsets, m.zero = 128;
        m.padded = m.group * m.groups, m.threshold = -1, m.bias = bias.data(), m.whole_row = k.group == 160;
        bytes.assign((rows + 15) / 16 * panel_bytes(m), 0);
        for (auto& byte : bytes) byte = (uint8_t)draw();
        int64_t step = panel_bytes(m) / m.groups;  // scales have to be numbers
        for (size_t at = 0; at < bytes.size(); at += step) {
            for (int i = 0; i < 16; i++) {
                float scale = 0.01f + (draw() % 100) / 300.0f;
                uint16_t half = (uint16_t)(0x2000 + draw() % 0x1800);
                if (k.wide) memcpy(&bytes[at + 4 * i], &scale, 4);
                else memcpy(&bytes[at + 2 * i], &half, 2);
                if (k.offsets == LEAST) memcpy(&bytes[at + 32 + 2 * i], &half, 2);
            }
        }
        m.data = bytes.data();
        run(m);
        for (int64_t r : {0, 17, 36}) {
            std::vector<float> y(cols);
            decode_row(m, r, y.data());
            take(y);
        }
        if (k.wide) whole = m, kept = bytes, whole.data = kept.data();
    }
    Matrix floats{};
    auto weight = numbers(rows * cols);
    floats.kind = FLOATS, floats.rows = rows, floats.cols = cols, floats.data = weight.data(), floats.bias = bias.data();
    floats.threshold = -1;
    run(floats);
    Matrix columns{};
    std::vector<uint8_t> codes(cols * 64);
    for (auto& code : codes) code = (uint8_t)draw();
    auto scales = numbers(64);
    columns.kind = COLUMNS, columns.rows = rows, columns.cols = cols, columns.padded = 64, columns.group = 160;
    columns.zero = 128, columns.whole_row = 1, columns.threshold = 3.4f, columns.data = codes.data();
    columns.scale = scales.data(), columns.first = &whole;
    run(columns);
    auto narrow = numbers(3 * cols), wide = numbers(rows * 3), least = numbers(rows);
    for (auto& x : least) x -= 40;
    Matrix a = floats, b = floats, pair{}, chosen{};
    a.rows = 3, a.data = narrow.data(), a.bias = nullptr, b.cols = 3, b.data = wide.data(), b.bias = least.data();
    pair.kind = PAIR, pair.rows = rows, pair.cols = cols, pair.first = &a, pair.second = &b;
    run(pair);
    std::vector<uint8_t> apart(rows * 192, 128);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) apart[192 * i + j] = (uint8_t)draw();
    chosen.kind = CHOSEN, chosen.rows = rows, chosen.cols = cols, chosen.group = rows, chosen.padded = 192;
    chosen.first = &whole, chosen.second = &pair, chosen.data = apart.data(), chosen.scale = scales.data();
    run(chosen);
    chosen.first = &floats;
    run(chosen);
    std::vector<uint64_t> masks(rows * 3);
    std::vector<int64_t> starts(rows);
    std::vector<float> left;
    for (int64_t i = 0; i < rows; i++) {
        starts[i] = left.size();
        for (int64_t j = 0; j < cols; j++)
            if (draw() % 4 == 0) masks[3 * i + j / 64] |= 1ull << j % 64, left.push_back(number());
    }
    left.resize(left.size() + 64);
    Matrix sparse{};
    sparse.kind = SPARSE, sparse.rows = rows, sparse.cols = cols, sparse.data = left.data(), sparse.masks = masks.data();
    sparse.starts = starts.data(), sparse.first = &floats;
    run(sparse);
    for (int64_t each : {1, 4}) {  // a cache of 8 bits and of floats
        int64_t e = 40, slots = 9;
        std::vector<float> store(2 * 2 * slots * e), by(2 * 2 * slots), q = numbers(4 * e), out(4 * e), scores(slots);
        Cache c{store.data(), each == 1 ? by.data() : nullptr, 1, slots, slots - 1, each};
        for (int64_t head = 0; head < 2; head++)
            for (int64_t slot = 0; slot < slots - 1; slot++)
                for (int64_t part = 0; part < 2; part++) keep(c, 2, e, part, 0, head, slot, numbers(e).data());
        for (int64_t head = 0; head < 2; head++)
            attend(c, 2, e, 0, head, slots - 1, q.data() + 2 * head * e, 2, out.data() + 2 * head * e, scores.data());
        take(out);
    }
    printf("%s %016llx\n", lmforge_path(), (unsigned long long)hash);
}
