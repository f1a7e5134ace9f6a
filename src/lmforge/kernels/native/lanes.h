// Sixteen numbers at a time, on whatever the processor has: AVX-512 with VNNI, AVX2, NEON, or plain C++.
//
// Every operation rounds as the others' does, and `sum` adds in one fixed order, so that a result has the same bits on
// each of them. Built with -ffp-contract=off: a product is fused with a sum where `fma` says so, nowhere else.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && \
    defined(__AVX512VNNI__) && !defined(LMFORGE_PLAIN)
#define LMFORGE_AVX512 1
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && !defined(LMFORGE_PLAIN)
#define LMFORGE_AVX2 1
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON) && !defined(LMFORGE_PLAIN)
#define LMFORGE_NEON 1
#include <arm_neon.h>
#endif

constexpr int LANES = 16;

#if LMFORGE_AVX512
constexpr const char* PATH = "avx512-vnni";
struct F { __m512 v; };    // 16 floats
struct I { __m512i v; };   // 16 int32
struct U { __m512i v; };   // 64 bytes: of 16 rows, four neighbouring columns each
static inline F set(float x) { return {_mm512_set1_ps(x)}; }
static inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, F x) { _mm512_storeu_ps(p, x.v); }
static inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline F mul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline F add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline F half(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
static inline F bytes(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}
static inline float sum(F x) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
static inline I izero() { return {_mm512_setzero_si512()}; }
static inline I iload(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
static inline void istore(int32_t* p, I x) { _mm512_storeu_si512(p, x.v); }
static inline I iset(int32_t x) { return {_mm512_set1_epi32(x)}; }
static inline I iadd(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
static inline I isub(I a, I b) { return {_mm512_sub_epi32(a.v, b.v)}; }
static inline I imul(I a, I b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
static inline I iwiden(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
static inline F floats(I x) { return {_mm512_cvtepi32_ps(x.v)}; }
static inline U uload(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
template <int SHIFT, int MASK> static inline U field(U x) {
    return {_mm512_and_si512(_mm512_srli_epi16(x.v, SHIFT), _mm512_set1_epi8(MASK))};
}
template <int VALUE> static inline U plane(U x, const uint8_t* p) {
    uint64_t bits;
    memcpy(&bits, p, 8);
    return {_mm512_mask_add_epi8(x.v, (__mmask64)bits, x.v, _mm512_set1_epi8(VALUE))};
}
// codes of 8 bits are multiplied as codes − CENTRE
constexpr int CENTRE = 0;
// acc + the products of 4 columns: w of unsigned codes, x of 4 signed bytes. Bits: how wide the codes are
template <int BITS> static inline I dot(I acc, U w, const int8_t* x) {
    int32_t four;
    memcpy(&four, x, 4);
    return {_mm512_dpbusd_epi32(acc.v, w.v, _mm512_set1_epi32(four))};
}
// acc + the products of 64 columns of one row: w codes of 8 bits, x signed bytes
static inline I dot_row(I acc, const uint8_t* w, const int8_t* x) {
    return {_mm512_dpbusd_epi32(acc.v, _mm512_loadu_si512(w), _mm512_loadu_si512(x))};
}
// what is left of 16 numbers, one behind the other, in the places of its bits; 0 elsewhere
static inline F expand(const float* p, uint16_t bits) { return {_mm512_maskz_expand_ps(bits, _mm512_loadu_ps(p))}; }
// rows a, b, c, d of 64 codes each → 4 × (16 outputs, one byte of each row); the order within is that of `spread`
static inline void weave(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d, U* out) {
    __m512i A = _mm512_loadu_si512(a), B = _mm512_loadu_si512(b), C = _mm512_loadu_si512(c), D = _mm512_loadu_si512(d);
    __m512i ab0 = _mm512_unpacklo_epi8(A, B), ab1 = _mm512_unpackhi_epi8(A, B);
    __m512i cd0 = _mm512_unpacklo_epi8(C, D), cd1 = _mm512_unpackhi_epi8(C, D);
    out[0].v = _mm512_unpacklo_epi16(ab0, cd0);
    out[1].v = _mm512_unpackhi_epi16(ab0, cd0);
    out[2].v = _mm512_unpacklo_epi16(ab1, cd1);
    out[3].v = _mm512_unpackhi_epi16(ab1, cd1);
}
// where output 16·part + lane of `weave` stands among the 64
static inline int spread(int part, int lane) { return 16 * (lane / 4) + 4 * part + lane % 4; }

#elif LMFORGE_AVX2
constexpr const char* PATH = "avx2";
struct F { __m256 a, b; };
struct I { __m256i a, b; };
struct U { __m256i a, b; };
static inline F set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void store(float* p, F x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
static inline F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b)}; }
static inline F mul(F a, F b) { return {_mm256_mul_ps(a.a, b.a), _mm256_mul_ps(a.b, b.b)}; }
static inline F add(F a, F b) { return {_mm256_add_ps(a.a, b.a), _mm256_add_ps(a.b, b.b)}; }
static inline F half(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
static inline F bytes(const int8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}
static inline float sum(F x) {
    __m256 a = _mm256_add_ps(x.a, x.b);
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
static inline I izero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static inline I iload(const int32_t* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))};
}
static inline void istore(int32_t* p, I x) {
    _mm256_storeu_si256((__m256i*)p, x.a), _mm256_storeu_si256((__m256i*)(p + 8), x.b);
}
static inline I iset(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline I iadd(I a, I b) { return {_mm256_add_epi32(a.a, b.a), _mm256_add_epi32(a.b, b.b)}; }
static inline I isub(I a, I b) { return {_mm256_sub_epi32(a.a, b.a), _mm256_sub_epi32(a.b, b.b)}; }
static inline I imul(I a, I b) { return {_mm256_mullo_epi32(a.a, b.a), _mm256_mullo_epi32(a.b, b.b)}; }
static inline I iwiden(const uint8_t* p) {
    return {_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)),
            _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8)))};
}
static inline F floats(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
static inline U uload(const uint8_t* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
}
template <int SHIFT, int MASK> static inline U field(U x) {
    __m256i mask = _mm256_set1_epi8(MASK);
    return {_mm256_and_si256(_mm256_srli_epi16(x.a, SHIFT), mask), _mm256_and_si256(_mm256_srli_epi16(x.b, SHIFT), mask)};
}
template <int VALUE> static inline __m256i with_bits(__m256i x, const uint8_t* p) {
    int32_t word;
    memcpy(&word, p, 4);
    const __m256i which = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,
                                           2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i bit = _mm256_set1_epi64x(0x8040201008040201LL);
    __m256i each = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(word), which), bit);
    __m256i there = _mm256_cmpeq_epi8(each, bit);
    return _mm256_or_si256(x, _mm256_and_si256(there, _mm256_set1_epi8((char)VALUE)));
}
template <int VALUE> static inline U plane(U x, const uint8_t* p) {
    return {with_bits<VALUE>(x.a, p), with_bits<VALUE>(x.b, p + 4)};
}
constexpr int CENTRE = 128;
// Pairs of products are added in 16 bits. Codes of up to 6 bits: 2·63·127 fits. Codes of 8 bits are taken about their
// centre, −128 to 127, and the sign goes over to x (−127 to 127): 2·128·127 = 32,512 fits too; nothing saturates.
template <int BITS> static inline __m256i dot_half(__m256i acc, __m256i w, __m256i x) {
    if (BITS == 8) {
        w = _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80));
        x = _mm256_sign_epi8(x, w);
        w = _mm256_abs_epi8(w);
    }
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
template <int BITS> static inline I dot(I acc, U w, const int8_t* x) {
    int32_t four;
    memcpy(&four, x, 4);
    __m256i all = _mm256_set1_epi32(four);
    return {dot_half<BITS>(acc.a, w.a, all), dot_half<BITS>(acc.b, w.b, all)};
}
static inline I dot_row(I acc, const uint8_t* w, const int8_t* x) {
    __m256i x0 = _mm256_loadu_si256((const __m256i*)x), x1 = _mm256_loadu_si256((const __m256i*)(x + 32));
    U all = uload(w);
    return {dot_half<8>(acc.a, all.a, x0), dot_half<8>(acc.b, all.b, x1)};
}
static inline void weave(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d, U* out) {
    for (int part = 0; part < 2; part++) {
        __m256i A = _mm256_loadu_si256((const __m256i*)(a + 32 * part)), B = _mm256_loadu_si256((const __m256i*)(b + 32 * part));
        __m256i C = _mm256_loadu_si256((const __m256i*)(c + 32 * part)), D = _mm256_loadu_si256((const __m256i*)(d + 32 * part));
        __m256i ab0 = _mm256_unpacklo_epi8(A, B), ab1 = _mm256_unpackhi_epi8(A, B);
        __m256i cd0 = _mm256_unpacklo_epi8(C, D), cd1 = _mm256_unpackhi_epi8(C, D);
        out[2 * part].a = _mm256_unpacklo_epi16(ab0, cd0);
        out[2 * part].b = _mm256_unpackhi_epi16(ab0, cd0);
        out[2 * part + 1].a = _mm256_unpacklo_epi16(ab1, cd1);
        out[2 * part + 1].b = _mm256_unpackhi_epi16(ab1, cd1);
    }
}
static inline int spread(int part, int lane) {
    return 32 * (part / 2) + 16 * (lane % 8 / 4) + 8 * (part % 2) + 4 * (lane / 8) + lane % 4;
}

