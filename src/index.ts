// The library's face.

export { type Addr, addr, hex } from "./base/addr.ts";
export { Refusal } from "./base/refuse.ts";
export { type CallOptions, type CallResult, Lab, type LabOptions } from "./lab.ts";
export type { Exit, Fault } from "./machine/exit.ts";
export { Machine, type MachineOptions } from "./machine/machine.ts";
export type { RunOptions, Vcpu } from "./machine/vcpu.ts";
