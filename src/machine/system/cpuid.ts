// What cpuid says: a processor of this laboratory's own, the same on every host.
//
// Feature bits are those of the instructions that are implemented (SDM vol. 2, CPUID; AMD for 8000_0001h).

export interface CpuidLeaf {
  readonly eax: number;
  readonly ebx: number;
  readonly ecx: number;
  readonly edx: number;
}

const bits = (...positions: number[]): number => positions.reduce((word, bit) => word | (1 << bit), 0) >>> 0;

/** Four bytes of text as a register holds them. */
const text = (four: string): number => new DataView(new TextEncoder().encode(four).buffer).getUint32(0, true);

const LEAVES = new Map<number, CpuidLeaf>([
  // Vendor "FentrylabCPU", in ebx, edx, ecx.
  [0x0, { eax: 7, ebx: text("Fent"), edx: text("ryla"), ecx: text("bCPU") }],
  // edx: tsc msr cx8 sep cmov clflush; ecx: cx16 movbe popcnt rdrand. ebx: clflush line of 64 bytes.
  [0x1, { eax: 0x600, ebx: 8 << 8, ecx: bits(13, 22, 23, 30), edx: bits(4, 5, 8, 11, 15, 19) }],
  // ebx: fsgsbase bmi1 smep bmi2 erms rdseed adx smap clflushopt; ecx: rdpid.
  [0x7, { eax: 0, ebx: bits(0, 3, 7, 8, 9, 18, 19, 20, 23), ecx: bits(22), edx: 0 }],
  [0x80000000, { eax: 0x80000008, ebx: 0, ecx: 0, edx: 0 }],
  // ecx: lahf lzcnt prefetchw; edx: syscall nx rdtscp long mode.
  [0x80000001, { eax: 0, ebx: 0, ecx: bits(0, 5, 8), edx: bits(11, 20, 27, 29) }],
  // 48-bit linear addresses, 46 physical.
  [0x80000008, { eax: (48 << 8) | 46, ebx: 0, ecx: 0, edx: 0 }],
]);

const NOTHING: CpuidLeaf = { eax: 0, ebx: 0, ecx: 0, edx: 0 };

/** Sub-leaves other than 0 are empty. */
export function cpuid(leaf: number, subleaf: number): CpuidLeaf {
  if (leaf === 7 && subleaf !== 0) return NOTHING;
  return LEAVES.get(leaf) ?? NOTHING;
}
