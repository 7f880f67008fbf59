// WebAssembly opcodes by the specification's own names (core specification 2.0, appendix "Index of
// Instructions", and the tail-call extension). The key is the name: nothing is typed twice.

/** Value types. */
export const TYPE = { i32: 0x7f, i64: 0x7e, f32: 0x7d, f64: 0x7c, funcref: 0x70 } as const;
export type ValueType = "i32" | "i64" | "f32" | "f64";

/** Instructions without immediates: operands from the stack, result to the stack. */
export const OP = {
  unreachable: 0x00,
  nop: 0x01,
  return: 0x0f,
  drop: 0x1a,
  select: 0x1b,
  "i32.eqz": 0x45,
  "i32.eq": 0x46,
  "i32.ne": 0x47,
  "i32.lt_s": 0x48,
  "i32.lt_u": 0x49,
  "i32.gt_s": 0x4a,
  "i32.gt_u": 0x4b,
  "i32.le_s": 0x4c,
  "i32.le_u": 0x4d,
  "i32.ge_s": 0x4e,
  "i32.ge_u": 0x4f,
  "i64.eqz": 0x50,
  "i64.eq": 0x51,
  "i64.ne": 0x52,
  "i64.lt_s": 0x53,
  "i64.lt_u": 0x54,
  "i64.gt_s": 0x55,
  "i64.gt_u": 0x56,
  "i64.le_s": 0x57,
  "i64.le_u": 0x58,
  "i64.ge_s": 0x59,
  "i64.ge_u": 0x5a,
  "i32.clz": 0x67,
  "i32.ctz": 0x68,
  "i32.popcnt": 0x69,
  "i32.add": 0x6a,
  "i32.sub": 0x6b,
  "i32.mul": 0x6c,
  "i32.div_s": 0x6d,
  "i32.div_u": 0x6e,
  "i32.rem_s": 0x6f,
  "i32.rem_u": 0x70,
  "i32.and": 0x71,
  "i32.or": 0x72,
  "i32.xor": 0x73,
  "i32.shl": 0x74,
  "i32.shr_s": 0x75,
  "i32.shr_u": 0x76,
  "i32.rotl": 0x77,
  "i32.rotr": 0x78,
  "i64.clz": 0x79,
  "i64.ctz": 0x7a,
  "i64.popcnt": 0x7b,
  "i64.add": 0x7c,
  "i64.sub": 0x7d,
  "i64.mul": 0x7e,
  "i64.div_s": 0x7f,
  "i64.div_u": 0x80,
  "i64.rem_s": 0x81,
  "i64.rem_u": 0x82,
  "i64.and": 0x83,
  "i64.or": 0x84,
  "i64.xor": 0x85,
  "i64.shl": 0x86,
  "i64.shr_s": 0x87,
  "i64.shr_u": 0x88,
  "i64.rotl": 0x89,
  "i64.rotr": 0x8a,
  "i32.wrap_i64": 0xa7,
  "i64.extend_i32_s": 0xac,
  "i64.extend_i32_u": 0xad,
  "f64.convert_i32_s": 0xb7,
  "f64.convert_i32_u": 0xb8,
  "f64.convert_i64_s": 0xb9,
  "f64.convert_i64_u": 0xba,
  "i64.trunc_f64_s": 0xb0,
  "i64.reinterpret_f64": 0xbd,
  "f64.reinterpret_i64": 0xbf,
  "i32.extend8_s": 0xc0,
  "i32.extend16_s": 0xc1,
  "i64.extend8_s": 0xc2,
  "i64.extend16_s": 0xc3,
  "i64.extend32_s": 0xc4,
} as const;
export type OpName = keyof typeof OP;

/** Loads: address from the stack, alignment hint and constant offset as immediates. */
export const LOAD = {
  "i32.load": 0x28,
  "i64.load": 0x29,
  "i32.load8_s": 0x2c,
  "i32.load8_u": 0x2d,
  "i32.load16_s": 0x2e,
  "i32.load16_u": 0x2f,
  "i64.load8_s": 0x30,
  "i64.load8_u": 0x31,
  "i64.load16_s": 0x32,
  "i64.load16_u": 0x33,
  "i64.load32_s": 0x34,
  "i64.load32_u": 0x35,
} as const;
export type LoadName = keyof typeof LOAD;

/** Stores: address and value from the stack. */
export const STORE = {
  "i32.store": 0x36,
  "i64.store": 0x37,
  "i32.store8": 0x3a,
  "i32.store16": 0x3b,
  "i64.store8": 0x3c,
  "i64.store16": 0x3d,
  "i64.store32": 0x3e,
} as const;
export type StoreName = keyof typeof STORE;

/** Instructions with immediates, which the builder has a method for each. */
export const CONTROL = {
  block: 0x02,
  loop: 0x03,
  if: 0x04,
  else: 0x05,
  end: 0x0b,
  br: 0x0c,
  br_if: 0x0d,
  br_table: 0x0e,
  call: 0x10,
  call_indirect: 0x11,
  return_call: 0x12,
  return_call_indirect: 0x13,
  "local.get": 0x20,
  "local.set": 0x21,
  "local.tee": 0x22,
  "global.get": 0x23,
  "global.set": 0x24,
  "table.get": 0x25,
  "table.set": 0x26,
  "memory.size": 0x3f,
  "memory.grow": 0x40,
  "i32.const": 0x41,
  "i64.const": 0x42,
  "f64.const": 0x44,
  prefixFC: 0xfc,
  prefixFD: 0xfd,
} as const;

/** Second bytes after the 0xfc prefix. */
export const BULK = { "memory.copy": 10, "memory.fill": 11 } as const;

/** 128-bit vectors: second bytes after the 0xfd prefix. Loads and stores have a method each. */
export const VECTOR = { "v128.or": 0x50, "v128.xor": 0x51, "v128.any_true": 0x53 } as const;
export const VECTOR_MEMORY = { "v128.load": 0x00, "v128.store": 0x0b } as const;
export type VectorName = keyof typeof VECTOR;
