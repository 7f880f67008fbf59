// The library's face.

export { runAudit, runPatientsAudit } from "./audit.ts";
export { type Addr, addr, hex } from "./base/addr.ts";
export { type ChoiceKind, type Chooser, FIRST } from "./base/chooser.ts";
export { Refusal } from "./base/refuse.ts";
export { type Choices, Recorder, recorded, scripted, seeded } from "./explore/chooser.ts";
export {
  type Advance,
  type Explorable,
  type Exploration,
  type ExploreOptions,
  explore,
} from "./explore/explore.ts";
export { DEFAULT_SETTINGS, type PokeSettings, type RunSettings } from "./explore/settings.ts";
export type { ConductOptions, Conductor, ConductorOptions, RunEnd } from "./kernel/conductor.ts";
export type { Invariants, Violation } from "./kernel/invariants.ts";
export type { Kernel, KthreadOptions, UserTaskOptions } from "./kernel/kernel.ts";
export type { Task } from "./kernel/task.ts";
export { type CallOptions, type CallResult, Lab, type LabOptions, type Source } from "./lab.ts";
export type { Blocker } from "./livepatch/blocker.ts";
export type { Livepatch } from "./livepatch/livepatch.ts";
export {
  type LivepatchOptions,
  LOG_LEVELS,
  type LogLevel,
  ORDERS,
  type Order,
  PRECAUTIONS,
  WEAKENINGS,
  type Weakening,
} from "./livepatch/options.ts";
export type {
  CallbackObject,
  Callbacks,
  FunctionSpec,
  ObjectSpec,
  Patch,
  PatchObject,
  PatchSpec,
  StateSpec,
} from "./livepatch/patch.ts";
export type { Request, RequestState } from "./livepatch/request.ts";
export type { Sysfs } from "./livepatch/sysfs.ts";
export type { CallFrame, InterruptFrame, TrueFrame } from "./machine/callChain.ts";
export type { Exit, Fault } from "./machine/exit.ts";
export { Machine, type MachineOptions, type Trace } from "./machine/machine.ts";
export {
  type CodeVisibility,
  type ContestedByte,
  type FetchChooser,
  type MixedFetch,
  newest,
  oldest,
} from "./machine/staleCode.ts";
export { type TraceEvent, type TraceKinds, TraceRecord, type TraceSink } from "./machine/trace.ts";
export type { RunOptions, Vcpu } from "./machine/vcpu.ts";
export { Patients, type PatientsOptions } from "./patients.ts";
export { PokedSite, type PokeOptions } from "./poke.ts";
export { type PokeRecord, readPokeRecord, writePokeRecord } from "./pokeRecord.ts";
export { explorePoke, type PokeFacts, type PokeReplay, replayPoke } from "./pokeRun.ts";
export { type RunRecord, readRecord, writeRecord } from "./record.ts";
export { type HostReference, openHost } from "./reference/host.ts";
export {
  type Difference,
  type LockstepOptions,
  type LockstepResult,
  lockstep,
} from "./reference/lockstep.ts";
export type { Missing, Reference } from "./reference/reference.ts";
export { openUnicorn, type UnicornReference } from "./reference/unicorn.ts";
export type { AuditReport } from "./report/audit.ts";
export type { TrampolineReport } from "./report/trampoline.ts";
export { type RunFacts, Runner } from "./run.ts";
export { TrampolineChecker } from "./trampolineCheck.ts";
export { framePointerUnwinder } from "./unwind/framePointer.ts";
export { guessUnwinder } from "./unwind/guess.ts";
export { OrcWalk, orcUnwinder } from "./unwind/orcWalker.ts";
export type { Frame, Start, UnwindContext, Unwinder, Walk } from "./unwind/walk.ts";
export { Workloads } from "./workloads.ts";
