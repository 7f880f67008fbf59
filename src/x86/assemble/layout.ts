// From fragments to an object file: branches grown to fit, addresses fixed, fields filled or relocated.
//
// Branches start short and only grow, as in GNU as, until nothing changes. A field whose value is known gets it;
// one that the linker must fill gets a relocation, against the section for local symbols. Refuses undefined
// local labels, values too large for their field, and sums of symbols that no relocation expresses.

import { bug } from "../../base/refuse.ts";
import type { ObjectFile, ObjectSymbol, Relocation, Section } from "../object.ts";
import { absolute, type Distance, evaluate, type Value } from "./expression.ts";
import { fail, type Statement, within } from "./fault.ts";
import { fillField, type Surroundings } from "./field.ts";
import { nops } from "./nops.ts";
import type { Fixup, Fragment, SectionBuilder } from "./section.ts";
import type { SourceSymbol } from "./symbol.ts";

/** Start offset of every fragment of every section; one more entry for the section's size. */
type Offsets = Map<SectionBuilder, number[]>;

/** The object file of finished sections. `name` is the file's, for messages. */
export function layOut(
  name: string,
  sections: readonly SectionBuilder[],
  symbols: readonly SourceSymbol[],
): ObjectFile {
  for (const symbol of symbols)
    if (symbol.local && !symbol.label && !symbol.value)
      within(symbol.usedBy, () => fail(`undefined local label '${symbol.name}'`));
  const layout = new Layout(sections);
  const table = new ObjectSymbols(layout, sections, symbols);
  const done = sections.map((section) => finish(section, layout, table));
  return { name, sections: done, symbols: table.entries };
}

/** Where everything is, once relaxation has ended. */
class Layout {
  private readonly offsets: Offsets = new Map();

  constructor(sections: readonly SectionBuilder[]) {
    // Runs may depend on labels of other sections, so all sections settle together.
    for (const section of sections)
      this.offsets.set(section, new Array(section.fragments.length + 1).fill(0));
    for (let round = 0; ; round++) {
      let moved = false;
      for (const section of sections) moved = this.place(section) || moved;
      const grown = sections.map((section) => this.grow(section)).includes(true);
      if (!moved && !grown) return;
      if (round > 1000)
        within(firstOpen(sections), () => fail("sizes here depend on each other and do not settle"));
    }
  }

  start(section: SectionBuilder, fragment: number): number {
    return (
      this.offsets.get(section)?.[fragment] ?? bug(`no offset for fragment ${fragment} of ${section.name}`)
    );
  }

  size(section: SectionBuilder): number {
    return this.start(section, section.fragments.length);
  }

  offsetOf(symbol: SourceSymbol): number | null {
    return symbol.label && this.start(symbol.label.section, symbol.label.fragment) + symbol.label.offset;
  }

  readonly distance: Distance = (a, b) =>
    a.label && b.label && a.label.section === b.label.section
      ? BigInt(this.offsetOf(a)! - this.offsetOf(b)!)
      : null;

  private place(section: SectionBuilder): boolean {
    const offsets = this.offsets.get(section)!;
    let at = 0;
    let moved = false;
    section.fragments.forEach((fragment, i) => {
      moved ||= offsets[i] !== at;
      offsets[i] = at;
      at += this.sizeOf(fragment, section, at);
    });
    moved ||= offsets[section.fragments.length] !== at;
    offsets[section.fragments.length] = at;
    return moved;
  }

  private sizeOf(fragment: Fragment, section: SectionBuilder, at: number): number {
    switch (fragment.kind) {
      case "bytes":
        return fragment.bytes.length;
      case "branch":
        return fragment.near ? fragment.form.near!.length + 4 : fragment.form.short!.length + 1;
      case "align": {
        const padding = (fragment.to - (at % fragment.to)) % fragment.to;
        return padding > fragment.most ? 0 : padding;
      }
      case "run":
        return within(fragment.statement, () => {
          const count = absolute(evaluate(fragment.count, this.distance));
          return Math.max(0, Number(count)) * fragment.fill.length;
        });
      case "org":
        return within(fragment.statement, () => {
          const { number, plus, minus } = evaluate(fragment.to, this.distance);
          const inSection = plus.length === 1 && minus.length === 0 && plus[0]!.label?.section === section;
          if (!inSection && plus.length + minus.length > 0)
            return fail(".org wants a place in its own section");
          const to = Number(number) + (inSection ? this.offsetOf(plus[0]!)! : 0);
          return Math.max(0, to - at);
        });
    }
  }

  /** Turns short branches that do not reach into near ones. */
  private grow(section: SectionBuilder): boolean {
    let grown = false;
    section.fragments.forEach((fragment, i) => {
      if (fragment.kind !== "branch" || fragment.near || !fragment.form.near) return;
      const to = within(fragment.statement, () =>
        this.inSection(evaluate(fragment.target, this.distance), section),
      );
      const end = this.start(section, i) + fragment.form.short!.length + 1;
      if (to !== null && to - end >= -128 && to - end <= 127) return;
      fragment.near = true;
      grown = true;
    });
    return grown;
  }

  /** The offset in `section` that a branch goes to, or null when the linker must decide. */
  inSection(value: Value, section: SectionBuilder): number | null {
    const [symbol] = value.plus;
    if (value.plus.length !== 1 || value.minus.length > 0 || symbol!.label?.section !== section) return null;
    return symbol!.binding === "weak" ? null : this.offsetOf(symbol!)! + Number(value.number);
  }
}

