// What each vCPU may still see of code that others have stored to since it last serialised.
//
// Kept apart for each stretch of bytes that an instruction can lie in, so that stores far from one another have
// nothing to do with one another. An instruction that begins in the last bytes of a frame may go on in any other:
// the ends and beginnings of all frames are one such stretch.

import { PAGE_SIZE } from "../base/addr.ts";
import { MAX_LENGTH } from "../x86/decode.ts";
import {
  afterOwnStore,
  afterStore,
  type ByteStore,
  type History,
  hostAddress,
  withoutFrame,
} from "./byteHistory.ts";
import type { HostAddress } from "./host.ts";
import type { Journal } from "./journal.ts";
import type { CodeStore, CodeStoreListener, Frame } from "./memory.ts";
import type { StaleUntilSerialised } from "./staleCode.ts";

/** Instructions begin in a cell of this size; the bytes of those that begin in one are a stretch. */
const CELL = 16;
const LAST_CELL = PAGE_SIZE - CELL;
/** How far the stretch of a cell reaches into the next. */
const REACH = MAX_LENGTH - 1;
/** Stretches are known by the host address of their cell; nothing lies at zero. */
const EDGES = 0;
/** More than a host address. */
const KEYS_PER_VCPU = 2 ** 32;

/** What a vCPU may keep: enough for some two thousand call sites. A processor does not keep old bytes for ever either. */
export const MAX_LOG_BYTES = 2 ** 18;
/** About what an instant occupies besides its bytes. */
const INSTANT_BYTES = 16;

/** Of one vCPU. */
export class FetchLog {
  readonly index: number;
  readonly cpu: HostAddress;
  readonly options: StaleUntilSerialised;
  /** What stretches had before they were changed; absent until the first snapshot. */
  journal: Journal<number, History> | undefined;
  /** How often it had grown too large, and the vCPU was serialised for that. */
  overflows = 0;
  private readonly changed: (isEmpty: boolean) => void;
  private readonly histories = new Map<number, History>();
  private size = 0;

  /** `cpu` is the vCPU's state; `changed` is told when the log becomes empty, or is so no more. */
  constructor(
    index: number,
    cpu: HostAddress,
    options: StaleUntilSerialised,
    changed: (isEmpty: boolean) => void,
  ) {
    this.index = index;
    this.cpu = cpu;
    this.options = options;
    this.changed = changed;
  }

  get isEmpty(): boolean {
    return this.histories.size === 0;
  }

  /** About what it occupies. */
  get bytes(): number {
    return this.size;
  }

  /** The stretches with their keys, in no particular order. */
  entries(): Iterable<[number, History]> {
    return this.histories.entries();
  }

  get(stretch: number): History | undefined {
    return this.histories.get(stretch);
  }

  set(stretch: number, history: History | undefined): void {
    const { histories } = this;
    const before = histories.get(stretch);
    if (before === history) return;
    const wasEmpty = this.isEmpty;
    this.journal?.note(this.index * KEYS_PER_VCPU + stretch, before);
    this.size += sizeOf(history) - sizeOf(before);
    if (history === undefined) histories.delete(stretch);
    else histories.set(stretch, history);
    if (this.isEmpty !== wasEmpty) this.changed(this.isEmpty);
  }

  /** From now on only later stores may be missed. */
  clear(): void {
    for (const stretch of [...this.histories.keys()]) this.set(stretch, undefined);
  }
}

/** Of all vCPUs of a machine. */
export class FetchLogs implements CodeStoreListener {
  readonly options: StaleUntilSerialised;
  private readonly logs: FetchLog[] = [];

  constructor(options: StaleUntilSerialised) {
    this.options = options;
  }

  /** The log of the next vCPU; see `FetchLog`. */
  open(cpu: HostAddress, changed: (isEmpty: boolean) => void): FetchLog {
    const log = new FetchLog(this.logs.length, cpu, this.options, changed);
    this.logs.push(log);
    return log;
  }

  storing(parts: readonly CodeStore[], by: HostAddress | undefined): void {
    for (const [stretch, { byPlace, executable }] of byStretch(parts)) {
      const stores = [...byPlace.values()];
      const changes = stores.filter(({ before, after }) => before !== after);
      // vCPUs that have seen the same share the same.
      const made = new Map<History | undefined, History>();
      for (const log of this.logs) {
        const before = log.get(stretch);
        if (log.cpu === by) {
          if (before !== undefined) log.set(stretch, afterOwnStore(before, stores));
        } else if (changes.length > 0 && (executable || before !== undefined)) {
          const now = made.get(before) ?? afterStore(before, changes);
          made.set(before, now);
          log.set(stretch, now);
        }
        if (log.bytes <= MAX_LOG_BYTES) continue;
        log.overflows++;
        log.clear();
      }
    }
  }

  freed(frame: Frame): void {
    for (const log of this.logs)
      for (const [stretch, history] of [...log.entries()])
        if (history.places.some((place) => place.frame === frame))
          log.set(stretch, withoutFrame(history, frame));
  }

  // ---- For snapshots: all logs in one, by the keys that their journal has.

  set journal(journal: Journal<number, History>) {
    for (const log of this.logs) log.journal = journal;
  }

  get(key: number): History | undefined {
    return this.logs[Math.floor(key / KEYS_PER_VCPU)]!.get(key % KEYS_PER_VCPU);
  }

  set(key: number, history: History | undefined): void {
    this.logs[Math.floor(key / KEYS_PER_VCPU)]!.set(key % KEYS_PER_VCPU, history);
  }
}

/** The stretch that holds whatever instruction begins at an offset of a frame. */
export function stretchOf(frame: Frame, offset: number): number {
  const cell = offset - (offset % CELL);
  return cell === LAST_CELL ? EDGES : frame.at + cell;
}

interface StretchStores {
  readonly byPlace: Map<HostAddress, ByteStore>;
  /** Some of them can be executed at present. */
  executable: boolean;
}

/** A store, byte by byte, for each stretch that it touches. */
function byStretch(parts: readonly CodeStore[]): Map<number, StretchStores> {
  const found = new Map<number, StretchStores>();
  for (const { frame, offset, before, after, executable } of parts) {
    for (let n = 0; n < before.length; n++) {
      const store = { frame, offset: offset + n, before: before[n]!, after: after[n]! };
      for (const stretch of stretchesWith(frame, offset + n)) {
        const entry = found.get(stretch) ?? { byPlace: new Map(), executable: false };
        found.set(stretch, entry);
        entry.byPlace.set(hostAddress(store), store);
        entry.executable ||= executable;
      }
    }
  }
  return found;
}

/** The stretches that a byte is in. */
function stretchesWith(frame: Frame, offset: number): number[] {
  const cell = offset - (offset % CELL);
  const stretches = [stretchOf(frame, offset)];
  if (offset - cell < REACH) stretches.push(cell === 0 ? EDGES : frame.at + cell - CELL);
  return stretches;
}

function sizeOf(history: History | undefined): number {
  return history === undefined ? 0 : history.instants.length * (history.places.length + INSTANT_BYTES);
}