#elif LMFORGE_NEON
#define EACH for (int i = 0; i < 4; i++)
struct F { float32x4_t v[4]; };
struct I { int32x4_t v[4]; };
struct U { uint8x16_t v[4]; };
static inline F set(float x) { F r; EACH r.v[i] = vdupq_n_f32(x); return r; }
static inline F load(const float* p) { F r; EACH r.v[i] = vld1q_f32(p + 4 * i); return r; }
static inline void store(float* p, F x) { EACH vst1q_f32(p + 4 * i, x.v[i]); }
static inline F fma(F a, F b, F c) { F r; EACH r.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]); return r; }
static inline F mul(F a, F b) { F r; EACH r.v[i] = vmulq_f32(a.v[i], b.v[i]); return r; }
static inline F add(F a, F b) { F r; EACH r.v[i] = vaddq_f32(a.v[i], b.v[i]); return r; }
static inline F half(const uint16_t* p) {
    F r;
    EACH r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
    return r;
}
static inline F bytes(const int8_t* p) {
    int8x16_t all = vld1q_s8(p);
    int16x8_t low = vmovl_s8(vget_low_s8(all)), high = vmovl_s8(vget_high_s8(all));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))};
}
static inline float sum(F x) {
    float32x4_t b = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
    float32x2_t c = vadd_f32(vget_low_f32(b), vget_high_f32(b));
    return vget_lane_f32(c, 0) + vget_lane_f32(c, 1);
}
static inline I izero() { I r; EACH r.v[i] = vdupq_n_s32(0); return r; }
static inline I iload(const int32_t* p) { I r; EACH r.v[i] = vld1q_s32(p + 4 * i); return r; }
static inline void istore(int32_t* p, I x) { EACH vst1q_s32(p + 4 * i, x.v[i]); }
static inline I iset(int32_t x) { I r; EACH r.v[i] = vdupq_n_s32(x); return r; }
static inline I iadd(I a, I b) { I r; EACH r.v[i] = vaddq_s32(a.v[i], b.v[i]); return r; }
static inline I isub(I a, I b) { I r; EACH r.v[i] = vsubq_s32(a.v[i], b.v[i]); return r; }
static inline I imul(I a, I b) { I r; EACH r.v[i] = vmulq_s32(a.v[i], b.v[i]); return r; }
static inline I iwiden(const uint8_t* p) {
    I r;
    for (int i = 0; i < 16; i += 4) {
        int32_t four[4] = {p[i], p[i + 1], p[i + 2], p[i + 3]};
        r.v[i / 4] = vld1q_s32(four);
    }
    return r;
}
static inline F floats(I x) { F r; EACH r.v[i] = vcvtq_f32_s32(x.v[i]); return r; }
static inline U uload(const uint8_t* p) { U r; EACH r.v[i] = vld1q_u8(p + 16 * i); return r; }
template <int SHIFT, int MASK> static inline U field(U x) {
    EACH {
        if constexpr (SHIFT > 0) x.v[i] = vshrq_n_u8(x.v[i], SHIFT);
        x.v[i] = vandq_u8(x.v[i], vdupq_n_u8(MASK));
    }
    return x;
}
template <int VALUE> static inline U plane(U x, const uint8_t* p) {
    const uint8_t places[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8x16_t place = vld1q_u8(places);
    EACH {
        uint8x16_t bits = vcombine_u8(vdup_n_u8(p[2 * i]), vdup_n_u8(p[2 * i + 1]));
        x.v[i] = vaddq_u8(x.v[i], vandq_u8(vtstq_u8(bits, place), vdupq_n_u8(VALUE)));
    }
    return x;
}
constexpr int CENTRE = 128;  // codes of 8 bits are taken about it, as signed ones
// four sums of four products each
#if defined(__ARM_FEATURE_DOTPROD)
constexpr const char* PATH = "neon-dotprod";
static inline int32x4_t dot_quarter(int32x4_t acc, int8x16_t w, int8x16_t x) { return vdotq_s32(acc, w, x); }
#else
constexpr const char* PATH = "neon";
static inline int32x4_t dot_quarter(int32x4_t acc, int8x16_t w, int8x16_t x) {
    int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)));
    int32x4_t high = vpaddlq_s16(vmull_s8(vget_high_s8(w), vget_high_s8(x)));
    return vaddq_s32(acc, vpaddq_s32(low, high));
}
#endif
template <int BITS> static inline int8x16_t signed_codes(uint8x16_t w) {
    return vreinterpretq_s8_u8(BITS == 8 ? veorq_u8(w, vdupq_n_u8(0x80)) : w);
}
template <int BITS> static inline I dot(I acc, U w, const int8_t* x) {
    int32_t four;
    memcpy(&four, x, 4);
    int8x16_t all = vreinterpretq_s8_s32(vdupq_n_s32(four));
    EACH acc.v[i] = dot_quarter(acc.v[i], signed_codes<BITS>(w.v[i]), all);
    return acc;
}
static inline I dot_row(I acc, const uint8_t* w, const int8_t* x) {
    EACH acc.v[i] = dot_quarter(acc.v[i], signed_codes<8>(vld1q_u8(w + 16 * i)), vld1q_s8(x + 16 * i));
    return acc;
}
static inline void weave(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d, U* out) {
    for (int n = 0; n < 4; n++) {
        uint8_t woven[64];
        uint8x16x4_t four = {vld1q_u8(a + 16 * n), vld1q_u8(b + 16 * n), vld1q_u8(c + 16 * n), vld1q_u8(d + 16 * n)};
        vst4q_u8(woven, four);
        out[n] = uload(woven);
    }
}
static inline int spread(int part, int lane) { return 16 * part + lane; }
#undef EACH

