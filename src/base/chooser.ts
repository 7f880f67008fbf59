// Everything that could go one way or another in a run is asked of one chooser, so that a run can be told again.
//
// Who chooses how, and what is written down of it, is explore/chooser.ts's; here is what is asked.

/** What is chosen, with what the answer is an index of. */
export const CHOICES = {
  vcpu: "which of the vCPUs that are not halted executes next, or which step is taken on the kernel's behalf",
  slice: "for how many instructions, of the lengths that the run offers",
  interrupt: "what interrupts it first, of what the run offers",
  task: "which of the tasks in a CPU's run queue it takes",
  cpu: "on which of the CPUs that it may use a task goes on that was woken",
  balance: "from which other CPU an idle one takes a task; the last answer is from none",
  byte: "which of its versions a vCPU fetches of a byte of code that was stored to since it has serialised",
  operator: "what is done to live patches, and when",
} as const;

export type ChoiceKind = keyof typeof CHOICES;

export interface Chooser {
  /** A whole number from 0 to `count` - 1; `count` is at least 2. */
  choose(kind: ChoiceKind, count: number): number;
}

/** Always the first. */
export const FIRST: Chooser = { choose: () => 0 };
