// A live patch: objects (the kernel or a module), and in each the functions that it replaces.

import type { Addr } from "../base/addr.ts";
import type { Refusal } from "../base/refuse.ts";
import type { Image } from "../image/image.ts";
import { type Keeper, Kept } from "../machine/kept.ts";
import type { Blocker } from "./blocker.ts";
import type { KlpFunc } from "./klpFunc.ts";

export interface FunctionSpec {
  /** Of the function that is replaced. */
  readonly name: string;
  /** Which of several functions of that name in the object, by address from 1 up; 0, the default: there is only one. */
  readonly sympos?: number;
  /** Where its replacement is; or what it is called in the module that has the patch's name. */
  readonly replacement: Addr | string;
}

/** An object of a patch, for callbacks: to look at. */
export type CallbackObject = Pick<PatchObject, "name" | "patch" | "functions" | "isPatched" | "isLoaded">;

/**
 * What is called before and behind the change of an object (Linux Documentation/livepatch/callbacks.rst). Any but 0 from `prePatch` is
 * an error number, and refuses the patch, as does whatever it throws. What one throws is thrown when all that is under way is done.
 */
export interface Callbacks {
  readonly prePatch?: (object: CallbackObject) => number;
  readonly postPatch?: (object: CallbackObject) => void;
  readonly preUnpatch?: (object: CallbackObject) => void;
  readonly postUnpatch?: (object: CallbackObject) => void;
}

export interface ObjectSpec {
  /** A module; the kernel if not given. */
  readonly name?: string;
  readonly functions: readonly FunctionSpec[];
  readonly callbacks?: Callbacks;
}

/** Something that a patch changes in the running system, and by which version of its knowledge of that. */
export interface StateSpec {
  readonly id: number;
  readonly version: number;
}

/** The same, with what callbacks keep of it. */
export class SystemState implements StateSpec {
  readonly id: number;
  readonly version: number;
  private readonly kept: Kept<{ readonly data: Addr | undefined }>;

  constructor(keeper: Keeper, { id, version }: StateSpec) {
    this.id = id;
    this.version = version;
    this.kept = new Kept<{ readonly data: Addr | undefined }>(keeper, { data: undefined });
  }

  /** Where guest memory has it: whose that is, callbacks have to agree upon. */
  get data(): Addr | undefined {
    return this.kept.value.data;
  }

  set data(data: Addr | undefined) {
    this.kept.value = { data };
  }
}

export interface PatchSpec {
  /** As the log and sysfs have it: the patch's module. */
  readonly name: string;
  readonly objects: readonly ObjectSpec[];
  /** It takes the place of all earlier ones. */
  readonly replace?: boolean;
  readonly states?: readonly StateSpec[];
}

/** Where a function is, while its object is loaded. */
export interface Place {
  readonly old: Addr;
  readonly oldSize: number;
  readonly new: Addr;
  readonly newSize: number;
}

export class PatchFunction {
  readonly name: string;
  readonly sympos: number;
  /** undefined: a NOP, which goes on to the original. */
  readonly replacement: Addr | undefined;
  readonly struct: KlpFunc;
  private readonly kept: Kept<{ readonly place: Place | undefined }>;

  constructor(keeper: Keeper, spec: Pick<PatchFunction, "name" | "sympos" | "replacement" | "struct">) {
    this.name = spec.name;
    this.sympos = spec.sympos;
    this.replacement = spec.replacement;
    this.struct = spec.struct;
    this.kept = new Kept<{ readonly place: Place | undefined }>(keeper, { place: undefined });
  }

  get place(): Place | undefined {
    return this.kept.value.place;
  }

  set place(place: Place | undefined) {
    this.kept.value = { place };
  }

  get isNop(): boolean {
    return this.replacement === undefined;
  }

  /** As sysfs names it. */
  get key(): string {
    return keyOf(this.name, this.sympos);
  }
}

/** Bytes of the patch's code that depend on where an object is. */
export interface Field {
  readonly at: Addr;
  readonly bytes: Uint8Array;
}

