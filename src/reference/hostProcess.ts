// The child process in which a program is followed on this processor: host.S, started, spoken to, and ended.
//
// It can do no harm: it has no memory but its own and the program's, no descriptors but its two pipes, and after
// the start no system calls but to read and write those. It dies with its input, or when it does not answer in time.

import { type ChildProcess, spawn } from "node:child_process";
import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FLAG, GPR, type RegisterName } from "../x86/register.ts";
import type { MemoryImage } from "./memoryImage.ts";
import { nativeProgram } from "./nativeProgram.ts";
import { RFLAGS, RIP, WORDS } from "./stretch.ts";

/** Where the child has its own text, and above it all that it needs: nothing a kernel or a program would choose. */
const TEXT = 0x5f00_0000_0000n;
const SOURCE = "src/reference/host.S";
const FIRST_MAPPING = 16;
const STEPS = [
  "",
  "set its signal stack",
  "set its signal handlers",
  "set the fs and gs bases",
  "give up system calls",
];
/** A step takes microseconds; whoever needs so long hangs. */
const PATIENCE_MS = 20_000;

/** Words of an answer: what the kernel saves of a thread, then the signal. */
export const ANSWER_WORDS = 24;
export const ANSWER = { error: 19, trap: 20, cr2: 22, signal: 23 } as const;

/** Where a signal frame has each word of a state (struct sigcontext). */
const FRAME: readonly RegisterName[] = [
  ...(["r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"] as const),
  ...(["rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp"] as const),
];
const FRAME_INDEX: readonly number[] = [...GPR.map((name) => FRAME.indexOf(name)), RIP, RFLAGS];

export interface Bases {
  readonly fs: bigint;
  readonly gs: bigint;
}

/** Of an image, how it is laid out. */
type Layout = Pick<MemoryImage, "runs" | "size">;

/** What stands in the way of a program. */
export interface Obstacle {
  /** The mapping that cannot be made; undefined if it is none. */
  readonly mapping?: number;
  readonly why: string;
}

export class HostProcess {
  private readonly child: ChildProcess;
  /** The program's memory. */
  private readonly file: number;
  private readonly size: number;
  private chunks: Buffer[] = [];
  private buffered = 0;
  private wake: () => void = () => {};
  private end: string | undefined;

  /** A process with the memory that `image` describes, all of it zero; or what is in its way. */
  static async start(image: Layout, bases: Bases): Promise<HostProcess | Obstacle> {
    const started = new HostProcess(await nativeProgram(SOURCE, TEXT), image.size);
    started.send(mappingsOf(image, bases));
    const answer = await started.receive(16);
    const [failed, error] = answer === undefined ? [] : [Number(answer[0]), Number(answer[1])];
    if (failed === 0) return started;
    const { lost } = started;
    started.close();
    if (failed === undefined || error === undefined) return { why: lost };
    if (failed >= FIRST_MAPPING) return { mapping: failed - FIRST_MAPPING, why: whyNotMapped(error) };
    return { why: `the child could not ${STEPS[failed]} (error ${error})` };
  }

  private constructor(program: Uint8Array, size: number) {
    const folder = mkdtempSync(join(tmpdir(), "fentrylab-host-"));
    try {
      const path = join(folder, "program");
      writeFileSync(path, program, { mode: 0o700 });
      this.file = openSync(join(folder, "memory"), "w+", 0o700);
      this.size = size;
      ftruncateSync(this.file, size);
      this.child = spawn(path, [], { env: {}, stdio: ["pipe", "pipe", "ignore", this.file] });
    } finally {
      rmSync(folder, { recursive: true });
    }
    const { child } = this;
    child.stdout!.on("data", (chunk: Buffer) => {
      this.chunks.push(chunk);
      this.buffered += chunk.length;
      this.wake();
    });
    child.stdin!.on("error", () => {}); // it is gone: `close` says why
    child.on("error", ({ message }) => this.ended(message));
    child.on("close", (status, signal) => this.ended(signal === null ? `status ${status}` : signal));
  }

  get pid(): number | undefined {
    return this.child.pid;
  }

  /** Why it answers no more. */
  get lost(): string {
    return `the child process ended (${this.end ?? "closed"})`;
  }

  send(message: BigInt64Array): void {
    const length = Buffer.alloc(8);
    length.writeUInt32LE(message.byteLength);
    this.child.stdin!.write(length);
    this.child.stdin!.write(Buffer.from(message.buffer, message.byteOffset, message.byteLength));
  }

  /** The next `size` bytes of its answers, as words; undefined if they will never come. */
  async receive(size: number): Promise<BigInt64Array | undefined> {
    if (this.buffered < size) await this.wait(size);
    if (this.buffered < size) return undefined;
    const all = this.chunks.length === 1 ? this.chunks[0]! : Buffer.concat(this.chunks);
    const words = new BigInt64Array(size / 8);
    new Uint8Array(words.buffer).set(all.subarray(0, size));
    this.chunks = [all.subarray(size)];
    this.buffered -= size;
    return words;
  }

  /** A copy of the program's memory. */
  read(): Uint8Array {
    const bytes = new Uint8Array(this.size);
    for (let done = 0; done < this.size; ) done += readSync(this.file, bytes, done, this.size - done, done);
    return bytes;
  }

  write(bytes: Uint8Array): void {
    for (let done = 0; done < this.size; ) done += writeSync(this.file, bytes, done, this.size - done, done);
  }

  close(): void {
    this.ended("closed");
    closeSync(this.file);
    this.child.kill("SIGKILL");
  }

  private ended(why: string): void {
    this.end ??= why;
    this.wake();
  }

  private wait(size: number): Promise<void> {
    return new Promise((resolve) => {
      const patience = setTimeout(() => {
        this.ended(`no answer in ${PATIENCE_MS / 1000} s`);
        this.child.kill("SIGKILL");
      }, PATIENCE_MS);
      this.wake = () => {
        if (this.buffered < size && this.end === undefined) return;
        clearTimeout(patience);
        this.wake = () => {};
        resolve();
      };
      this.wake();
    });
  }
}

/** The words of an answer as those of a state, without the flags that are there for single-stepping. */
export function stateOfAnswer(answer: BigInt64Array, words: BigInt64Array): void {
  for (let n = 0; n < WORDS; n++) words[n] = answer[FRAME_INDEX[n]!]!;
  words[RFLAGS] = words[RFLAGS]! & ~(FLAG.TF | FLAG.RF);
}

/** A state's words in the order of a signal frame. */
export function frameOf(state: BigInt64Array, frame: BigInt64Array): void {
  for (let n = 0; n < WORDS; n++) frame[FRAME_INDEX[n]!] = state[n]!;
}

function mappingsOf({ runs }: Layout, { fs, gs }: Bases): BigInt64Array {
  const mappings = runs.flatMap(({ at, offset, size, access: { write, execute } }) => [
    ...[BigInt(at), BigInt(size)],
    ...[BigInt(1 + (write ? 2 : 0) + (execute ? 4 : 0)), BigInt(offset)],
  ]);
  return BigInt64Array.of(BigInt.asIntN(64, fs), BigInt.asIntN(64, gs), ...mappings);
}

function whyNotMapped(error: number): string {
  switch (error) {
    case 1:
      return "it does not allow that (vm.mmap_min_addr, or a temporary folder that is mounted noexec)";
    case 12:
      return "no program may have so much, or so high";
    case 17:
      return "it has something of its own there";
    default:
      return `error ${error}`;
  }
}
