// The part of the WebAssembly JavaScript interface that is used here. TypeScript has it only in its DOM
// library, whose globals have no place in this program.

declare namespace WebAssembly {
  type ExportValue = ((...args: never[]) => unknown) | Memory | Table;

  class Module {
    constructor(bytes: Uint8Array<ArrayBuffer>);
  }

  class Instance {
    constructor(module: Module, imports?: Record<string, Record<string, ExportValue>>);
    readonly exports: Record<string, ExportValue>;
  }

  class Memory {
    constructor(limits: { initial: number; maximum?: number });
    readonly buffer: ArrayBuffer;
    grow(pages: number): number;
  }

  class Table {
    constructor(limits: { initial: number; maximum?: number; element: "anyfunc" });
    readonly length: number;
    get(index: number): ExportValue | null;
    set(index: number, value: ExportValue | null): void;
    grow(slots: number): number;
  }
}