#else
constexpr const char* PATH = "plain";
struct F { float v[16]; };
struct I { int32_t v[16]; };
struct U { uint8_t v[64]; };
#define EACH for (int i = 0; i < 16; i++)
static inline F set(float x) { F r; EACH r.v[i] = x; return r; }
static inline F load(const float* p) { F r; EACH r.v[i] = p[i]; return r; }
static inline void store(float* p, F x) { EACH p[i] = x.v[i]; }
static inline F fma(F a, F b, F c) { F r; EACH r.v[i] = std::fma(a.v[i], b.v[i], c.v[i]); return r; }
static inline F mul(F a, F b) { F r; EACH r.v[i] = a.v[i] * b.v[i]; return r; }
static inline F add(F a, F b) { F r; EACH r.v[i] = a.v[i] + b.v[i]; return r; }
static inline float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
    float value;
    if (exponent == 0) value = std::ldexp((float)mantissa, -24);
    else {
        uint32_t bits = exponent == 31 ? 0x7F800000u | (mantissa << 13) : ((exponent + 112) << 23) | (mantissa << 13);
        memcpy(&value, &bits, 4);
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits |= sign;
    memcpy(&value, &bits, 4);
    return value;
}
static inline F half(const uint16_t* p) { F r; EACH r.v[i] = half_to_float(p[i]); return r; }
static inline F bytes(const int8_t* p) { F r; EACH r.v[i] = p[i]; return r; }
static inline float sum(F x) {
    for (int n = 8; n; n /= 2)
        for (int i = 0; i < n; i++) x.v[i] = x.v[i] + x.v[i + n];
    return x.v[0];
}
static inline I izero() { I r; EACH r.v[i] = 0; return r; }
static inline I iload(const int32_t* p) { I r; EACH r.v[i] = p[i]; return r; }
static inline void istore(int32_t* p, I x) { EACH p[i] = x.v[i]; }
static inline I iset(int32_t x) { I r; EACH r.v[i] = x; return r; }
static inline I iadd(I a, I b) { I r; EACH r.v[i] = a.v[i] + b.v[i]; return r; }
static inline I isub(I a, I b) { I r; EACH r.v[i] = a.v[i] - b.v[i]; return r; }
static inline I imul(I a, I b) { I r; EACH r.v[i] = a.v[i] * b.v[i]; return r; }
static inline I iwiden(const uint8_t* p) { I r; EACH r.v[i] = p[i]; return r; }
static inline F floats(I x) { F r; EACH r.v[i] = (float)x.v[i]; return r; }
static inline U uload(const uint8_t* p) { U r; memcpy(r.v, p, 64); return r; }
template <int SHIFT, int MASK> static inline U field(U x) {
    for (int i = 0; i < 64; i++) x.v[i] = (x.v[i] >> SHIFT) & MASK;
    return x;
}
template <int VALUE> static inline U plane(U x, const uint8_t* p) {
    for (int i = 0; i < 64; i++) x.v[i] = x.v[i] + VALUE * ((p[i / 8] >> (i % 8)) & 1);
    return x;
}
constexpr int CENTRE = 0;
template <int BITS> static inline I dot(I acc, U w, const int8_t* x) {
    EACH for (int j = 0; j < 4; j++) acc.v[i] += (int32_t)w.v[4 * i + j] * x[j];
    return acc;
}
static inline I dot_row(I acc, const uint8_t* w, const int8_t* x) {
    EACH for (int j = 0; j < 4; j++) acc.v[i] += (int32_t)w[4 * i + j] * x[4 * i + j];
    return acc;
}
static inline void weave(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d, U* out) {
    for (int n = 0; n < 4; n++)
        EACH {
            out[n].v[4 * i] = a[16 * n + i], out[n].v[4 * i + 1] = b[16 * n + i];
            out[n].v[4 * i + 2] = c[16 * n + i], out[n].v[4 * i + 3] = d[16 * n + i];
        }
}
static inline int spread(int part, int lane) { return 16 * part + lane; }
#endif

