// What a vCPU may fetch, from nothing but the definition: whole copies of memory, one for each store since it serialised.

import type { Addr } from "../../src/base/addr.ts";
import { hexBytes, sameBytes } from "../../src/base/bytes.ts";
import { decode, type Instruction, MAX_LENGTH } from "../../src/x86/decode.ts";

interface View {
  /** All of text since the vCPU serialised; the last is what memory has. */
  readonly instants: readonly Uint8Array[];
  /** By byte, the number of the instant after the vCPU's own last store to it; 0 if there was none. */
  readonly own: readonly number[];
}

export type ModelState = readonly View[];

export interface ModelFetch {
  readonly bytes: Uint8Array;
  readonly instruction: Instruction | undefined;
  /** Given if it is mixed: what was there at each instant, each content once, by when it was there last. */
  readonly instants: readonly Uint8Array[] | undefined;
}

export class Model {
  views: ModelState;

  constructor(text: Uint8Array, vcpus: number) {
    const view = { instants: [text], own: Array.from(text, () => 0) };
    this.views = Array.from({ length: vcpus }, () => view);
  }

  get text(): Uint8Array {
    return this.views[0]!.instants.at(-1)!;
  }

  /** A store by vCPU `by`, or by nobody: the bytes with their places in text. */
  store(stores: readonly { readonly at: number; readonly value: number }[], by: number | undefined): void {
    const text = this.text.slice();
    for (const { at, value } of stores) text[at] = value;
    this.views = this.views.map(({ instants, own }, vcpu) => ({
      instants: [...instants, text],
      own: vcpu === by ? own.map((n, at) => (stores.some((s) => s.at === at) ? instants.length : n)) : own,
    }));
  }

  serialise(vcpu: number): void {
    const view = { instants: [this.text], own: Array.from(this.text, () => 0) };
    this.views = this.views.with(vcpu, view);
  }

  /** Values that a byte may have, by when it had them last. */
  versions(vcpu: number, at: number): number[] {
    const { instants, own } = this.views[vcpu]!;
    return byLast(instants.slice(own[at]!).map((text) => text[at]!));
  }

  /**
   * What is fetched at `ip`, whose bytes lie at the given places of text (undefined where none can be fetched), if
   * of several versions `choose` takes one. Undefined if that faults.
   */
  fetch(
    vcpu: number,
    ip: Addr,
    placeOf: (n: number) => number | undefined,
    choose: (at: number, versions: readonly number[]) => number,
  ): ModelFetch | undefined {
    const [values, places]: [number[], number[]] = [[], []];
    for (let n = 0; n < MAX_LENGTH; n++) {
      const at = placeOf(n);
      if (at === undefined) return undefined;
      const versions = this.versions(vcpu, at);
      values.push(versions.length === 1 ? versions[0]! : choose(at, versions));
      places.push(at);
      const decoded = decode(Uint8Array.from(values), ip);
      if (decoded.kind === "truncated") continue;
      const fetched = Uint8Array.from(values);
      const { instants, own } = this.views[vcpu]!;
      const first = Math.max(...places.map((place) => own[place]!));
      const seen = instants.slice(first).map((text) => Uint8Array.from(places, (place) => text[place]!));
      return {
        bytes: fetched,
        instruction: decoded.kind === "instruction" ? decoded.instruction : undefined,
        instants: seen.some((content) => sameBytes(content, fetched)) ? undefined : distinct(seen),
      };
    }
    throw new Error("an instruction of no length");
  }
}

function byLast<T>(values: readonly T[]): T[] {
  return values.filter((value, n) => !values.slice(n + 1).includes(value));
}

function distinct(contents: readonly Uint8Array[]): Uint8Array[] {
  const last = byLast(contents.map(hexBytes));
  return last.map((text) => contents.find((content) => hexBytes(content) === text)!);
}
