// Something that was asked for, and what has come of it: where CPUs run it has its turn later.

import type { Refusal } from "../base/refuse.ts";
import { type Keeper, Kept } from "../machine/kept.ts";

export type RequestState =
  | { readonly kind: "waiting" }
  | { readonly kind: "taken" }
  | { readonly kind: "refused"; readonly refusal: Refusal };

export class Request {
  private readonly kept: Kept<RequestState>;

  constructor(keeper: Keeper) {
    this.kept = new Kept<RequestState>(keeper, { kind: "waiting" });
  }

  get state(): RequestState {
    return this.kept.value;
  }

  /** Why it cannot be, once that is known. */
  get refusal(): Refusal | undefined {
    const { state } = this;
    return state.kind === "refused" ? state.refusal : undefined;
  }

  /** Its turn has come. */
  take(): void {
    this.kept.value = { kind: "taken" };
  }

  refuse(refusal: Refusal): void {
    this.kept.value = { kind: "refused", refusal };
  }
}
