// What this program says no to: one catalogue, one sentence each, with the next step.
//
// A refusal is bad input, the caller's to mend: the command line prints its one line and exits 2.
// `bug` is ours. What guest code does wrong is neither: it is a value (see machine/exit.ts).

export const REFUSALS = {
  assembly: "{at}: {problem}, in '{text}'; mend that line",
  usage: "{problem}; `{help}` shows what it takes",
  "no-command": "no such command; `fentrylab demo` is the guided tour, `fentrylab --help` lists them all",
  "not-a-number": "{option} wants a whole number from {least} up, not '{text}'; write it in decimal digits",
  "too-large": "{option} takes {most} at most, not '{text}'; give less",
  "not-a-word": "'{text}' is no 64-bit integer; write it in decimal or, with 0x, in hexadecimal",
  "unknown-bench": "there is no benchmark '{what}'; there are: {known}",
  "already-mapped": "guest memory at {address} is mapped already; unmap it first or choose another address",
  "map-range": "{size} bytes from {address} on leave the canonical addresses; map less, or lower",
  "module-loaded": "module '{name}' is loaded already; remove it first",
  "module-offered":
    "a module '{name}' is {state} already; take that away first (`modules.remove`, then `modules.withdraw`), or give this one another name",
  "no-module": "no module '{name}' is offered; offer it first",
  "unknown-mode": "there is no mode '{mode}'; there are: {known}",
  "unknown-unwinder":
    "there is no unwinder '{name}'; there are: {known}, or give a .js file whose default export is one",
  "unwinder-import": "{path} is no unwinder: {why}; its default export must be a walk function",
  "call-without-image": "--call names a function of an image; give that with --image FILE",
  "patients-and-image": "--patients and --image are two audits; run one after the other",
  "audit-astray": "{what} went where none should: {where}; call it by itself first (`fentrylab call`)",
  "trampoline-source": "{file} is no assembly source; give a .S file in GNU syntax",
  "trampoline-missing":
    "{file} has no global function in .text; begin it with `untraced NAME` of macros.inc, or with .globl and .type",
  "trampoline-several":
    "{file} has several global functions, {names}; call the one that sites are to call `trampoline`, or make the others local",
  "trace-limit": "a trace cannot keep {limit} events; give a whole number from 1 up",
  "trace-on": "the machine is being traced already; stop that trace first",
  vector: "{vector} is no interrupt vector; vectors are 0 to 255",
  "machine-disposed": "the machine was disposed of; keep it for as long as anything of it is used",
  "machine-too-large": "the machine needs more than {limit} GiB; map less memory",
  "no-host-memory":
    "there is no memory for another machine, or for a larger one; dispose of machines that are no longer used",
  "vcpu-count": "{count} vCPUs; a machine has 1 to {limit}",
  "cpu-count": "{count} vCPUs; the laboratory's kernel has 1 to {limit}",
  "no-cpu": "{task} may use none of the CPUs that there are; set its bits for one of them",
  "too-many-tasks": "there are {count} tasks, and no more can be; open the laboratory with a larger maxTasks",
  "script-over":
    "the script has {count} answers, and another one is asked for: {kind}; add to it, or give it a chooser for the rest",
  "script-answer":
    "answer {index} of the script is {answer}, for a choice of {count} ({kind}); answer from 0 up",
  "record-over": "the record ends before choice {index} ({kind}); it is not whole, record the run again",
  "record-differs":
    "choice {index} is {kind} of {count}, and was {then} of {of} when it was recorded; replay it with what it was recorded with",
  "fetch-choice": "choice {choice} of {count} versions of a byte; a chooser answers with an index from 0 up",
  "snapshot-foreign": "the snapshot is of another machine; restore it on the one that made it",
  "snapshot-disposed": "the snapshot was disposed of; keep it for as long as it is to be restored",
  "stack-range":
    "{low} to {high} is no new stack; give whole pages, none of them of a stack that was added before",
  unmapped: "guest memory at {address} is not mapped; map it first or check the address",
  "site-bytes": "text at {site} is {found}, expected {want}; was it rewritten already?",
  "call-range": "the site at {site} cannot reach {target} with a near call; place them within 2 GiB",
  "no-fentry":
    "{func} has no __fentry__ site; compile it with -pg -mfentry -mrecord-mcount or assemble it with `traced`",
  "site-is-off": "the site of {func} is not enabled; enable it first",
  "site-is-on": "somebody is called at the site of {func} already: {ops}; register with a filter to share it",
  "filter-no-match":
    "no function with a site fits '{pattern}' (EINVAL); `fentrylab disasm` lists what an image has",
  "ops-registered": "{ops} is registered already (EBUSY); unregister it first",
  "ops-released": "{ops} was given back (EINVAL); make another one",
  "ops-not-registered": "{ops} is not registered (EINVAL); register it first",
  "ops-without-filter":
    "{ops} would change where every function goes on (EINVAL); give it a filter with the functions that it is for",
  "ops-permanent": "{ops} must not be switched off (EBUSY); unregister it first",
  "ops-permanent-off": "{ops} must not be switched off, and ftrace is (EBUSY); switch it on first",
  "ipmodify-twice":
    "{ops} and {other} would both change where {func} goes on (EBUSY); unregister one of them",
  "direct-twice": "{ops} and {other} would both be called directly by {func} (EBUSY); unregister one of them",
  "ipmodify-direct":
    "{ops} and {other} meet at {func}, and the direct call does not allow for another way on (EBUSY); unregister one of them, or let it share",
  "no-patch": "there is no patch '{name}'; enable it first",
  "klp-known": "{patch} is enabled already (EEXIST); disable it first, or give another one another name",
  "klp-empty": "{patch} has no objects (EINVAL); say what it replaces",
  "klp-functions":
    "{patch}: object '{object}' has no list of functions (EINVAL); give it `functions`, an empty list if it only has callbacks",
  "klp-busy": "another patch is in transition, and {patch} has to wait (EBUSY); see what blocks it",
  "klp-disabled": "{patch} is not enabled (EINVAL); a patch that was disabled is enabled as a new one",
  "klp-not-on-top": "{patch} lies below {top} (EBUSY); disable that first",
  "klp-no-transition": "{patch} is in no transition (EINVAL); there is nothing to turn round or to force",
  "klp-no-symbol": "{patch}: symbol '{func}' not found in symbol table of {object} (EINVAL); {hint}",
  "klp-no-position":
    "{patch}: symbol position {sympos} for symbol '{func}' in object '{object}' not found, of {count} (EINVAL); count from 1, by address",
  "klp-ambiguous":
    "{patch}: unresolvable ambiguity for symbol '{func}' in object '{object}', of which {count} have that name (EINVAL); say which by sympos",
  "klp-symbol-name":
    "{place} refers to '{symbol}', which is no name of a livepatch symbol (EINVAL); call it .klp.sym.OBJECT.NAME,POSITION",
  "klp-symbol-object":
    "{place}: invalid access to vmlinux symbol '{symbol}' from livepatch relocations of module '{object}' (EINVAL); put it into .klp.rela.vmlinux, or use an ordinary relocation",
  "klp-symbol-early":
    "{place}: '{symbol}' of object '{object}' is not there when .klp.rela.vmlinux is applied (EINVAL); put it into .klp.rela.{object}",
  "klp-unresolved":
    "{patch}: {place} refers to '{symbol}' of object '{object}', which the patch does not have, and nothing would ever resolve it (EINVAL); give the patch that object",
  "klp-replacement-module":
    "{patch}: '{replacement}' is to replace '{func}', and no module '{patch}' is loaded that could have it (ENOENT); load that first (`lab.patch` does), or give an address",
  "klp-replacement-name":
    "{patch}: '{replacement}' is to replace '{func}', and module '{patch}' has no function of that name (ENOENT); {hint}",
  "klp-replacement-kind":
    "{patch}: the replacement of '{func}' in object '{object}' is neither an address nor a name (EINVAL); give `symbol.address`, or what it is called in module '{patch}'",
  "klp-replacement":
    "{patch}: the replacement of '{func}' in object '{object}' is no function that anything loaded has (ENOENT); load its module first",
  "klp-no-site":
    "{patch}: '{func}' in object '{object}' has no __fentry__ site (EINVAL); compile it with -pg -mfentry -mrecord-mcount, or patch its callers",
  "klp-too-short":
    "{patch}: '{func}' in object '{object}' has {size} bytes, of which a call site takes {least} (EINVAL); check its size in the symbol table, or patch its callers",
  "klp-no-object":
    "{patch}: object '{object}' is neither loaded nor offered (ENOENT); check the name, or offer that module first",
  "klp-states":
    "{patch} does not know state {id} as {other} has it (EINVAL); give it that state, in no older version",
  "klp-stuck":
    "{patch}: the call site of '{func}' cannot be rewritten (EINVAL), and nothing is changed; the log says what was found there",
  "klp-name":
    "'{patch}' is no name of a patch (EINVAL), which is a directory's in sysfs; use letters, digits, - and _",
  "klp-object-twice": "{patch}: object '{object}' is there twice (EINVAL); put all its functions together",
  "klp-twice": "{patch}: '{func}' of object '{object}' is replaced twice (EINVAL); give one replacement",
  "klp-itself":
    "{patch}: '{func}' of object '{object}' is to replace itself (EINVAL); give it another function",
  "klp-sympos":
    "{patch}: '{func}' of object '{object}' has symbol position {sympos} (EINVAL); count from 1, by address, or give 0 where there is one",
  "klp-option": "{option} cannot be {value} in live patching's options; {advice}",
  "klp-not-patched": "{patch}: object '{object}' could not be patched (EINVAL); the log says which call site",
  "klp-callback":
    "{patch}: the pre-patch callback of object '{object}' has refused ({error}); see what it looks for, and the log",
  "klp-answer":
    "{patch}: the pre-patch callback of object '{object}' has answered {answer} (EINVAL); it has to be 0, or the number of an error",
  "klp-thrown":
    "{patch}: the pre-patch callback of object '{object}' has thrown (EINVAL): {what}; mend it, or have it answer the number of an error",
  "klp-already": "{patch} is {state} already (EINVAL); write the other value",
  "sysfs-no-file": "{path} is not there (ENOENT); list the directory above it",
  "sysfs-directory": "{path} is a directory (EISDIR); read a file in it",
  "sysfs-no-directory": "{path} is no directory (ENOTDIR); read it",
  "sysfs-read-only": "{path} cannot be written (EACCES); it only tells",
  "sysfs-write-only": "{path} cannot be read (EACCES); it only takes",
  "sysfs-value": "{path} does not take '{text}' (EINVAL); write 0 or 1",
  "module-refused":
    "module '{name}' was refused, as a live patch cannot be applied to it ({error}); see the log",
  "module-going": "module '{name}' is going (ENODEV); wait until it is gone, and load it again",
  "module-not-unloaded": "module '{name}' is loaded (EBUSY); remove it first",
  "module-not-loaded": "module '{name}' is not loaded; insert it first",
  "module-in-use": "module '{name}' is in use (EAGAIN); what needs it has to go first",
  "site-without-function":
    "{image} records a call site at {site} that is in no function; build its objects again",
  "too-many-arguments": "{count} arguments; leave some out, a call takes at most {limit}, in registers",
  unwritable: "{file} cannot be written ({why}); choose another place",
  "record-file": "{file} is no record of a run: {what}; make one with `fentrylab run --record FILE`",
  "poke-record": "{file} is no record of a poke: {what}; make one with `fentrylab poke --record FILE`",
  "without-patches": "{option} is about what --patches does; give both",
  "replay-alone": "--replay has all of a run from its file; leave out {option}",
  "unknown-choice": "there is no {what} '{name}'; there are: {known}",
  "record-origin":
    "{file} is of another kernel: its machine began as {recorded}, this one as {now}; record the run again with this one",
  unreadable: "{file} cannot be read ({why}); check the path",
  "call-failed": "the call did not return: {what}; {advice}",
  "elf-kind": "{file} is {what}, not an x86-64 ELF relocatable object; make one with gcc -c",
  "elf-truncated":
    "{file}: {what} reaches byte {end} of a file of {length}; it is truncated or corrupt, build it again",
  "elf-malformed": "{file}: {what}; build the object again with gcc or GNU as",
  "elf-rel":
    "{file}: section {section} holds relocations without addends; x86-64 objects use SHT_RELA, build it again with gcc",
  "elf-common": "{file}: symbol '{symbol}' is COMMON, without a place; compile with -fno-common",
  "elf-relocation":
    "{file}: relocation type {type} at {place} is not one of kernel code (`readelf -r` names it); compile with -fno-pic -mcmodel=kernel",
  "section-flags": "{object}: section {section} is {what}; give it one purpose in the source",
  "image-too-large":
    "section {section} of {object} ends beyond the {limit} bytes there are from {text} on; make it smaller or link fewer objects",
  "duplicate-symbol":
    "'{symbol}' is defined in {first} and again in {second}; make one of them static or weak, or leave it out",
  "undefined-symbol":
    "{place} refers to '{symbol}', which nothing loaded defines (ENOENT); load what does first (--with FILE), link it in, or give its address through externals",
  "relocation-overflow":
    "{place}: '{symbol}' at {target} does not fit {type} at {at}; place both within 2 GiB or compile with -mcmodel=kernel",
  "call-site":
    "{image}: entry {index} of __mcount_loc is {value}, which is no address; build its objects again",
  "orc-malformed": "{name}: {what}; write its ORC anew with `objtool --orc`, or leave it out",
  "unwind-hint": "{name}: the unwind hint at {at} {what}; mend it in the source",
  "code-overlap":
    "code of {name} from {start} to {end} would overlap {other} at {at}; place or remove one of them first",
  "no-functions":
    "{file} has no functions; check that it is the right file, and that its code has labels in .text",
  "not-code": "'{symbol}' of {image} at {at} is data; name a function",
  "unknown-symbol": "{image} has no symbol '{symbol}'; {hint}",
  "unknown-reference": "there is no reference '{name}'; there are: {known}",
  "reference-missing": "{name} cannot be asked here: {why}; choose another reference (--against)",
  "reference-lost": "the reference went no further: {why}; try again, or choose another (--against)",
  "host-half":
    "{address} is in the kernel's half, where no program of this host can have memory; link and load it below",
  "host-memory": "this host cannot have guest memory{where}: {why}; load it elsewhere",
  "ambiguous-symbol":
    "{count} objects have a local symbol '{symbol}': {objects}; say which one by its address",
} as const;

