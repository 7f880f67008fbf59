// Bringing text to what is wanted of it: whoever is new is linked for the list function, sites are rewritten, who has gone is
// unlinked, and what was theirs is freed once nobody can be in it.
//
// Each request is a stretch of steps of its own, and looks at what is wanted when its turn comes. Where a site cannot be
// rewritten, the request that is about it is undone; those that are not leave that site out.

import { type Addr, hex } from "../base/addr.ts";
import { hexBytes, sameBytes } from "../base/bytes.ts";
import { refuse } from "../base/refuse.ts";
import { type Agenda, act, type Step } from "../machine/agenda.ts";
import type { Kept } from "../machine/kept.ts";
import type { FtraceOps } from "./ops.ts";
import type { OpsList } from "./opsList.ts";
import type { Reclaimer } from "./reclaim.ts";
import { bytesOf, type FtraceRecord, type Registry, type Target } from "./record.ts";
import type { PokeFailure, TextPoke, TextPoker } from "./textPoke.ts";

/** What is done about sites is done by this strand of the agenda. */
export const FTRACE_STRAND = "ftrace";

export interface ReconcilerParts {
  readonly registry: Kept<Registry>;
  readonly agenda: Agenda;
  readonly poker: TextPoker;
  readonly list: OpsList;
  readonly reclaimer: Reclaimer;
  /** What a site's bytes are to be. */
  readonly wanted: (record: FtraceRecord) => Target;
  /** A site could not be made `to`. */
  readonly report: (record: FtraceRecord, failure: PokeFailure, to: Target) => void;
}

/** Somebody who has changed what is wanted. */
interface Request {
  /** Whether it is about the site at `ip`. */
  readonly isAbout: (ip: Addr) => boolean;
  /** Has what was wanted before wanted again. */
  readonly undo: () => void;
  readonly failed: (failure: PokeFailure) => void;
}

interface Change {
  readonly record: FtraceRecord;
  readonly to: Target;
  readonly poke: TextPoke;
}

export class Reconciler {
  private readonly parts: ReconcilerParts;

  constructor(parts: ReconcilerParts) {
    this.parts = parts;
  }

  private get registry(): Registry {
    return this.parts.registry.value;
  }

  /** Brings about what is wanted, as it was changed at the sites of `ops`. If one of those cannot be rewritten: `undo`, and refused. */
  bringAbout(ops: FtraceOps | "all", undo: () => void): void {
    const sites = ops === "all" ? undefined : ops.state.value.sites;
    const failures: PokeFailure[] = [];
    const request: Request = {
      isAbout: (ip) =>
        sites === undefined || sites.has(ip) || (ops !== "all" && ops.state.value.sites.has(ip)),
      undo,
      failed: (failure) => failures.push(failure),
    };
    this.parts.agenda.add(FTRACE_STRAND, this.steps(request));
    // Where everybody runs its turn comes later, and the kernel's log says what has come of it.
    const [failure] = failures;
    if (failure === undefined) return;
    const [found, want] = [hexBytes(failure.found), hexBytes(failure.expected)];
    refuse("site-bytes", { site: hex(failure.ip), found, want });
  }

  /** The same where nobody has asked: sites have come. One that cannot be rewritten is left alone from then on. */
  follow(): void {
    this.parts.agenda.add(FTRACE_STRAND, this.steps());
  }

  /** Whether all that follows from the ops' being registered, or not, has come about. */
  isDone(ops: FtraceOps): boolean {
    if (this.isLinked(ops) !== ops.isRegistered) return false;
    const { sites } = ops.state.value;
    // What is being written may not be wanted any more.
    if ([...this.registry.poked].some((ip) => sites.has(ip))) return false;
    if (this.isLedTo(ops) && !ops.isRegistered) return false;
    return this.changesAt(sites).length === 0;
  }

  isLinked(ops: FtraceOps): boolean {
    return this.registry.linked.includes(ops);
  }

