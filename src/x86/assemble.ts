// AT&T assembly source to an object file: the face of `assemble/`.
//
// Takes what GNU `as --64` takes of kernel assembly, no C preprocessor. Keystone encodes single instructions,
// checked; statements, symbols, sections, relaxation and relocations are ours. Refuses ("assembly") with file,
// line, text and cause; never makes bytes that decode to anything but what was written.

import { type AssembleOptions, Assembly } from "./assemble/assembly.ts";
import { InstructionEncoder } from "./assemble/encode.ts";
import { KeystoneEncoder } from "./assemble/keystone.ts";
import type { ObjectFile } from "./object.ts";

export type { AssembleOptions } from "./assemble/assembly.ts";

/** An assembler with Keystone loaded; encodings are remembered from file to file. */
export class Assembler {
  private readonly encoder: InstructionEncoder;
  private readonly keystone: KeystoneEncoder;

  constructor(keystone: KeystoneEncoder) {
    this.keystone = keystone;
    this.encoder = new InstructionEncoder(keystone);
  }

  /** False once Keystone has broken down over a statement; `loadAssembler` then starts another. */
  get alive(): boolean {
    return this.keystone.alive;
  }

  /** The object file of `text`; `name` is its path, for messages. Throws Refusal. */
  assemble(name: string, text: string, options: AssembleOptions = {}): ObjectFile {
    return new Assembly(name, this.encoder, options).run(text);
  }
}

let loaded: Promise<Assembler> | null = null;

/** The assembler, started once: some 30 ms the first time. */
export async function loadAssembler(): Promise<Assembler> {
  if (loaded && !(await loaded).alive) loaded = null;
  loaded ??= KeystoneEncoder.load().then((keystone) => new Assembler(keystone));
  return loaded;
}

/** `loadAssembler` and `Assembler.assemble` in one. */
export async function assemble(
  name: string,
  text: string,
  options: AssembleOptions = {},
): Promise<ObjectFile> {
  return (await loadAssembler()).assemble(name, text, options);
}
