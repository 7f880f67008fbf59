// Live patching as administrators see it (Linux kernel/livepatch/core.c, 6.1): files by their paths, with the kernel's names,
// modes, texts and errors.
//
// Nothing is kept here: what there is is asked for anew each time, so entries come and go with what they show.

import { refuse } from "../base/refuse.ts";
import type { Ftrace } from "../ftrace/ftrace.ts";
import type { Kernel } from "../kernel/kernel.ts";
import { PATCH_STATE } from "../kernel/layout.ts";
import type { Livepatch } from "./livepatch.ts";
import type { Patch, PatchObject } from "./patch.ts";
import type { Request } from "./request.ts";

export interface SysfsParts {
  readonly livepatch: Livepatch;
  readonly ftrace: Ftrace;
  readonly kernel: Kernel;
}

interface File {
  readonly mode: string;
  /** Without the newline at the end. */
  readonly read?: () => number;
  /** What it asks for, if that has to wait for its turn. */
  readonly write?: (text: string) => Request | undefined;
}

interface Directory {
  readonly entries: ReadonlyMap<string, Entry>;
}

type Entry = File | Directory;

const DIRECTORY = "drwxr-xr-x";

/** What a switch takes, by its first letter, or the first two. */
const TRUE = /^([yYtT1]|[oO][nN])/;
const FALSE = /^([nNfF0]|[oO][fF])/;

export class Sysfs {
  private readonly parts: SysfsParts;

  constructor(parts: SysfsParts) {
    this.parts = parts;
  }

  /** A file's text, with its newline. */
  read(path: string): string {
    const { read } = this.file(path);
    if (read === undefined) refuse("sysfs-write-only", { path });
    return `${read()}\n`;
  }

  /** Throws what it is refused with; where CPUs run, what is returned says it later. */
  write(path: string, text: string): Request | undefined {
    const { write } = this.file(path);
    if (write === undefined) refuse("sysfs-read-only", { path });
    return write(text.trim());
  }

  /** The names in a directory. */
  list(path: string): readonly string[] {
    const entry = this.entry(path);
    if (!isDirectory(entry)) refuse("sysfs-no-directory", { path });
    return [...entry.entries.keys()];
  }

  /** As `stat` prints it. */
  mode(path: string): string {
    const entry = this.entry(path);
    return isDirectory(entry) ? DIRECTORY : entry.mode;
  }

  exists(path: string): boolean {
    return this.find(path) !== undefined;
  }

  private file(path: string): File {
    const entry = this.entry(path);
    return isDirectory(entry) ? refuse("sysfs-directory", { path }) : entry;
  }

  private entry(path: string): Entry {
    return this.find(path) ?? refuse("sysfs-no-file", { path });
  }

  private find(path: string): Entry | undefined {
    let at: Entry | undefined = this.root();
    for (const name of path.split("/").filter((part) => part !== ""))
      at = at !== undefined && isDirectory(at) ? at.entries.get(name) : undefined;
    return at;
  }

  private root(): Directory {
    const { livepatch, ftrace, kernel } = this.parts;
    const tasks = kernel.tasks.map((task) => [
      String(task.struct.getNumber("pid")),
      directory({
        patch_state: { mode: "-r--------", read: () => PATCH_STATE[kernel.patchState(task)] },
      }),
    ]);
    const ftraceEnabled: File = {
      mode: "-rw-r--r--",
      read: () => (ftrace.enabled ? 1 : 0),
      write: (text) => {
        if (!/^-?\d+$/.test(text)) refuse("sysfs-value", { path: "/proc/sys/kernel/ftrace_enabled", text });
        ftrace.enabled = Number(text) !== 0;
        return undefined;
      },
    };
    return directory({
      sys: directory({
        kernel: directory({
          livepatch: directory(
            Object.fromEntries(livepatch.patches.map((patch) => [patch.name, this.patch(patch)])),
          ),
        }),
      }),
      proc: directory({
        ...Object.fromEntries(tasks),
        sys: directory({ kernel: directory({ ftrace_enabled: ftraceEnabled }) }),
      }),
    });
  }

  private patch(patch: Patch): Directory {
    const { livepatch } = this.parts;
    const isInTransition = () => livepatch.transition?.patch === patch;
    const path = (file: string) => `/sys/kernel/livepatch/${patch}/${file}`;
    return directory({
      enabled: {
        mode: "-rw-r--r--",
        read: () => (patch.enabled ? 1 : 0),
        write: (text) => livepatch.setEnabled(patch, switchOf(path("enabled"), text)),
      },
      transition: { mode: "-r--r--r--", read: () => (isInTransition() ? 1 : 0) },
      force: {
        mode: "--w-------",
        write: (text) => (switchOf(path("force"), text) ? livepatch.force(patch) : undefined),
      },
      ...Object.fromEntries(patch.objects.map((object) => [object.name, objectDirectory(object)])),
    });
  }
}

function objectDirectory(object: PatchObject): Directory {
  return directory({
    patched: { mode: "-r--r--r--", read: () => (object.isPatched ? 1 : 0) },
    ...Object.fromEntries(object.functions.map(({ key }) => [key, directory({})])),
  });
}

function directory(entries: Readonly<Record<string, Entry>>): Directory {
  return { entries: new Map(Object.entries(entries)) };
}

function isDirectory(entry: Entry): entry is Directory {
  return "entries" in entry;
}

function switchOf(path: string, text: string): boolean {
  if (TRUE.test(text)) return true;
  return FALSE.test(text) ? false : refuse("sysfs-value", { path, text });
}
