/* What the generated programs are written in: integer types, and operations that C would leave undefined. */

typedef unsigned char u8;
typedef signed char s8;
typedef unsigned short u16;
typedef signed short s16;
typedef unsigned int u32;
typedef signed int s32;
typedef unsigned long long u64;
typedef signed long long s64;
typedef unsigned __int128 u128;

/* The globals of a program, in one section, so that they can be compared byte for byte. */
#define GLOBAL(seed) __attribute__((section("globals_" #seed)))

/* For every type: division by anything, and results that say whether they wrapped. */
#define CHECKED(T, name)                                                     \
  static inline T name##_checked_##T(T a, T b) {                             \
    T result;                                                                \
    return __builtin_##name##_overflow(a, b, &result) ? (T)~result : result; \
  }
#define COMMON(T)                                               \
  CHECKED(T, add)                                               \
  CHECKED(T, sub)                                               \
  CHECKED(T, mul)                                               \
  static inline T min_##T(T a, T b) { return a < b ? a : b; }   \
  static inline T max_##T(T a, T b) { return a > b ? a : b; }
#define UNSIGNED(T)                                                \
  COMMON(T)                                                        \
  static inline T div_##T(T a, T b) { return b == 0 ? a : a / b; } \
  static inline T mod_##T(T a, T b) { return b == 0 ? a : a % b; }
/* Divided by -1, the least number would trap. */
#define SIGNED(T)                                                             \
  COMMON(T)                                                                   \
  static inline T div_##T(T a, T b) { return b == 0 || b == -1 ? a : a / b; } \
  static inline T mod_##T(T a, T b) { return b == 0 || b == -1 ? a : a % b; }
UNSIGNED(u8)
UNSIGNED(u16)
UNSIGNED(u32)
UNSIGNED(u64)
SIGNED(s8)
SIGNED(s16)
SIGNED(s32)
SIGNED(s64)

#define BITS(n)                                                                              \
  static inline u##n rol##n(u##n a, u32 by) { return a << by | a >> (-by & (n - 1)); }       \
  static inline u##n lowest##n(u##n a) { return a & -a; }                                    \
  static inline u##n without_lowest##n(u##n a) { return a & (a - 1); }
BITS(8)
BITS(16)
BITS(32)
BITS(64)

/* __builtin_popcount would call libgcc where the CPU has no instruction for it. */
static inline u32 popcount64(u64 a) {
  a -= a >> 1 & 0x5555555555555555;
  a = (a & 0x3333333333333333) + (a >> 2 & 0x3333333333333333);
  return ((a + (a >> 4)) & 0x0f0f0f0f0f0f0f0f) * 0x0101010101010101 >> 56;
}
static inline u32 popcount32(u32 a) { return popcount64(a); }

static inline u64 fold(u128 a) { return (u64)(a >> 64) ^ (u64)a; }
static inline u128 join(u64 high, u64 low) { return (u128)high << 64 | low; }
static inline u64 high_u64(u64 a, u64 b) { return (u128)a * b >> 64; }
static inline s64 high_s64(s64 a, s64 b) { return (__int128)a * b >> 64; }
static inline u64 sum128(u64 a, u64 b, u64 c, u64 d) { return fold(join(a, b) + join(c, d)); }
static inline u64 difference128(u64 a, u64 b, u64 c, u64 d) { return fold(join(a, b) - join(c, d)); }
static inline u64 left128(u64 a, u64 b, u32 by) { return fold(join(a, b) << (by & 127)); }
static inline u64 right128(u64 a, u64 b, u32 by) { return fold((__int128)join(a, b) >> (by & 127)); }

#ifdef __ADX__
static inline u64 carried(u64 a, u64 b, u64 c, u64 d) {
  u64 low, high;
  u8 carry = __builtin_ia32_addcarryx_u64(0, a, b, &low);
  carry = __builtin_ia32_addcarryx_u64(carry, c, d, &high);
  return low ^ high ^ carry;
}
#endif