#if !LMFORGE_AVX512
static inline F expand(const float* p, uint16_t bits) {
    float x[16];
    for (int i = 0; i < 16; i++) x[i] = bits >> i & 1 ? *p++ : 0.0f;
    return load(x);
}
#endif
static inline int count_bits(uint64_t bits) {
#if defined(_MSC_VER)
    int count = 0;
    for (; bits; bits &= bits - 1) count++;
    return count;
#else
    return __builtin_popcountll(bits);
#endif
}

// e^x within 2 units in the last place, by the same steps on each path: 2^n · 2^f, |f| ≤ 1/2 (as banded_numba)
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float y = x * 1.44269504f;
    int32_t n = (int32_t)(y + (y < 0 ? -0.5f : 0.5f));
    float f = std::fma(x, 1.44269504f, -(float)n);
    f = std::fma(x, 1.925963033500e-8f, f);
    float p = 1.535336188e-4f;
    p = std::fma(p, f, 1.339887440e-3f);
    p = std::fma(p, f, 9.618437357e-3f);
    p = std::fma(p, f, 5.550332472e-2f);
    p = std::fma(p, f, 2.402264791e-1f);
    p = std::fma(p, f, 6.931472028e-1f);
    p = std::fma(p, f, 1.0f);
    int32_t bits = (n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return p * scale;
}