export type RefusalCode = keyof typeof REFUSALS;

type Names<S extends string> = S extends `${string}{${infer N}}${infer Rest}` ? N | Names<Rest> : never;
export type RefusalParams<C extends RefusalCode> = { [N in Names<(typeof REFUSALS)[C]>]: string | number };

/** Bad input: `code` names the catalogue entry, `message` is its one line, filled in. */
export class Refusal extends Error {
  override readonly name = "Refusal";
  readonly code: RefusalCode;
  /** The error's name in the kernel, as EBUSY, where it has one. */
  readonly errno: string | undefined;

  constructor(code: RefusalCode, message: string, errno: string | undefined) {
    super(message);
    this.code = code;
    this.errno = errno;
  }
}

/** Where a sentence of the catalogue has the kernel's error. */
const ERRNO = /\((E[A-Z]+|\{error\})\)/;

/** Throws the refusal `code` with its sentence filled in from `params`. */
export function refuse<C extends RefusalCode>(code: C, params: RefusalParams<C>): never {
  const values: Record<string, string | number> = params;
  const fill = (text: string) =>
    text.replace(/\{(\w+)\}/g, (_, name: string) => String(values[name]).replace(/\s*\n\s*/g, " "));
  const errno = ERRNO.exec(REFUSALS[code])?.[1];
  throw new Refusal(code, fill(REFUSALS[code]), errno && fill(errno));
}

/** A broken promise of our own code: never the input's fault. */
export function bug(what: string): never {
  throw new Error(`fentrylab bug: ${what}`);
}
