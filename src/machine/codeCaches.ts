// What a vCPU's trunk finds by rip: regions and the interpreter in the jump cache, decoded instructions in the step cache;
// apart for the kernel and for user code, because what one may execute the other may not.

import type { Addr } from "../base/addr.ts";
import { BANK_SHIFT, cacheIndex, EMPTY_RIP, STATE, USER_BANK } from "../x86/state.ts";
import type { Host, HostAddress } from "./host.ts";
import type { Region, Regions } from "./regions.ts";
import { SLOT } from "./trunk.ts";

/** How often code is interpreted from a jump target before it is compiled. */
const HOT_AFTER = 200;
/** What one lookup counts for; and how many addresses are counted. */
const LOOKUP_HEAT = 20;
const MAX_COUNTED = 4096;
const BANKS = [0, USER_BANK];

export class CodeCaches {
  private readonly host: Host;
  private readonly regions: Regions;
  private readonly cpu: HostAddress;
  /** How often an address without compiled code was looked up. */
  private readonly lookups = new Map<Addr, number>();

  constructor(host: Host, regions: Regions, cpu: HostAddress) {
    this.host = host;
    this.regions = regions;
    this.cpu = cpu;
    this.flush();
  }

  flush(): void {
    // No instruction has the address that a repeated byte makes.
    for (const bank of BANKS)
      this.host.u8.fill(1, this.cpu + bank + STATE.jumpCache, this.cpu + bank + STATE.bankEnd);
  }

  /** Makes the trunk find something at `rip`: a region, or the interpreter, which counts how often. */
  lookUp(rip: Addr): void {
    const found = this.regions.find(rip, this.bank !== 0);
    if (found !== undefined) {
      this.setCache(STATE.jumpCache, rip, found.region.slot, found.entry);
      return;
    }
    // Two hot addresses that share a cache entry evict each other's count: what is looked up often is hot too.
    const lookups = this.lookups.get(rip) ?? 0;
    if (this.lookups.size >= MAX_COUNTED) this.lookups.clear();
    this.lookups.set(rip, lookups + 1);
    this.setCache(STATE.jumpCache, rip, SLOT.interpreter, Math.max(0, HOT_AFTER - LOOKUP_HEAT * lookups));
  }

  /** Makes a region of the code at `rip`, if that can be, for the kernel or user code; see `Regions.compile` for `went`. */
  compile(rip: Addr, went: ReadonlyMap<Addr, Addr>, user: boolean): void {
    const bank = user ? USER_BANK : 0;
    const made = this.regions.find(rip, user) ?? this.regions.compile(rip, went, user);
    if (made === undefined) {
      this.setCache(STATE.jumpCache, rip, SLOT.interpreter, 2 ** 31 - 1, bank);
      return;
    }
    // All its blocks: a return inside the region finds its way by the jump cache.
    made.region.blocks.forEach(({ ip }, entry) => {
      this.setCache(STATE.jumpCache, ip, made.region.slot, entry, bank);
    });
    this.setCache(STATE.jumpCache, rip, made.region.slot, made.entry, bank);
  }

  /** The decoded instruction at `rip`. */
  setStep(rip: Addr, record: HostAddress): void {
    this.setCache(STATE.stepCache, rip, record, 0);
  }

  /** The bank of the level that the vCPU is at. */
  private get bank(): number {
    return this.host.i32[(this.cpu + STATE.cpl) >> 2]! << BANK_SHIFT;
  }

  private setCache(cache: number, rip: Addr, first: number, second: number, bank = this.bank): void {
    const { host } = this;
    const entry = this.cpu + bank + cache + 16 * cacheIndex(rip);
    host.setNumber(entry, rip);
    host.i32[(entry + 8) >> 2] = first;
    host.i32[(entry + 12) >> 2] = second;
  }

  /** Drops what both caches hold for `rip`. */
  forgetAddress(rip: Addr): void {
    for (const bank of BANKS) {
      for (const cache of [STATE.jumpCache, STATE.stepCache]) {
        const entry = this.cpu + bank + cache + 16 * cacheIndex(rip);
        if (this.host.getNumber(entry) === rip) this.host.i64[entry >> 3] = EMPTY_RIP;
      }
    }
  }

  /** Drops the jump-cache entries that lead into `region`. */
  forgetRegion(region: Region): void {
    const { host } = this;
    for (const bank of BANKS) {
      for (const { ip } of region.blocks) {
        const entry = this.cpu + bank + STATE.jumpCache + 16 * cacheIndex(ip);
        if (host.i32[(entry + 8) >> 2] === region.slot) host.i64[entry >> 3] = EMPTY_RIP;
      }
    }
  }
}