  private steps(request?: Request, except: ReadonlySet<Addr> = new Set()): readonly Step[] {
    const rewrite: Step = {
      what: "rewrite sites",
      run: () => {
        const changes = this.changes().filter(({ record }) => !except.has(record.ip));
        this.set({ poked: new Set(changes.map(({ record }) => record.ip)) });
        return this.parts.poker.steps(
          changes.map(({ poke }) => poke),
          (failure) => {
            this.set({ poked: new Set() });
            if (failure !== undefined) return this.failing(failure, changes, request, except);
            this.note(changes);
            return [this.retire];
          },
        );
      },
    };
    return [this.link, rewrite];
  }

  private failing(
    failure: PokeFailure,
    changes: readonly Change[],
    request: Request | undefined,
    except: ReadonlySet<Addr>,
  ): readonly Step[] {
    const { ip } = failure;
    if (request !== undefined && !request.isAbout(ip)) return this.steps(request, new Set([...except, ip]));
    const change = changes.find(({ record }) => record.ip === ip);
    if (change !== undefined) this.parts.report(change.record, failure, change.to);
    if (request === undefined) {
      this.set({ broken: new Set([...this.registry.broken, ip]) });
      return this.steps();
    }
    request.failed(failure);
    request.undo();
    // What is wanted now is what was before: there may be ops to link again, or to unlink.
    return [this.link, this.retire];
  }

  /** Has the list function find whoever is registered, before any site leads to it. */
  private readonly link: Step = {
    what: "link ops",
    ready: () => this.registry.ops.every((ops) => this.isLinked(ops) || this.parts.list.isFree(ops)),
    run: () => {
      const { linked, ops } = this.registry;
      this.set({ linked: this.parts.list.link(linked, ops) });
      return undefined;
    },
  };

  /**
   * Unlinks who is registered no more, and has what was theirs freed. Not of those whom a site leads to yet: they were
   * unregistered since the sites were looked at, and have their turn.
   */
  private readonly retire: Step = act("unlink ops", () => {
    const { list, reclaimer } = this.parts;
    const { linked, known } = this.registry;
    for (const ops of linked)
      if (!ops.isRegistered) this.set({ linked: list.unlink(this.registry.linked, ops) });
    for (const ops of known.values()) if (!ops.isRegistered && !this.isLedTo(ops)) reclaimer.retire(ops);
  });

  /** Whether text at any site is the ops' own. */
  private isLedTo(ops: FtraceOps): boolean {
    return [...this.registry.text.values()].some((target) => target.kind !== "nop" && target.by === ops);
  }

  /** Sites whose text is not what is wanted, by address. */
  private changes(): readonly Change[] {
    const { text, ops } = this.registry;
    const concerned = new Set([...text.keys(), ...ops.flatMap(({ state }) => [...state.value.sites])]);
    return this.changesAt([...concerned].sort((a, b) => a - b));
  }

  private changesAt(sites: Iterable<Addr>): readonly Change[] {
    const found: Change[] = [];
    for (const ip of sites) {
      const record = this.registry.records.get(ip);
      if (record === undefined || record.isBroken) continue;
      const [from, to] = [record.target, this.parts.wanted(record)];
      const [old, bytes] = [bytesOf(ip, from), bytesOf(ip, to)];
      if (sameBytes(old, bytes)) continue;
      found.push({ record, to, poke: { ip, old, new: bytes, isThere: () => this.isThere(record) } });
    }
    return found;
  }

  /** Its module may have gone meanwhile, and may have come again: with another record, and text as it was made. */
  private isThere(record: FtraceRecord): boolean {
    return this.registry.records.get(record.ip) === record;
  }

  private note(changes: readonly Change[]): void {
    const text = new Map(this.registry.text);
    for (const { record, to } of changes) {
      if (!this.isThere(record)) continue;
      if (to.kind === "nop") text.delete(record.ip);
      else text.set(record.ip, to);
    }
    this.set({ text });
  }

  private set(to: Partial<Registry>): void {
    const { registry } = this.parts;
    registry.value = { ...registry.value, ...to };
  }
}