function firstOpen(sections: readonly SectionBuilder[]): Statement {
  for (const section of sections)
    for (const fragment of section.fragments)
      if (fragment.kind === "run" || fragment.kind === "org") return fragment.statement;
  return bug("branches alone did not settle");
}

/** The object's symbol table: a symbol for each section, then the named ones as they were first mentioned. */
class ObjectSymbols {
  readonly entries: ObjectSymbol[];
  private readonly sections: readonly SectionBuilder[];
  private readonly indices = new Map<SourceSymbol, number>();

  constructor(layout: Layout, sections: readonly SectionBuilder[], symbols: readonly SourceSymbol[]) {
    this.sections = sections;
    this.entries = sections.map(({ name }, section) => ({
      name,
      kind: "section",
      binding: "local",
      section,
      value: 0,
      size: 0,
    }));
    for (const symbol of symbols) {
      const entry = symbol.local ? null : within(symbol.usedBy, () => this.entry(symbol, layout));
      if (!entry) continue;
      this.indices.set(symbol, this.entries.length);
      this.entries.push(entry);
    }
  }

  /** What to relocate against: the section for a local label (section symbols come first), else the symbol. */
  reference(symbol: SourceSymbol, layout: Layout): { symbol: number; offset: number } {
    if (symbol.label && symbol.binding === "local")
      return { symbol: this.sections.indexOf(symbol.label.section), offset: layout.offsetOf(symbol)! };
    return {
      symbol: this.indices.get(symbol) ?? bug(`symbol ${symbol.name} is not in the table`),
      offset: 0,
    };
  }

  private entry(symbol: SourceSymbol, layout: Layout): ObjectSymbol | null {
    const { name, kind } = symbol;
    if (!symbol.label && !symbol.value && !symbol.referenced) return null;
    const size = symbol.size
      ? within(symbol.size.statement, () =>
          Number(absolute(evaluate(symbol.size!.expression, layout.distance))),
        )
      : 0;
    if (!symbol.value) {
      const binding = symbol.label || symbol.binding === "weak" ? symbol.binding : "global";
      return {
        name,
        kind,
        binding,
        section: symbol.label && this.sections.indexOf(symbol.label.section),
        value: layout.offsetOf(symbol) ?? 0,
        size,
      };
    }
    const { number, plus, minus } = evaluate(symbol.value, layout.distance);
    if (plus.length + minus.length === 0)
      return symbol.binding === "local" ? null : fail(`'${name}' is a number; only labels can be global`);
    const target = plus[0];
    if (plus.length > 1 || minus.length > 0 || !target?.label)
      return fail(`'${name}' is set to something that has no address here`);
    return {
      name,
      kind: kind === "none" ? target.kind : kind,
      binding: symbol.binding,
      section: this.sections.indexOf(target.label.section),
      value: layout.offsetOf(target)! + Number(number),
      size,
    };
  }
}

function finish(section: SectionBuilder, layout: Layout, symbols: ObjectSymbols): Section {
  const bytes = new Uint8Array(section.flags.nobits ? 0 : layout.size(section));
  const relocations: Relocation[] = [];
  const around: Surroundings = {
    section,
    distance: layout.distance,
    offsetOf: (symbol) => layout.offsetOf(symbol) ?? bug(`no offset for ${symbol.name}`),
    reference: (symbol) => symbols.reference(symbol, layout),
  };
  const fill = (at: number, fixup: Fixup) => {
    const relocation = within(fixup.statement, () => fillField(bytes, at, fixup, around));
    if (relocation) relocations.push(relocation);
  };
  section.fragments.forEach((fragment, i) => {
    const at = layout.start(section, i);
    const size = layout.start(section, i + 1) - at;
    if (fragment.kind === "org") checkOrg(fragment, at, section, layout);
    if (section.flags.nobits) return;
    if (fragment.kind === "bytes") {
      bytes.set(fragment.bytes, at);
      for (const fixup of fragment.fixups) fill(at + fixup.offset, fixup);
    } else if (fragment.kind === "branch") {
      const { statement, target } = fragment;
      const opcode = fragment.near ? fragment.form.near! : fragment.form.short!;
      bytes.set(opcode, at);
      const size = fragment.near ? 4 : 1;
      fill(at + opcode.length, {
        offset: 0,
        size,
        toEnd: size,
        type: "R_X86_64_PLT32",
        expression: target,
        statement,
      });
    } else if (fragment.kind === "align" && fragment.fill === "nops") bytes.set(nops(size), at);
    else {
      const pattern = fragment.kind === "org" ? [fragment.fill] : (fragment.fill as readonly number[]);
      for (let k = 0; k < size; k++) bytes[at + k] = pattern[k % pattern.length]!;
    }
  });
  const { write, execute, alloc } = section.flags;
  return {
    name: section.name,
    write,
    execute,
    alloc,
    align: section.align,
    size: layout.size(section),
    bytes,
    relocations,
  };
}

function checkOrg(
  fragment: Extract<Fragment, { kind: "org" }>,
  at: number,
  section: SectionBuilder,
  layout: Layout,
): void {
  within(fragment.statement, () => {
    const { number, plus } = evaluate(fragment.to, layout.distance);
    const to = Number(number) + (plus[0] ? layout.offsetOf(plus[0])! : 0);
    if (to < at) fail(`.org goes back, from ${at} to ${to} in ${section.name}`);
  });
}