/** A function among those of its object, as sysfs names it: without a position it is the first, being the only one. */
export function keyOf(name: string, sympos: number): string {
  return `${name},${sympos === 0 ? 1 : sympos}`;
}

interface ObjectState {
  readonly functions: readonly PatchFunction[];
  /** What is loaded of it. */
  readonly image: Image | undefined;
  /** What the patch's code refers to in it, once it is loaded. */
  readonly fields: readonly Field[];
  readonly patched: boolean;
  /** Why one of its functions could not be patched. */
  readonly failure: Refusal | undefined;
  /** Its prePatch has agreed, so that postUnpatch has something to undo. */
  readonly prepared: boolean;
}

export class PatchObject {
  readonly name: string;
  readonly patch: Patch;
  readonly callbacks: Callbacks;
  /** It was added for the NOPs in it. */
  readonly isDynamic: boolean;
  readonly state: Kept<ObjectState>;

  constructor(
    keeper: Keeper,
    patch: Patch,
    name: string,
    functions: readonly PatchFunction[],
    callbacks: Callbacks | undefined,
  ) {
    this.name = name;
    this.patch = patch;
    this.callbacks = callbacks ?? {};
    this.isDynamic = callbacks === undefined;
    this.state = new Kept<ObjectState>(keeper, {
      functions,
      image: undefined,
      fields: [],
      patched: false,
      prepared: false,
      failure: undefined,
    });
  }

  get functions(): readonly PatchFunction[] {
    return this.state.value.functions;
  }

  get fields(): readonly Field[] {
    return this.state.value.fields;
  }

  get isPatched(): boolean {
    return this.state.value.patched;
  }

  get isLoaded(): boolean {
    return this.state.value.image !== undefined;
  }

  /** Whether its functions have been found in `image`. */
  isResolvedIn(image: Image): boolean {
    return this.state.value.image === image;
  }

  change(to: Partial<ObjectState>): void {
    this.state.value = { ...this.state.value, ...to };
  }
}

interface PatchFacts {
  readonly objects: readonly PatchObject[];
  readonly enabled: boolean;
  /** A transition away from it was forced: tasks may still be in its code, for ever. */
  readonly forced: boolean;
  /** Modules with its code, which are counted as needed by it. */
  readonly holds: readonly string[];
  /** Why it could not be enabled. */
  readonly refusal: Refusal | undefined;
}

export class Patch {
  readonly name: string;
  readonly replace: boolean;
  readonly states: readonly SystemState[];
  private readonly kept: Kept<PatchFacts>;

  /** Who holds its transition up, and why; nobody if it is in none. */
  readonly blockers: () => readonly Blocker[];

  constructor(
    keeper: Keeper,
    { name, replace = false, states = [] }: PatchSpec,
    blockers: () => readonly Blocker[],
  ) {
    this.blockers = blockers;
    this.name = name;
    this.replace = replace;
    this.states = states.map((state) => new SystemState(keeper, state));
    this.kept = new Kept<PatchFacts>(keeper, {
      objects: [],
      enabled: false,
      forced: false,
      holds: [],
      refusal: undefined,
    });
  }

  get objects(): readonly PatchObject[] {
    return this.kept.value.objects;
  }

  /** Functions of all its objects, NOPs included. */
  get functions(): readonly PatchFunction[] {
    return this.objects.flatMap(({ functions }) => functions);
  }

  get enabled(): boolean {
    return this.kept.value.enabled;
  }

  get forced(): boolean {
    return this.kept.value.forced;
  }

  get holds(): readonly string[] {
    return this.kept.value.holds;
  }

  state(id: number): SystemState | undefined {
    return this.states.find((state) => state.id === id);
  }

  /** Why it could not be enabled, once that is known: where CPUs run, some time after `enable`. */
  get refusal(): Refusal | undefined {
    return this.kept.value.refusal;
  }

  change(to: Partial<PatchFacts>): void {
    this.kept.value = { ...this.kept.value, ...to };
  }

  toString(): string {
    return this.name;
  }
}
