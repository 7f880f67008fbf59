// The tree of snapshots: each holds what differs from its parent, in both directions.
//
// A snapshot that is disposed of stays while something hangs on it: two or more children, or the present state.
// With one child it is joined with that; so there are never more than two nodes to a snapshot in use.

import type { Addr } from "../base/addr.ts";
import type { History } from "./byteHistory.ts";
import type { Chain } from "./callChain.ts";
import { type Delta, type Deltas, EMPTY_DELTA } from "./delta.ts";
import { type Change, composeChanges, NONE } from "./journal.ts";
import type { Kept } from "./kept.ts";
import type { Page } from "./memory.ts";

/** From a snapshot's parent to itself. */
export interface Difference {
  delta: Delta;
  pages: readonly Change<Addr, Page>[];
  chains: readonly Change<number, Chain>[];
  histories: readonly Change<number, History>[];
  kept: readonly Change<Kept<object>, object>[];
}

export class SnapshotNode implements Difference {
  parent: SnapshotNode | undefined;
  delta: Delta;
  pages: readonly Change<Addr, Page>[];
  chains: readonly Change<number, Chain>[];
  histories: readonly Change<number, History>[];
  kept: readonly Change<Kept<object>, object>[];
  /** Of the state, if it was ever asked for. */
  hash: bigint | undefined;
  /** Somebody may restore it. */
  inUse: boolean;
  /** Of a node's ancestors, each has a smaller one. */
  readonly depth: number;
  /** The children are a list of siblings, for each of the many nodes has few. */
  private firstChild: SnapshotNode | undefined;
  private next: SnapshotNode | undefined;
  private previous: SnapshotNode | undefined;

  constructor(
    parent: SnapshotNode | undefined,
    { delta, pages, chains, histories, kept }: Difference,
    inUse: boolean,
  ) {
    this.delta = delta;
    this.pages = pages;
    this.chains = chains;
    this.histories = histories;
    this.kept = kept;
    this.inUse = inUse;
    this.depth = parent === undefined ? 0 : parent.depth + 1;
    this.parent = parent;
    this.hash = undefined;
    this.firstChild = undefined;
    this.next = undefined;
    this.previous = undefined;
    parent?.adopt(this);
  }

  get hasChildren(): boolean {
    return this.firstChild !== undefined;
  }

  get onlyChild(): SnapshotNode | undefined {
    return this.firstChild?.next === undefined ? this.firstChild : undefined;
  }

  adopt(child: SnapshotNode): void {
    child.parent = this;
    child.next = this.firstChild;
    child.previous = undefined;
    if (this.firstChild !== undefined) this.firstChild.previous = child;
    this.firstChild = child;
  }

  leave(): void {
    const { parent, previous, next } = this;
    if (previous !== undefined) previous.next = next;
    else if (parent !== undefined) parent.firstChild = next;
    if (next !== undefined) next.previous = previous;
    this.parent = undefined;
    this.next = undefined;
    this.previous = undefined;
  }
}

export const NO_DIFFERENCE: Difference = {
  delta: EMPTY_DELTA,
  pages: NONE,
  chains: NONE,
  histories: NONE,
  kept: NONE,
};

/** The way from one node to another: up to the ancestor that they share, then down. */
export interface Path {
  readonly up: readonly SnapshotNode[];
  readonly down: readonly SnapshotNode[];
}

export function pathBetween(from: SnapshotNode, to: SnapshotNode): Path {
  const up: SnapshotNode[] = [];
  const down: SnapshotNode[] = [];
  for (let [a, b] = [from, to]; a !== b; ) {
    if (a.depth >= b.depth) {
      up.push(a);
      a = a.parent!;
    } else {
      down.push(b);
      b = b.parent!;
    }
  }
  return { up, down: down.reverse() };
}

/** Takes `node` out of the tree, and its ancestors after it, as far as nobody needs them. `current` is needed. */
export function prune(node: SnapshotNode, current: SnapshotNode, deltas: Deltas): void {
  for (let at: SnapshotNode | undefined = node; at !== undefined; ) {
    if (at.inUse || at === current) return;
    const { parent, onlyChild }: SnapshotNode = at;
    if (onlyChild !== undefined) {
      join(at, onlyChild, deltas);
      return;
    }
    if (at.hasChildren) return;
    at.leave();
    deltas.release(at.delta);
    at = parent;
  }
}

/** Removes `node`, whose only child then differs from the node's parent by both differences. */
function join(node: SnapshotNode, child: SnapshotNode, deltas: Deltas): void {
  const { parent } = node;
  child.leave();
  node.leave();
  if (parent === undefined) {
    // Nothing is left that the child could differ from.
    deltas.release(child.delta);
    Object.assign(child, NO_DIFFERENCE);
    return;
  }
  child.delta = deltas.compose(node.delta, child.delta);
  child.pages = composeChanges(node.pages, child.pages);
  child.chains = composeChanges(node.chains, child.chains);
  child.histories = composeChanges(node.histories, child.histories);
  child.kept = composeChanges(node.kept, child.kept);
  parent.adopt(child);
}
