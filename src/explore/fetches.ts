// Fetches of a machine whose vCPUs may see stores to code late, as a chooser decides them.

import { type Addr, offset } from "../base/addr.ts";
import { type Chooser, FIRST } from "../base/chooser.ts";
import type { ContestedByte, StaleUntilSerialised } from "../machine/staleCode.ts";

export class Fetches implements StaleUntilSerialised {
  readonly kind = "stale-until-serialised";
  chooser: Chooser = FIRST;
  private readonly chosen = new Map<Addr, number>();

  /** The next instruction is fetched. */
  begin(): void {
    if (this.chosen.size > 0) this.chosen.clear();
  }

  readonly choose = ({ at, versions }: ContestedByte): number => {
    const choice = this.chooser.choose("byte", versions.length);
    const value = versions[choice];
    if (value !== undefined) this.chosen.set(at, value);
    return choice;
  };

  readonly mixed = () => "stop" as const;

  /** What was fetched at `ip`, where memory has `present`. */
  bytesAt(ip: Addr, present: Uint8Array): Uint8Array {
    return present.map((byte, n) => this.chosen.get(offset(ip, n)) ?? byte);
  }
}
